//! Runs a program to its end: bounded in time and in what it may say, ended when the work is stopped.
//!
//! Input is a file in memory, so that neither side waits for the other, and a passphrase is in no storage. Output goes through pipes that are closed at the
//! limit, or soon after the program has ended: whatever it leaves behind holds nothing up and fills no disk. The terminal
//! stays as it is, so that a program can ask for a passphrase.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::end;

/// The longest time between two looks at a program that runs.
const LOOK: Duration = Duration::from_millis(50);

/// How long output may still arrive when a program has ended: something that it left behind may hold the pipe open.
const REST: Duration = Duration::from_millis(500);

/// How long a program that is asked to end may take, to put its own things in order.
const GRACE: Duration = Duration::from_secs(2);

/// What a program may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Its time.
    pub time: Duration,
    /// Bytes that it may write, on standard output and on standard error each.
    pub bytes: u64,
}

/// What came of it.
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
#[derive(Debug)]
pub enum Why {
    /// The work was stopped.
    Stopped,
    /// It could not be started.
    Spawn(io::Error),
    /// It took too long.
    Time,
    /// It said too much.
    Limit,
    /// Its input or output could not be passed.
    Io(io::Error),
}

/// A program that did not come to its end, and what it had said on standard error.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub why: Why,
    /// What it said until then.
    pub err: Vec<u8>,
}

impl From<Why> for Failure {
    fn from(why: Why) -> Self {
        Self { why, err: Vec::new() }
    }
}

/// Runs a program to its end, with this input. `stop` is asked again and again.
pub fn run(
    command: &mut Command,
    input: &[u8],
    limits: Limits,
    stop: &dyn Fn() -> bool,
) -> Result<Output, Failure> {
    let file = memory(input).map_err(Why::Io)?;
    let mut child = command
        .stdin(Stdio::from(file))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Why::Spawn)?;
    let mut out = Heard::new(child.stdout.take(), limits.bytes);
    let mut err = Heard::new(child.stderr.take(), limits.bytes);
    let clock = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        let why = match child.try_wait() {
            Ok(Some(status)) => break status,
            Err(source) => Why::Io(source),
            Ok(None) if stop() => Why::Stopped,
            Ok(None) if clock.elapsed() > limits.time => Why::Time,
            Ok(None) if out.is_too_long() || err.is_too_long() => Why::Limit,
            Ok(None) => {
                thread::sleep(pause);
                pause = (pause * 2).min(LOOK);
                continue;
            }
        };
        let name = command.get_program().to_string_lossy().into_owned();
        let _ = end::end(&mut child, &name, GRACE);
        let err = err.until(Instant::now() + LOOK).unwrap_or_default();
        return Err(Failure { why, err });
    };
    let end = Instant::now() + REST;
    match (out.until(end), err.until(end)) {
        (Some(out), Some(err)) => Ok(Output { status, out, err }),
        _ => Err(Why::Limit.into()),
    }
}

/// A file in memory with this content, to be read from its beginning.
fn memory(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// What arrives through a pipe, up to a limit. Dropped, or at the limit, the pipe is closed, and whatever goes on writing
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
    use crate::{Needs, command};

    /// R10: it may still put its own things in order.
    #[test]
    fn one_that_is_ended_is_asked_first() {
        let mut shell = command("sh", Needs::Nothing);
        shell.args([
            "-c",
            "trap 'echo in order >&2; exit 1' TERM; cat; sleep 600 & wait",
        ]);
        let limits = Limits {
            time: Duration::from_millis(500),
            bytes: 1000,
        };
        let failure = run(&mut shell, b"input", limits, &|| false).unwrap_err();
        assert!(matches!(failure.why, Why::Time), "{failure:?}");
        assert_eq!(failure.err, b"in order\n");
    }
}
