//! What a disk is, whatever it is called: a target name says where a guest finds a disk, not which image that is.
//!
//! Two targets can change places, an image can be replaced under its path. A map of changes is kept in the image, so what it is
//! about follows the image and not the target. The evidence, strongest first: the device's own identifier, the file's inode
//! with its birth (inode numbers are given out again), then what the definition says.

use std::fmt;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::device;

/// What is known of a disk's identity, as it is kept in a manifest. What is absent could not be known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Where it lies, in the definition's words: a path, a volume, an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `<serial>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// `<wwn>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// The file, where it is one of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileIdentity>,
    /// What a block device of this machine says of itself (device-mapper's UUID, a WWID).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// A file, whatever its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Its inode number, which another file may get once this one is gone.
    pub inode: u64,
    /// When it was made, where the file system keeps that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<Timestamp>,
}

impl Identity {
    /// Adds what this machine knows of the image behind a path.
    pub fn look(&mut self, image: &Path) {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(metadata) = std::fs::metadata(image) else {
            return;
        };
        self.device = device::identifier(&metadata);
        if metadata.is_file() {
            let born = metadata.created().ok();
            self.file = Some(FileIdentity {
                inode: metadata.ino(),
                born: born.and_then(|born| Timestamp::try_from(born).ok()),
            });
        }
    }

    /// Whether the two are one disk, by the strongest evidence that both have.
    pub fn is(&self, other: &Self) -> bool {
        if let (Some(one), Some(other)) = (&self.device, &other.device) {
            return one == other;
        }
        match (&self.file, &other.file) {
            (Some(one), Some(two)) if one.born.is_some() && two.born.is_some() => one == two,
            // An inode number alone is one of many file systems.
            (Some(one), Some(two)) => one.inode == two.inode && self.source == other.source,
            _ => self.is_named_like(other),
        }
    }

    /// Whether the definition says the same of both, whatever lies there.
    pub fn is_named_like(&self, other: &Self) -> bool {
        let words = |of: &Self| (of.source.clone(), of.serial.clone(), of.wwn.clone());
        words(self) == words(other)
    }
}

/// In words, for people.
impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.source.as_deref().unwrap_or("an unnamed image"))?;
        match (&self.device, &self.file, &self.serial) {
            (Some(device), ..) => write!(out, " ({device})"),
            (_, Some(file), _) => write!(out, " (inode {})", file.inode),
            (_, _, Some(serial)) => write!(out, " (serial {serial})"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(source: &str, inode: u64, born: Option<i64>) -> Identity {
        Identity {
            source: Some(source.into()),
            file: Some(FileIdentity {
                inode,
                born: born.map(|second| Timestamp::from_second(second).unwrap()),
            }),
            ..Identity::default()
        }
    }

    /// A7: the path is what two images exchange; the inode is what the next image gets.
    #[test]
    fn a_file_is_known_by_inode_and_birth() {
        let one = file("/a", 5, Some(1));
        assert!(one.is(&file("/a", 5, Some(1))));
        assert!(one.is(&file("/renamed", 5, Some(1))), "a path is no identity");
        assert!(!one.is(&file("/a", 6, Some(1))), "replaced by another file");
        assert!(!one.is(&file("/a", 5, Some(2))), "the inode was given out again");
        let old = file("/a", 5, None);
        assert!(old.is(&file("/a", 5, None)));
        assert!(!old.is(&file("/b", 5, None)), "of which file system?");
    }

    #[test]
    fn a_device_is_known_by_what_it_says_and_the_rest_by_the_definition() {
        let device = |source: &str, says: Option<&str>| Identity {
            source: Some(source.into()),
            device: says.map(str::to_owned),
            ..Identity::default()
        };
        assert!(device("/dev/sdb", Some("naa.1")).is(&device("/dev/sdc", Some("naa.1"))));
        assert!(!device("/dev/sdb", Some("naa.1")).is(&device("/dev/sdb", Some("naa.2"))));
        assert!(device("/dev/sdb", Some("naa.1")).is(&device("/dev/sdb", None)));
        assert!(!device("/dev/sdb", None).is(&device("/dev/sdc", None)));
        let serial = |serial: &str| Identity {
            serial: Some(serial.into()),
            ..device("rbd:pool/x", None)
        };
        assert!(!serial("1").is(&serial("2")));
        assert!(serial("1").is(&serial("1")));
    }

    #[test]
    fn what_0_1_0_did_not_write_is_read_as_unknown() {
        let none: Identity = serde_json::from_str("{}").unwrap();
        assert_eq!(none, Identity::default());
        let one = file("/a", 5, Some(1));
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), one);
    }

    #[test]
    fn a_copy_is_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        std::fs::write(&a, "content").unwrap();
        std::fs::copy(&a, &b).unwrap();
        let look = |path: &Path| {
            let mut identity = Identity::default();
            identity.look(path);
            identity
        };
        let (one, copy) = (look(&a), look(&b));
        assert!(!one.is(&copy));
        std::fs::rename(&a, dir.path().join("c")).unwrap();
        assert!(one.is(&look(&dir.path().join("c"))));
        assert_eq!(look(&dir.path().join("absent")), Identity::default());
    }
}
