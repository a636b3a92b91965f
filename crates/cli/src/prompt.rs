//! Asking for a passphrase on the terminal: without echo, and so that ctrl-C ends the wait.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use strongroom_base::cancel::Cancel;
use strongroom_points::store::Passphrase;
use zeroize::Zeroizing;

/// The longest passphrase that is taken, in bytes.
const MAX: usize = 4096;

/// Turns the echo off for as long as it lives.
struct NoEcho<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> NoEcho<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for NoEcho<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Asks; `None` without a terminal, at end of file, or when cancelled.
pub fn passphrase(question: &str, cancel: &Cancel) -> Option<Passphrase> {
    let typed = ask(question, true, cancel).ok().flatten()?;
    String::from_utf8(typed).ok().map(Passphrase::new)
}

/// Asks for a new passphrase, twice, until both are the same; `None` after three attempts, and as [`passphrase`]. A slip would make
/// something that nothing can open, and an empty one something that everything can.
pub fn new_passphrase(question: &str, cancel: &Cancel) -> Option<Passphrase> {
    for _ in 0..3 {
        let typed = Zeroizing::new(ask(question, true, cancel).ok().flatten()?);
        let complaint = if typed.is_empty() {
            "An empty passphrase protects nothing.\n"
        } else {
            let again = Zeroizing::new(ask("The same again: ", true, cancel).ok().flatten()?);
            if *again == *typed {
                return String::from_utf8(typed.to_vec()).ok().map(Passphrase::new);
            }
            "The two differ.\n"
        };
        say(complaint).ok()?;
    }
    None
}

fn say(text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open("/dev/tty")?
        .write_all(text.as_bytes())
}

/// Asks whether to go on; `None` without a terminal or when cancelled. Only the whole word says yes.
pub fn confirmed(question: &str, cancel: &Cancel) -> Option<bool> {
    let typed = ask(question, false, cancel).ok().flatten()?;
    Some(typed.trim_ascii() == b"yes")
}

fn ask(question: &str, hidden: bool, cancel: &Cancel) -> io::Result<Option<Vec<u8>>> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    let _silent = hidden.then(|| NoEcho::new(&terminal)).transpose()?;
    (&terminal).write_all(question.as_bytes())?;
    let mut line = Vec::with_capacity(MAX);
    loop {
        let mut ready = [PollFd::new(&terminal, PollFlags::IN)];
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        match poll(&mut ready, Some(&tick)) {
            Ok(0) | Err(rustix::io::Errno::INTR) if !cancel.is_cancelled() => continue,
            Ok(_) if !cancel.is_cancelled() => {}
            Err(error) if !cancel.is_cancelled() => return Err(error.into()),
            _ => return Ok(None),
        }
        let mut byte = [0];
        match (&terminal).read(&mut byte)? {
            0 => return Ok(None),
            _ if byte == *b"\n" => break,
            _ if line.len() < MAX => line.push(byte[0]),
            _ => return Ok(None),
        }
    }
    Ok(Some(line))
}
