//! LUKS headers: the facts that anybody who sees the disk can see, and never a key.
//!
//! The header of version 2 is a binary part and an area with JSON (LUKS2 On-Disk Format Specification 1.1, sections
//! 2.1 and 3); that of version 1 is binary throughout (LUKS1 On-Disk Format Specification 1.2.3, section 2.1). Only
//! the first copy is read. A guest can write all of it, so every length is bounded, and what cannot be understood
//! gives empty facts, not an error.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::gpt::{Gpt, GptReadError};
use crate::source::{BlockSource, ReadError};

/// What both versions begin with.
const MAGIC: &[u8] = b"LUKS\xba\xbe";
/// Size of the binary part, in bytes; of a version 1 header, more than all of it.
const BINARY: usize = 4096;
/// The largest JSON area that version 2 allows, with the binary part, in bytes.
const LARGEST: u64 = 4 << 20;
/// Texts longer than this are cut.
const LONGEST: usize = 128;
/// More volumes on one disk are not looked at.
const MOST_VOLUMES: usize = 16;
/// More digests or tokens than version 2 allows.
const MOST: usize = 32;

/// Public facts of a LUKS volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luks {
    /// Where the header starts on the disk, in bytes.
    pub offset: u64,
    /// 1 or 2.
    pub version: u16,
    /// The volume's UUID as it stands there.
    pub uuid: String,
    /// Digests of the volume key: salted, so that equal keys do not show. Base64 in version 2, hexadecimal in 1.
    pub digests: Vec<String>,
    /// Types of the tokens (`clevis`, `systemd-tpm2`, …) in the order of their numbers.
    pub tokens: Vec<String>,
}

/// The part of the JSON area that is looked at.
#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    digests: BTreeMap<String, Digest>,
    #[serde(default)]
    tokens: BTreeMap<String, Token>,
}

#[derive(Deserialize)]
struct Digest {
    #[serde(default)]
    digest: String,
}

#[derive(Deserialize)]
struct Token {
    #[serde(rename = "type", default)]
    kind: String,
}

impl Luks {
    /// All volumes whose header starts where the disk or one of its GPT partitions starts.
    pub fn find(disk: &mut impl BlockSource) -> Result<Vec<Self>, ReadError> {
        let mut starts = vec![0];
        match Gpt::read(disk) {
            Ok(table) => {
                let partitions = table.map(|table| table.partitions).unwrap_or_default();
                starts.extend(
                    partitions
                        .iter()
                        .filter_map(|partition| Some(partition.bytes()?.0)),
                );
            }
            Err(GptReadError::Read(error)) => return Err(error),
            // A damaged table names no partition.
            Err(GptReadError::Gpt(_)) => {}
        }
        let mut volumes = Vec::new();
        for offset in starts {
            volumes.extend(Self::read(disk, offset)?);
            if volumes.len() == MOST_VOLUMES {
                break;
            }
        }
        Ok(volumes)
    }

    /// The volume whose header starts at `offset`, if one does.
    pub fn read(disk: &mut impl BlockSource, offset: u64) -> Result<Option<Self>, ReadError> {
        let room = disk.size().saturating_sub(offset);
        if room < BINARY as u64 {
            return Ok(None);
        }
        let mut header = vec![0; BINARY];
        disk.read_at(offset, &mut header)?;
        if !header.starts_with(MAGIC) {
            return Ok(None);
        }
        let facts = |version, uuid| Self {
            offset,
            version,
            uuid,
            digests: Vec::new(),
            tokens: Vec::new(),
        };
        match number(&header, 6) {
            Some(1) => {
                let digests = vec![hex(header.get(112..132).unwrap_or_default())];
                Ok(Some(Self {
                    digests,
                    ..facts(1, text(header.get(168..208)))
                }))
            }
            Some(2) => {
                let facts = facts(2, text(header.get(168..208)));
                let size = header
                    .get(8..16)
                    .and_then(|bytes| bytes.try_into().ok())
                    .map_or(0, u64::from_be_bytes);
                if size <= BINARY as u64 || size > LARGEST.min(room) {
                    return Ok(Some(facts));
                }
                let mut area = vec![0; size as usize - BINARY];
                disk.read_at(offset + BINARY as u64, &mut area)?;
                Ok(Some(facts.with_json(&area)))
            }
            _ => Ok(None),
        }
    }

