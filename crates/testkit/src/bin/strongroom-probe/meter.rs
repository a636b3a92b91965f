//! Measures what the guest feels: the latency of its own writes, and gaps in a heartbeat that
//! should tick every two milliseconds (a paused or starved CPU shows as a long gap).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const HEARTBEAT: Duration = Duration::from_millis(2);

/// Latencies kept between two resets; later ones only count as writes and for the maximum.
const MAX_SAMPLES: usize = 1 << 20;

/// Numbers since the last reset.
pub struct Meter {
    writes: Mutex<Writes>,
    max_gap_us: AtomicU64,
}

#[derive(Default)]
struct Writes {
    count: u64,
    errors: u64,
    max_us: u64,
    samples: Vec<u32>,
}

impl Meter {
    /// Begins to measure, with a heartbeat thread that never ends.
    pub fn start() -> Arc<Self> {
        let meter = Arc::new(Self {
            writes: Mutex::default(),
            max_gap_us: AtomicU64::new(0),
        });
        let beating = Arc::clone(&meter);
        thread::spawn(move || {
            let mut last = Instant::now();
            loop {
                thread::sleep(HEARTBEAT);
                let now = Instant::now();
                beating
                    .max_gap_us
                    .fetch_max(micros(now - last), Ordering::Relaxed);
                last = now;
            }
        });
        meter
    }

    /// Counts one durable write and how long it took, or that it failed.
    pub fn record(&self, took: Duration, ok: bool) {
        let mut writes = self.writes();
        writes.count += 1;
        writes.errors += u64::from(!ok);
        writes.max_us = writes.max_us.max(micros(took));
        if writes.samples.len() < MAX_SAMPLES {
            writes
                .samples
                .push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }

    /// Forgets everything measured so far.
    pub fn reset(&self) {
        *self.writes() = Writes::default();
        self.max_gap_us.store(0, Ordering::Relaxed);
    }

    /// The numbers as the fields of a JSON object; times are microseconds.
    pub fn report(&self) -> String {
        let mut writes = self.writes();
        writes.samples.sort_unstable();
        let at = |percent: usize| {
            let index = (writes.samples.len() * percent / 100).min(writes.samples.len().saturating_sub(1));
            writes.samples.get(index).copied().unwrap_or(0)
        };
        format!(
            r#""writes":{},"errors":{},"p50_us":{},"p99_us":{},"max_us":{},"max_gap_us":{}"#,
            writes.count,
            writes.errors,
            at(50),
            at(99),
            writes.max_us,
            self.max_gap_us.load(Ordering::Relaxed),
        )
    }

    /// The latency of each write, as a field of a JSON object, in no order.
    pub fn samples(&self) -> String {
        let writes = self.writes();
        let samples: Vec<String> = writes.samples.iter().map(u32::to_string).collect();
        format!(r#""samples_us":[{}]"#, samples.join(","))
    }

    fn writes(&self) -> std::sync::MutexGuard<'_, Writes> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_maximum_and_reset() {
        let meter = Meter::start();
        for ms in 1..=100 {
            meter.record(Duration::from_millis(ms), ms != 7);
        }
        let report = meter.report();
        assert!(
            report.starts_with(r#""writes":100,"errors":1,"p50_us":51000,"p99_us":100000,"max_us":100000"#),
            "{report}"
        );
        assert!(meter.samples().contains("99000,100000]"), "{}", meter.samples());
        meter.reset();
        assert!(
            meter
                .report()
                .starts_with(r#""writes":0,"errors":0,"p50_us":0,"p99_us":0,"max_us":0"#)
        );
    }
}
