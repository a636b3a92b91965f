//! What ctrl-C, TERM and HUP do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_default};
use signal_hook::iterator::Signals as Arrivals;
use signal_hook::low_level::{emulate_default_handler, exit};
use strongroom_base::cancel::Cancel;

/// Signals that come closer together than this are one: `timeout` sends its signal to the process and to its group.
const ONE: Duration = Duration::from_millis(200);

/// A signal ends the process at once as long as there is nothing to undo. Afterwards the first one asks the work to
/// stop and undo what it began; a second one of its kind, or a ctrl-C after it, ends the process, and the next run tidies up.
///
/// A terminal or a web page that is closed sends HUP, twice where there is a shell, and often TERM beside it. None of that
/// says that the guest may be left as it is.
#[derive(Clone)]
pub struct Signals {
    cancel: Cancel,
    at_once: Arc<AtomicBool>,
}

impl Signals {
    /// Takes the signals over. They end the process at once.
    pub fn handle() -> std::io::Result<Self> {
        let cancel = Cancel::new();
        let at_once = Arc::new(AtomicBool::new(true));
        let mut arrivals = Arrivals::new([SIGINT, SIGTERM, SIGHUP])?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            register_conditional_default(signal, Arc::clone(&at_once))?;
            register(signal, Arc::clone(cancel.flag()))?;
        }
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut heard = Heard::default();
                for signal in &mut arrivals {
                    if heard.says_at_once(signal, Instant::now()) {
                        exit(128 + signal);
                    }
                }
            })?;
        Ok(Self { cancel, at_once })
    }

    /// From now on there may be something to undo.
    pub fn undo_first(&self) {
        self.at_once.store(false, Ordering::SeqCst);
    }

    /// Runs work that has to put the terminal in order before the process ends, and ends early when cancelled.
    pub fn in_order<T>(&self, work: impl FnOnce() -> T) -> T {
        let at_once = self.at_once.swap(false, Ordering::SeqCst);
        let result = work();
        self.at_once.store(at_once, Ordering::SeqCst);
        if at_once && self.cancel.is_cancelled() {
            // It does not return; if it did, the cancelled work would still end soon.
            let _ = emulate_default_handler(SIGINT);
        }
        result
    }

    /// Set by the first signal that does not end the process.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

/// The first signal of all, and the first TERM.
#[derive(Default)]
struct Heard {
    any: Option<Instant>,
    term: Option<Instant>,
}

impl Heard {
    /// Whether this signal, which comes now, means "at once", after those before it.
    fn says_at_once(&mut self, signal: i32, now: Instant) -> bool {
        let first = match signal {
            SIGTERM => *self.term.get_or_insert(now),
            SIGINT => self.any.unwrap_or(now),
            _ => now,
        };
        self.any.get_or_insert(now);
        now.duration_since(first) >= ONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn says(expected: bool, signals: &[(i32, u64)]) {
        let begin = Instant::now();
        let mut heard = Heard::default();
        let mut at_once = false;
        for (signal, milliseconds) in signals {
            assert!(!at_once, "{signals:?}");
            at_once = heard.says_at_once(*signal, begin + Duration::from_millis(*milliseconds));
        }
        assert_eq!(at_once, expected, "{signals:?}");
    }

    /// K5: a closed terminal.
    #[test]
    fn a_closed_terminal_is_no_second_thought() {
        says(false, &[(SIGHUP, 0)]);
        says(false, &[(SIGHUP, 0), (SIGTERM, 1), (SIGHUP, 2)]);
        says(false, &[(SIGTERM, 0), (SIGHUP, 900), (SIGHUP, 5000)]);
        says(false, &[(SIGHUP, 0), (SIGTERM, 900)]);
        says(false, &[(SIGINT, 0), (SIGHUP, 900)]);
        // timeout(1).
        says(false, &[(SIGTERM, 0), (SIGTERM, 1)]);
    }

    #[test]
    fn a_second_one_of_its_kind_or_a_second_interrupt_is() {
        says(true, &[(SIGINT, 0), (SIGINT, 500)]);
        says(true, &[(SIGTERM, 0), (SIGTERM, 500)]);
        says(true, &[(SIGTERM, 0), (SIGINT, 500)]);
        says(true, &[(SIGHUP, 0), (SIGINT, 500)]);
        says(true, &[(SIGTERM, 0), (SIGHUP, 300), (SIGTERM, 600)]);
    }
}
