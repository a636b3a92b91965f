//! A ledger holds what is known of a VM's repository between two runs: the newest restore point ever seen there, those that were lost,
//! what is acknowledged to be gone, chunks that were found damaged, and how far a cycle of reading everything
//! has come. One file a VM in the state directory, named by the VM, since it is asked for when nothing else of the VM is
//! left.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strongroom_base::bounded;
use strongroom_base::cancel::Cancel;
use strongroom_base::record::{self, RecordError};

use super::chain::{Head, Records};
use super::part::Part;
use crate::manifest::LostPoint;
use crate::store::ChunkId;

/// How long another process may hold the lock.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// Restore points that were gone when a next one was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lost: Vec<Gone>,
    /// Restore points that may be gone: that is acknowledged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    acknowledged: Vec<Gone>,
    /// Disks that need not be backed up any more, and since when.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    left_out: BTreeMap<String, Timestamp>,
    /// When it was acknowledged that the VM was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    given_up: Option<Timestamp>,
    /// The repository after the last backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<Left>,
}

/// How a backup has left its repository: as long as it is so, no other has written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The repository's id, in hexadecimal.
    pub repository: String,
    /// The time of its manifest, which every commit moves on.
    pub manifest: Timestamp,
    /// How many objects it had.
    pub objects: u64,
}

/// A restore point that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Gone {
    /// The repository's id, in hexadecimal.
    repository: String,
    #[serde(flatten)]
    point: LostPoint,
}

/// Adds those that are not listed yet; returns whether there were any.
fn add(list: &mut Vec<Gone>, repository: &str, points: &[LostPoint]) -> bool {
    let here = list.iter().filter(|gone| gone.repository == repository);
    let listed: HashSet<String> = here.map(|gone| gone.point.sha256.clone()).collect();
    let before = list.len();
    let new = points.iter().filter(|point| !listed.contains(&point.sha256));
    list.extend(new.map(|point| Gone {
        repository: repository.to_owned(),
        point: point.clone(),
    }));
    list.len() > before
}

/// A VM's ledger, locked for as long as this lives.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    content: Content,
    _lock: File,
}

impl Ledger {
    /// Waits for the lock, which is held for moments only unless its holder hangs, and reads.
    pub fn open(state: &Path, vm: &str) -> Result<Self, RecordError> {
        let directory = directory(state);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RecordError::Io { path, source }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(failed(&directory))?;
        // A VM's name has no slash and no leading dot: the configuration and the command line see to that.
        let path = directory.join(format!("{}.json", vm.replace('/', "_")));
        let lock_path = directory.join(".lock");
        let wanted = lock_path.clone();
        let locked = bounded::within(PATIENCE, &Cancel::new(), move || {
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(wanted)?;
            lock.lock()?;
            Ok(lock)
        });
        let lock = locked.and_then(|locked| locked).map_err(failed(&lock_path))?;
        let content = read(&path)?.unwrap_or_else(|| Content {
            version: VERSION,
            ..Content::default()
        });
        Ok(Self {
            path,
            content,
            _lock: lock,
        })
    }

