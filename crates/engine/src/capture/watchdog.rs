//! The thaw watchdog: a process of its own that thaws the guest when the run that froze it does not.
//!
//! It is started before the guest is touched, connects to the hypervisor by itself, has the agent show a sign of life,
//! and then waits on a pipe. The pipe is what tells it of our death, however we died. The messages on it, one a line:
//!
//! | the run says | meaning |
//! |---|---|
//! | `freeze` | the freeze is about to be asked for: the budget begins |
//! | `frozen` | the freeze has been answered: none can be on its way any more |
//! | `unknown` | what became of the freeze, or of the thaw, is not known |
//! | `thawed` | the thaw has been answered as well: the watchdog may go |
//! | (end of file) | the run is no more |
//!
//! | the watchdog says | meaning |
//! |---|---|
//! | `ready` | it can reach the agent |
//! | `failed REASON` | it cannot |
//! | `armed` | it has heard `freeze` |
//! | `thawed COUNT BEGAN ANSWERED` | it has thawed so many file systems; when it asked, and when that was answered, in microseconds since it heard `freeze` |
//! | `done` | it has heard `thawed`, and says no more |
//!
//! This file has the run's end of the pipe; the other one is [`keeper`].

pub mod keeper;

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long it may take to connect and to be answered by the agent.
const READY: Duration = Duration::from_secs(20);
/// How long it may take to answer a message.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest line that is read from the pipe, in bytes; and longest reason, in characters, so that it fits.
const MAX_LINE: u64 = 2000;
const MAX_REASON: usize = 400;

/// What the run sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The freeze is about to be asked for.
    Freeze,
    /// The freeze has been answered.
    Frozen,
    /// What became of the freeze, or of the thaw, is not known.
    Unknown,
    /// The thaw has been answered as well.
    Thawed,
}

/// What the watchdog replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It can reach the agent.
    Ready,
    /// It cannot, and why.
    Failed(String),
    /// It has heard [`Message::Freeze`].
    Armed,
    /// It has thawed.
    Thawed(Thaw),
    /// It has heard [`Message::Thawed`].
    Done,
}

/// A thaw by the watchdog. Times are since it heard [`Message::Freeze`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thaw {
    /// How many file systems.
    pub count: u32,
    /// When it asked for it: until then they were frozen.
    pub began: Duration,
    /// When that was answered: from then on they were not.
    pub answered: Duration,
}

/// The watchdog, seen from the run. Dropped, it thaws what is frozen, or goes if there is nothing.
#[derive(Debug)]
pub struct Watchdog {
    process: Child,
    pipe: Option<ChildStdin>,
    replies: Receiver<Reply>,
    /// From here on it may be up to something that must not be cut short.
    armed: bool,
}

impl Watchdog {
    /// Starts it and waits until it is ready.
    pub fn start(mut command: Command) -> Result<Self, String> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It may live longer than we do: no terminal or log may have to wait for it.
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("start it: {error}"))?;
        let pipe = process.stdin.take();
        let (sender, replies) = channel();
        if let Some(output) = process.stdout.take() {
            thread::spawn(move || {
                let mut output = BufReader::new(output);
                while let Some(line) = read_line(&mut output) {
                    if line.parse().is_ok_and(|reply| sender.send(reply).is_err()) {
                        break;
                    }
                }
            });
        }
        let mut watchdog = Self {
            process,
            pipe,
            replies,
            armed: false,
        };
        let reason = match watchdog.replies.recv_timeout(READY) {
            Ok(Reply::Ready) => return Ok(watchdog),
            Ok(Reply::Failed(reason)) => reason,
            Ok(other) => format!("it says {:?} first", other.to_string()),
            Err(_) => "it does not become ready".into(),
        };
        let _ = strongroom_child::kill(&mut watchdog.process, "the thaw watchdog");
        Err(reason)
    }

    /// Tells it that the freeze is about to be asked for. The guest may be frozen only if this succeeds.
    pub fn arm(&mut self) -> Result<(), String> {
        self.armed = true;
        self.write(Message::Freeze)
            .map_err(|error| format!("speak to it: {error}"))?;
        let deadline = Instant::now() + ANSWER;
        loop {
            match self
                .replies
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Reply::Armed) => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err("it does not answer".into()),
            }
        }
    }

    /// Tells it what became of the freeze, or of the thaw. If that is not known, it stays, also when we go.
    pub fn send(&mut self, message: Message) {
        let _ = self.write(message);
    }

    /// A thaw that it has reported since the last look.
    pub fn has_thawed(&self) -> Option<Thaw> {
        let thaw = |reply| match reply {
            Reply::Thawed(thaw) if thaw.count > 0 => Some(thaw),
            _ => None,
        };
        self.replies.try_iter().find_map(thaw)
    }

    /// Tells it that the thaw has been answered, and hears whether it had thawed before.
    pub fn release(mut self) -> Option<Thaw> {
        let _ = self.write(Message::Thawed);
        let deadline = Instant::now() + ANSWER;
        let mut first = None;
        loop {
            match self
                .replies
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Reply::Thawed(thaw)) if thaw.count > 0 => first = first.or(Some(thaw)),
                Ok(Reply::Done) => {
                    self.armed = false;
                    return first;
                }
                Ok(_) => {}
                Err(_) => return first,
            }
        }
    }

    fn write(&mut self, message: Message) -> std::io::Result<()> {
        match &mut self.pipe {
            // One write: it is heard as a whole or not at all.
            Some(pipe) => pipe.write_all(format!("{message}\n").as_bytes()),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.pipe = None;
        if !self.armed {
            // It has nothing to do any more and ends at once.
            let gone = strongroom_child::wait(&mut self.process, ANSWER);
            if !matches!(gone, Ok(Some(_))) {
                let _ = strongroom_child::kill(&mut self.process, "the thaw watchdog");
            }
        }
    }
}

