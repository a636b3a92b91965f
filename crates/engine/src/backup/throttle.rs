//! How many requests are in flight while a running guest's disks are read: as many as the guest does not feel.
//!
//! What a guest feels of a backup is its own requests queueing behind ours. So while disks are read, a thread asks the
//! hypervisor ten times a second how long the guest's reads, writes and flushes have taken since it last asked, and takes the
//! worst of them. Within the goal there may be one request more in flight, up to `reader.depth`; beyond it half as many, and
//! never less than one. This is how TCP shares a line that it knows nothing of (additive increase, multiplicative decrease).
//!
//! The goal is `reader.latency_ms`, or twice what the requests took before anything was read: storage that is slow by itself
//! is no reason to crawl. A guest that asks for nothing is not hurt. What is unknown is taken for bad: without an
//! answer of the hypervisor there is one request in flight.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{DiskSource, Domain, Requests};
use strongroom_nbd::ReadOptions;
use uuid::Uuid;

use crate::run::context::Context;
use crate::run::reading::unhindered;
use crate::run::settings::Throttle;

/// Between two questions.
const PERIOD: Duration = Duration::from_millis(100);
/// How often the end of the reading is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Requests in flight to begin with.
const FIRST: usize = 2;

/// How fast the disks of a VM are read.
#[derive(Debug)]
pub struct Throttler {
    domain: Uuid,
    throttle: Throttle,
    /// The guest's disks; none if there is no guest.
    targets: Vec<String>,
    before: Option<Vec<Requests>>,
    window: AtomicUsize,
}

impl Throttler {
    /// For a VM that nothing has been read from yet.
    pub fn new(context: &Context<'_>, domain: &Domain, throttle: Throttle) -> Self {
        let disks = domain.disks.iter().filter(|disk| disk.source != DiskSource::None);
        let mut throttler = Self {
            domain: domain.uuid,
            throttle,
            targets: Vec::new(),
            before: None,
            window: AtomicUsize::new(FIRST),
        };
        if domain.state.is_active() {
            throttler.targets = disks.map(|disk| disk.target.clone()).collect();
            throttler.before = throttler.ask(context).ok();
        }
        throttler
    }

    /// How hard to read now.
    pub fn options<'a>(&'a self, context: &'a Context<'_>) -> ReadOptions<'a> {
        if self.targets.is_empty() {
            return unhindered(context.cancel);
        }
        ReadOptions {
            depth: self.throttle.depth,
            window: self.throttle.latency.map(|_| &self.window),
            bytes_per_second: self.throttle.bytes_per_second,
            cancel: Some(context.cancel.flag()),
            ..ReadOptions::default()
        }
    }

    /// Does the reading, and follows the guest meanwhile.
    pub fn follow<T>(&self, context: &Context<'_>, read: impl FnOnce() -> T) -> T {
        let Some(latency) = self.throttle.latency.filter(|_| !self.targets.is_empty()) else {
            return read();
        };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.adapt(context, latency, &done));
            let _ended = Done(&done);
            read()
        })
    }

    fn adapt(&self, context: &Context<'_>, latency: Duration, done: &AtomicBool) {
        let depth = self.throttle.depth;
        let mut last = self.ask(context);
        let usual = match (&self.before, &last) {
            (Some(before), Ok(now)) => worst(before, now).unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let goal = latency.max(2 * usual);
        let (mut longest, mut least) = (Duration::ZERO, depth);
        let mut asked = Instant::now();
        let mut silent = false;
        while !done.load(Ordering::SeqCst) {
            if asked.elapsed() < PERIOD {
                thread::sleep(LOOK);
                continue;
            }
            asked = Instant::now();
            let now = self.ask(context);
            let took = match (&last, &now) {
                (Ok(last), Ok(now)) => worst(last, now),
                (_, Err(error)) if !silent => {
                    silent = true;
                    context.note(format!("read as gently as can be: failed to {error}"));
                    None
                }
                _ => None,
            };
            let late = now.is_ok().then(|| took.is_some_and(|took| took > goal));
            if late == Some(true) {
                longest = longest.max(took.unwrap_or_default());
            }
            let window = next(self.window(), late, depth);
            self.window.store(window, Ordering::Relaxed);
            least = least.min(window);
            last = now;
        }
        if !longest.is_zero() {
            context.note(format!(
                "the guest's requests took up to {} ms on average (usually {} ms, goal {} ms); read with down to {least} of \
                 {depth} requests in flight",
                longest.as_millis(),
                usual.as_millis(),
                goal.as_millis(),
            ));
        }
    }

    fn window(&self) -> usize {
        self.window.load(Ordering::Relaxed)
    }

    fn ask(&self, context: &Context<'_>) -> Result<Vec<Requests>, strongroom_hypervisor::HypervisorError> {
        let targets: Vec<&str> = self.targets.iter().map(String::as_str).collect();
        context.hypervisor.requests(self.domain, &targets)
    }
}

/// How long requests of the slowest kind took on average between two answers; nothing if there were none.
fn worst(before: &[Requests], now: &[Requests]) -> Option<Duration> {
    let average = |(before, now): (&Requests, &Requests)| {
        // A VM that was started anew counts from zero.
        let count = now.count.checked_sub(before.count)?;
        let time = now.nanoseconds.checked_sub(before.nanoseconds)?;
        time.checked_div(count).map(Duration::from_nanos)
    };
    before.iter().zip(now).filter_map(average).max()
}

/// The next window: `late` says whether the guest's requests took too long, if that is known.
fn next(window: usize, late: Option<bool>, depth: usize) -> usize {
    let window = match late {
        Some(false) => window + 1,
        Some(true) => window / 2,
        None => 1,
    };
    window.clamp(1, depth.max(1))
}

/// Tells the thread to end, also when the reading panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(count: u64, milliseconds: u64) -> Requests {
        Requests {
            count,
            nanoseconds: milliseconds * 1_000_000,
        }
    }

    #[test]
    fn the_window_grows_slowly_and_shrinks_fast_between_one_and_the_depth() {
        let mut window = FIRST;
        let mut seen = Vec::new();
        for late in [false, false, false, true, true, true, false] {
            window = next(window, Some(late), 4);
            seen.push(window);
        }
        assert_eq!(seen, [3, 4, 4, 2, 1, 1, 2]);
        assert_eq!(next(4, None, 4), 1, "unknown");
        assert_eq!(next(2, Some(false), 0), 1, "a depth of 0 counts as 1");
    }

    #[test]
    fn the_slowest_kind_counts() {
        let before = [requests(10, 100), requests(5, 50), requests(0, 0)];
        let now = [requests(20, 110), requests(7, 90), requests(0, 0)];
        assert_eq!(worst(&before, &now), Some(Duration::from_millis(20)));
        assert_eq!(worst(&now, &now), None, "nothing was asked for");
        assert_eq!(worst(&now, &before), None, "the VM has been started anew");
    }
}
