//! What a qcow2 image says of the files that it needs, read from its header (QEMU's `docs/interop/qcow2.txt`): no tool is
//! started, no lock is taken, nothing that the header names is opened, and no more is read than a cluster can hold.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// First bytes of every qcow2 image.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes that are read at first; the rest of a larger cluster only if the header reaches into it.
const FIRST: u64 = 64 << 10;
/// The largest cluster. Header, extensions and the backing file's name lie in the first one.
const MOST: u64 = 2 << 20;
/// Longest name of a backing file, in bytes.
const MAX_NAME: usize = 1023;
/// Header extensions: end, format of the backing file, name of the external data file.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
/// Incompatible feature: the guest's data is in an external file.
const HAS_DATA_FILE: u64 = 1 << 2;

/// The header of a qcow2 image. Names are as they are written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3. Only 3 can hold bitmaps.
    pub version: u32,
    /// The size of the disk in bytes.
    pub virtual_size: u64,
    /// The file under this one.
    pub backing_file: Option<OsString>,
    /// The format of the file under this one.
    pub backing_format: Option<String>,
    /// The file that holds the data instead of this one.
    pub data_file: Option<OsString>,
}

impl Header {
    /// Reads the header of a file or block device; `None` if it does not begin like a qcow2 image of version 2 or 3, or is
    /// something else than a file or block device, which is not opened.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let is_image = |kind: std::fs::FileType| kind.is_file() || kind.is_block_device();
        if !is_image(std::fs::metadata(path)?.file_type()) {
            return Ok(None);
        }
        // Should a pipe have taken its place by now, nothing waits for its other end.
        let file = File::options()
            .read(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
            .open(path)?;
        if !is_image(file.metadata()?.file_type()) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        (&file).take(FIRST).read_to_end(&mut bytes)?;
        match Self::parse(&bytes) {
            Err(Flaw::Short) if bytes.len() as u64 == FIRST => {
                (&file).take(MOST - FIRST).read_to_end(&mut bytes)?;
                Self::parse(&bytes)
            }
            parsed => parsed,
        }
        .map_err(|flaw| io::Error::new(io::ErrorKind::InvalidData, flaw.words()))
    }

    /// Reads the header from the first bytes of an image.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, Flaw> {
        if bytes.get(..4) != Some(&MAGIC) {
            return Ok(None);
        }
        let version = number(bytes, 4)?;
        let (features, length) = match version {
            2 => (0, 72),
            3 => (long(bytes, 72)?, number(bytes, 100)? as usize),
            _ => return Ok(None),
        };
        let mut header = Self {
            version,
            virtual_size: long(bytes, 24)?,
            backing_file: None,
            backing_format: None,
            data_file: None,
        };
        let (offset, count) = (long(bytes, 8)?, number(bytes, 16)? as usize);
        if offset != 0 {
            if count > MAX_NAME {
                return Err(Flaw::Name);
            }
            let offset = usize::try_from(offset).map_err(|_| Flaw::Name)?;
            let name = piece(bytes, offset, count)?;
            header.backing_file = Some(OsString::from_vec(name.to_vec())).filter(|name| !name.is_empty());
        }
        let mut at = length;
        loop {
            // The backing file's name may follow without an end mark in images of old programs.
            if offset != 0 && at as u64 >= offset {
                break;
            }
            let (kind, count) = (number(bytes, at)?, number(bytes, at + 4)? as usize);
            let data = || piece(bytes, at + 8, count);
            match kind {
                END => break,
                BACKING_FORMAT => header.backing_format = String::from_utf8(data()?.to_vec()).ok(),
                DATA_FILE if features & HAS_DATA_FILE != 0 => {
                    header.data_file = Some(OsString::from_vec(data()?.to_vec()));
                }
                _ => {}
            }
            at = at
                .checked_add(8)
                .and_then(|at| at.checked_add(count.checked_next_multiple_of(8)?))
                .ok_or(Flaw::Name)?;
        }
        Ok(Some(header))
    }
}

