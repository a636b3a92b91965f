//! Progress bars, one a disk, on a terminal only.

use std::collections::HashMap;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The bars on the screen.
pub struct Progress {
    screen: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Progress {
    /// No bars yet; they go to standard error.
    pub fn new() -> Self {
        Self {
            screen: MultiProgress::new(),
            bars: Mutex::default(),
        }
    }

    /// A disk's bar appears.
    pub fn start(&self, target: &str, bytes: u64) {
        let bar = self.screen.add(ProgressBar::new(bytes));
        let template =
            "{prefix:>6} {bar:30} {bytes:>11} of {total_bytes:<11} {binary_bytes_per_sec:>12} {eta:>4}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(target.to_owned());
        if let Ok(mut bars) = self.bars.lock() {
            bars.insert(target.to_owned(), bar);
        }
    }

    /// A disk's bar grows.
    pub fn advance(&self, target: &str, bytes: u64) {
        if let Ok(bars) = self.bars.lock()
            && let Some(bar) = bars.get(target)
        {
            bar.inc(bytes);
        }
    }

    /// A disk's bar goes away.
    pub fn finish(&self, target: &str) {
        if let Ok(mut bars) = self.bars.lock()
            && let Some(bar) = bars.remove(target)
        {
            bar.finish_and_clear();
        }
    }

    /// Runs something with the bars out of its way.
    pub fn suspended<T>(&self, work: impl FnOnce() -> T) -> T {
        self.screen.suspend(work)
    }
}
