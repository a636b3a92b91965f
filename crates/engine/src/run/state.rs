//! Our own records of a VM: the journal of the run under way, and the restore points that a next run may build on.
//!
//! One JSON file a VM, named by the VM's UUID, in the state directory; replaced by write, fsync, rename, fsync of
//! the directory. A lock file beside it is held for the length of a run, so that two runs never work on one VM.
//!
//! The journal is written *before* each act and names the objects about to be made: it is the intent. libvirt and
//! the repository are the truth. What a run leaves behind when it dies is described, and undone, in
//! [`crate::capture::reconcile`].
//!
//! Only this file says which checkpoints are committed. A checkpoint that an aborted run left looks valid to libvirt,
//! and an incremental backup from it would silently miss data.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strongroom_base::record::{self, RecordError, read_json, replace_json};
use strongroom_hypervisor::{Listener, Overlay};
use uuid::Uuid;

/// The version of the state file.
const VERSION: u32 = 1;

/// Why the records cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another run works on this VM.
    #[error("lock VM {0}: another run of strongroom works on it")]
    Busy(String),
    /// They cannot be kept, or are not what was written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What one run is about to make, or has made and not yet taken down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The run's id; its checkpoint, socket and scratch files carry it in their names.
    pub id: String,
    /// When it started.
    pub started: Timestamp,
    /// The archive that it writes.
    pub archive: String,
    /// The checkpoint that it makes, if any.
    pub checkpoint: Option<String>,
    /// Where its backup job is served.
    #[serde(default, rename = "socket")]
    pub listener: Option<Listener>,
    /// Its scratch files, on the hypervisor.
    pub scratch: Vec<PathBuf>,
    /// Whether the guest ran when it began: then it has to run afterwards.
    pub running: bool,
    /// The overlays of its external snapshot.
    #[serde(default)]
    pub overlays: Vec<Overlay>,
}

/// What is pending for the guest: written down before it may be, and cleared when it is done. It outlives the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// A thaw: a freeze may have been asked for.
    #[serde(default)]
    pub thaw: bool,
    /// The `post` script: the `pre` script may have been started by the run of this id.
    #[serde(default)]
    pub post: Option<String>,
}

/// A finished run whose checkpoint a next run may start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The run's id.
    pub run: String,
    /// Its archive.
    pub archive: String,
    /// Its checkpoint.
    pub checkpoint: String,
    /// The repository that holds the archive, by its id in hexadecimal.
    pub repository: String,
}

/// Everything that is on record about one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    version: u32,
    /// The VM's name when it was last seen, for people who look at the file.
    pub vm: String,
    /// The run under way, or the one that died.
    pub run: Option<Run>,
    /// The checkpoint that stands for a committed archive, with that archive.
    pub committed: Option<Committed>,
    /// Checkpoints of ours that are of no use any more and still have to be deleted.
    pub stale: Vec<String>,
    /// What is pending for the guest.
    #[serde(default, rename = "debt")]
    pub pending: Pending,
}

/// The directory with the records of all VMs.
#[derive(Debug, Clone)]
pub struct StateDirectory {
    path: PathBuf,
    watcher: Watcher,
}

/// The records of one VM, locked for one run.
#[derive(Debug)]
pub struct VmState {
    path: PathBuf,
    records: Records,
    watcher: Watcher,
    _lock: Lock,
}

/// The lock of a VM's records. It is let go of by name: a child that is just being made holds its file open, too, for a moment.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing it comes next, and does the same a moment later.
        let _ = self.0.unlock();
    }
}

/// The two sides of a write of the records. What a run does lies between one write's [`Durable`](Self::Durable) and
/// the next one's [`Due`](Self::Due).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is about to be made.
    Due,
    /// It is on disk.
    Durable,
}

/// What is told of each write, if anything.
#[derive(Clone, Default)]
struct Watcher(Option<Arc<dyn Fn(Write) + Send + Sync>>);

impl Watcher {
    fn tell(&self, write: Write) {
        if let Some(watcher) = &self.0 {
            watcher(write);
        }
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.is_some() { "Watched" } else { "Unwatched" })
    }
}