    fn with_json(self, area: &[u8]) -> Self {
        let end = area.iter().position(|byte| *byte == 0).unwrap_or(area.len());
        let Ok(json) = serde_json::from_slice::<Json>(area.get(..end).unwrap_or_default()) else {
            return self;
        };
        let digests = json
            .digests
            .into_values()
            .take(MOST)
            .map(|digest| cut(&digest.digest))
            .collect();
        let tokens = json
            .tokens
            .into_values()
            .take(MOST)
            .map(|token| cut(&token.kind))
            .collect();
        Self {
            digests,
            tokens,
            ..self
        }
    }
}

fn number(header: &[u8], at: usize) -> Option<u16> {
    header.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// A text up to its NUL; only what is printable and plain, since a guest wrote it.
fn text(bytes: Option<&[u8]>) -> String {
    let bytes = bytes
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    bytes
        .iter()
        .filter(|byte| byte.is_ascii_graphic())
        .map(|byte| char::from(*byte))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn cut(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_graphic)
        .take(LONGEST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// A volume made by the real cryptsetup, and what cryptsetup says of it.
    fn formatted(kind: &str, at: u64) -> (Vec<u8>, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(20 << 20).unwrap();
        let tool = |arguments: &[&str]| {
            let key = "printf secret |";
            let line = format!(
                "{key} cryptsetup {} {}",
                arguments.join(" "),
                file.path().display()
            );
            let out = Command::new("sh").arg("-c").arg(line).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        };
        let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        tool(
            &[
                &["luksFormat", "-q", "--type", kind, "--key-file", "-"][..],
                &cheap,
            ]
            .concat(),
        );
        let uuid = tool(&["luksUUID"]);
        if kind == "luks2" {
            let token = r#"'{"type":"clevis","keyslots":["0"]}'"#;
            let line = format!("echo {token} | cryptsetup token import {}", file.path().display());
            assert!(Command::new("sh").arg("-c").arg(line).status().unwrap().success());
        }
        let mut disk = vec![0; at as usize];
        disk.extend(std::fs::read(file.path()).unwrap());
        (disk, uuid)
    }

    #[test]
    fn facts_agree_with_cryptsetup() {
        let (mut disk, uuid) = formatted("luks2", 0);
        let found = Luks::find(&mut disk).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].version, &found[0].uuid, found[0].offset), (2, &uuid, 0));
        assert_eq!(found[0].digests.len(), 1);
        assert_eq!(found[0].tokens, ["clevis"]);

        let (mut disk, uuid) = formatted("luks1", 1 << 20);
        let found = Luks::read(&mut disk, 1 << 20).unwrap().unwrap();
        assert_eq!((found.version, found.uuid), (1, uuid));
        assert_eq!(found.digests[0].len(), 40);
    }

    #[test]
    fn a_disk_without_luks_has_none() {
        assert_eq!(Luks::find(&mut vec![0; 1 << 20]).unwrap(), []);
        assert_eq!(Luks::find(&mut vec![0; 100]).unwrap(), []);
    }

    proptest! {
        #[test]
        fn hostile_headers_give_facts_or_nothing(
            version in 0u16..4, size in any::<u64>(), junk in prop::collection::vec(any::<u8>(), 0..9000),
        ) {
            let mut disk = MAGIC.to_vec();
            disk.extend(version.to_be_bytes());
            disk.extend(size.to_be_bytes());
            disk.extend(&junk);
            if let Some(found) = Luks::read(&mut disk, 0).unwrap() {
                prop_assert!(found.digests.len() <= MOST && found.uuid.len() <= 40);
            }
        }

        #[test]
        fn hostile_json_gives_facts(json in "\\PC{0,200}") {
            let facts = Luks { offset: 0, version: 2, uuid: String::new(), digests: vec![], tokens: vec![] };
            prop_assert!(facts.with_json(json.as_bytes()).tokens.len() <= MOST);
        }
    }
}
