//! A repository that is written to.
//!
//! The order is stock Borg's, for the log and for what is made durable when: an object that is replaced is deleted
//! first; all segments are durable before the COMMIT is written, and the COMMIT before index and hints are. After an
//! error in between nothing can be said about what a file holds, so the transaction is doomed: it is never committed.

use std::sync::PoisonError;

use super::{Repository, State};
use crate::layout;
use crate::log::{Log, Place as LogPlace};
use crate::recover::Loaded;
use crate::segment::{ID_HEAD, MAX_ENTRY, MAX_OBJECT, Tag};
use crate::{Error, Hints, Id, Index, Place, Result, state};

/// Length of a COMMIT.
const COMMIT_LEN: usize = 9;

/// What was put and deleted since the last commit.
pub(super) struct Transaction {
    log: Log,
    doom: Option<Doom>,
}

/// Why a transaction cannot be committed.
#[derive(Clone, Copy)]
enum Doom {
    Quota {
        quota: u64,
        used: u64,
    },
    /// A write failed; on a full disk, what was written is removed at once.
    Failed {
        full: bool,
    },
}

impl Transaction {
    /// The error that a commit would end with.
    pub(super) fn doom(&self) -> Option<Error> {
        self.doom.map(|doom| match doom {
            Doom::Quota { quota, used } => Error::QuotaExceeded { quota, used },
            Doom::Failed { .. } => Error::Doomed,
        })
    }
}

/// Everything that a change of the log touches.
struct Change<'s> {
    log: &'s mut Log,
    index: &'s mut Index,
    hints: &'s mut Hints,
}

impl State {
    /// The parts of a transaction that has begun.
    fn change(&mut self) -> Result<Change<'_>> {
        match (&mut self.loaded, &mut self.transaction) {
            (
                Some(Loaded {
                    index,
                    hints: Some(hints),
                    ..
                }),
                Some(Transaction { log, doom: None }),
            ) => Ok(Change { log, index, hints }),
            (_, Some(transaction)) => Err(transaction.doom().unwrap_or(Error::Doomed)),
            _ => Err(Error::ReadOnly),
        }
    }

    /// Keeps the transaction from being committed, if `result` is an error.
    fn doom_unless<T>(&mut self, result: Result<T>) -> Result<T> {
        if let (Err(error), Some(transaction)) = (&result, &mut self.transaction) {
            let full = error.is_full();
            transaction.doom.get_or_insert(Doom::Failed { full });
        }
        result
    }
}

impl Repository {
    /// Begins a transaction, unless one has begun.
    fn begin(&self, state: &mut State) -> Result<()> {
        if state.transaction.is_some() {
            return Ok(());
        }
        self.may_write()?;
        let loaded = match &state.loaded {
            Some(loaded) => loaded,
            None => state.loaded.insert(self.load()?),
        };
        let next = loaded.transaction.map_or(0, |transaction| transaction + 1);
        self.remove_uncommitted(loaded.transaction)?;
        state.transaction = Some(Transaction {
            log: Log::new(self.config.segments_per_dir, self.config.max_segment_size, next),
            doom: None,
        });
        Ok(())
    }

    /// Removes what was written to the log behind its latest commit.
    fn remove_uncommitted(&self, transaction: Option<u32>) -> Result<()> {
        for segment in layout::latest_segments(&*self.directory, self.config.segments_per_dir)? {
            let segment = segment?;
            match transaction {
                Some(transaction) if segment <= transaction => break,
                Some(_) => {}
                None => {
                    return Err(Error::CheckNeeded(
                        "there are segments, but no committed transaction".to_owned(),
                    ));
                }
            }
            self.cache.forget_from(segment);
            let name = layout::segment(segment, self.config.segments_per_dir);
            self.directory.unlink(&name).map_err(|source| Error::Io {
                action: "remove",
                path: name,
                source,
            })?;
        }
        Ok(())
    }

