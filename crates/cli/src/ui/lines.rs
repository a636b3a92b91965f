//! Progress for programs: one event a line, as JSON, on standard error.
//!
//! What is transferred is reported twice a second at most; all else at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use strongroom_engine::run::event::{Event, Kind};

use crate::failure::Failure;

/// Between two lines about the same disk.
const PERIOD: Duration = Duration::from_millis(500);

/// What has not been written yet, disk by disk.
#[derive(Default)]
pub struct Lines(Mutex<HashMap<(Option<String>, String), Pending>>);

struct Pending {
    since: Instant,
    bytes: u64,
}

/// Why a command, or its work for one VM, has failed.
#[derive(Serialize)]
struct Failed<'a> {
    at: Timestamp,
    event: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

impl Lines {
    /// The lines to be written for an event: none if it waits for more of the same.
    pub fn of(&self, event: &Event<'_>) -> Vec<String> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |target: &str| (event.vm.map(str::to_owned), target.to_owned());
        let progress = |target: &str, bytes: u64| {
            let kind = Kind::DiskProgress { target, bytes };
            line(&Event {
                at: event.at,
                vm: event.vm,
                kind,
            })
        };
        match &event.kind {
            Kind::DiskProgress { target, bytes } => {
                let now = Instant::now();
                let of = pending
                    .entry(key(target))
                    .or_insert(Pending { since: now, bytes: 0 });
                of.bytes += bytes;
                if of.since.elapsed() < PERIOD {
                    return Vec::new();
                }
                of.since = now;
                vec![progress(target, std::mem::take(&mut of.bytes))]
            }
            Kind::DiskRead { target, .. }
            | Kind::DiskWritten { target, .. }
            | Kind::Verified { target, .. } => {
                let rest = pending.remove(&key(target)).map_or(0, |of| of.bytes);
                let rest = (rest > 0).then(|| progress(target, rest));
                rest.into_iter().chain([line(event)]).collect()
            }
            _ => vec![line(event)],
        }
    }

    /// The line for a failure.
    pub fn failure(failure: &Failure) -> String {
        line(&Failed {
            at: Timestamp::now(),
            event: "failed",
            message: &failure.message,
            hint: failure.hint.as_deref(),
        })
    }
}

fn line(value: &impl Serialize) -> String {
    // Strings, numbers and string keys: nothing that JSON cannot hold.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use strongroom_engine::run::event::{Code, Step};

    use super::*;

    fn event(vm: Option<&'static str>, kind: Kind<'static>) -> Event<'static> {
        Event {
            at: "2026-11-30T12:00:00Z".parse().unwrap(),
            vm,
            kind,
        }
    }

    /// What programs read: fields are added, and nothing else ever changes.
    #[test]
    fn each_event_is_a_line() {
        let lines = Lines::default();
        let of = |vm, kind| lines.of(&event(vm, kind)).join("\n");
        let at = r#"{"at":"2026-11-30T12:00:00Z""#;
        let web = Some("web");
        for (kind, expected) in [
            (Kind::step(Step::Capture), r#""event":"step","step":"capture"}"#),
            (
                Kind::warning(Code::Clock, "it is late"),
                r#""event":"warning","code":"clock","text":"it is late"}"#,
            ),
            (Kind::note("\"so\""), r#""event":"note","text":"\"so\""}"#),
            (Kind::stage("copy"), r#""event":"stage","text":"copy"}"#),
            (
                Kind::Captured {
                    exports: &[],
                    call: Duration::from_millis(12),
                },
                r#""event":"captured","call_us":12000}"#,
            ),
            (
                Kind::DiskStarted {
                    target: "vda",
                    bytes: 9,
                },
                r#""event":"disk-started","target":"vda","bytes":9}"#,
            ),
            (
                Kind::DiskRead {
                    target: "vda",
                    read: 9,
                    stored: 3,
                },
                r#""event":"disk-read","target":"vda","read":9,"stored":3}"#,
            ),
            (
                Kind::DiskWritten {
                    target: "vda",
                    read: 9,
                    written: 3,
                },
                r#""event":"disk-written","target":"vda","read":9,"written":3}"#,
            ),
            (
                Kind::Verified {
                    target: "web",
                    bytes: 9,
                },
                r#""event":"verified","target":"web","bytes":9}"#,
            ),
        ] {
            assert_eq!(of(web, kind), format!(r#"{at},"vm":"web",{expected}"#));
        }
        assert_eq!(
            of(None, Kind::note("all")),
            format!(r#"{at},"event":"note","text":"all"}}"#)
        );
    }

    #[test]
    fn progress_is_told_in_sums_and_nothing_is_lost() {
        let lines = Lines::default();
        let progress = || {
            lines.of(&event(
                None,
                Kind::DiskProgress {
                    target: "vda",
                    bytes: 4,
                },
            ))
        };
        assert_eq!(progress().len() + progress().len(), 0, "not at once");
        let done = lines.of(&event(
            None,
            Kind::DiskRead {
                target: "vda",
                read: 8,
                stored: 0,
            },
        ));
        assert!(
            done[0].ends_with(r#""event":"disk-progress","target":"vda","bytes":8}"#),
            "{done:?}"
        );
        assert_eq!(done.len(), 2);
    }
}
