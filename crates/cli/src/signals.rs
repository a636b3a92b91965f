//! What ctrl-C, TERM and HUP do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_default, register_conditional_shutdown};
use signal_hook::low_level::emulate_default_handler;
use strongroom_engine::cancel::Cancel;

/// A signal ends the process at once as long as there is nothing to undo. Afterwards the first one asks the work to
/// stop and undo what it began; a second one ends the process, and the next run tidies up.
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
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            register_conditional_default(signal, Arc::clone(&at_once))?;
            // Before the flag is set, so that the signal that sets it does not find it set.
            register_conditional_shutdown(signal, 128 + signal, Arc::clone(cancel.flag()))?;
            register(signal, Arc::clone(cancel.flag()))?;
        }
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
