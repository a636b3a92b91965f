//! Calls of the system that may hang, for storage that does not answer: made by a thread that can be left to itself.

use std::io::{self, ErrorKind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;

/// Between two looks at whether the work is cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// Does this for at most so long. What it is then still up to happens whenever the system answers, or with the process's end.
pub fn within<T: Send + 'static>(
    time: Duration,
    cancel: &Cancel,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, is_done) = channel();
    thread::Builder::new().spawn(move || {
        // It may have been given up.
        let _ = done.send(work());
    })?;
    let begin = Instant::now();
    loop {
        match is_done.recv_timeout(LOOK) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("it ended early")),
            Err(RecvTimeoutError::Timeout) if cancel.is_cancelled() => {
                return Err(io::Error::new(ErrorKind::Interrupted, cancel.why()));
            }
            Err(RecvTimeoutError::Timeout) if begin.elapsed() >= time => {
                let seconds = time.as_secs();
                let why =
                    format!("it has not answered for {seconds} s: its storage hangs, or its lock is held");
                return Err(io::Error::new(ErrorKind::TimedOut, why));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A named pipe that nothing else opens: opening it does not end.
    fn hangs(directory: &tempfile::TempDir) -> impl FnOnce() -> io::Result<std::fs::File> + Send + 'static {
        let pipe = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        move || std::fs::File::open(pipe)
    }

    #[test]
    fn what_hangs_is_left_to_itself() {
        let directory = tempfile::tempdir().unwrap();
        let error = within(Duration::from_millis(200), &Cancel::new(), hangs(&directory)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }

    #[test]
    fn what_hangs_ends_with_the_work() {
        let directory = tempfile::tempdir().unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        let error = within(Duration::from_mins(10), &cancel, hangs(&directory)).unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
    }

    #[test]
    fn what_answers_is_handed_on() {
        assert_eq!(within(Duration::from_mins(1), &Cancel::new(), || 7).unwrap(), 7);
        within(Duration::from_mins(1), &Cancel::new(), || panic!("as it should")).unwrap_err();
    }
}