    /// The newest restore point of each VM that has ever been seen.
    pub fn vms(state: &Path) -> Result<Vec<Head>, RecordError> {
        let directory = directory(state);
        let failed = |source| RecordError::Io {
            path: directory.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed(source)),
        };
        let mut vms = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                vms.extend(read(&path)?.and_then(|content| content.head));
            }
        }
        Ok(vms)
    }

    /// The newest restore point ever seen.
    pub fn head(&self) -> Option<&Head> {
        self.content.head.as_ref()
    }

    /// All that is on record here about the restore points in a repository.
    pub fn records(&self, repository: &str) -> Records {
        let here = |gone: &Gone| gone.repository == repository;
        let lost = self.content.lost.iter().filter(|gone| here(gone));
        let lost = lost.map(|gone| gone.point.clone()).collect();
        let (acknowledged, elsewhere): (Vec<&Gone>, Vec<&Gone>) =
            self.content.acknowledged.iter().partition(|gone| here(gone));
        let points = |list: Vec<&Gone>| list.into_iter().map(|gone| gone.point.clone()).collect();
        Records {
            heads: self.head().cloned().into_iter().collect(),
            lost,
            acknowledged: points(acknowledged),
            left_behind: points(elsewhere),
        }
    }

    /// Remembers that restore points which were the newest are gone.
    pub fn lose(&mut self, repository: &str, points: &[LostPoint]) -> Result<(), RecordError> {
        if add(&mut self.content.lost, repository, points) {
            self.write()?;
        }
        Ok(())
    }

    /// Remembers that restore points may be gone.
    pub fn acknowledge(&mut self, repository: &str, points: &[LostPoint]) -> Result<(), RecordError> {
        let before = self.content.lost.len();
        let meant: HashSet<&str> = points.iter().map(|point| point.sha256.as_str()).collect();
        self.content
            .lost
            .retain(|gone| gone.repository != repository || !meant.contains(gone.point.sha256.as_str()));
        if add(&mut self.content.acknowledged, repository, points) || self.content.lost.len() < before {
            self.write()?;
        }
        Ok(())
    }

    /// How the last backup has left its repository.
    pub fn left(&self) -> Option<&Left> {
        self.content.left.as_ref()
    }

    /// Remembers how a backup leaves its repository.
    pub fn leave(&mut self, left: Left) -> Result<(), RecordError> {
        self.content.left = Some(left);
        self.write()
    }

    /// Since when a disk need not be backed up any more.
    pub fn left_out(&self, disk: &str) -> Option<Timestamp> {
        self.content.left_out.get(disk).copied()
    }

    /// Remembers that a disk need not be backed up any more, since the restore point of this instant.
    pub fn leave_out(&mut self, disk: &str, since: Timestamp) -> Result<(), RecordError> {
        self.content.left_out.insert(disk.to_owned(), since);
        self.write()
    }

    /// When the VM was given up.
    pub fn given_up(&self) -> Option<Timestamp> {
        self.content.given_up
    }

    /// Remembers that the VM is given up: nothing of it up to this instant has to be there.
    pub fn give_up(&mut self, at: Timestamp) -> Result<(), RecordError> {
        self.content.given_up = Some(at);
        self.write()
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
    pub fn read(&mut self, part: Part) -> Result<(), RecordError> {
        self.content.cycle = Some(part);
        self.write()
    }

    /// Remembers a head unless a newer one is known.
    pub fn advance(&mut self, head: Head) -> Result<(), RecordError> {
        let newer = self
            .head()
            .is_none_or(|known| (known.committed, known.sequence) < (head.committed, head.sequence));
        if !newer {
            return Ok(());
        }
        // Who only reads knows no counter; what was known before is used all the same.
        let before = self.head().filter(|known| known.repository == head.repository);
        let counter = head.counter.max(before.and_then(|known| known.counter));
        self.content.head = Some(Head { counter, ..head });
        self.write()
    }

    /// Remembers which chunks are damaged: of those looked at, exactly these are.
    pub fn looked_at(
        &mut self,
        damaged: &BTreeSet<ChunkId>,
        looked_at: impl Fn(&ChunkId) -> bool,
    ) -> Result<(), RecordError> {
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

    fn write(&self) -> Result<(), RecordError> {
        record::replace_json(&self.path, &self.content).map_err(|source| RecordError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// Where the files are.
fn directory(state: &Path) -> PathBuf {
    state.join("trust")
}

/// A VM's file, if there is one.
fn read(path: &Path) -> Result<Option<Content>, RecordError> {
    let content: Option<Content> = record::read_json(path)?;
    match content {
        Some(Content { version, .. }) if version != VERSION => Err(RecordError::Damaged {
            path: path.to_owned(),
            message: format!("its version is {version}, this program knows {VERSION}"),
        }),
        content => Ok(content),
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
            hash: format!("h{sequence}"),
            committed: Timestamp::from_second(sequence as i64).unwrap(),
            counter: None,
        }
    }

    #[test]
    fn the_newest_head_stays() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let open = || Ledger::open(state, "web").unwrap();
        assert!(open().head().is_none());
        open().advance(head(2)).unwrap();
        open().advance(head(1)).unwrap();
        assert_eq!(open().head(), Some(&head(2)));
        assert!(Ledger::open(state, "db").unwrap().head().is_none());
    }

    #[test]
    fn what_is_lost_is_remembered_until_it_is_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let open = || Ledger::open(state, "web").unwrap();
        let (two, three) = (head(2).lost(), head(3).lost());
        open().lose("00", &[two.clone(), three.clone()]).unwrap();
        open().lose("00", std::slice::from_ref(&two)).unwrap();
        open().lose("11", std::slice::from_ref(&two)).unwrap();
        assert_eq!(open().records("00").lost, [two.clone(), three.clone()]);
        open().acknowledge("00", std::slice::from_ref(&two)).unwrap();
        let here = open().records("00");
        assert_eq!((here.lost, here.acknowledged), (vec![three], vec![two.clone()]));
        let elsewhere = open().records("11");
        assert_eq!(
            (elsewhere.lost, elsewhere.acknowledged, elsewhere.left_behind),
            (vec![two.clone()], vec![], vec![two])
        );
    }

    #[test]
    fn all_vms_ever_seen_are_known() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        assert_eq!(Ledger::vms(state).unwrap(), []);
        // What cannot be listed is not empty.
        std::fs::write(state.join("trust"), "").unwrap();
        Ledger::vms(state).unwrap_err();
        std::fs::remove_file(state.join("trust")).unwrap();
        Ledger::open(state, "web").unwrap().advance(head(2)).unwrap();
        // Nothing was ever seen of this one.
        let mut other = Ledger::open(state, "db").unwrap();
        other.looked_at(&[ChunkId([1; 32])].into(), |_| true).unwrap();
        drop(other);
        assert_eq!(Ledger::vms(state).unwrap(), [head(2)]);
        let bad = directory.path().join("trust/bad.json");
        std::fs::write(&bad, "{").unwrap();
        Ledger::vms(state).unwrap_err();
        // Neither read nor taken for one that says nothing.
        File::create(&bad).unwrap().set_len(1 << 40).unwrap();
        assert!(
            Ledger::vms(state)
                .unwrap_err()
                .to_string()
                .contains("are expected")
        );
    }

    #[test]
    fn a_cycle_is_kept_beside_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let open = || Ledger::open(state, "web").unwrap();
        open().advance(head(1)).unwrap();
        assert_eq!(open().cycle(), None);
        open().read("7/30".parse().unwrap()).unwrap();
        assert_eq!(open().cycle(), Some("7/30".parse().unwrap()));
        assert_eq!(open().head(), Some(&head(1)));
    }

    #[test]
    fn damage_is_forgotten_only_by_looking_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let id = |byte| ChunkId([byte; 32]);
        let open = || Ledger::open(state, "web").unwrap();
        open().looked_at(&[id(1), id(0xfe)].into(), |_| true).unwrap();
        assert_eq!(open().damaged(), [id(1), id(0xfe)].into());
        open()
            .looked_at(&BTreeSet::new(), |looked| *looked == id(1))
            .unwrap();
        assert_eq!(open().damaged(), [id(0xfe)].into());
        open().looked_at(&[id(3)].into(), |_| false).unwrap();
        assert_eq!(open().damaged(), [id(3), id(0xfe)].into());
    }

    #[test]
    fn what_is_acknowledged_again_is_lost_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Ledger::open(directory.path(), "web").unwrap();
        let two = [head(2).lost()];
        for _ in 0..2 {
            open().lose("00", &two).unwrap();
            open().acknowledge("00", &two).unwrap();
            let kept = open().records("00");
            assert_eq!((kept.lost, kept.acknowledged), (vec![], two.to_vec()));
        }
    }

    /// By the repository's time; only a counter of the same repository is carried on.
    #[test]
    fn a_newer_head_takes_over_and_keeps_the_counter() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Ledger::open(directory.path(), "web").unwrap();
        let counted = Head {
            counter: Some(5),
            ..head(2)
        };
        open().advance(counted.clone()).unwrap();
        open().advance(head(3)).unwrap();
        let next = Head {
            counter: Some(5),
            ..head(3)
        };
        assert_eq!(open().head(), Some(&next));
        let elsewhere = Head {
            repository: "11".into(),
            ..head(4)
        };
        open().advance(elsewhere.clone()).unwrap();
        assert_eq!(open().head(), Some(&elsewhere));
    }

    #[test]
    fn what_is_left_and_given_up_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Ledger::open(directory.path(), "web").unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let ledger = open();
        assert_eq!(
            (ledger.left(), ledger.left_out("vda"), ledger.given_up()),
            (None, None, None)
        );
        drop(ledger);
        let left = Left {
            repository: "00".into(),
            manifest: at(5),
            objects: 7,
        };
        open().leave(left.clone()).unwrap();
        open().leave_out("vda", at(6)).unwrap();
        open().give_up(at(7)).unwrap();
        let ledger = open();
        assert_eq!(ledger.left(), Some(&left));
        assert_eq!(
            (ledger.left_out("vda"), ledger.left_out("vdb")),
            (Some(at(6)), None)
        );
        assert_eq!(ledger.given_up(), Some(at(7)));
    }

    #[test]
    fn a_newer_version_of_the_file_is_not_guessed_at() {
        let directory = tempfile::tempdir().unwrap();
        Ledger::open(directory.path(), "web")
            .unwrap()
            .advance(head(1))
            .unwrap();
        let path = directory.path().join("trust/web.json");
        let mut newer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        newer["version"] = 2.into();
        std::fs::write(&path, newer.to_string()).unwrap();
        let error = Ledger::open(directory.path(), "web").unwrap_err().to_string();
        assert!(error.contains("its version is 2"), "{error}");
    }
}
