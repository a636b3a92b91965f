//! How a child comes to its end: asked, then by force, then without being waited for.

use std::fmt;
use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// How long a killed child may take to be gone. It takes as long as the call of the system that it is in.
const GONE: Duration = Duration::from_secs(5);
/// The longest time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Children that were left behind, and have not been reported.
static LEFT: Mutex<Vec<Left>> = Mutex::new(Vec::new());

/// A child that does not end, not even by KILL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The program.
    pub program: String,
    /// Its process id.
    pub process: u32,
}

impl fmt::Display for Left {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} (process {}) does not end, not even when it is killed: it hangs in the system, for storage that does not \
             answer perhaps; it was left behind",
            self.program, self.process
        )
    }
}

/// The children that have been left behind since the last call, and are there still.
pub fn take_left() -> Vec<Left> {
    std::mem::take(&mut LEFT.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Waits until the child has ended, or the time is over.
pub fn wait(child: &mut Child, time: Duration) -> io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let status = child.try_wait()?;
        if status.is_some() || begin.elapsed() >= time {
            return Ok(status);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LOOK);
    }
}

/// Asks the child to end, also one that was stopped.
pub fn terminate(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) {
        let process = Pid::from_child(child);
        // Nothing can be done about a refusal.
        let _ = kill_process(process, Signal::TERM);
        let _ = kill_process(process, Signal::CONT);
    }
}

/// Asks the child to end, and kills it after a while. Returns how it ended; nothing if it was left behind.
pub fn end(child: &mut Child, program: &str, patience: Duration) -> Option<ExitStatus> {
    terminate(child);
    match wait(child, patience) {
        Ok(Some(status)) => Some(status),
        Ok(None) => kill(child, program),
        Err(_) => None,
    }
}

/// Kills the child. Returns how it ended; nothing if it was left behind.
pub fn kill(child: &mut Child, program: &str) -> Option<ExitStatus> {
    let _ = child.kill();
    let status = wait(child, GONE).ok()?;
    if status.is_none() {
        leave(child, program);
    }
    status
}

/// A thread waits for it from now on, so that it does not stay a zombie.
fn leave(child: &Child, program: &str) {
    let left = Left {
        program: program.to_owned(),
        process: child.id(),
    };
    let list = || LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    list().push(left.clone());
    let process = Pid::from_child(child);
    thread::spawn(move || {
        let _ = waitpid(Some(process), WaitOptions::empty());
        list().retain(|other| *other != left);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Needs, command};

    fn shell(script: &str) -> Child {
        let mut child = command("sh", Needs::Nothing);
        child.args(["-c", script]).spawn().unwrap()
    }

    #[test]
    fn one_that_is_stopped_ends_when_it_is_asked() {
        let mut child = shell("sleep 600");
        kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
        let status = end(&mut child, "sh", Duration::from_mins(1)).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    }

    #[test]
    fn one_that_does_not_listen_is_killed() {
        let mut child = shell("trap '' TERM; sleep 600 & wait; sleep 600");
        thread::sleep(Duration::from_millis(300));
        let status = end(&mut child, "sh", Duration::from_millis(100)).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    /// R10. What cannot be made here in a test is a process that KILL does not end; what is done then can be.
    #[test]
    fn one_that_stays_is_named_until_it_is_gone() {
        let mut child = shell("sleep 600");
        leave(&child, "borg serve");
        let left = take_left();
        assert!(
            left.iter().any(|left| left
                .to_string()
                .starts_with(&format!("borg serve (process {})", child.id()))),
            "{left:?}"
        );
        leave(&child, "borg serve");
        child.kill().unwrap();
        let begin = Instant::now();
        while LEFT.lock().unwrap().iter().any(|left| left.process == child.id()) {
            assert!(begin.elapsed() < Duration::from_secs(20));
            thread::sleep(LOOK);
        }
        // It has no owner any more.
        assert!(child.wait().is_err());
    }
}
