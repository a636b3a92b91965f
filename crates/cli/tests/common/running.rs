//! The program, watched while it runs.

use std::io::{BufRead, BufReader, Read as _};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use strongroom_testkit::{patience, run};

/// How a run of the program ended, and what it said.
#[derive(Debug)]
pub struct Said {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Runs a command to its end.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        Running::start(command).end()
    }

    /// Makes sure that it ended with this code and said all of these on standard error.
    #[track_caller]
    pub fn expect(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in\n{}", self.err);
        }
        for text in [&self.out, &self.err] {
            assert!(!text.contains("panicked"), "{text}");
            assert!(
                !text.contains(|c: char| c.is_control() && c != '\n'),
                "{text:?} has control characters"
            );
        }
        self
    }

    /// The document on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// A run under way.
pub struct Running {
    child: Child,
    errors: BufReader<ChildStderr>,
    err: String,
}

impl Running {
    /// Starts a command.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            errors,
            err: String::new(),
        }
    }

    /// Waits until it says this on standard error.
    #[track_caller]
    pub fn wait_for(&mut self, word: &str) {
        loop {
            let before = self.err.len();
            let read = self.errors.read_line(&mut self.err).unwrap();
            assert!(read > 0, "it ended without saying {word:?}: {}", self.err);
            if self.err[before..].contains(word) {
                return;
            }
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Said {
        let mut out = String::new();
        self.errors.read_to_string(&mut self.err).unwrap();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        let code = self.child.wait().unwrap().code();
        Said {
            code,
            out,
            err: self.err,
        }
    }

    /// Interrupts it as ctrl-C does, and makes sure that it ends soon, with the exit code of a failure.
    #[track_caller]
    pub fn interrupt(self) -> Said {
        let clock = Instant::now();
        self.signal("INT");
        let said = self.end();
        said.expect(1, &["interrupted"]);
        assert!(
            clock.elapsed() < patience(Duration::from_secs(10)),
            "{:?}",
            clock.elapsed()
        );
        said
    }
}

/// Sends a signal to a process.
#[track_caller]
pub fn signal(process: u32, name: &str) {
    run(Command::new("kill").args([&format!("-{name}"), &process.to_string()]));
}

/// The child of a process whose command line holds this word.
#[track_caller]
pub fn child_of(process: u32, word: &str) -> u32 {
    let found = run(Command::new("pgrep").args(["-P", &process.to_string(), "-f", word]));
    found.parse().unwrap()
}