/// What is wrong with a header.
#[derive(Debug, PartialEq, Eq)]
enum Flaw {
    /// It goes on behind the bytes that there are.
    Short,
    /// It says what no image says.
    Name,
}

impl Flaw {
    fn words(&self) -> &'static str {
        match self {
            Self::Short => "the image ends within its header",
            Self::Name => "its header has a name that is too long or too far away",
        }
    }
}

fn piece(bytes: &[u8], at: usize, count: usize) -> Result<&[u8], Flaw> {
    let end = at.checked_add(count).filter(|end| *end as u64 <= MOST);
    bytes.get(at..end.ok_or(Flaw::Name)?).ok_or(Flaw::Short)
}

fn number(bytes: &[u8], at: usize) -> Result<u32, Flaw> {
    let four = piece(bytes, at, 4)?.try_into().map_err(|_| Flaw::Short)?;
    Ok(u32::from_be_bytes(four))
}

fn long(bytes: &[u8], at: usize) -> Result<u64, Flaw> {
    let eight = piece(bytes, at, 8)?.try_into().map_err(|_| Flaw::Short)?;
    Ok(u64::from_be_bytes(eight))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn create(directory: &Path, name: &str, more: &[&str]) -> Header {
        let path = directory.join(name);
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .args(more)
            .arg(&path)
            .arg("8M")
            .current_dir(directory)
            .status();
        assert!(made.unwrap().success());
        Header::read(&path).unwrap().unwrap()
    }

    #[test]
    fn a_header_says_what_qemu_img_has_written() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        let base = create(here, "base", &[]);
        assert_eq!((base.version, base.virtual_size), (3, 8 << 20));
        assert_eq!((&base.backing_file, &base.data_file), (&None, &None));
        let old = create(here, "old", &["-o", "compat=0.10", "-b", "./base", "-F", "qcow2"]);
        assert_eq!(old.version, 2);
        assert_eq!(old.backing_file.as_deref(), Some("./base".as_ref()));
        assert_eq!(old.backing_format.as_deref(), Some("qcow2"));
        for cluster in ["512", "64k", "2M"] {
            let options = format!("cluster_size={cluster},data_file=data-{cluster}");
            let data = create(here, &format!("over-{cluster}"), &["-o", &options]);
            assert_eq!(
                data.data_file.unwrap().to_str(),
                Some(format!("data-{cluster}").as_str())
            );
        }
    }

    #[test]
    fn what_is_no_image_is_not_one_and_never_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let raw = directory.path().join("raw");
        std::fs::write(&raw, [0; 512]).unwrap();
        assert_eq!(Header::read(&raw).unwrap(), None);
        let pipe = directory.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(Header::read(&pipe).unwrap(), None);
        assert_eq!(Header::read(directory.path()).unwrap(), None);
        assert!(Header::read(&directory.path().join("absent")).is_err());
    }

    #[test]
    fn a_hostile_header_is_refused() {
        let mut bytes = vec![0_u8; 4096];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[100..104].copy_from_slice(&104_u32.to_be_bytes());
        assert!(Header::parse(&bytes).unwrap().is_some());
        let parse_with = |at: usize, value: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            Header::parse(&bytes)
        };
        // A name far away, one that is too long, an extension that never ends, one without an end.
        let far = parse_with(8, &[0xff; 8]);
        assert_eq!(far.unwrap_err(), Flaw::Name);
        let long = [&4000_u64.to_be_bytes()[..], &2000_u32.to_be_bytes()].concat();
        assert_eq!(parse_with(8, &long).unwrap_err(), Flaw::Name);
        let endless = parse_with(104, &[1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(endless.unwrap_err(), Flaw::Name);
        assert_eq!(parse_with(100, &[0xff; 4]).unwrap_err(), Flaw::Name);
        assert_eq!(Header::parse(&bytes[..60]).unwrap_err(), Flaw::Short);
    }
}