impl StateDirectory {
    /// Uses, and makes if needed, this directory. Only its owner may look inside.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| RecordError::Io {
                path: path.clone(),
                source,
            })?;
        Ok(Self {
            path,
            watcher: Watcher::default(),
        })
    }

    /// Tells `watcher` of each write of the records, on the thread that makes it; the write waits meanwhile. This is
    /// for tests that end a run between any two steps.
    #[must_use]
    pub fn watched(self, watcher: Arc<dyn Fn(Write) + Send + Sync>) -> Self {
        Self {
            watcher: Watcher(Some(watcher)),
            ..self
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a write of records that are kept beside those of the VMs; the watcher is told as of any other.
    pub(crate) fn watch<T>(&self, write: impl FnOnce() -> Result<T, StateError>) -> Result<T, StateError> {
        self.watcher.tell(Write::Due);
        let written = write()?;
        self.watcher.tell(Write::Durable);
        Ok(written)
    }

    /// Tells the watcher of a moment between two acts that no write lies between.
    pub(crate) fn step(&self) {
        self.watcher.tell(Write::Due);
    }

    /// Whether records can be kept here.
    pub fn check(&self) -> Result<(), StateError> {
        Ok(record::check(&self.path)?)
    }

    /// Locks a VM's records and reads them.
    pub fn lock(&self, vm: &str, uuid: Uuid) -> Result<VmState, StateError> {
        let lock_path = self.path.join(format!("{uuid}.lock"));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| RecordError::Io {
                path: lock_path.clone(),
                source,
            })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::Busy(vm.to_owned())),
            Err(TryLockError::Error(source)) => {
                return Err(RecordError::Io {
                    path: lock_path,
                    source,
                }
                .into());
            }
        }
        let path = self.path.join(format!("{uuid}.json"));
        let mut records = Self::read(&path)?.unwrap_or_else(|| Records::new(vm));
        vm.clone_into(&mut records.vm);
        Ok(VmState {
            path,
            records,
            watcher: self.watcher.clone(),
            _lock: Lock(lock),
        })
    }

    /// Uses this directory without making it: for a look at what is there.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            watcher: Watcher::default(),
        }
    }

    /// What the VM of this UUID was called when it was last worked on, if it ever was.
    pub fn name_of(&self, uuid: Uuid) -> Option<String> {
        self.peek(uuid).ok().flatten().map(|records| records.vm)
    }

    /// What is on record about a VM, without a lock: for `status`.
    pub fn peek(&self, uuid: Uuid) -> Result<Option<Records>, StateError> {
        Self::read(&self.path.join(format!("{uuid}.json")))
    }

    /// Whether a run works on this VM. The lock is not touched, so that a run that begins right now is not turned away; what is
    /// asked is the kernel's list of locks.
    pub fn is_worked_on(&self, uuid: Uuid) -> bool {
        let lock = std::fs::metadata(self.path.join(format!("{uuid}.lock")));
        let locks = std::fs::read_to_string("/proc/locks");
        let (Ok(lock), Ok(locks)) = (lock, locks) else {
            return false;
        };
        locks.lines().any(|line| is_lock_of(line, lock.dev(), lock.ino()))
    }

    fn read(path: &Path) -> Result<Option<Records>, StateError> {
        let Some(records) = read_json::<Records>(path)? else {
            return Ok(None);
        };
        if records.version != VERSION {
            return Err(RecordError::Damaged {
                path: path.to_owned(),
                message: format!("its version is {}, this program knows {VERSION}", records.version),
            }
            .into());
        }
        Ok(Some(records))
    }
}

/// Whether a line of `/proc/locks` is a lock of this file: `1: FLOCK ADVISORY WRITE 812 fe:01:1835 0 EOF`. Some file systems
/// have a number there that `stat` does not tell; what they have in common is that it is of no device.
fn is_lock_of(line: &str, device: u64, inode: u64) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    // A process that waits for the lock has an arrow before it.
    let ["FLOCK", _, "WRITE", _, place, ..] = words.get(1..).unwrap_or_default() else {
        return false;
    };
    let numbers: Vec<&str> = place.split(':').collect();
    let [major, minor, file] = numbers.as_slice() else {
        return false;
    };
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let (Some(major), Some(minor)) = (number(major), number(minor)) else {
        return false;
    };
    let own = (rustix::fs::major(device), rustix::fs::minor(device));
    file.parse() == Ok(inode) && ((major, minor) == own || (major == 0 && own.0 == 0))
}

impl Records {
    fn new(vm: &str) -> Self {
        Self {
            version: VERSION,
            vm: vm.to_owned(),
            run: None,
            committed: None,
            stale: Vec::new(),
            pending: Pending::default(),
        }
    }
}

