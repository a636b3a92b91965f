//! Whether the storage with our records still answers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::LOOK;

/// Since when the storage with the records has been waited for, if it is. It is asked all the time: any of a run's own calls
/// may hang in it.
#[derive(Clone, Default)]
pub(super) struct Records(Arc<Mutex<Option<Instant>>>);

impl Records {
    /// Of this directory, for as long as this is there.
    pub(super) fn of(directory: PathBuf) -> Self {
        let records = Self::default();
        let asked = records.clone();
        thread::spawn(move || {
            while Arc::strong_count(&asked.0) > 1 {
                asked.waited_for(true);
                // What it says is not the point.
                let _ = rustix::fs::statvfs(&directory);
                asked.waited_for(false);
                thread::sleep(LOOK);
            }
        });
        records
    }

    fn waited_for(&self, is: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = is.then(Instant::now);
    }

    /// For how long it has not answered, if it does not.
    pub(super) fn time(&self) -> Option<Duration> {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }
}
