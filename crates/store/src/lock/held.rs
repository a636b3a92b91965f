//! Which repositories this process has locked. Borg's names for holders are those of processes, so a second handle
//! of the same process would believe that the first one's lock is its own.

use std::sync::{Mutex, PoisonError};

static HELD: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

/// The right of one handle to a repository's lock.
pub(super) struct Held((u64, u64));

impl Held {
    /// `None` if another handle has it.
    pub(super) fn take(identity: (u64, u64)) -> Option<Self> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if held.contains(&identity) {
            return None;
        }
        held.push(identity);
        Some(Self(identity))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|identity| *identity != self.0);
    }
}