    pub(super) fn put_object(&self, id: &Id, object: &[u8]) -> Result<()> {
        if object.len() > MAX_OBJECT {
            return Err(Error::TooBig(object.len()));
        }
        let _commits_wait = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state()?;
        self.begin(&mut state)?;
        let old = match state.change()?.index.get(id) {
            Some(place) => Some((place, self.put_len(id, place)?)),
            None => None,
        };
        let placed = self.place(&mut state, id, old, object.len());
        let (deleted, put) = state.doom_unless(placed)?;
        let writing = put.segment.writing();
        drop(state);
        let written = put.segment.write(Tag::Put, id, object, put.offset);
        drop(writing);
        let closed = written.and_then(|()| {
            let full = [deleted.and_then(|place| place.full), put.full];
            full.iter()
                .flatten()
                .try_for_each(|segment| segment.close(&*self.directory))
        });
        match closed {
            Ok(()) => self.check_quota(),
            Err(error) => self.state()?.doom_unless(Err(error)),
        }
    }

    /// Deletes the old object, and finds a place for the new one.
    fn place(
        &self,
        state: &mut State,
        id: &Id,
        old: Option<(Place, u32)>,
        len: usize,
    ) -> Result<(Option<LogPlace>, LogPlace)> {
        let deleted = match old {
            Some(old) => Some(self.write_delete(state, id, old)?),
            None => None,
        };
        let Change { log, index, hints } = state.change()?;
        let len = ID_HEAD + len;
        let put = log.place(&*self.directory, &self.cache, len, *id == Id::MANIFEST)?;
        let place = Place {
            segment: put.segment.number,
            offset: put.offset,
        };
        index.insert(id, place)?;
        hints.put(place.segment, len as u32);
        Ok((deleted, put))
    }

    /// Writes the DELETE of an object, and keeps the books.
    fn write_delete(&self, state: &mut State, id: &Id, (old, len): (Place, u32)) -> Result<LogPlace> {
        let Change { log, hints, .. } = state.change()?;
        let place = log.place(&*self.directory, &self.cache, ID_HEAD, *id == Id::MANIFEST)?;
        place.segment.write(Tag::Delete, id, &[], place.offset)?;
        hints.supersede(id, old.segment, len);
        hints.free(place.segment.number, ID_HEAD as i64);
        hints.segments.entry(place.segment.number).or_default();
        Ok(place)
    }

    fn check_quota(&self) -> Result<()> {
        let Some(quota) = self.storage_quota else {
            return Ok(());
        };
        let mut state = self.state()?;
        let used = state.change()?.hints.quota_use.max(0) as u64;
        if used <= quota {
            return Ok(());
        }
        if let Some(transaction) = &mut state.transaction {
            transaction.doom = Some(Doom::Quota { quota, used });
        }
        Err(Error::QuotaExceeded { quota, used })
    }

    pub(super) fn delete_object(&self, id: &Id) -> Result<()> {
        let _commits_wait = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state()?;
        self.begin(&mut state)?;
        let place = state.change()?.index.get(id).ok_or(Error::NotFound(*id))?;
        let len = self.put_len(id, place)?;
        let deleted = self.write_delete(&mut state, id, (place, len));
        let deleted = state.doom_unless(deleted)?;
        state.change()?.index.remove(id);
        drop(state);
        let closed = deleted
            .full
            .map_or(Ok(()), |segment| segment.close(&*self.directory));
        match closed {
            Ok(()) => Ok(()),
            Err(error) => self.state()?.doom_unless(Err(error)),
        }
    }