/// The next line from the other end of the pipe, whatever that is.
pub fn read_line(pipe: &mut impl std::io::BufRead) -> Option<String> {
    let mut line = String::new();
    let read = pipe.by_ref().take(MAX_LINE).read_line(&mut line).ok()?;
    (read > 0).then(|| line.trim_end().to_owned())
}

impl fmt::Display for Message {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Freeze => "freeze",
            Self::Frozen => "frozen",
            Self::Unknown => "unknown",
            Self::Thawed => "thawed",
        })
    }
}

impl FromStr for Message {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        match line {
            "freeze" => Ok(Self::Freeze),
            "frozen" => Ok(Self::Frozen),
            "unknown" => Ok(Self::Unknown),
            "thawed" => Ok(Self::Thawed),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => out.write_str("ready"),
            Self::Failed(reason) => {
                let reason: String = reason.chars().take(MAX_REASON).collect();
                write!(out, "failed {}", reason.replace(char::is_control, " "))
            }
            Self::Armed => out.write_str("armed"),
            Self::Thawed(thaw) => {
                let (began, answered) = (thaw.began.as_micros(), thaw.answered.as_micros());
                write!(out, "thawed {} {began} {answered}", thaw.count)
            }
            Self::Done => out.write_str("done"),
        }
    }
}

impl FromStr for Reply {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "ready" => Ok(Self::Ready),
            "failed" => Ok(Self::Failed(rest.to_owned())),
            "armed" => Ok(Self::Armed),
            "thawed" => {
                let numbers: Vec<u64> = rest
                    .split(' ')
                    .map(str::parse)
                    .collect::<Result<_, _>>()
                    .map_err(|_| ())?;
                let [count, began, answered] = numbers[..] else {
                    return Err(());
                };
                Ok(Self::Thawed(Thaw {
                    count: u32::try_from(count).map_err(|_| ())?,
                    began: Duration::from_micros(began),
                    answered: Duration::from_micros(answered),
                }))
            }
            "done" => Ok(Self::Done),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for message in [
            Message::Freeze,
            Message::Frozen,
            Message::Unknown,
            Message::Thawed,
        ] {
            assert_eq!(message.to_string().parse(), Ok(message));
        }
        let thaw = Thaw {
            count: 3,
            began: Duration::from_micros(1_000_001),
            answered: Duration::from_millis(1020),
        };
        for reply in [
            Reply::Ready,
            Reply::Failed("no such domain".into()),
            Reply::Armed,
            Reply::Thawed(thaw),
            Reply::Done,
        ] {
            assert_eq!(reply.to_string().parse(), Ok(reply));
        }
        assert_eq!(Reply::Failed("a\nready".into()).to_string(), "failed a ready");
        for line in [
            "",
            "thaw",
            "thawed",
            "thawed 1 2",
            "thawed 1 2 -3",
            "thawed 4294967296 1 1",
        ] {
            assert!(line.parse::<Reply>().is_err(), "{line}");
        }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn one_that_does_not_become_ready_is_none() {
        let error = |script| Watchdog::start(shell(script)).unwrap_err();
        assert_eq!(error("echo failed no connection"), "no connection");
        assert!(error("exit 1").contains("ready"));
        assert!(error("echo armed").contains("armed"));
        let error = Watchdog::start(Command::new("/nonexistent")).unwrap_err();
        assert!(error.contains("start it"), "{error}");
    }

    #[test]
    fn one_that_died_cannot_be_armed() {
        let mut watchdog = Watchdog::start(shell("echo ready")).unwrap();
        watchdog.process.wait().unwrap();
        assert!(watchdog.arm().is_err());
    }

    #[test]
    fn a_thaw_before_the_release_is_told_then() {
        let script = "echo ready; read a; echo armed; read b; echo thawed 0 1 2; echo thawed 2 10 20; read c; \
                      echo done; test \"$a $b $c\" = 'freeze frozen thawed'";
        let mut watchdog = Watchdog::start(shell(script)).unwrap();
        watchdog.arm().unwrap();
        watchdog.send(Message::Frozen);
        assert_eq!(watchdog.release().unwrap().count, 2);
    }
}
