//! Where the passphrase comes from.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use strongroom_child::Needs;
use zeroize::Zeroizing;

use crate::{Error, Result, words};

/// A passphrase; wiped from memory when dropped, never shown.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes over a passphrase.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// What a prompt should ask for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PassphraseRequest {
    /// Which key: the location of the repository or of the key file.
    pub key: String,
    /// 1 for the first question, more after wrong answers.
    pub attempt: u32,
    /// Whether it is chosen now, for a key that is about to be made: ask twice, and take no empty one.
    pub new: bool,
}

type Prompt = Arc<dyn Fn(&PassphraseRequest) -> Option<Passphrase> + Send + Sync>;

/// A source of passphrases, asked only when a key needs one.
///
/// The order is Borg's: `BORG_PASSPHRASE`, `BORG_PASSCOMMAND`, `BORG_PASSPHRASE_FD`; then the empty passphrase;
/// then the prompt, three times. A passphrase that worked is kept for the next repository.
#[derive(Clone, Default)]
pub struct PassphraseSource {
    environment: bool,
    prompt: Option<Prompt>,
    kept: Arc<Mutex<Option<Passphrase>>>,
    stop: Arc<AtomicBool>,
}

/// How long what tells the passphrase may take, with a person at it who types a PIN; how long a command may live on when it
/// has told; how much may be said; and between two looks at whether that is still wanted.
const PATIENCE: Duration = Duration::from_mins(5);
const END: Duration = Duration::from_secs(10);
const MAX_ANSWER: u64 = 1 << 16;
const LOOK: Duration = Duration::from_millis(100);

/// How often the prompt is asked, as in Borg.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

impl PassphraseSource {
    /// The environment variables.
    pub fn from_env() -> Self {
        Self {
            environment: true,
            ..Self::default()
        }
    }

    /// One given passphrase.
    pub fn fixed(passphrase: Passphrase) -> Self {
        Self {
            kept: Arc::new(Mutex::new(Some(passphrase))),
            ..Self::default()
        }
    }

    /// Adds a question to the user. It returns `None` when there is no terminal to answer.
    #[must_use]
    pub fn with_prompt(
        mut self,
        prompt: impl Fn(&PassphraseRequest) -> Option<Passphrase> + Send + Sync + 'static,
    ) -> Self {
        self.prompt = Some(Arc::new(prompt));
        self
    }

    /// A flag that ends the wait for whatever is to tell the passphrase, and for stock Borg that makes a repository with it.
    #[must_use]
    pub fn stopped_by(mut self, stop: &Arc<AtomicBool>) -> Self {
        self.stop = Arc::clone(stop);
        self
    }

    /// The passphrase that needs no question: one that was given or worked before, or the environment's.
    pub(crate) fn given(&self) -> Result<Option<Passphrase>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() && self.environment {
            *kept = from_environment(|name| std::env::var_os(name), &self.stop)?;
        }
        Ok(kept.clone())
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub(crate) fn ask(&self, request: &PassphraseRequest) -> Option<Passphrase> {
        self.prompt.as_ref()?(request)
    }

    pub(crate) fn keep(&self, passphrase: Passphrase) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(passphrase);
    }
}

impl fmt::Debug for PassphraseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassphraseSource")
            .field("environment", &self.environment)
            .finish_non_exhaustive()
    }
}

/// Borg's order of variables; `lookup` finds one.
fn from_environment(
    lookup: impl Fn(&str) -> Option<OsString>,
    stop: &AtomicBool,
) -> Result<Option<Passphrase>> {
    let text = |source_name, bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .map(Passphrase::new)
            .map_err(|_| Error::PassphraseSource {
                source_name,
                reason: "it is not UTF-8".to_owned(),
            })
    };
    if let Some(value) = lookup("BORG_PASSPHRASE") {
        return text("BORG_PASSPHRASE", value.into_encoded_bytes()).map(Some);
    }
    if let Some(command) = lookup("BORG_PASSCOMMAND") {
        return run_passcommand(&command.to_string_lossy(), stop)
            .and_then(|out| text("BORG_PASSCOMMAND", out))
            .map(Some);
    }
    if let Some(fd) = lookup("BORG_PASSPHRASE_FD").and_then(|fd| fd.to_str()?.parse::<u32>().ok()) {
        // Opening it anew leaves the descriptor itself alone; for a pipe both are the same stream.
        let heard = hear(move || File::open(format!("/dev/fd/{fd}")), stop);
        let bytes = heard.map_err(|reason| Error::PassphraseSource {
            source_name: "BORG_PASSPHRASE_FD",
            reason,
        })?;
        return text("BORG_PASSPHRASE_FD", trim_newlines(bytes)).map(Some);
    }
    Ok(None)
}

