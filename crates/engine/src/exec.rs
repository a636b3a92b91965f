//! Calling other programs: bounded in time and in what they may say, ended when the work is cancelled.
//!
//! Input and output are unnamed files, not pipes: neither side can wait for the other, and a process that the program
//! leaves behind holds nothing up. The terminal stays as it is, so that a program can ask for a passphrase.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Cancelled};

/// The longest time between two looks at a program that runs.
const LOOK: Duration = Duration::from_millis(50);

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
    let mut out = tempfile::tempfile().map_err(failed)?;
    let mut err = tempfile::tempfile().map_err(failed)?;
    let mut child = Command::new(call.program)
        .args(&call.arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(out.try_clone().map_err(failed)?))
        .stderr(Stdio::from(err.try_clone().map_err(failed)?))
        .spawn()
        .map_err(|source| ExecError::Spawn {
            program: program(),
            source,
        })?;
    let clock = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        let why = match child.try_wait() {
            Ok(Some(status)) => break status,
            Err(source) => failed(source),
            Ok(None) if cancel.is_cancelled() => Cancelled.into(),
            Ok(None) if clock.elapsed() > call.time => ExecError::Time {
                program: program(),
                time: call.time,
            },
            Ok(None) if too_long(&out, call.limit) || too_long(&err, call.limit) => ExecError::Limit {
                program: program(),
                limit: call.limit,
            },
            Ok(None) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LOOK);
                continue;
            }
        };
        let _ = child.kill();
        let _ = child.wait();
        return Err(why);
    };
    if too_long(&out, call.limit) || too_long(&err, call.limit) {
        return Err(ExecError::Limit {
            program: program(),
            limit: call.limit,
        });
    }
    Ok(Output {
        status,
        out: read(&mut out, call.limit).map_err(failed)?,
        err: read(&mut err, call.limit).map_err(failed)?,
    })
}

fn too_long(file: &File, limit: u64) -> bool {
    file.metadata().is_ok_and(|file| file.len() > limit)
}

fn read(file: &mut File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
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