impl VmState {
    /// The records as they are on disk.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Writes the intent of a run, before it acts.
    pub fn begin(&mut self, run: Run) -> Result<(), StateError> {
        self.change(|records| records.run = Some(run))
    }

    /// Changes what is on record of the run under way, before it acts accordingly.
    pub fn amend(&mut self, change: impl FnOnce(&mut Run)) -> Result<(), StateError> {
        self.change(|records| {
            if let Some(run) = &mut records.run {
                change(run);
            }
        })
    }

    /// Changes what is pending for the guest: before it may be, and after it is done.
    pub fn set_pending(&mut self, change: impl FnOnce(&mut Pending)) -> Result<(), StateError> {
        self.change(|records| change(&mut records.pending))
    }

    /// Closes the run: its archive is in the repository. Its checkpoint, if it made one, is now the one to start
    /// from; the older one has become stale.
    pub fn commit(&mut self, committed: Option<Committed>) -> Result<(), StateError> {
        self.change(|records| {
            records.run = None;
            if let Some(committed) = committed {
                let older = records.committed.replace(committed);
                records.stale.extend(older.map(|older| older.checkpoint));
            }
        })
    }

    /// Closes the run: it made no restore point. Its checkpoint, if it made one, is stale.
    pub fn abandon(&mut self) -> Result<(), StateError> {
        self.change(|records| {
            let run = records.run.take();
            records.stale.extend(run.and_then(|run| run.checkpoint));
        })
    }

    /// The VM's disks were replaced: what its checkpoints say is not about these disks.
    pub fn retire(&mut self) -> Result<(), StateError> {
        self.change(|records| {
            let committed = records.committed.take();
            records
                .stale
                .extend(committed.map(|committed| committed.checkpoint));
        })
    }

    /// A stale checkpoint has been deleted.
    pub fn deleted(&mut self, checkpoint: &str) -> Result<(), StateError> {
        self.change(|records| records.stale.retain(|stale| stale != checkpoint))
    }

    fn change(&mut self, change: impl FnOnce(&mut Records)) -> Result<(), StateError> {
        let mut next = self.records.clone();
        change(&mut next);
        self.watcher.tell(Write::Due);
        replace_json(&self.path, &next).map_err(|source| RecordError::Io {
            path: self.path.clone(),
            source,
        })?;
        self.records = next;
        self.watcher.tell(Write::Durable);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: &str) -> Run {
        Run {
            id: id.into(),
            started: Timestamp::UNIX_EPOCH,
            archive: format!("vm-{id}"),
            checkpoint: Some(format!("strongroom-{id}")),
            listener: Some(Listener::Socket("/run/x".into())),
            scratch: vec!["/images/scratch".into()],
            running: true,
            overlays: Vec::new(),
        }
    }

    #[test]
    fn a_lock_is_found_in_the_kernels_list() {
        let device = rustix::fs::makedev(0xfe, 1);
        let is = |line: &str| is_lock_of(line, device, 1835);
        assert!(is("1: FLOCK  ADVISORY  WRITE 812 fe:01:1835 0 EOF"));
        assert!(!is("1: -> FLOCK  ADVISORY  WRITE 812 fe:01:1835 0 EOF"));
        assert!(!is("1: FLOCK  ADVISORY  READ 812 fe:01:1835 0 EOF"));
        assert!(!is("1: POSIX  ADVISORY  WRITE 812 fe:01:1835 0 EOF"));
        assert!(!is("1: FLOCK  ADVISORY  WRITE 812 fe:02:1835 0 EOF"));
        assert!(!is("1: FLOCK  ADVISORY  WRITE 812 fe:01:18350 0 EOF"));
        assert!(!is(""));
    }

