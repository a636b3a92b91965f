//! Calling other programs: bounded in time and in what they may say, ended when the work is cancelled.
//!
//! Input is an unnamed file, so that neither side waits for the other. Output goes through pipes that are closed at the
//! limit, or soon after the program has ended: whatever it leaves behind holds nothing up and fills no disk. The terminal
//! stays as it is, so that a program can ask for a passphrase.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Cancelled};

/// The longest time between two looks at a program that runs.
const LOOK: Duration = Duration::from_millis(50);

/// How long output may still arrive when a program has ended: something that it left behind may hold the pipe open.
const REST: Duration = Duration::from_millis(500);

/// A call of a program.
#[derive(Debug)]
pub struct Call<'a> {
    /// The program, by path or by name.
    pub program: &'a OsStr,
    /// Its arguments.
    pub arguments: Vec<&'a OsStr>,
    /// What it reads on standard input.
    pub input: &'a [u8],
    /// How long it may take.
    pub time: Duration,
    /// Bytes that it may write, on standard output and on standard error each.
    pub limit: u64,
}

/// What came of a call.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: Vec<u8>,
}

/// Why a program did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// It could not be started.
    #[error("start {program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It took too long.
    #[error("{program} has not ended after {} s", .time.as_secs())]
    Time {
        /// The program.
        program: String,
        /// What was allowed.
        time: Duration,
    },
    /// It said too much.
    #[error("{program} says more than {limit} bytes")]
    Limit {
        /// The program.
        program: String,
        /// What was allowed.
        limit: u64,
    },
    /// Its input or output could not be passed.
    #[error("pass data to and from {program}: {source}")]
    Io {
        /// The program.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl Output {
    /// The program's own words about a failure: the last lines on standard error, or how it ended.
    pub fn words(&self) -> String {
        let text = String::from_utf8_lossy(&self.err);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        match lines.get(lines.len().saturating_sub(3)..) {
            Some(last) if !last.is_empty() => last.join("; "),
            _ => self.status.to_string(),
        }
    }
}

/// The ssh to call: `STRONGROOM_SSH`, or the system's.
pub fn ssh_program() -> OsString {
    std::env::var_os("STRONGROOM_SSH").unwrap_or_else(|| "ssh".into())
}

/// As one word for a shell, whatever it holds.
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Runs a program to its end.
pub fn run(call: &Call<'_>, cancel: &Cancel) -> Result<Output, ExecError> {
    let program = || call.program.display().to_string();
    let failed = |source| ExecError::Io {
        program: program(),
        source,
    };
    cancel.check()?;
    let mut input = tempfile::tempfile().map_err(failed)?;
    input
        .write_all(call.input)
        .and_then(|()| input.rewind())
        .map_err(failed)?;
    let mut child = Command::new(call.program)
        .args(&call.arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| ExecError::Spawn {
            program: program(),
            source,
        })?;
    let mut out = Heard::new(child.stdout.take(), call.limit);
    let mut err = Heard::new(child.stderr.take(), call.limit);
    let clock = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        let why = match child.try_wait() {
            Ok(Some(status)) => break status,
            Err(source) => failed(source),
            Ok(None) if cancel.is_cancelled() => cancel.why().into(),
            Ok(None) if clock.elapsed() > call.time => ExecError::Time {
                program: program(),
                time: call.time,
            },
            Ok(None) if out.is_too_long() || err.is_too_long() => ExecError::Limit {
                program: program(),
                limit: call.limit,
            },
            Ok(None) => {
                thread::sleep(pause);
                pause = (pause * 2).min(LOOK);
                continue;
            }
        };
        let _ = child.kill();
        let _ = child.wait();
        return Err(why);
    };
    let end = Instant::now() + REST;
    let (out, err) = (out.until(end), err.until(end));
    match (out, err) {
        (Some(out), Some(err)) => Ok(Output { status, out, err }),
        _ => Err(ExecError::Limit {
            program: program(),
            limit: call.limit,
        }),
    }
}

/// What arrives through a pipe, up to a limit. Dropped, or at the limit, the pipe is closed, and whoever goes on writing
/// to it is ended by the system (`SIGPIPE`).
struct Heard {
    pieces: Receiver<Vec<u8>>,
    bytes: Vec<u8>,
    limit: usize,
}

impl Heard {
    fn new(pipe: Option<impl Read + Send + 'static>, limit: u64) -> Self {
        let (sender, pieces) = channel();
        if let Some(mut pipe) = pipe {
            thread::spawn(move || {
                let mut left = limit.saturating_add(1);
                let mut buffer = [0; 4096];
                while left > 0
                    && let Ok(read @ 1..) = pipe.read(&mut buffer)
                {
                    left = left.saturating_sub(read as u64);
                    if sender.send(buffer[..read].to_vec()).is_err() {
                        break;
                    }
                }
            });
        }
        Self {
            pieces,
            bytes: Vec::new(),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
        }
    }

    fn is_too_long(&mut self) -> bool {
        self.bytes.extend(self.pieces.try_iter().flatten());
        self.bytes.len() > self.limit
    }

    /// What there is when the pipe is closed, or at this instant; nothing if it is too much.
    fn until(mut self, end: Instant) -> Option<Vec<u8>> {
        while let Ok(piece) = self
            .pieces
            .recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            self.bytes.extend(piece);
        }
        (!self.is_too_long()).then_some(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, time: Duration, cancel: &Cancel) -> Result<Output, ExecError> {
        let call = Call {
            program: OsStr::new("sh"),
            arguments: ["-c", script].map(OsStr::new).to_vec(),
            input: b"hello",
            time,
            limit: 1000,
        };
        run(&call, cancel)
    }

    #[test]
    fn a_program_is_fed_and_heard() {
        let long = Duration::from_mins(1);
        let output = shell("tr a-z A-Z; echo oops >&2; exit 3", long, &Cancel::new()).unwrap();
        assert_eq!(
            (output.out.as_slice(), output.words().as_str()),
            (b"HELLO".as_slice(), "oops")
        );
        assert_eq!(output.status.code(), Some(3));
        // What it leaves behind in the background holds nothing up.
        let clock = Instant::now();
        assert!(
            shell("sleep 30 & exit 0", long, &Cancel::new())
                .unwrap()
                .status
                .success()
        );
        assert!(clock.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn nothing_lasts_for_ever() {
        let short = Duration::from_millis(100);
        assert!(matches!(
            shell("sleep 30", short, &Cancel::new()),
            Err(ExecError::Time { .. })
        ));
        let long = Duration::from_mins(1);
        assert!(matches!(
            shell("yes", long, &Cancel::new()),
            Err(ExecError::Limit { .. })
        ));
        // Neither does what it started: the pipe is closed.
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("yes & echo $! > {}; wait", pid.display());
        assert!(matches!(
            shell(&script, long, &Cancel::new()),
            Err(ExecError::Limit { .. })
        ));
        let pid = std::fs::read_to_string(pid).unwrap();
        let process = std::path::Path::new("/proc").join(pid.trim()).join("fd");
        let patience = Instant::now() + long;
        while std::fs::read_dir(&process).is_ok_and(|files| files.count() > 0) {
            assert!(Instant::now() < patience, "it still runs");
            thread::sleep(LOOK);
        }
        assert!(matches!(
            shell("head -c 2000 /dev/zero", long, &Cancel::new()),
            Err(ExecError::Limit { .. })
        ));
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(matches!(
            shell("sleep 30", long, &cancel),
            Err(ExecError::Cancelled(_))
        ));
    }
}
