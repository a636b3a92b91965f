//! Numbers and words as people read them.

use std::borrow::Cow;

use jiff::Timestamp;
use strongroom_points::manifest::{Consistency, Exclusion, Method, Mode};

/// Bytes in the largest binary unit that leaves a digit before the point.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A time in UTC.
pub fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// How long ago a time is.
pub fn age(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - time.as_second();
    match seconds {
        ..0 => "in the future".into(),
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86400),
    }
}

/// Why a disk is left out.
pub fn exclusion(why: Exclusion) -> &'static str {
    match why {
        Exclusion::Swap => "swap",
        Exclusion::Configured => "excluded in the configuration",
        Exclusion::Removable => "removable or read-only",
        Exclusion::Transient => "transient",
    }
}

/// How a disk was read.
pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Full => "full",
        Mode::Incremental => "incremental",
    }
}

/// How a VM was held still.
pub fn method(method: Method) -> &'static str {
    match method {
        Method::Checkpoint => "checkpoint",
        Method::Snapshot => "snapshot",
        Method::Offline => "offline",
    }
}

/// What a guest finds.
pub fn consistency(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Crash => "crash",
        Consistency::Filesystem => "filesystem",
        Consistency::Application => "application",
        Consistency::Clean => "clean",
    }
}

/// Text as a terminal may get it, whatever wrote it: names from a repository or an image can hold anything. Control
/// characters other than line ends are escaped, and so are those that reorder or hide text.
pub fn printable(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control() && c != '\n'
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    if !text.contains(harmful) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if harmful(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe.into()
}

/// Rows under headings, in columns as wide as needed; the last column is not padded.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain([headings.get(column).map_or(0, |heading| heading.len())])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let body = rows
        .iter()
        .map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(headings.to_vec())).chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit_that_fits() {
        let words = [0, 1023, 1024, 1536, 8 << 20, 2 << 30, u64::MAX].map(bytes);
        assert_eq!(
            words,
            [
                "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "8.0 MiB", "2.0 GiB", "16.0 EiB"
            ]
        );
    }

    #[test]
    fn nothing_that_is_printed_controls_the_terminal() {
        assert_eq!(printable("vda: öffne \"a\"\nb"), "vda: öffne \"a\"\nb");
        assert_eq!(
            printable("\u{1b}[2J\r\u{9b}x\u{202e}y"),
            r"\u{1b}[2J\r\u{9b}x\u{202e}y"
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "bb".to_owned()],
            vec!["ccc".to_owned(), "d".to_owned()],
        ];
        assert_eq!(table(&["x", "y"], &rows), ["x    y", "a    bb", "ccc  d"]);
    }
}
