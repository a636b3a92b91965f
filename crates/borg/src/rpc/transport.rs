//! The server's process, or any other pair of streams to a server.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Canceller, Error, Location, Result, Settings, words};

/// How long a server may take to end after its input was closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take after being told to terminate.
const TERM_PATIENCE: Duration = Duration::from_secs(5);

/// Variables that no child process needs to see.
const SECRET_VARIABLES: [&str; 4] = [
    "BORG_PASSPHRASE",
    "BORG_PASSCOMMAND",
    "BORG_PASSPHRASE_FD",
    "BORG_NEW_PASSPHRASE",
];

/// For a server on this machine: glibc's malloc keeps memory that it has, instead of taking fresh pages from the kernel for
/// each object and giving them back. That halves what a `borg serve` costs, as its objects are just above the limits below
/// which glibc does so by itself. `mallopt(3)` tells of the variables.
const SERVER_MEMORY: [(&str, &str); 2] = [
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "134217728"),
];

/// Streams to and from a server.
pub struct Transport {
    pub(super) input: Box<dyn Write + Send>,
    pub(super) output: Box<dyn Read + Send>,
    pub(super) errors: Option<Box<dyn Read + Send>>,
    pub(super) process: Arc<ServerProcess>,
}

impl Transport {
    /// A server that runs elsewhere: requests are written to `input`, replies read from `output`.
    pub fn from_streams(input: impl Write + Send + 'static, output: impl Read + Send + 'static) -> Self {
        Self {
            input: Box::new(input),
            output: Box::new(output),
            errors: None,
            process: Arc::new(ServerProcess::default()),
        }
    }

    /// Ends the connection from any thread: also while [`crate::Repository::open_over`] waits for the server.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(&self.process)
    }

    /// Starts `borg serve` here, or on the location's host through the remote shell.
    pub fn spawn(location: &Location, settings: &Settings) -> Result<Self> {
        let mut arguments = Vec::new();
        if let Some(ssh) = &location.ssh {
            let rsh = words::split(&settings.rsh)
                .filter(|words| !words.is_empty())
                .ok_or_else(|| Error::Setting {
                    name: "BORG_RSH",
                    reason: "it is empty, or a quotation does not end".to_owned(),
                })?;
            let is_ssh = rsh
                .first()
                .is_some_and(|program| Path::new(program).file_name() == Some("ssh".as_ref()));
            arguments.extend(rsh.into_iter().map(Into::into));
            if is_ssh {
                // A dead network must not hold the repository's lock, and its client, for ever. ssh takes the first
                // value that it is given, so options of BORG_RSH go before these.
                arguments.extend(["-oServerAliveInterval=30", "-oServerAliveCountMax=6"].map(Into::into));
            }
            if let Some(port) = ssh.port {
                arguments.extend(["-p".into(), port.to_string().into()]);
            }
            arguments.extend([ssh.destination().into(), settings.remote_borg.clone().into()]);
        } else {
            arguments.push(settings.local_borg.clone().into_os_string());
        }
        arguments.push("serve".into());
        arguments.extend(settings.serve_args.iter().map(Into::into));

        let program = arguments
            .first()
            .map(|program| program.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut child = command(&arguments, settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Spawn {
                program: program.clone(),
                source,
            })?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::Spawn {
                program,
                source: std::io::Error::other("no pipes"),
            });
        };
        // Large pipes save context switches; a refusal costs nothing but speed.
        let _ = rustix::pipe::fcntl_setpipe_size(&input, 1 << 20);
        let _ = rustix::pipe::fcntl_setpipe_size(&output, 1 << 20);
        let process = Arc::new(ServerProcess {
            child: Mutex::new(Some(child)),
            cancelled: AtomicBool::new(false),
        });
        Ok(Self {
            input: Box::new(input),
            output: Box::new(output),
            errors: Some(Box::new(errors)),
            process,
        })
    }
}

/// A command whose process ignores the terminal's interrupt, as stock Borg arranges it for its ssh.
///
/// An interrupt reaches the whole foreground process group. If it killed ssh, the client could not end the session in
/// order. A process group of its own would protect ssh too, but then it could not ask for a password on the terminal.
/// An ignored signal stays ignored across `exec`, hence the shell.
fn command(arguments: &[std::ffi::OsString], settings: &Settings) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "trap '' INT; exec \"$@\"", "sh"])
        .args(arguments);
    for (name, value) in SERVER_MEMORY {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    clean_environment(&mut command, settings);
    command
}

/// Takes the passphrase out of a child's environment and puts the settings' variables in.
pub(crate) fn clean_environment(command: &mut Command, settings: &Settings) {
    for name in SECRET_VARIABLES {
        command.env_remove(name);
    }
    command.envs(settings.child_env.iter().map(|(key, value)| (key, value)));
}

/// The local child: `borg serve` itself, or ssh.
#[derive(Default)]
pub(crate) struct ServerProcess {
    child: Mutex<Option<Child>>,
    cancelled: AtomicBool,
}

impl ServerProcess {
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Tells the child to terminate; a terminated `borg serve` still releases its lock.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.terminate();
    }

    fn terminate(&self) {
        if let Some(child) = self.child().as_mut()
            && matches!(child.try_wait(), Ok(None))
        {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
    }

    /// Waits for the child's end until the deadline.
    pub fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            match self.child().as_mut().map(Child::try_wait) {
                Some(Ok(Some(status))) => return Some(status),
                Some(Ok(None)) => {}
                _ => return None,
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Waits for the child, whose input is closed; in the end by force. It never stays behind as a zombie, which
    /// Borg's locks would take for a living process.
    pub fn finish(&self) -> Option<ExitStatus> {
        if let Some(status) = self.wait(if self.is_cancelled() {
            TERM_PATIENCE
        } else {
            CLOSE_PATIENCE
        }) {
            return Some(status);
        }
        self.terminate();
        if let Some(status) = self.wait(TERM_PATIENCE) {
            return Some(status);
        }
        let mut child = self.child();
        let child = child.as_mut()?;
        let _ = child.kill();
        child.wait().ok()
    }
}
