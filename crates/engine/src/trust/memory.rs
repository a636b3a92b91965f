//! What we remember of a VM's repository between two runs: the newest restore point ever seen there, chunks that were
//! found damaged, and how far a cycle of reading everything has come. One file a VM in the state directory, named by
//! the VM, since it is asked for when nothing else of the VM is left.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strongroom_borg::ChunkId;

use super::chain::Head;
use super::part::Part;
use crate::state::{self, StateDirectory, StateError};

/// The version of the file.
const VERSION: u32 = 1;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    version: u32,
    head: Option<Head>,
    /// Ids in hexadecimal.
    #[serde(default)]
    damaged: BTreeSet<String>,
    /// The part of the data that was read last, in a cycle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cycle: Option<Part>,
}

/// A VM's memory, locked for as long as this lives.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    content: Content,
    _lock: File,
}

impl Memory {
    /// Waits for the lock, which is held for moments only, and reads.
    pub fn open(state: &StateDirectory, vm: &str) -> Result<Self, StateError> {
        let directory = state.path().join("trust");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { path, source }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(failed(&directory))?;
        // A VM's name has no slash and no leading dot: the configuration and the command line see to that.
        let path = directory.join(format!("{}.json", vm.replace('/', "_")));
        let lock_path = directory.join(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        lock.lock().map_err(failed(&lock_path))?;
        let content = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| error.to_string())
                .and_then(|content: Content| {
                    if content.version == VERSION {
                        Ok(content)
                    } else {
                        Err(format!("its version is {}", content.version))
                    }
                })
                .map_err(|message| StateError::Damaged {
                    path: path.clone(),
                    message,
                })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content {
                version: VERSION,
                ..Content::default()
            },
            Err(source) => return Err(StateError::Io { path, source }),
        };
        Ok(Self {
            path,
            content,
            _lock: lock,
        })
    }

    /// The newest restore point ever seen.
    pub fn head(&self) -> Option<&Head> {
        self.content.head.as_ref()
    }

    /// Chunks that were found damaged, and not found whole since.
    pub fn damaged(&self) -> BTreeSet<ChunkId> {
        let ids = self.content.damaged.iter();
        ids.filter_map(|text| text.parse().ok()).collect()
    }

    /// The part of the data that was read last, of a cycle through all of it.
    pub fn cycle(&self) -> Option<Part> {
        self.content.cycle
    }

    /// Remembers that this part of the data has been read, all of it.
    pub fn read(&mut self, part: Part) -> Result<(), StateError> {
        self.content.cycle = Some(part);
        self.write()
    }

    /// Remembers a head unless a newer one is known.
    pub fn advance(&mut self, head: Head) -> Result<(), StateError> {
        let newer = self
            .head()
            .is_none_or(|known| (known.committed, known.sequence) < (head.committed, head.sequence));
        if !newer {
            return Ok(());
        }
        self.content.head = Some(head);
        self.write()
    }

    /// Remembers which chunks are damaged: of those looked at, exactly these are.
    pub fn looked_at(
        &mut self,
        damaged: &BTreeSet<ChunkId>,
        looked_at: impl Fn(&ChunkId) -> bool,
    ) -> Result<(), StateError> {
        let mut next = self.damaged();
        next.retain(|id| !looked_at(id));
        next.extend(damaged);
        let next: BTreeSet<String> = next.iter().map(ToString::to_string).collect();
        if next == self.content.damaged {
            return Ok(());
        }
        self.content.damaged = next;
        self.write()
    }

    fn write(&self) -> Result<(), StateError> {
        state::replace_json(&self.path, &self.content).map_err(|source| StateError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn head(sequence: u64) -> Head {
        Head {
            format: 1,
            vm: "web".into(),
            repository: "00".into(),
            archive: "a".into(),
            sequence,
            hash: "h".into(),
            committed: Timestamp::from_second(sequence as i64).unwrap(),
        }
    }

    #[test]
    fn the_newest_head_stays() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let open = || Memory::open(&state, "web").unwrap();
        assert!(open().head().is_none());
        open().advance(head(2)).unwrap();
        open().advance(head(1)).unwrap();
        assert_eq!(open().head(), Some(&head(2)));
        assert!(Memory::open(&state, "db").unwrap().head().is_none());
    }

    #[test]
    fn a_cycle_is_kept_beside_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let open = || Memory::open(&state, "web").unwrap();
        open().advance(head(1)).unwrap();
        assert_eq!(open().cycle(), None);
        open().read("7/30".parse().unwrap()).unwrap();
        assert_eq!(open().cycle(), Some("7/30".parse().unwrap()));
        assert_eq!(open().head(), Some(&head(1)));
    }

    #[test]
    fn damage_is_forgotten_only_by_looking_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let id = |byte| ChunkId([byte; 32]);
        let open = || Memory::open(&state, "web").unwrap();
        open().looked_at(&[id(1), id(0xfe)].into(), |_| true).unwrap();
        assert_eq!(open().damaged(), [id(1), id(0xfe)].into());
        open()
            .looked_at(&BTreeSet::new(), |looked| *looked == id(1))
            .unwrap();
        assert_eq!(open().damaged(), [id(0xfe)].into());
        open().looked_at(&[id(3)].into(), |_| false).unwrap();
        assert_eq!(open().damaged(), [id(3), id(0xfe)].into());
    }
}
