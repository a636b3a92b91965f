//! Borg's way to write times: UTC, `YYYY-MM-DDTHH:MM:SS.ffffff`, without a zone.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Writes a time.
pub(crate) fn format(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()
}

/// Reads a time; the fraction may be missing.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    let time: DateTime = text.parse().ok()?;
    time.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        let text = "2026-11-23T11:06:44.000120";
        assert_eq!(format(parse(text).unwrap()), text);
        assert_eq!(
            format(parse("2026-11-23T11:06:44").unwrap()),
            "2026-11-23T11:06:44.000000"
        );
        assert!(parse("yesterday").is_none());
    }
}
