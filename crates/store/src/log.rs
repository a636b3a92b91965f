//! The end of the log: places for entries are given out one after the other, and each entry is written by the
//! thread that has it, beside the others.
//!
//! A segment is closed when the next entry begins behind `max_segment_size`; entries of the manifest, and the COMMIT,
//! have a segment of their own (Borg since 1.2). Closing waits for the entries that are still being written, then
//! makes content and name durable.

use std::io::{ErrorKind, IoSlice};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::cache::Cache;
use crate::error::Doing as _;
use crate::files::{Create, Directory, File, write_all_at};
use crate::segment::{MAGIC, Tag, head};
use crate::{Error, Id, Result, index, layout};

/// Bytes after which the kernel is asked to begin writing them out.
const WINDOW: u64 = 16 << 20;

/// A segment to which entries are being written.
pub(crate) struct Segment {
    pub(crate) number: u32,
    name: String,
    file: Arc<dyn File>,
    /// Held by all who write an entry to it.
    writing: RwLock<()>,
}

/// A place in a segment, which stays open until it is dropped.
pub(crate) struct Writing<'s>(#[allow(dead_code)] RwLockReadGuard<'s, ()>);

impl Segment {
    /// Keeps the segment from being closed. To be called while no other place can be given out.
    pub(crate) fn writing(&self) -> Writing<'_> {
        Writing(self.writing.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes an entry at its place.
    pub(crate) fn write(&self, tag: Tag, id: &Id, object: &[u8], offset: u32) -> Result<()> {
        let (head, len) = head(tag, id, object);
        let (begin, end) = (u64::from(offset), u64::from(offset) + (len + object.len()) as u64);
        let parts = &mut [IoSlice::new(&head[..len]), IoSlice::new(object)];
        write_all_at(&*self.file, parts, begin).doing("write", &self.name)?;
        if begin / WINDOW != end / WINDOW {
            self.file.begin_writeback(begin / WINDOW * WINDOW, WINDOW);
        }
        Ok(())
    }

    /// Waits until all entries are written, then makes the segment durable.
    pub(crate) fn close(&self, directory: &dyn Directory) -> Result<()> {
        let _nothing_is_written = self.writing.write().unwrap_or_else(PoisonError::into_inner);
        self.file.sync().doing("sync", &self.name)?;
        self.file.forget();
        let dir = self.name.rsplit_once('/').map_or("", |(dir, _)| dir);
        directory.sync_dir(dir).doing("sync", dir)
    }

    /// Removes the segment, for good when this returns.
    pub(crate) fn remove(&self, directory: &dyn Directory) -> Result<()> {
        directory.unlink(&self.name).doing("remove", &self.name)?;
        let dir = self.name.rsplit_once('/').map_or("", |(dir, _)| dir);
        directory.sync_dir(dir).doing("sync", dir)
    }
}

/// A place for an entry.
pub(crate) struct Place {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u32,
    /// A segment that got its last place before: the receiver closes it.
    pub(crate) full: Option<Arc<Segment>>,
}

/// The end of the log.
pub(crate) struct Log {
    per_dir: u32,
    max_segment_size: u64,
    next: u32,
    current: Option<(Arc<Segment>, u64)>,
}

impl Log {
    /// A log whose next segment has this number.
    pub(crate) fn new(per_dir: u32, max_segment_size: u64, next: u32) -> Self {
        Self {
            per_dir,
            max_segment_size,
            next,
            current: None,
        }
    }

    /// Gives a place out, if need be in a new segment.
    pub(crate) fn place(
        &mut self,
        directory: &dyn Directory,
        cache: &Cache,
        len: usize,
        alone: bool,
    ) -> Result<Place> {
        let full = self
            .current
            .take_if(|(_, end)| alone || *end > self.max_segment_size)
            .map(|(segment, _)| segment);
        let (segment, offset) = match self.current.take() {
            Some(current) => current,
            None => (self.begin(directory, cache)?, MAGIC.len() as u64),
        };
        let place = Place {
            segment: Arc::clone(&segment),
            offset: u32::try_from(offset)
                .map_err(|_| Error::Unsupported("segments of that length".to_owned()))?,
            full,
        };
        self.current = Some((segment, offset + len as u64));
        Ok(place)
    }

    /// The segment that is open; nothing is written to it any more.
    pub(crate) fn take_current(&mut self) -> Option<Arc<Segment>> {
        self.current.take().map(|(segment, _)| segment)
    }

    fn begin(&mut self, directory: &dyn Directory, cache: &Cache) -> Result<Arc<Segment>> {
        let number = self.next;
        if number > index::MAX_SEGMENT {
            return Err(Error::Unsupported("a segment number that large".to_owned()));
        }
        let name = layout::segment(number, self.per_dir);
        let file = match directory.create(&name, Create::New) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let dir = layout::segment_dir(number, self.per_dir);
                directory.make_dir(&dir).doing("create", &dir)?;
                directory.sync_dir(layout::DATA).doing("sync", layout::DATA)?;
                directory.create(&name, Create::New)
            }
            other => other,
        }
        .doing("create", &name)?;
        write_all_at(&*file, &mut [IoSlice::new(MAGIC)], 0).doing("write", &name)?;
        self.next += 1;
        cache.insert(number, Arc::clone(&file));
        Ok(Arc::new(Segment {
            number,
            name,
            file,
            writing: RwLock::new(()),
        }))
    }
}
