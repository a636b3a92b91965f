//! One flag that says "stop": set by ctrl-C or a time limit, looked at between any two steps of long work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at the clock and at the flag above.
const LOOK: Duration = Duration::from_millis(100);

/// A shared, one-way "stop" flag. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    /// The time limit that has set it.
    limit: Arc<OnceLock<Duration>>,
}

/// Why the work was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cancelled {
    /// It was asked for.
    #[error("interrupted")]
    Interrupted,
    /// It took longer than it may.
    #[error("interrupted: the time limit of {} s for a run is over", .0.as_secs())]
    TimeLimit(Duration),
}

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag, for good.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::SeqCst);
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// An error once the flag is set.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() {
            Err(self.why())
        } else {
            Ok(())
        }
    }

    /// Why the flag is set, for the code that has found it so.
    pub fn why(&self) -> Cancelled {
        match self.limit.get() {
            Some(limit) => Cancelled::TimeLimit(*limit),
            None => Cancelled::Interrupted,
        }
    }

    /// The bare flag, for signal handlers and for the NBD client, which polls it while it waits.
    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.flag
    }

    /// A flag for a part of the work: set with this one, or once the part takes longer than its limit, if it has one. Setting
    /// it does not concern this one.
    pub fn within(&self, limit: Option<Duration>) -> Part {
        let part = Self::new();
        let (over, is_over) = channel::<()>();
        let (above, below, begin) = (self.clone(), part.clone(), Instant::now());
        thread::spawn(move || {
            while is_over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let late = limit.filter(|limit| begin.elapsed() >= *limit);
                let why = if above.is_cancelled() {
                    above.limit.get().copied()
                } else {
                    late
                };
                if let Some(limit) = why {
                    // Before the flag, whose readers ask for the reason.
                    let _ = below.limit.set(limit);
                }
                if late.is_some() || above.is_cancelled() {
                    return below.cancel();
                }
            }
        });
        Part {
            cancel: part,
            _over: over,
        }
    }
}

/// The flag of a part of the work; it is not set any more once this is dropped.
#[derive(Debug)]
pub struct Part {
    /// The flag.
    pub cancel: Cancel,
    _over: Sender<()>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn set(cancel: &Cancel) -> Cancelled {
        let begin = Instant::now();
        loop {
            if let Err(why) = cancel.check() {
                return why;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "it is not set");
            thread::sleep(LOOK);
        }
    }

    #[test]
    fn a_part_ends_with_the_whole_and_not_the_other_way_round() {
        let whole = Cancel::new();
        let [part, other] = [None, Some(Duration::from_mins(10))].map(|limit| whole.within(limit));
        part.cancel.cancel();
        assert_eq!(whole.check(), Ok(()));
        assert_eq!(other.cancel.check(), Ok(()));
        whole.cancel();
        assert_eq!(set(&other.cancel), Cancelled::Interrupted);
        assert_eq!(set(&whole.within(None).cancel), Cancelled::Interrupted);
    }

    #[test]
    fn a_part_that_takes_too_long_is_told_why() {
        let whole = Cancel::new();
        let limit = Duration::from_secs(1);
        let part = whole.within(Some(limit));
        assert_eq!(set(&part.cancel), Cancelled::TimeLimit(limit));
        // Also a part of the part.
        let inner = part.cancel.within(None);
        assert_eq!(set(&inner.cancel), Cancelled::TimeLimit(limit));
        assert_eq!(whole.check(), Ok(()));
    }
}
