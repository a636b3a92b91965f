//! Runs `pre` and `post` in the guest: over the system's `ssh`, or by the guest agent.
//!
//! Over ssh nothing is ours but the command: destination, keys, jump hosts and host keys are as `~/.ssh/config` has
//! them. It never asks for anything (`BatchMode`). `STRONGROOM_SSH` names another program with ssh's arguments.

use std::fmt;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_base::cancel::Cancel;
use strongroom_base::exec::{Needs, shell_word, ssh_program};
use strongroom_hypervisor::Agent;
use uuid::Uuid;

use crate::run::settings::Quiesce;

/// What is kept of a script's output, in bytes: its end.
const KEPT: usize = 4096;
/// What is shown of it: so many of its last lines, and so many characters of them.
const SHOWN: (usize, usize) = (3, 300);
/// Between two looks at ssh.
const POLL: Duration = Duration::from_millis(10);
/// How long output may still arrive when ssh has ended: a master connection that it left behind may keep it open.
const REST: Duration = Duration::from_millis(200);

/// Which script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The one that brings the application to rest.
    Pre,
    /// The one that lets it go on.
    Post,
}

impl Phase {
    /// Its name in the configuration, and in the script's environment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
        }
    }
}

/// Why a script did not do its work.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which script.
    pub phase: Phase,
    /// What happened.
    pub why: String,
    /// The end of what it said: one printable line, perhaps empty.
    pub said: String,
}

impl Failure {
    /// What it said, to be put after what happened.
    pub fn words(&self) -> String {
        if self.said.is_empty() {
            return String::new();
        }
        format!(" ({} said: {})", self.phase.name(), self.said)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{}", self.why, self.words())
    }
}

/// A script, ready to run.
pub struct Script<'a> {
    /// The guest.
    pub domain: Uuid,
    /// Its name.
    pub vm: &'a str,
    /// The run that it is for.
    pub run: &'a str,
    /// Which one.
    pub phase: Phase,
    /// How and where.
    pub settings: &'a Quiesce,
}

impl Script<'_> {
    /// Runs it, if there is one. It ends early when cancelled.
    pub fn run(&self, agent: &dyn Agent, cancel: Option<&Cancel>) -> Result<(), Failure> {
        let script = match self.phase {
            Phase::Pre => &self.settings.pre,
            Phase::Post => &self.settings.post,
        };
        let Some(script) = script else { return Ok(()) };
        let command = self.command(script);
        let limit = self.settings.timeout;
        let fail = |why: String, output: &str| Failure {
            phase: self.phase,
            why: format!("the {} script {why}", self.phase.name()),
            said: last_lines(output),
        };
        let (status, output) = match &self.settings.ssh {
            Some(destination) => {
                let (ended, output) = over_ssh(destination, &command, limit, cancel);
                let status = ended.map_err(|why| fail(why, &output))?;
                (status.code(), output)
            }
            None => match agent.run_in_guest(self.domain, &command, limit) {
                Ok(exit) => (exit.status, exit.output),
                Err(error) => return Err(fail(format!("did not run to its end: failed to {error}"), "")),
            },
        };
        match status {
            Some(0) => Ok(()),
            // What ssh itself ends with when it cannot connect.
            Some(255) if self.settings.ssh.is_some() => Err(fail("did not run: ssh failed".into(), &output)),
            Some(status) => Err(fail(format!("ended with status {status}"), &output)),
            None => Err(fail("was ended by a signal".into(), &output)),
        }
    }

    /// The script with what it may want to know.
    fn command(&self, script: &str) -> String {
        let (vm, run, phase) = (shell_word(self.vm), shell_word(self.run), self.phase.name());
        format!("export STRONGROOM_VM={vm} STRONGROOM_RUN={run} STRONGROOM_PHASE={phase}; {script}")
    }
}

/// Runs a command at a destination as ssh knows it. Returns how ssh ended, and the end of what was said.
fn over_ssh(
    destination: &str,
    command: &str,
    limit: Duration,
    cancel: Option<&Cancel>,
) -> (Result<ExitStatus, String>, String) {
    let program = ssh_program();
    let child = strongroom_child::command(&program, Needs::Keys)
        .args(["-o", "BatchMode=yes", "--", destination])
        // The login shell there may be any; what it is given is one plain command with one word.
        .arg(format!("/bin/sh -c {}", shell_word(command)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own process group: ctrl-C is for us to pass on, and what it starts ends with it.
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let program = program.display();
            return (
                Err(format!("did not run: start {program}: {error}")),
                String::new(),
            );
        }
    };
    let outputs = [child.stdout.take().map(tail), child.stderr.take().map(tail)];
    let deadline = Instant::now() + limit;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if cancel.is_some_and(Cancel::is_cancelled) => break Err("was interrupted".into()),
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
            Ok(None) => {
                break Err(format!(
                    "still ran after {} seconds and was ended",
                    limit.as_secs()
                ));
            }
            Err(error) => break Err(format!("cannot be waited for: {error}")),
        }
    };
    if ended.is_err() {
        if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = strongroom_child::kill(&mut child, "ssh");
    }
    let rest = Instant::now() + REST;
    let output = outputs
        .into_iter()
        .flatten()
        .map(|output| output.text(rest))
        .collect();
    (ended, output)
}

/// The end of what a pipe gives, as it arrives.
struct Tail {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

fn tail(mut pipe: impl Read + Send + 'static) -> Tail {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&bytes);
    let reader = thread::spawn(move || {
        let mut buffer = [0; KEPT];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..read]);
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus);
        }
    });
    Tail { bytes, reader }
}

impl Tail {
    /// What there is when the pipe is closed, or at this instant.
    fn text(self, at: Instant) -> String {
        while !self.reader.is_finished() && Instant::now() < at {
            thread::sleep(POLL);
        }
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The last lines of a guest's output on one line, without control characters.
fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines[lines.len().saturating_sub(SHOWN.0)..].join(" | ");
    let last = last.replace(char::is_control, " ");
    let surplus = last.chars().count().saturating_sub(SHOWN.1);
    last.chars().skip(surplus).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_script_knows_what_it_is_for_whatever_the_vm_is_called() {
        let settings = Quiesce::from(&crate::config::Quiesce::default());
        let script = Script {
            domain: Uuid::nil(),
            vm: "it's $(reboot)\n",
            run: "20261123T000000Z-0",
            phase: Phase::Pre,
            settings: &settings,
        };
        let command = script.command("printf '%s' \"$STRONGROOM_VM/$STRONGROOM_RUN/$STRONGROOM_PHASE\"");
        // Twice through a shell, as over ssh.
        let remote = format!("/bin/sh -c {}", shell_word(&command));
        let output = Command::new("sh").args(["-c", &remote]).output().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "it's $(reboot)\n/20261123T000000Z-0/pre"
        );
    }

    #[test]
    fn what_a_script_says_is_short_and_printable() {
        assert_eq!(last_lines(""), "");
        assert_eq!(last_lines("1\n2\n\n 3\r\n\x1b[2J4\n"), "2 | 3 |  [2J4");
        let long = format!("a\n{}z", "y".repeat(10_000));
        let shown = last_lines(&long);
        assert_eq!((shown.len(), shown.ends_with("yz")), (300, true));
    }

    #[test]
    fn of_much_output_the_end_is_kept() {
        let mut much = vec![b'a'; 3 * KEPT];
        much.extend_from_slice(b"the end");
        let kept = tail(std::io::Cursor::new(much)).text(Instant::now() + Duration::from_secs(10));
        assert_eq!((kept.len(), kept.ends_with("the end")), (KEPT, true));
    }
}
