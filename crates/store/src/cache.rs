//! Segments that are open for reading.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Doing as _;
use crate::files::{Directory, File};
use crate::{Result, layout};

/// Files that are kept open.
const MAX_FILES: usize = 128;

/// Open files by the number of their segment.
#[derive(Default)]
pub(crate) struct Cache(Mutex<HashMap<u32, Arc<dyn File>>>);

impl Cache {
    fn files(&self) -> MutexGuard<'_, HashMap<u32, Arc<dyn File>>> {
        // A map of handles is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment's file.
    pub(crate) fn open(
        &self,
        directory: &dyn Directory,
        per_dir: u32,
        segment: u32,
    ) -> Result<Arc<dyn File>> {
        if let Some(file) = self.files().get(&segment) {
            return Ok(Arc::clone(file));
        }
        let name = layout::segment(segment, per_dir);
        let file = directory.open(&name).doing("open", &name)?;
        self.insert(segment, Arc::clone(&file));
        Ok(file)
    }

    /// A file that was made just now.
    pub(crate) fn insert(&self, segment: u32, file: Arc<dyn File>) {
        let mut files = self.files();
        if files.len() >= MAX_FILES {
            files.clear();
        }
        files.insert(segment, file);
    }

    /// Closes all segments from one on: they are no more, and others may take their names.
    pub(crate) fn forget_from(&self, segment: u32) {
        self.files().retain(|open, _| *open < segment);
    }
}
