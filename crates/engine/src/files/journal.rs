//! What a restore, or the making of a machine, is about to do to files, on record before it does it.
//!
//! One file a restore, `restores/TOKEN.json` in the state directory, gone when the restore is over, and a lock that tells
//! whether it still runs. [`super::unfinished`] puts right what a restore that died has left.

use std::cell::RefCell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strongroom_base::record::{RecordError, read_json, replace_json};
use uuid::Uuid;

use super::directory::Identity;
use super::staged::{StagedFile, names_beside, token};
use crate::run::state::{StateDirectory, StateError};

/// The version of the file.
const VERSION: u32 = 1;
/// How the name of a directory begins in which files for another machine are made.
pub const STAGE_PREFIX: &str = "strongroom-restore-";
/// Directory of the journals in the state directory.
const DIRECTORY: &str = "restores";

/// How far it has come: what is to be done about it after a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Files are written under temporary names: they go.
    Writing,
    /// Whole files take their places: they give them back.
    Taking,
    /// All have taken their places: they stay, the domain is defined, what was there before goes.
    Taken,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// Where it belongs.
    pub path: PathBuf,
    /// Directories that have to be made for it, innermost first.
    #[serde(default)]
    pub made: Vec<PathBuf>,
    /// The file, once it is whole.
    pub new: Option<Identity>,
    /// What has its place before.
    pub before: Option<Identity>,
}

/// All that is on record of one restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    version: u32,
    /// Part of the names of its temporary files.
    pub token: String,
    /// The name that the VM will have.
    pub vm: String,
    /// The VM's UUID, if a domain will be defined.
    pub uuid: Option<Uuid>,
    /// When it began.
    pub started: Timestamp,
    /// How far it has come.
    pub phase: Phase,
    /// Its files.
    pub files: Vec<Destination>,
    /// A directory of this machine for files whose places are on another one.
    #[serde(default)]
    pub stage: Option<PathBuf>,
    /// The definition of the domain. It holds secrets.
    #[serde(default)]
    pub definition: Option<String>,
    /// Whether a domain that is there is replaced.
    #[serde(default)]
    pub overwrite: bool,
}

/// The record of a restore under way. Dropped, it is closed, unless something was left that could not be put back.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    state: StateDirectory,
    entry: RefCell<Entry>,
    lock: Lock,
}

/// Held as long as the restore's process is there.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Nothing if another process has it.
    fn take(path: PathBuf) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { path, _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Removes a journal whose restore is over.
pub fn close(journal: &Path, lock: &Lock) -> io::Result<()> {
    std::fs::remove_file(journal)?;
    std::fs::remove_file(&lock.path)
}

fn at(path: &Path) -> impl Fn(io::Error) -> StateError + '_ {
    |source| {
        let path = path.to_owned();
        RecordError::Io { path, source }.into()
    }
}

impl Journal {
    /// For a VM of this name.
    pub fn begin(state: &StateDirectory, vm: &str) -> Result<Self, StateError> {
        let directory = state.path().join(DIRECTORY);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(at(&directory))?;
        let token = token();
        let lock = directory.join(format!("{token}.lock"));
        let lock = Lock::take(lock.clone())
            .map_err(at(&lock))?
            .ok_or_else(|| StateError::Busy(vm.to_owned()))?;
        let journal = Self {
            path: directory.join(format!("{token}.json")),
            state: state.clone(),
            entry: RefCell::new(Entry {
                version: VERSION,
                token,
                vm: vm.to_owned(),
                uuid: None,
                started: Timestamp::now(),
                phase: Phase::Writing,
                files: Vec::new(),
                stage: None,
                definition: None,
                overwrite: false,
            }),
            lock,
        };
        journal.write()?;
        Ok(journal)
    }

    fn write(&self) -> Result<(), StateError> {
        self.state
            .watch(|| replace_json(&self.path, &*self.entry.borrow()).map_err(|error| at(&self.path)(error)))
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) -> Result<(), StateError> {
        change(&mut self.entry.borrow_mut());
        self.write()
    }

    /// Puts a file on record and makes it, empty, beside its place.
    pub fn stage(&self, path: &Path) -> io::Result<StagedFile> {
        let missing = path
            .ancestors()
            .skip(1)
            .take_while(|directory| !directory.exists());
        let destination = Destination {
            path: path.to_owned(),
            made: missing.map(Path::to_owned).collect(),
            new: None,
            before: None,
        };
        self.change(|entry| entry.files.push(destination))
            .map_err(io::Error::other)?;
        let token = self.entry.borrow().token.clone();
        StagedFile::new(path, &token)
    }

    /// Puts the directory on record in which files for another machine are made.
    pub fn stage_remote(&self, directory: &Path) -> Result<(), StateError> {
        self.change(|entry| entry.stage = Some(directory.to_owned()))
    }

    /// All files are whole, and about to take their places.
    pub fn taking(&self, staged_files: &[StagedFile], overwrite: bool) -> Result<(), StateError> {
        let mut files = self.entry.borrow().files.clone();
        for staged in staged_files {
            let Some(destination) = files
                .iter_mut()
                .find(|destination| destination.path == staged.destination())
            else {
                continue;
            };
            destination.new = Some(staged.identity().map_err(at(staged.destination()))?);
            destination.before = if overwrite {
                staged.before().map_err(at(staged.destination()))?
            } else {
                None
            };
        }
        self.change(|entry| {
            entry.files = files;
            entry.phase = Phase::Taking;
            entry.overwrite = overwrite;
        })
    }

    /// All files have taken their places, and stay if the domain can be defined.
    pub fn taken(&self, definition: Option<&str>) -> Result<(), StateError> {
        self.change(|entry| {
            entry.phase = Phase::Taken;
            entry.definition = definition.map(str::to_owned);
        })
    }

    /// They did not: they give their places back.
    pub fn giving_back(&self) -> Result<(), StateError> {
        self.change(|entry| {
            entry.phase = Phase::Taking;
            entry.definition = None;
        })
    }

    /// Between two acts, for tests that end it there.
    pub fn step(&self) {
        self.state.step();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let entry = self.entry.borrow();
        let left = entry.files.iter().any(|destination| {
            let (new, old) = names_beside(destination.path.file_name().unwrap_or_default(), &entry.token);
            let beside = |name| destination.path.with_file_name(name).symlink_metadata().is_ok();
            beside(new) || beside(old)
        });
        if !left {
            let _ = close(&self.path, &self.lock);
        }
    }
}

/// The journals of restores that have died, with their files.
pub fn abandoned(state: &StateDirectory) -> Result<Vec<(PathBuf, Entry, Lock)>, StateError> {
    let directory = state.path().join(DIRECTORY);
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(&directory))?,
    };
    let mut found = Vec::new();
    for file in entries {
        let path = file.map_err(at(&directory))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Some(lock) = Lock::take(path.with_extension("lock")).map_err(at(&path))? else {
            continue;
        };
        // It may have ended between the listing and the lock.
        let Some(entry) = read_json::<Entry>(&path)? else {
            let _ = std::fs::remove_file(&lock.path);
            continue;
        };
        if entry.version != VERSION {
            return Err(RecordError::Damaged {
                path,
                message: format!("its version is {}, this program knows {VERSION}", entry.version),
            }
            .into());
        }
        found.push((path, entry, lock));
    }
    found.sort_by_key(|(_, entry, _)| entry.started);
    Ok(found)
}
