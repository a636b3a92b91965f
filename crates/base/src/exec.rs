//! Calling other programs: with an environment made for them, bounded in time and in what they may say, ended when the work
//! is cancelled. How is in [`strongroom_child`].

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Access;
use strongroom_child::{Limits, Why};
pub use strongroom_child::{Needs, Output};

use crate::cancel::{Cancel, Cancelled};

/// A call of a program.
#[derive(Debug)]
pub struct Call<'a> {
    /// The program, by path or by name.
    pub program: &'a OsStr,
    /// What it needs of our environment.
    pub needs: Needs,
    /// Its arguments.
    pub arguments: Vec<&'a OsStr>,
    /// What it reads on standard input.
    pub input: &'a [u8],
    /// How long it may take.
    pub time: Duration,
    /// Bytes that it may write, on standard output and on standard error each.
    pub limit: u64,
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

/// The program's own words about a failure: the last lines on standard error, or how it ended.
pub fn words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.err);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match lines.get(lines.len().saturating_sub(3)..) {
        Some(last) if !last.is_empty() => last.join("; "),
        _ => output.status.to_string(),
    }
}

/// The ssh to call: `STRONGROOM_SSH`, or the system's.
pub fn ssh_program() -> OsString {
    std::env::var_os("STRONGROOM_SSH").unwrap_or_else(|| "ssh".into())
}

/// Whether there is such a program to start: at this path, or by this name in one of the directories of `PATH`.
pub fn find(program: &OsStr) -> io::Result<()> {
    let startable = |path: &Path| {
        rustix::fs::access(path, Access::EXEC_OK)?;
        if path.is_file() {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::NotFound))
        }
    };
    if program.as_bytes().contains(&b'/') {
        return startable(Path::new(program));
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let mut tried = std::env::split_paths(&directories).map(|directory| startable(&directory.join(program)));
    if tried.any(|found| found.is_ok()) {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            "it is in no directory of PATH",
        ))
    }
}

/// As one word for a shell, whatever it holds.
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Runs a program to its end.
pub fn run(call: &Call<'_>, cancel: &Cancel) -> Result<Output, ExecError> {
    cancel.check()?;
    let limits = Limits {
        time: call.time,
        bytes: call.limit,
    };
    let mut command = strongroom_child::command(call.program, call.needs);
    command.args(&call.arguments).env("LC_ALL", "C.UTF-8");
    strongroom_child::run(&mut command, call.input, limits, &|| cancel.is_cancelled()).map_err(|failure| {
        let program = call.program.display().to_string();
        match failure.why {
            Why::Stopped => cancel.why().into(),
            Why::Spawn(source) => ExecError::Spawn { program, source },
            Why::Time => ExecError::Time {
                program,
                time: call.time,
            },
            Why::Limit => ExecError::Limit {
                program,
                limit: call.limit,
            },
            Why::Io(source) => ExecError::Io { program, source },
        }
    })
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    const LOOK: Duration = Duration::from_millis(20);

    fn shell(script: &str, time: Duration, cancel: &Cancel) -> Result<Output, ExecError> {
        let call = Call {
            program: OsStr::new("sh"),
            needs: Needs::Nothing,
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
            (output.out.as_slice(), words(&output).as_str()),
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
    fn a_program_that_can_be_started_is_found() {
        for there in ["sh", "/bin/sh"] {
            find(OsStr::new(there)).unwrap();
        }
        for not in ["no-such-program", "/no/such/program", "/etc/passwd", "/etc", ""] {
            find(OsStr::new(not)).unwrap_err();
        }
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
        let script = format!("sh -c 'echo $$ > {}; exec yes' & wait", pid.display());
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
