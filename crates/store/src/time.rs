//! The clock as Borg's append-only log writes it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time now: `2026-11-30T13:06:18.123456`.
pub(crate) fn utc_now() -> String {
    format(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn format(since_epoch: Duration) -> String {
    let (days, seconds) = (since_epoch.as_secs() / 86_400, since_epoch.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since_epoch.subsec_micros()
    )
}

/// Year, month and day of a number of days since 1970, in years that begin with March.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let day = days % ERA;
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march_based = (5 * day + 2) / 153;
    let month = if march_based < 10 {
        march_based + 3
    } else {
        march_based - 9
    };
    let january_or_february = u64::from(month <= 2);
    (
        year + days / ERA * 400 + january_or_february,
        month,
        day - (153 * march_based + 2) / 5 + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_borg_writes_them() {
        for (seconds, micros, text) in [
            (0, 0, "1970-01-01T00:00:00.000000"),
            (951_782_399, 7, "2000-02-28T23:59:59.000007"),
            (951_782_400, 7, "2000-02-29T00:00:00.000007"),
            (1_796_043_978, 123_456, "2026-11-30T13:06:18.123456"),
            (4_107_542_399, 0, "2100-02-28T23:59:59.000000"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000"),
        ] {
            assert_eq!(format(Duration::new(seconds, micros * 1000)), text);
        }
    }
}
