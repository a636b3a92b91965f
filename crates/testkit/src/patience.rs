//! How long a test waits on the machine that it runs on.

use std::fs;
use std::thread;
use std::time::Duration;

/// The most that a limit grows by.
const MOST: f64 = 10.0;

/// A limit for something that takes less than `limit` on a machine that does nothing else: longer on one that is busy.
///
/// A test must not fail because others use the machine. So its limits tell "hangs" from "works", and grow with the
/// number of processes that wait for each processor. What is measured is how busy the last minute was.
pub fn patience(limit: Duration) -> Duration {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    limit.mul_f64(factor(&text, cores))
}

fn factor(loadavg: &str, cores: usize) -> f64 {
    let load = loadavg
        .split_whitespace()
        .next()
        .and_then(|first| first.parse().ok());
    (1.0 + load.unwrap_or(0.0) / cores as f64).clamp(1.0, MOST)
}

#[cfg(test)]
mod tests {
    use super::factor;

    #[test]
    fn a_limit_grows_with_the_load_and_ends() {
        for (text, cores, wanted) in [
            ("0.00 0.5 1.0 1/200 7", 2, 1.0),
            ("4.00 0.5 1.0 1/200 7", 2, 3.0),
            ("4.00 0.5 1.0 1/200 7", 4, 2.0),
            ("900.0 0.5 1.0 1/200 7", 2, 10.0),
            ("", 2, 1.0),
        ] {
            let found = factor(text, cores);
            assert!((found - wanted).abs() < 1e-9, "{text}: {found}");
        }
    }
}
