//! What a repository holds: the latest committed transaction, with an index that fits it.
//!
//! The log decides. An index as of an earlier transaction is brought forward by the entries since; one that is
//! damaged is made anew from all segments. Where the log itself has lost what was committed, nothing is guessed.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Doing as _;
use crate::files::{Directory, File};
use crate::segment::{Entries, Entry, Tag, put_len};
use crate::{Config, Error, Hints, Index, Place, Result, layout, state};

/// Index and hints as of a transaction.
pub(crate) struct Loaded {
    /// `None` if nothing was ever committed.
    pub(crate) transaction: Option<u32>,
    pub(crate) index: Index,
    /// Only if they were asked for: reading needs none.
    pub(crate) hints: Option<Hints>,
    /// How the files came to be what is loaded.
    pub(crate) how: How,
}

/// What had to be done to have an index.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum How {
    /// The index on disk is the right one.
    AsFound,
    /// A writer died between its commit and its index; the entries since were added.
    Replayed {
        /// As of which transaction the index was; `None` if there was none.
        from: Option<u32>,
    },
    /// Index or hints were damaged; they were made anew.
    Rebuilt {
        /// What is wrong with them.
        reason: String,
    },
}

/// Loads the latest committed transaction. Nothing is written.
pub(crate) fn load(directory: &dyn Directory, config: &Config, with_hints: bool) -> Result<Loaded> {
    let committed = layout::committed(directory, config.segments_per_dir)?;
    let indexed = layout::indexed(directory)?;
    let Some(transaction) = committed else {
        return match indexed.first() {
            None => Ok(Loaded {
                transaction: None,
                index: Index::new(),
                hints: with_hints.then(Hints::default),
                how: How::AsFound,
            }),
            Some(index) => Err(Error::CheckNeeded(format!(
                "there is index.{index}, but no committed transaction"
            ))),
        };
    };
    if let Some(index) = indexed.first().filter(|index| **index > transaction) {
        return Err(Error::CheckNeeded(format!(
            "there is index.{index}, but the latest transaction that is whole is {transaction}"
        )));
    }
    let mut damage = None;
    for from in indexed {
        match load_pair(directory, from, with_hints) {
            Ok((index, hints)) => {
                let from = Some(from);
                return replay(directory, config, (from, transaction), index, hints, damage);
            }
            Err(Error::Damaged { file, reason }) => {
                damage.get_or_insert(format!("{file} is damaged: {reason}"));
            }
            Err(error) => return Err(error),
        }
    }
    let hints = with_hints.then(Hints::default);
    replay(
        directory,
        config,
        (None, transaction),
        Index::new(),
        hints,
        damage,
    )
}

fn load_pair(
    directory: &dyn Directory,
    transaction: u32,
    with_hints: bool,
) -> Result<(Index, Option<Hints>)> {
    let index = state::load_index(directory, transaction)?;
    let hints = if with_hints {
        Some(state::load_hints(directory, transaction)?)
    } else {
        None
    };
    Ok((index, hints))
}

/// Adds what the log holds behind one transaction up to another.
fn replay(
    directory: &dyn Directory,
    config: &Config,
    (from, to): (Option<u32>, u32),
    index: Index,
    hints: Option<Hints>,
    damage: Option<String>,
) -> Result<Loaded> {
    let how = match damage {
        Some(reason) => How::Rebuilt { reason },
        None if from == Some(to) => How::AsFound,
        None => How::Replayed { from },
    };
    let mut replay = Replay {
        directory,
        per_dir: config.segments_per_dir,
        index,
        hints,
        files: HashMap::new(),
    };
    if from != Some(to) {
        for segment in layout::segments(directory, config.segments_per_dir)? {
            if from.is_none_or(|from| segment > from) && segment <= to {
                replay.segment(segment)?;
            }
        }
    }
    Ok(Loaded {
        transaction: Some(to),
        index: replay.index,
        hints: replay.hints,
        how,
    })
}

struct Replay<'d> {
    directory: &'d dyn Directory,
    per_dir: u32,
    index: Index,
    hints: Option<Hints>,
    /// Segments in which the lengths of deleted objects were looked up; `None` for those that are gone.
    files: HashMap<u32, Option<Arc<dyn File>>>,
}

/// Files that are kept open.
const MAX_FILES: usize = 64;

impl Replay<'_> {
    fn segment(&mut self, segment: u32) -> Result<()> {
        let name = layout::segment(segment, self.per_dir);
        let file = self.directory.open(&name).doing("open", &name)?;
        if file.len().doing("examine", &name)? == 0 {
            // Borg cuts a segment to nothing before it removes it.
            return Ok(());
        }
        let mut entries = Entries::of(file, name)?;
        if let Some(hints) = &mut self.hints {
            hints.segments.insert(segment, 0);
        }
        while let Some(entry) = entries.next()? {
            self.entry(segment, &entry)?;
        }
        if let Some(hints) = &mut self.hints
            && hints.segments.get(&segment) == Some(&0)
        {
            hints.compact.insert(segment, entries.len() as i64);
        }
        Ok(())
    }

    fn entry(&mut self, segment: u32, entry: &Entry) -> Result<()> {
        match entry.tag {
            Tag::Put => {
                let place = Place {
                    segment,
                    offset: entry.offset,
                };
                let old = self.index.get(&entry.id);
                self.index.insert(&entry.id, place)?;
                if let Some(hints) = &mut self.hints {
                    if let Some(old) = old {
                        hints.supersede(&entry.id, old.segment, entry.len);
                    }
                    hints.put(segment, entry.len);
                }
            }
            Tag::Delete => {
                if let Some(old) = self.index.remove(&entry.id)
                    && self.hints.is_some()
                    && let Some(file) = self.file(old.segment)?
                {
                    let name = layout::segment(old.segment, self.per_dir);
                    let len = put_len(&*file, &name, old.offset, &entry.id)?;
                    if let Some(hints) = &mut self.hints {
                        hints.supersede(&entry.id, old.segment, len);
                    }
                }
            }
            Tag::Commit => {}
        }
        Ok(())
    }

    /// A segment, unless a compaction has removed it since.
    fn file(&mut self, segment: u32) -> Result<Option<Arc<dyn File>>> {
        if let Some(file) = self.files.get(&segment) {
            return Ok(file.clone());
        }
        let name = layout::segment(segment, self.per_dir);
        let file = match self.directory.open(&name).doing("open", &name) {
            Ok(file) => Some(file),
            Err(error) if error.is_absent() => None,
            Err(error) => return Err(error),
        };
        let file = match file {
            Some(file) if file.len().doing("examine", &name)? > 0 => Some(file),
            _ => None,
        };
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        self.files.insert(segment, file.clone());
        Ok(file)
    }
}
