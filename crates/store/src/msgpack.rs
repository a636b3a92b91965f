//! The little msgpack that `hints.T` and `integrity.T` are made of: the old specification, in which text and bytes
//! are both "raw". Nothing is trusted to announce its own size.

/// Why bytes could not be read.
pub(crate) type Reason = &'static str;
type Result<T> = std::result::Result<T, Reason>;

const SHORT: Reason = "it ends early";
/// Deepest nesting that is passed over; Borg's own files have four levels.
const MAX_DEPTH: usize = 16;

/// Reads values one after the other.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Fails if anything is left.
    pub(crate) fn end(&self) -> Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err("it has trailing bytes")
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(SHORT)?;
        self.0 = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn unsigned(&mut self, len: usize) -> Result<u64> {
        Ok(self
            .take(len)?
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn len(&mut self, bytes: usize) -> Result<usize> {
        self.unsigned(bytes).map(|len| len as usize)
    }

    pub(crate) fn map_len(&mut self) -> Result<usize> {
        match self.byte()? {
            tag @ 0x80..=0x8f => Ok(usize::from(tag & 0x0f)),
            0xde => self.len(2),
            0xdf => self.len(4),
            _ => Err("a map is expected"),
        }
    }

    pub(crate) fn array_len(&mut self) -> Result<usize> {
        match self.byte()? {
            tag @ 0x90..=0x9f => Ok(usize::from(tag & 0x0f)),
            0xdc => self.len(2),
            0xdd => self.len(4),
            _ => Err("an array is expected"),
        }
    }

    pub(crate) fn raw(&mut self) -> Result<&'a [u8]> {
        let len = match self.byte()? {
            tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
            0xc4 | 0xd9 => self.len(1)?,
            0xc5 | 0xda => self.len(2)?,
            0xc6 | 0xdb => self.len(4)?,
            _ => return Err("bytes are expected"),
        };
        self.take(len)
    }

    pub(crate) fn int(&mut self) -> Result<i64> {
        let wide = |number: u64| i64::try_from(number).map_err(|_| "a number is too large");
        match self.byte()? {
            tag @ 0x00..=0x7f => Ok(tag.into()),
            tag @ 0xe0..=0xff => Ok((tag as i8).into()),
            0xcc => self.unsigned(1).and_then(wide),
            0xcd => self.unsigned(2).and_then(wide),
            0xce => self.unsigned(4).and_then(wide),
            0xcf => self.unsigned(8).and_then(wide),
            0xd0 => self.unsigned(1).map(|number| (number as i8).into()),
            0xd1 => self.unsigned(2).map(|number| (number as i16).into()),
            0xd2 => self.unsigned(4).map(|number| (number as i32).into()),
            0xd3 => self.unsigned(8).map(|number| number as i64),
            _ => Err("a number is expected"),
        }
    }

    /// Passes over one value of any type.
    pub(crate) fn skip(&mut self) -> Result<()> {
        self.skip_within(MAX_DEPTH)
    }

    fn skip_within(&mut self, depth: usize) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or("it is nested too deeply")?;
        let parts = match self.0.first().ok_or(SHORT)? {
            0xc0 | 0xc2 | 0xc3 => return self.take(1).map(drop),
            0xca => return self.take(5).map(drop),
            0xcb => return self.take(9).map(drop),
            0x80..=0x8f | 0xde | 0xdf => self.map_len()?.saturating_mul(2),
            0x90..=0x9f | 0xdc | 0xdd => self.array_len()?,
            0xa0..=0xbf | 0xc4..=0xc6 | 0xd9..=0xdb => return self.raw().map(drop),
            _ => return self.int().map(drop),
        };
        for _ in 0..parts {
            self.skip_within(depth)?;
        }
        Ok(())
    }
}

/// Writes values one after the other.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn tagged(&mut self, tag: u8, rest: &[u8]) {
        self.0.push(tag);
        self.0.extend_from_slice(rest);
    }

    pub(crate) fn map(&mut self, len: usize) {
        match len {
            0..=15 => self.tagged(0x80 | len as u8, &[]),
            16..=0xffff => self.tagged(0xde, &(len as u16).to_be_bytes()),
            _ => self.tagged(0xdf, &(len as u32).to_be_bytes()),
        }
    }

    pub(crate) fn array(&mut self, len: usize) {
        match len {
            0..=15 => self.tagged(0x90 | len as u8, &[]),
            16..=0xffff => self.tagged(0xdc, &(len as u16).to_be_bytes()),
            _ => self.tagged(0xdd, &(len as u32).to_be_bytes()),
        }
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        match bytes.len() {
            len @ 0..=31 => self.tagged(0xa0 | len as u8, &[]),
            len @ 32..=0xffff => self.tagged(0xda, &(len as u16).to_be_bytes()),
            len => self.tagged(0xdb, &(len as u32).to_be_bytes()),
        }
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn int(&mut self, number: i64) {
        match number {
            -0x20..=0x7f => self.tagged(number as u8, &[]),
            0x80..=0xff => self.tagged(0xcc, &[number as u8]),
            0x100..=0xffff => self.tagged(0xcd, &(number as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.tagged(0xce, &(number as u32).to_be_bytes()),
            0x1_0000_0000.. => self.tagged(0xcf, &(number as u64).to_be_bytes()),
            _ => self.tagged(0xd3, &number.to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_width_come_back() {
        let edges = [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            0x100,
            0xffff,
            0x1_0000,
            0xffff_ffff,
            0x1_0000_0000,
        ];
        let numbers = edges.iter().flat_map(|edge| [*edge, -*edge, edge - 1, edge + 1]);
        for number in numbers.chain([i64::MIN, i64::MAX, -0x20, -0x21]) {
            let mut writer = Writer::default();
            writer.int(number);
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            assert_eq!((reader.int(), reader.end()), (Ok(number), Ok(())), "{number}");
            assert_eq!(Reader::new(&bytes[..bytes.len() - 1]).int(), Err(SHORT));
        }
    }

    #[test]
    fn lengths_of_every_width_come_back() {
        for len in [0, 15, 16, 31, 32, 0xffff, 0x1_0000] {
            let mut writer = Writer::default();
            writer.map(len);
            writer.array(len);
            writer.raw(&vec![7; len]);
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            assert_eq!((reader.map_len(), reader.array_len()), (Ok(len), Ok(len)));
            assert_eq!((reader.raw().map(<[u8]>::len), reader.end()), (Ok(len), Ok(())));
        }
    }

    #[test]
    fn a_length_beyond_the_end_is_an_error_at_once() {
        assert_eq!(Reader::new(&[0xdb, 0xff, 0xff, 0xff, 0xff, 0]).raw(), Err(SHORT));
        assert_eq!(Reader::new(&[0xdf, 0xff, 0xff, 0xff, 0xff]).skip(), Err(SHORT));
    }

    #[test]
    fn deep_nesting_is_not_followed() {
        assert!(Reader::new(&[0x91; 1000]).skip().is_err());
        let mut reader = Reader::new(&[
            0x82, 0xa1, b'a', 0xc0, 1, 0x92, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0xc3,
        ]);
        assert_eq!((reader.skip(), reader.end()), (Ok(()), Ok(())));
    }
}
