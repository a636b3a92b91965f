//! The server's process, or any other pair of streams to a server.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use strongroom_child::{Needs, command};

use crate::{Error, Location, Result, Settings, words};

/// How long a server may take to end after its input was closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take after being told to terminate. Then it is killed.
const TERM_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks at whether the connection was cancelled, for those who wait for the server.
pub(super) const LOOK: Duration = Duration::from_millis(100);

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
        let mut child = server(&arguments, location, settings)
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
        let nonblocking = fcntl_getfl(&input)
            .and_then(|flags| fcntl_setfl(&input, flags | OFlags::NONBLOCK))
            .map_err(|errno| Error::Spawn {
                program: program.clone(),
                source: errno.into(),
            });
        let process = Arc::new(ServerProcess {
            child: Mutex::new(Some(child)),
            program,
            patience: settings.patience,
            ..ServerProcess::default()
        });
        nonblocking?;
        Ok(Self {
            input: Box::new(Requests {
                pipe: input,
                process: Arc::clone(&process),
            }),
            output: Box::new(Heard {
                stream: output,
                process: Arc::clone(&process),
            }),
            errors: Some(Box::new(Heard {
                stream: errors,
                process: Arc::clone(&process),
            })),
            process,
        })
    }
}

/// A command whose process ignores the terminal's interrupt, as stock Borg arranges it for its ssh.
///
/// An interrupt reaches the whole foreground process group. If it killed ssh, the client could not end the session in
/// order. A process group of its own would protect ssh too, but then it could not ask for a password on the terminal.
/// An ignored signal stays ignored across `exec`, hence the shell.
fn server(arguments: &[std::ffi::OsString], location: &Location, settings: &Settings) -> Command {
    let mut command = borg_command(location, settings);
    command
        .args(["-c", "trap '' INT; exec \"$@\"", "sh"])
        .args(arguments);
    for (name, value) in SERVER_MEMORY {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command
}

/// A shell that is to become Borg, or the remote shell to one, in the environment that Borg is used to: without a passphrase,
/// with the settings' variables.
pub(crate) fn borg_command(location: &Location, settings: &Settings) -> Command {
    // A remote shell of the user's own may need anything.
    let own = !location.is_local() && settings.rsh != "ssh";
    let mut command = command("/bin/sh", if own { Needs::BorgHelper } else { Needs::Borg });
    command.envs(settings.child_env.iter().map(|(key, value)| (key, value)));
    command
}

/// The pipe to the server. A thread that waits for room is woken when the connection is cancelled, or the server silent for
/// too long.
struct Requests {
    pipe: ChildStdin,
    process: Arc<ServerProcess>,
}

impl Write for Requests {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let begin = Instant::now();
        loop {
            match self.pipe.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => {
                    self.process.is_alive();
                    return done;
                }
            }
            if self.process.is_over(begin) {
                return Err(io::Error::other("the connection was ended"));
            }
            let look = Timespec::try_from(LOOK).ok();
            // Whatever it says, the next write tells.
            let _ = poll(&mut [PollFd::new(&self.pipe, PollFlags::OUT)], look.as_ref());
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the server says: a sign of life.
struct Heard<R> {
    stream: R,
    process: Arc<ServerProcess>,
}

impl<R: Read> Read for Heard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer);
        self.process.is_alive();
        read
    }
}

/// Ends a connection from any thread: the server is terminated, calls that wait for it fail with [`Error::Cancelled`].
#[derive(Clone)]
pub struct Canceller(Weak<ServerProcess>);

impl Canceller {
    pub(crate) fn new(process: &Arc<ServerProcess>) -> Self {
        Self(Arc::downgrade(process))
    }

    /// Ends the connection, if it is still there.
    pub fn cancel(&self) {
        if let Some(process) = self.0.upgrade() {
            process.cancel();
        }
    }

    /// Whether the connection has been closed, so that there is nothing left to cancel.
    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Canceller")
    }
}

/// The local child: `borg serve` itself, or ssh.
#[derive(Default)]
pub(crate) struct ServerProcess {
    child: Mutex<Option<Child>>,
    program: String,
    /// How long it may give no sign of life to a call that waits for it.
    patience: Option<Duration>,
    alive: Mutex<Option<Instant>>,
    cancelled: AtomicBool,
    /// Patience is over.
    silent: AtomicBool,
}

impl ServerProcess {
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_alive(&self) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Since when there was no sign of life, if that is why the connection was ended.
    pub fn silence(&self) -> Option<Duration> {
        self.patience.filter(|_| self.silent.load(Ordering::SeqCst))
    }

    /// Whether a call that has waited since then is to wait no longer.
    pub fn is_over(&self, begin: Instant) -> bool {
        if self.is_cancelled() {
            return true;
        }
        let alive = *self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let since = alive.map_or(begin, |alive| alive.max(begin));
        if self.patience.is_none_or(|patience| since.elapsed() < patience) {
            return false;
        }
        self.silent.store(true, Ordering::SeqCst);
        self.cancel();
        true
    }

    /// Tells the child to terminate; a terminated `borg serve` still releases its lock. Those who wait for it are woken.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.terminate();
    }

    fn terminate(&self) {
        if let Some(child) = self.child().as_mut() {
            strongroom_child::terminate(child);
        }
    }

    /// Waits for the child's end until the deadline.
    pub fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        let mut pause = Duration::from_millis(1);
        // Others may look at the child meanwhile, to cancel it.
        loop {
            match self.child().as_mut().map(Child::try_wait) {
                Some(Ok(Some(status))) => return Some(status),
                Some(Ok(None)) => {}
                _ => return None,
            }
            if begin.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Waits for the child, whose input is closed; in the end by force. It never stays behind as a zombie, which
    /// Borg's locks would take for a living process.
    pub fn finish(&self) -> Option<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < CLOSE_PATIENCE && !self.is_cancelled() {
            if let Some(status) = self.wait(LOOK) {
                return Some(status);
            }
            self.child().as_ref()?;
        }
        let mut child = self.child();
        let status = strongroom_child::end(child.as_mut()?, &self.program, TERM_PATIENCE);
        if status.is_none() {
            // Another thread waits for it.
            *child = None;
        }
        status
    }
}
