//! `integrity.T`: checksums of `index.T` and `hints.T`.
//!
//! A msgpack map with `version` (2) and, for `hints` and `index`, a text of JSON:
//! `{"algorithm": "XXH64", "digests": {"final": HEX}}`; the index has `HashHeader` before `final`, a digest as of its
//! first 18 bytes. What is hashed: the length of the file's name (`%10d`), the name, the content; and at the end of
//! each part the length of the part's name, the name, and the position in the file as decimal digits
//! (`file_integrity.py`, since Borg 1.1).

use std::hash::Hasher as _;

use twox_hash::XxHash64;

use crate::index;
use crate::msgpack::{Reader, Writer};

/// No file of this kind is longer.
pub(crate) const MAX_LEN: u64 = 1 << 16;

/// The checksums as they are in the file, each a text of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Integrity {
    index: String,
    hints: String,
}

impl Integrity {
    /// The checksums of both files as of a transaction.
    pub fn of(transaction: u32, index: &[u8], hints: &[u8]) -> Self {
        let (header, all) = index_digests(transaction, index);
        let text = |digests: String| format!("{{\"algorithm\": \"XXH64\", \"digests\": {{{digests}}}}}");
        Self {
            index: text(format!("\"HashHeader\": \"{header}\", \"final\": \"{all}\"")),
            hints: text(format!("\"final\": \"{}\"", hints_digest(transaction, hints))),
        }
    }

    /// Reads the content of a file. `None` if its version is another one: then Borg checks nothing, either.
    pub fn from_bytes(bytes: &[u8]) -> Result<Option<Self>, &'static str> {
        let mut reader = Reader::new(bytes);
        let mut integrity = Self::default();
        let mut version = None;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "a checksum is no text");
        for _ in 0..reader.map_len()? {
            match reader.raw()? {
                b"version" => version = Some(reader.int()?),
                b"index" => integrity.index = text(reader.raw()?)?,
                b"hints" => integrity.hints = text(reader.raw()?)?,
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let version = version.ok_or("it has no version")?;
        Ok((version == 2).then_some(integrity))
    }

    /// The content of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.map(3);
        writer.raw(b"version");
        writer.int(2);
        writer.raw(b"hints");
        writer.raw(self.hints.as_bytes());
        writer.raw(b"index");
        writer.raw(self.index.as_bytes());
        writer.into_bytes()
    }

    /// Compares with the content of `index.T`.
    pub fn check_index(&self, transaction: u32, content: &[u8]) -> Result<(), &'static str> {
        let Some(digests) = digests(&self.index)? else {
            return Ok(());
        };
        let (header, all) = index_digests(transaction, content);
        if digests.all == all && digests.header.is_none_or(|stated| stated == header) {
            Ok(())
        } else {
            Err("its checksum is wrong")
        }
    }

    /// Compares with the content of `hints.T`.
    pub fn check_hints(&self, transaction: u32, content: &[u8]) -> Result<(), &'static str> {
        let Some(digests) = digests(&self.hints)? else {
            return Ok(());
        };
        if digests.all == hints_digest(transaction, content) {
            Ok(())
        } else {
            Err("its checksum is wrong")
        }
    }
}

struct Digests {
    header: Option<String>,
    all: String,
}

/// `None` if the algorithm is another one, which is then not checked: Borg does the same.
fn digests(json: &str) -> Result<Option<Digests>, &'static str> {
    let json: serde_json::Value = serde_json::from_str(json).map_err(|_| "its checksum is no JSON")?;
    if json["algorithm"]
        .as_str()
        .ok_or("its checksum has no algorithm")?
        != "XXH64"
    {
        return Ok(None);
    }
    let digest = |part: &str| json["digests"][part].as_str().map(str::to_owned);
    Ok(Some(Digests {
        header: digest("HashHeader"),
        all: digest("final").ok_or("its checksum is missing")?,
    }))
}

fn index_digests(transaction: u32, content: &[u8]) -> (String, String) {
    let mut hash = Hash::new(&format!("index.{transaction}"));
    let (header, rest) = content.split_at(index::HEADER.min(content.len()));
    hash.update(header);
    let first = hash.part("HashHeader");
    hash.update(rest);
    (first, hash.part("final"))
}

fn hints_digest(transaction: u32, content: &[u8]) -> String {
    let mut hash = Hash::new(&format!("hints.{transaction}"));
    hash.update(content);
    hash.part("final")
}

struct Hash {
    state: XxHash64,
    position: u64,
}

impl Hash {
    fn new(name: &str) -> Self {
        let mut state = XxHash64::with_seed(0);
        state.write(format!("{:10}", name.len()).as_bytes());
        state.write(name.as_bytes());
        Self { state, position: 0 }
    }

    fn update(&mut self, content: &[u8]) {
        self.state.write(content);
        self.position += content.len() as u64;
    }

    fn part(&mut self, name: &str) -> String {
        self.state
            .write(format!("{:10}{name}{}", name.len(), self.position).as_bytes());
        format!("{:016x}", self.state.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_of_either_file_is_seen() {
        let (index, hints) = (vec![1; 500], vec![2; 90]);
        let bytes = Integrity::of(7, &index, &hints).to_bytes();
        let integrity = Integrity::from_bytes(&bytes).unwrap().unwrap();
        assert_eq!(integrity.check_index(7, &index), Ok(()));
        assert_eq!(integrity.check_hints(7, &hints), Ok(()));
        for at in 0..index.len() {
            let mut changed = index.clone();
            changed[at] ^= 4;
            assert!(integrity.check_index(7, &changed).is_err());
        }
        for at in 0..hints.len() {
            let mut changed = hints.clone();
            changed[at] ^= 4;
            assert!(integrity.check_hints(7, &changed).is_err());
        }
        assert!(integrity.check_index(7, &index[..499]).is_err());
        assert!(integrity.check_index(7, &[]).is_err());
        assert!(
            integrity.check_index(8, &index).is_err(),
            "the name is part of the checksum"
        );
    }

    #[test]
    fn other_versions_and_algorithms_are_not_checked() {
        let bytes = Integrity::of(7, &[], &[]).to_bytes();
        let at = bytes.windows(8).position(|w| w == b"version\x02").unwrap() + 7;
        let mut other = bytes.clone();
        other[at] = 3;
        assert_eq!(Integrity::from_bytes(&other), Ok(None));
        let integrity = Integrity {
            index: "{\"algorithm\": \"SHA512\", \"digests\": {\"final\": \"00\"}}".to_owned(),
            hints: "{\"digests\": {}}".to_owned(),
        };
        assert_eq!(integrity.check_index(7, b"anything"), Ok(()));
        assert!(integrity.check_hints(7, b"anything").is_err());
    }

    #[test]
    fn what_is_no_integrity_file_is_refused() {
        let bytes = Integrity::of(7, &[1], &[2]).to_bytes();
        for len in 0..bytes.len() {
            assert!(Integrity::from_bytes(&bytes[..len]).is_err());
        }
    }
}
