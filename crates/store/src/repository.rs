//! A repository in a directory: opening and reading.
//!
//! Objects are read by the threads that want them, with `pread`, into their own buffers; only the look-up in the
//! index is shared. Writing is in `repository/transaction.rs`.

mod transaction;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::cache::Cache;
use crate::error::Doing as _;
use crate::files::{Directory, Disk, read_all};
use crate::lock::{Lock, host_id};
use crate::options::{Access, Options};
use crate::recover::{self, How, Loaded};
use crate::{Config, Error, Id, Index, Info, Place, Result, Store, config, layout, nonce, segment, state};
use transaction::Transaction;

/// A repository in a directory.
pub struct Repository {
    directory: Arc<dyn Directory>,
    config: Config,
    cache: Cache,
    append_only: bool,
    storage_quota: Option<u64>,
    how: How,
    access: Access,
    /// Held for reading by all who put something, so that a commit can wait for them.
    gate: RwLock<()>,
    state: RwLock<State>,
    /// Given back last.
    lock: Option<Lock>,
}

/// What changes while a repository is open.
#[derive(Default)]
struct State {
    /// `None` if it has to be read again.
    loaded: Option<Loaded>,
    transaction: Option<Transaction>,
}

impl Repository {
    /// Opens the repository at a path.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let disk = match Disk::open(path) {
            Ok(disk) => disk,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::NotARepository),
            Err(error) => return Err(error).doing("open", &path.display().to_string()),
        };
        Self::open_in(Arc::new(disk), options)
    }

    /// Opens the repository in a directory, whatever that is.
    pub fn open_in(directory: Arc<dyn Directory>, options: &Options) -> Result<Self> {
        // Nothing is locked, and so nothing written, in what is no repository.
        read_config(&*directory)?;
        let exclusive = options.access == Access::Write;
        let lock = if options.access == Access::Unlocked {
            None
        } else {
            let host = options.host_id.clone().unwrap_or_else(host_id);
            Some(Lock::take(
                Arc::clone(&directory),
                &host,
                exclusive,
                &options.patience,
            )?)
        };
        let config = read_config(&*directory)?;
        let mut repository = Self {
            append_only: options.append_only || config.append_only,
            storage_quota: options
                .storage_quota
                .or(Some(config.storage_quota))
                .filter(|quota| *quota > 0),
            directory,
            config,
            cache: Cache::default(),
            how: How::AsFound,
            access: options.access,
            gate: RwLock::default(),
            state: RwLock::default(),
            lock,
        };
        let loaded = repository.load()?;
        repository.how = loaded.how.clone();
        repository.state = RwLock::new(State {
            loaded: Some(loaded),
            transaction: None,
        });
        Ok(repository)
    }

    /// What had to be done to have an index.
    pub fn how(&self) -> &How {
        &self.how
    }

    /// What the repository's `config` said when it was opened.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Loads the latest transaction. A writer leaves it on disk as it should be.
    fn load(&self) -> Result<Loaded> {
        let writer = self.access == Access::Write;
        let mut loaded = recover::load(&*self.directory, &self.config, writer)?;
        if writer
            && loaded.how != How::AsFound
            && let (Some(transaction), Some(hints)) = (loaded.transaction, &loaded.hints)
        {
            state::save(
                &*self.directory,
                transaction,
                &mut loaded.index,
                hints,
                self.append_only,
            )?;
        }
        Ok(loaded)
    }

    /// Fails unless the exclusive lock is still ours.
    fn may_write(&self) -> Result<()> {
        if self.lock.as_ref().is_some_and(Lock::is_exclusive) {
            return Ok(());
        }
        if self.access == Access::Write {
            return Err(Error::LockLost);
        }
        Err(Error::ReadOnly)
    }

    /// What changes, for those who change it. A panic within leaves nothing that can be gone on with.
    fn state(&self) -> Result<RwLockWriteGuard<'_, State>> {
        self.state.write().map_err(|_| Error::Doomed)
    }

    /// Asks the index, which is loaded again if need be.
    fn with_index<T>(&self, ask: impl Fn(&Index) -> T) -> Result<T> {
        loop {
            let state: RwLockReadGuard<'_, State> = self.state.read().map_err(|_| Error::Doomed)?;
            if let Some(loaded) = &state.loaded {
                return Ok(ask(&loaded.index));
            }
            drop(state);
            let mut state = self.state()?;
            if state.loaded.is_none() {
                state.loaded = Some(self.load()?);
            }
        }
    }

    /// Reads an object. After an error anything may be in the buffer.
    fn read(&self, id: &Id, object: &mut Vec<u8>) -> Result<()> {
        let place = self
            .with_index(|index| index.get(id))?
            .ok_or(Error::NotFound(*id))?;
        let per_dir = self.config.segments_per_dir;
        let name = layout::segment(place.segment, per_dir);
        let file = match self.cache.open(&*self.directory, per_dir, place.segment) {
            Err(error) if error.is_absent() => return Err(Error::damaged(name, "it is missing")),
            other => other?,
        };
        segment::get(&*file, &name, place.offset, id, object)
    }

    /// Length of the PUT that the index has for an object.
    fn put_len(&self, id: &Id, place: Place) -> Result<u32> {
        let per_dir = self.config.segments_per_dir;
        let file = self.cache.open(&*self.directory, per_dir, place.segment)?;
        segment::put_len(&*file, &layout::segment(place.segment, per_dir), place.offset, id)
    }
}