    /// A look at the lock does not turn a run away, and is right at once.
    #[test]
    fn a_run_under_way_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let uuid = Uuid::from_u128(7);
        assert!(!state.is_worked_on(uuid));
        let held = state.lock("web", uuid).unwrap();
        assert!(state.is_worked_on(uuid));
        drop(held);
        drop(state.lock("web", uuid).unwrap());
    }

    #[test]
    fn a_journal_names_a_socket_or_a_port() {
        let mut run = run("1");
        for (listener, written) in [
            (Some(Listener::Socket("/run/x".into())), r#""/run/x""#),
            (
                Some(Listener::Tls {
                    address: "::".into(),
                    port: 10809,
                }),
                r#"{"address":"::","port":10809}"#,
            ),
            (None, "null"),
        ] {
            run.listener = listener;
            let text = serde_json::to_string(&run).unwrap();
            assert!(text.contains(&format!(r#""socket":{written}"#)), "{text}");
            assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), run);
        }
    }

    fn committed(id: &str) -> Committed {
        Committed {
            run: id.into(),
            archive: format!("vm-{id}"),
            checkpoint: format!("strongroom-{id}"),
            repository: "00".into(),
        }
    }

    #[test]
    fn a_run_survives_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let uuid = Uuid::from_u128(7);
        state.lock("web", uuid).unwrap().begin(run("1")).unwrap();
        assert_eq!(state.lock("web", uuid).unwrap().records().run, Some(run("1")));
        assert_eq!(state.peek(uuid).unwrap().unwrap().vm, "web");
        assert_eq!(state.peek(Uuid::from_u128(8)).unwrap(), None);
    }

    #[test]
    fn only_a_committed_checkpoint_is_built_upon_and_every_other_one_is_due_for_deletion() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = StateDirectory::open(directory.path())
            .unwrap()
            .lock("web", Uuid::nil())
            .unwrap();
        state.begin(run("1")).unwrap();
        state.commit(Some(committed("1"))).unwrap();
        assert_eq!(state.records().committed, Some(committed("1")));
        assert!(state.records().stale.is_empty());
        // A run that fails.
        state.begin(run("2")).unwrap();
        state.abandon().unwrap();
        assert_eq!(state.records().committed, Some(committed("1")));
        assert_eq!(state.records().stale, ["strongroom-2"]);
        state.deleted("strongroom-2").unwrap();
        // One that succeeds.
        state.begin(run("3")).unwrap();
        state.commit(Some(committed("3"))).unwrap();
        assert_eq!(state.records().committed, Some(committed("3")));
        assert_eq!(state.records().stale, ["strongroom-1"]);
        // A backup of the shut-off VM makes no checkpoint, and the one that stands is still good.
        state.begin(run("4")).unwrap();
        state.commit(None).unwrap();
        assert_eq!(state.records().committed, Some(committed("3")));
        assert_eq!(state.records().run, None);
    }

    #[test]
    fn what_is_owed_outlives_the_run() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let owed = Pending {
            thaw: true,
            post: Some("1".into()),
        };
        let mut records = state.lock("web", Uuid::nil()).unwrap();
        records.begin(run("1")).unwrap();
        records.set_pending(|pending| pending.clone_from(&owed)).unwrap();
        records.commit(Some(committed("1"))).unwrap();
        drop(records);
        let mut records = state.lock("web", Uuid::nil()).unwrap();
        assert_eq!(records.records().pending, owed);
        records
            .set_pending(|pending| *pending = Pending::default())
            .unwrap();
        assert_eq!(records.records().pending, Pending::default());
    }

    #[test]
    fn a_watcher_sees_both_sides_of_every_write() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(format!("{}.json", Uuid::nil()));
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (log, written) = (Arc::clone(&seen), file.clone());
        let watcher = Arc::new(move |write| {
            let text = std::fs::read_to_string(&written).unwrap_or_default();
            log.lock().unwrap().push((write, text.contains("vm-1")));
        });
        let state = StateDirectory::open(directory.path()).unwrap().watched(watcher);
        let mut state = state.lock("web", Uuid::nil()).unwrap();
        state.begin(run("1")).unwrap();
        state.abandon().unwrap();
        let expected = [
            (Write::Due, false),
            (Write::Durable, true),
            (Write::Due, true),
            (Write::Durable, false),
        ];
        assert_eq!(*seen.lock().unwrap(), expected);
    }

    #[test]
    fn two_runs_of_one_vm_exclude_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let _held = state.lock("web", Uuid::nil()).unwrap();
        assert!(matches!(state.lock("web", Uuid::nil()), Err(StateError::Busy(vm)) if vm == "web"));
        assert!(state.lock("db", Uuid::from_u128(1)).is_ok());
    }

    #[test]
    fn damaged_records_stop_the_run_and_say_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        for text in [
            "{",
            r#"{"version":99,"vm":"web","run":null,"committed":null,"stale":[]}"#,
        ] {
            std::fs::write(directory.path().join(format!("{}.json", Uuid::nil())), text).unwrap();
            let error = state.lock("web", Uuid::nil()).unwrap_err().to_string();
            assert!(error.contains("move it away"), "{error}");
        }
    }
}