    pub(super) fn commit_transaction(&self) -> Result<()> {
        let _all_is_written = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state()?;
        if state.transaction.is_none() {
            return Ok(());
        }
        let committed = self.commit_log(&mut state);
        let transaction = match committed {
            Ok(transaction) => transaction,
            Err(error) => {
                // What is on disk is what counts, whatever that is.
                self.forget(
                    &mut state,
                    error.is_full() && !matches!(error, Error::CommitUnknown(_)),
                );
                return Err(error);
            }
        };
        let Change { index, hints, .. } = state.change()?;
        hints.segments.entry(transaction).or_default();
        hints.free(transaction, COMMIT_LEN as i64);
        let saved = state::save(&*self.directory, transaction, index, hints, self.append_only);
        state.transaction = None;
        match (&mut state.loaded, saved) {
            (Some(loaded), Ok(())) => {
                loaded.transaction = Some(transaction);
                Ok(())
            }
            (_, Err(error)) => {
                state.loaded = None;
                Err(Error::AfterCommit(Box::new(error)))
            }
            (None, Ok(())) => Ok(()),
        }
    }

    /// Writes the COMMIT, and returns the number of its segment. After an error nothing is committed, unless it is
    /// [`Error::CommitUnknown`].
    fn commit_log(&self, state: &mut State) -> Result<u32> {
        let Change { log, index, hints } = state.change()?;
        self.may_write()?;
        self.check_free_space(index, hints)?;
        if let Some(segment) = log.take_current() {
            segment.close(&*self.directory)?;
        }
        let place = log.place(&*self.directory, &self.cache, COMMIT_LEN, true)?;
        log.take_current();
        let written = place
            .segment
            .write(Tag::Commit, &Id::MANIFEST, &[], place.offset)
            .and_then(|()| place.segment.close(&*self.directory));
        if let Err(error) = written {
            // What a failed write left behind is unknown, so it must not be found again.
            return match place.segment.remove(&*self.directory) {
                Ok(()) => Err(error),
                Err(_) => Err(Error::CommitUnknown(Box::new(error))),
            };
        }
        Ok(place.segment.number)
    }

    /// Borg's own estimate of what this commit and a later compaction need.
    fn check_free_space(&self, index: &Index, hints: &Hints) -> Result<()> {
        let lines = (hints.segments.len() + hints.compact.len()) as u64;
        let mut needed = 4 * index.file_len() + 10 * lines + 4096 + self.config.additional_free_space;
        if !self.append_only {
            let full_segment = self.config.max_segment_size + MAX_ENTRY as u64;
            needed += if hints.compact.len() < 10 {
                self.live_bytes(hints).min(full_segment)
            } else {
                full_segment
            };
        }
        match self.directory.free_space() {
            Ok(free) if free < needed => Err(Error::NoSpace { needed, free }),
            // Where it cannot be told, Borg goes on, too: the writes themselves will tell.
            _ => Ok(()),
        }
    }

    /// Bytes that a compaction of all segments would have to copy.
    fn live_bytes(&self, hints: &Hints) -> u64 {
        let len = |segment: &u32| {
            let file = self
                .cache
                .open(&*self.directory, self.config.segments_per_dir, *segment);
            file.ok().and_then(|file| file.len().ok())
        };
        let live = hints
            .compact
            .iter()
            .filter_map(|(segment, free)| Some(len(segment)? as i64 - free));
        live.sum::<i64>().max(0) as u64
    }

    pub(super) fn forget_transaction(&self) -> Result<()> {
        let _nothing_is_written = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state()?;
        self.forget(&mut state, false);
        Ok(())
    }

    /// Forgets a transaction; its segments stay until the next one begins, unless the disk is full.
    fn forget(&self, state: &mut State, full: bool) {
        let Some(transaction) = state.transaction.take() else {
            return;
        };
        let committed = state.loaded.take().and_then(|loaded| loaded.transaction);
        self.cache
            .forget_from(committed.map_or(0, |committed| committed + 1));
        let full = full || matches!(transaction.doom, Some(Doom::Failed { full: true }));
        if full && committed.is_some() && self.may_write().is_ok() {
            // What cannot be removed now is removed when the next transaction begins.
            let _ = self.remove_uncommitted(committed);
        }
    }
}