fn read_config(directory: &dyn Directory) -> Result<Config> {
    let bytes = match read_all(directory, "config", config::MAX_LEN).doing("read", "config") {
        Err(error) if error.is_absent() => return Err(Error::NotARepository),
        other => other?,
    };
    let text = String::from_utf8(bytes).map_err(|_| Error::Config("it is no text".to_owned()))?;
    Config::parse(&text)
}

impl Store for Repository {
    type Error = Error;

    fn info(&self) -> Info {
        Info {
            id: self.config.id,
            append_only: self.append_only,
            storage_quota: self.storage_quota,
        }
    }

    fn count(&self) -> Result<u64> {
        self.with_index(|index| index.len() as u64)
    }

    fn contains(&self, id: &Id) -> Result<bool> {
        self.with_index(|index| index.get(id).is_some())
    }

    fn list(&self, after: Option<&Id>, limit: usize) -> Result<Vec<Id>> {
        self.with_index(|index| match after {
            None => Ok(index.iter().map(|(id, _)| id).take(limit).collect()),
            Some(after) => match index.iter_after(after) {
                Some(ids) => Ok(ids.map(|(id, _)| id).take(limit).collect()),
                None => Err(Error::NotFound(*after)),
            },
        })?
    }

    fn get(&self, id: &Id, object: &mut Vec<u8>) -> Result<()> {
        // What the buffer holds is overwritten, not cleared before: clearing costs as much as the checksum.
        let read = self.read(id, object);
        if read.is_err() {
            object.clear();
        }
        read
    }

    fn put(&self, id: &Id, object: &[u8]) -> Result<()> {
        self.put_object(id, object)
    }

    fn delete(&self, id: &Id) -> Result<()> {
        self.delete_object(id)
    }

    fn settle(&self) -> Result<()> {
        // Each put was certain when it returned; those of other threads are waited for.
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
        match self.state()?.transaction.as_ref().and_then(Transaction::doom) {
            Some(doom) => Err(doom),
            None => Ok(()),
        }
    }

    fn commit(&self) -> Result<()> {
        self.commit_transaction()
    }

    fn rollback(&self) -> Result<()> {
        self.forget_transaction()
    }

    fn free_nonce(&self) -> Result<Option<u64>> {
        nonce::free(&*self.directory)
    }

    fn reserve_nonce(&self, start: Option<u64>, next: u64) -> Result<()> {
        self.may_write()?;
        nonce::reserve(&*self.directory, start, next)
    }

    fn load_key(&self) -> Result<Vec<u8>> {
        // `borg key change-passphrase` needs no exclusive lock: the file is read each time.
        Ok(read_config(&*self.directory)?.key.into_bytes())
    }
}
