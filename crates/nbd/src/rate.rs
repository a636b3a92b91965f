//! A limit of bytes per second.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

/// How much of a second may be sent at once after a pause.
const BURST_SECONDS: f64 = 0.05;

/// A bucket of bytes that fills at a steady rate. It may run into debt: a request is sent as soon as there is no
/// debt left, so that requests larger than the bucket pass as well.
pub(crate) struct Bucket {
    rate: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(bytes_per_second: NonZeroU64, now: Instant) -> Self {
        Self {
            rate: bytes_per_second.get() as f64,
            level: 0.0,
            filled: now,
        }
    }

    /// How long to wait before the next request; zero if it may go now.
    pub(crate) fn delay(&mut self, now: Instant) -> Duration {
        let gain = now.saturating_duration_since(self.filled).as_secs_f64() * self.rate;
        self.level = (self.level + gain).min(self.rate * BURST_SECONDS);
        self.filled = now;
        // Never longer than an hour: the caller looks again at each tick anyway.
        Duration::from_secs_f64((-self.level / self.rate).clamp(0.0, 3600.0))
    }

    /// Takes the bytes of a request.
    pub(crate) fn take(&mut self, bytes: u64) {
        self.level -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_rate_after_any_pause() {
        let start = Instant::now();
        let mut now = start + Duration::from_secs(100);
        let mut bucket = Bucket::new(NonZeroU64::new(1_000_000).unwrap(), start);
        let begun = now;
        for _ in 0..100 {
            now += bucket.delay(now);
            assert!(bucket.delay(now) <= Duration::from_nanos(2));
            bucket.take(100_000);
        }
        now += bucket.delay(now);
        let seconds = (now - begun).as_secs_f64();
        assert!(
            (9.9..10.01).contains(&seconds),
            "10 MB at 1 MB/s took {seconds} s"
        );
    }
}
