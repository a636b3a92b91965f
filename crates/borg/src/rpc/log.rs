//! The server's error output: JSON log records once negotiated, plain lines of ssh and others before.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::wire::printable;
use crate::settings::EventCallback;
use crate::{Event, Level};

/// Lines longer than this are cut.
const MAX_LINE: u64 = 16 * 1024;

/// Lines kept to explain why a connection ended.
const TAIL: usize = 6;

#[derive(Default)]
struct State {
    tail: VecDeque<String>,
    closed: bool,
}

/// The last lines of the error output.
#[derive(Clone, Default)]
pub(super) struct ErrorLog(Arc<(Mutex<State>, Condvar)>);

impl ErrorLog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until the end. Runs in a thread of its own, so that the server never blocks on its messages.
    pub fn read_all(&self, stream: impl Read, events: Option<&EventCallback>) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            }
            if let Some(Line { event, explains }) = parse_line(&line) {
                if let (true, Event::Log { message, .. }) = (explains, &event) {
                    let mut state = self.state();
                    if state.tail.len() >= TAIL {
                        state.tail.pop_front();
                    }
                    state.tail.push_back(message.clone());
                }
                if let Some(events) = events {
                    events(event);
                }
            }
        }
        self.state().closed = true;
        self.0.1.notify_all();
    }

    /// There is no error output.
    pub fn close(&self) {
        self.state().closed = true;
    }

    /// The last lines, after waiting a moment for the output to end.
    pub fn tail(&self) -> String {
        let state = self.state();
        let (state, _) = self
            .0
            .1
            .wait_timeout_while(state, Duration::from_secs(1), |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state
            .tail
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// What a line says.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    pub event: Event,
    /// Whether it may say why a connection ended.
    pub explains: bool,
}

/// Understands a line; `None` for empty ones. One that is no record of Borg's is not Borg's: a banner, a word of ssh or of a
/// login script. It is a detail, unless the connection ends.
pub(super) fn parse_line(line: &[u8]) -> Option<Line> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    let json: Option<Value> = if line.starts_with(b"{") {
        serde_json::from_slice(line).ok()
    } else {
        None
    };
    let Some(json) = json else {
        return Some(Line {
            event: Event::Log {
                level: Level::Info,
                message: printable(line),
            },
            explains: true,
        });
    };
    let text = |key: &str| {
        json.get(key)
            .and_then(Value::as_str)
            .map(|text| printable(text.as_bytes()))
    };
    if let Some("progress_percent" | "progress_message") = json.get("type").and_then(Value::as_str) {
        return text("message")
            .filter(|text| !text.is_empty())
            .map(|message| Line {
                event: Event::Progress { message },
                explains: false,
            });
    }
    let level = match json.get("levelname").and_then(Value::as_str) {
        Some("DEBUG") => Level::Debug,
        Some("INFO") => Level::Info,
        Some("ERROR" | "CRITICAL") => Level::Error,
        _ => Level::Warning,
    };
    Some(Line {
        event: Event::Log {
            level,
            message: text("message").unwrap_or_else(|| printable(line)),
        },
        explains: level >= Level::Warning,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A10.
    #[test]
    fn lines() {
        let log = |level, explains, message: &str| {
            Some(Line {
                event: Event::Log {
                    level,
                    message: message.to_owned(),
                },
                explains,
            })
        };
        assert_eq!(parse_line(b" \r\n"), None);
        assert_eq!(
            parse_line(b"Banner \x1b[0m\n"),
            log(Level::Info, true, "Banner \\u{1b}[0m")
        );
        assert_eq!(parse_line(b"{broken"), log(Level::Info, true, "{broken"));
        assert_eq!(
            parse_line(br#"{"type":"log_message","levelname":"ERROR","message":"boo\n"}"#),
            log(Level::Error, true, "boo")
        );
        assert_eq!(
            parse_line(br#"{"type":"progress_percent","message":"50%"}"#),
            Some(Line {
                event: Event::Progress {
                    message: "50%".to_owned()
                },
                explains: false,
            })
        );
    }

    #[test]
    fn endless_lines_are_cut() {
        let log = ErrorLog::default();
        log.read_all(std::io::repeat(b'x').take(100_000), None);
        assert!(log.tail().len() < 20_000);
    }
}