/// Reads to the end of what this opens, by a thread that is left to itself if there is no end.
fn hear<R: Read>(
    open: impl FnOnce() -> io::Result<R> + Send + 'static,
    stop: &AtomicBool,
) -> Result<Vec<u8>, String> {
    let (sender, said) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = open().and_then(|from| from.take(MAX_ANSWER).read_to_end(&mut bytes));
        // It may have been given up.
        let _ = sender.send(read.map(|_| bytes));
    });
    let begin = Instant::now();
    loop {
        match said.recv_timeout(LOOK) {
            Ok(read) => return read.map_err(|source| source.to_string()),
            Err(RecvTimeoutError::Disconnected) => return Err("it cannot be heard".to_owned()),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::SeqCst) => {
                return Err("interrupted".to_owned());
            }
            Err(RecvTimeoutError::Timeout) if begin.elapsed() > PATIENCE => {
                return Err(format!(
                    "no answer has come to its end for {} s",
                    PATIENCE.as_secs()
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn run_passcommand(command: &str, stop: &AtomicBool) -> Result<Vec<u8>> {
    let error = |reason: String| Error::PassphraseSource {
        source_name: "BORG_PASSCOMMAND",
        reason,
    };
    let words = words::split(command).ok_or_else(|| error("a quotation does not end".to_owned()))?;
    let (program, args) = words
        .split_first()
        .ok_or_else(|| error("it is empty".to_owned()))?;
    let mut child = strongroom_child::command(program, Needs::BorgHelper)
        .args(args)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|source| error(format!("cannot start {program}: {source}")))?;
    let stdout = child.stdout.take();
    let bytes = hear(
        move || stdout.ok_or_else(|| io::Error::other("it cannot be heard")),
        stop,
    )
    .map_err(error);
    let left = if bytes.is_ok() { END } else { Duration::ZERO };
    let status = match strongroom_child::wait(&mut child, left) {
        Ok(Some(status)) => status,
        _ => strongroom_child::kill(&mut child, program)
            .ok_or_else(|| error("the command does not end".to_owned()))?,
    };
    let bytes = bytes?;
    if !status.success() {
        return Err(error(format!("the command failed ({status})")));
    }
    Ok(trim_newlines(bytes))
}

fn trim_newlines(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    fn lookup(pairs: &[(&str, &str)]) -> Result<Option<String>> {
        let found = from_environment(
            |name| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.into())
            },
            &AtomicBool::new(false),
        );
        found.map(|passphrase| passphrase.map(|passphrase| passphrase.0.to_string()))
    }

    #[test]
    fn variables_in_borgs_order() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"from a file\n\n").unwrap();
        let fd = file.as_raw_fd().to_string();
        let all = [
            ("BORG_PASSPHRASE", ""),
            ("BORG_PASSCOMMAND", "printf 'a  b\\n'"),
            ("BORG_PASSPHRASE_FD", &fd),
        ];
        assert_eq!(lookup(&all).unwrap().as_deref(), Some(""));
        assert_eq!(lookup(&all[1..]).unwrap().as_deref(), Some("a  b"));
        assert_eq!(lookup(&all[2..]).unwrap().as_deref(), Some("from a file"));
        assert_eq!(lookup(&[("BORG_PASSPHRASE_FD", "no number")]).unwrap(), None);
    }

    #[test]
    fn failing_sources_are_errors() {
        for (name, value) in [
            ("BORG_PASSCOMMAND", "false"),
            ("BORG_PASSCOMMAND", "/nonexistent"),
            ("BORG_PASSCOMMAND", "'"),
            ("BORG_PASSCOMMAND", ""),
            ("BORG_PASSPHRASE_FD", "987654"),
        ] {
            let error = lookup(&[(name, value)]).unwrap_err();
            assert!(
                matches!(error, Error::PassphraseSource { source_name, .. } if source_name == name),
                "{error}"
            );
        }
    }

    /// R10.
    #[test]
    fn a_command_that_hangs_is_ended_when_the_work_is_stopped() {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now();
        let flag = Arc::clone(&stop);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            flag.store(true, Ordering::SeqCst);
        });
        let error = run_passcommand("sleep 600", &stop).unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
        assert!(begin.elapsed() < Duration::from_mins(1));
    }

    /// R10: a pipe whose other end stays open and says nothing more.
    #[test]
    fn a_pipe_without_an_end_is_left_when_the_work_is_stopped() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"half of a pass").unwrap();
        let fd = reader.as_raw_fd().to_string();
        let stop = AtomicBool::new(true);
        let error = from_environment(
            |name| (name == "BORG_PASSPHRASE_FD").then(|| fd.clone().into()),
            &stop,
        )
        .unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
    }

    #[test]
    fn passphrases_are_not_shown() {
        let source = PassphraseSource::fixed(Passphrase::new("secret".into()));
        assert!(!format!("{source:?} {:?}", source.given()).contains("secret"));
    }
}
