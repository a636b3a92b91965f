//! The throwaway VM: a QEMU process of our own, without network, without a path to any file, that ends with us.
//!
//! It gets open files and nothing else: the verified template to read, the new images to write, a socket for the protocol
//! and one for the kernel's console. It runs as a user without rights where we are root, in QEMU's own sandbox, and dies
//! when we do (`setpriv --pdeathsig`). What it says is bounded, late words end it, and its silence does too.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::dup;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use strongroom_base::cancel::{Cancel, Cancelled};
use strongroom_base::exec::Needs;
use strongroom_guest::protocol::{
    Listener, Message, Order, PASSPHRASE_PORT, PORT, ProtocolError, Report, SWAP_DISK, SYSTEM_DISK, Step,
    TEMPLATE_DISK, line, printable,
};
use strongroom_hypervisor::Accelerator;

use crate::provision::template::Template;
use crate::run::event::{Kind, Observer};

/// Between two looks at whether the work is cancelled.
const LOOK: Duration = Duration::from_millis(100);
/// How long a machine that has said its last word may take to end.
const ENDING: Duration = Duration::from_mins(2);
/// Lines of the console that are kept.
const CONSOLE_LINES: usize = 12;
/// Bytes of a console's line that are kept.
const CONSOLE_LINE: usize = 200;

/// The user that QEMU runs as when we are root: libvirt's own for QEMU, or `nobody`.
const USERS: [&str; 2] = ["libvirt-qemu", "nobody"];

/// Where a passphrase comes from.
#[derive(Debug)]
pub enum Typed {
    /// None is needed.
    Nothing,
    /// QEMU gets our terminal; you type it there. We read nothing of it.
    Terminal,
    /// QEMU gets this descriptor and reads it. We do not.
    Descriptor(OwnedFd),
}

/// How long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All of it.
    pub whole: Duration,
    /// Without a sign of life.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            whole: Duration::from_hours(1),
            silence: Duration::from_mins(4),
        }
    }
}

/// What it is made of.
pub struct Machine<'a> {
    /// For messages.
    pub name: &'a str,
    /// The verified template.
    pub template: &'a Template,
    /// The blank system disk: qcow2, open for reading and writing.
    pub system: &'a File,
    /// The blank swap disk.
    pub swap: Option<&'a File>,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Who runs its instructions.
    pub accelerator: Accelerator,
    /// QEMU.
    pub qemu: &'a OsStr,
    /// How long it may take.
    pub limits: Limits,
}

/// Why it did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Ctrl-C.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// QEMU did not start.
    #[error("start the throwaway VM: {0}")]
    Start(#[source] io::Error),
    /// QEMU ended before its work was done.
    #[error("make the disk: the throwaway VM has ended early: {0}")]
    Died(String),
    /// It said nothing for so long.
    #[error("make the disk: the throwaway VM has been silent for {} s: {tail}", time.as_secs())]
    Silent {
        /// What was allowed.
        time: Duration,
        /// The end of what was on its console.
        tail: String,
    },
    /// It took too long.
    #[error("make the disk: the throwaway VM has not done its work within {} s", .0.as_secs())]
    Late(Duration),
    /// It said something that is no word of the protocol.
    #[error("make the disk: the throwaway VM is not to be believed: {0}")]
    Protocol(#[from] ProtocolError),
    /// It gave up, with a reason.
    #[error("make the disk: in the throwaway VM, while it was to {}: failed to {message}", words(*step))]
    Failed {
        /// What it was doing.
        step: Step,
        /// Its words.
        message: String,
    },
}

/// A step in words that fit "to …".
pub fn words(step: Step) -> &'static str {
    match step {
        Step::Start => "start",
        Step::Passphrase => "read the passphrase",
        Step::Partition => "divide the disks",
        Step::Encrypt => "make the LUKS2 volume",
        Step::Recovery => "encrypt the recovery secret",
        Step::Bind => "bind the volume to Tang",
        Step::Copy => "copy the template",
        Step::Configure => "give it a name and keys",
        Step::Loader => "install the boot loaders",
        Step::Finish => "close the volume and try it",
    }
}

/// What arrives from the threads that listen.
enum Heard {
    Words(Vec<u8>),
    Console(Vec<u8>),
    /// QEMU's own complaints.
    Complaint(Vec<u8>),
}

/// Runs it to its end. Whatever happens, there is no QEMU process afterwards.
pub fn run(
    machine: &Machine<'_>,
    order: &Order,
    typed: Typed,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Report, MachineError> {
    let (ours, theirs) = UnixStream::pair().map_err(MachineError::Start)?;
    let (console, their_console) = UnixStream::pair().map_err(MachineError::Start)?;
    let terminal = match typed {
        Typed::Terminal => Some(Terminal::keep().map_err(MachineError::Start)?),
        _ => None,
    };
    let mut running = Running::start(machine, &theirs, &their_console, typed).map_err(MachineError::Start)?;
    // Ours would keep the sockets open when QEMU has ended.
    drop((theirs, their_console));
    let (sender, heard) = channel();
    listen(&ours, &sender, Heard::Words).map_err(MachineError::Start)?;
    listen(&console, &sender, Heard::Console).map_err(MachineError::Start)?;
    if let Some(complaints) = running.child.stderr.take() {
        let sender = sender.clone();
        thread::spawn(move || forward(complaints, &sender, Heard::Complaint));
    }
    drop(sender);
    let report = converse(machine, order, &ours, &heard, terminal.as_ref(), observer, cancel);
    if let Ok(report) = &report {
        report.check(order.recovery.is_some(), order.backups.is_some())?;
        running.end(cancel)?;
    }
    report
}

fn listen(
    from: &UnixStream,
    to: &std::sync::mpsc::Sender<Heard>,
    kind: fn(Vec<u8>) -> Heard,
) -> io::Result<()> {
    let (from, to) = (from.try_clone()?, to.clone());
    thread::spawn(move || forward(from, &to, kind));
    Ok(())
}

fn forward(mut from: impl Read, to: &std::sync::mpsc::Sender<Heard>, kind: fn(Vec<u8>) -> Heard) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.send(kind(buffer[..read].to_vec())).is_err() {
            break;
        }
    }
}

/// From the greeting to the report.
fn converse(
    machine: &Machine<'_>,
    order: &Order,
    mut to: &UnixStream,
    heard: &Receiver<Heard>,
    terminal: Option<&Terminal>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Report, MachineError> {
    let begin = Instant::now();
    let mut last_sign = begin;
    let mut listener = Listener::default();
    let mut tail = Tail::default();
    let mut copied = 0;
    loop {
        cancel.check()?;
        if begin.elapsed() > machine.limits.whole {
            return Err(MachineError::Late(machine.limits.whole));
        }
        if last_sign.elapsed() > machine.limits.silence {
            return Err(MachineError::Silent {
                time: machine.limits.silence,
                tail: tail.text(),
            });
        }
        let bytes = match heard.recv_timeout(LOOK) {
            Ok(Heard::Words(bytes)) => bytes,
            Ok(Heard::Console(bytes) | Heard::Complaint(bytes)) => {
                tail.hear(&bytes);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => continue,
            // All that could speak has ended.
            Err(RecvTimeoutError::Disconnected) => {
                cancel.check()?;
                return Err(MachineError::Died(tail.text()));
            }
        };
        last_sign = Instant::now();
        for word in listener.hear(&bytes)? {
            match word {
                Message::Hello { .. } => {
                    // If it has gone meanwhile, that shows when it is listened to.
                    let _ = to.write_all(&line(order));
                }
                Message::Step(step) => {
                    // Nothing more is typed: ctrl-C is ours again.
                    if let (Some(terminal), true) = (terminal, step != Step::Passphrase) {
                        terminal.give_back();
                    }
                    observer.report(Kind::stage(format!("{}: {}", machine.name, words(step))));
                    if step == Step::Copy {
                        copied = 0;
                        observer.report(Kind::DiskStarted {
                            target: machine.name,
                            bytes: machine.template.description.root_size,
                        });
                    }
                }
                Message::Progress { done, .. } => {
                    // It may say what it likes: the bar does not go backwards or beyond its end.
                    let done = done.min(machine.template.description.root_size);
                    let more = done.saturating_sub(copied);
                    copied += more;
                    observer.report(Kind::DiskProgress {
                        target: machine.name,
                        bytes: more,
                    });
                }
                Message::Alive => {}
                Message::Done(report) => return Ok(report),
                Message::Failed { step, message } => {
                    cancel.check()?;
                    return Err(MachineError::Failed { step, message });
                }
            }
        }
    }
}

/// The ends of what the console and QEMU say.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
}

impl Tail {
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (*byte, self.lines.back_mut()) {
                (b'\n', _) | (_, None) => {
                    self.lines.push_back(Vec::new());
                    if self.lines.len() > CONSOLE_LINES {
                        self.lines.pop_front();
                    }
                }
                _ => {}
            }
            if *byte != b'\n'
                && let Some(line) = self.lines.back_mut()
                && line.len() < CONSOLE_LINE
            {
                line.push(*byte);
            }
        }
    }

    fn text(&self) -> String {
        let lines: Vec<String> = self
            .lines
            .iter()
            .map(|line| printable(&String::from_utf8_lossy(line)))
            .filter(|line| !line.is_empty())
            .collect();
        if lines.is_empty() {
            "it left no word".to_owned()
        } else {
            lines.join("; ")
        }
    }
}

/// The QEMU process. Dropped, it is killed.
struct Running {
    child: Child,
}

impl Running {
    fn start(
        machine: &Machine<'_>,
        words: &UnixStream,
        console: &UnixStream,
        typed: Typed,
    ) -> io::Result<Self> {
        let mut command = strongroom_child::command("setpriv", Needs::Nothing);
        command.args(["--pdeathsig", "KILL", "--no-new-privs"]);
        if rustix::process::geteuid().is_root() {
            let (user, group) = user()?;
            command.args(["--reuid", &user, "--regid", &group, "--clear-groups"]);
            command.args(["--inh-caps=-all", "--bounding-set=-all"]);
        }
        command.arg(machine.qemu);
        let mut inherited = Vec::new();
        let arguments = arguments(machine, words, console, &typed, &mut inherited)?;
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        match typed {
            Typed::Nothing => {}
            Typed::Terminal => {
                let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
                command.stdin(terminal.try_clone()?).stdout(terminal);
            }
            Typed::Descriptor(descriptor) => {
                command.stdin(descriptor);
            }
        }
        let child = command.spawn()?;
        // Those were for the child.
        drop(inherited);
        Ok(Self { child })
    }

    /// Waits for the end of a machine that has said its last word: only then is everything in the images.
    fn end(&mut self, cancel: &Cancel) -> Result<(), MachineError> {
        let begin = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(MachineError::Died(format!("QEMU: {status}"))),
                Err(error) => return Err(MachineError::Died(error.to_string())),
                Ok(None) if begin.elapsed() > ENDING => {
                    return Err(MachineError::Silent {
                        time: ENDING,
                        tail: "it does not switch itself off".into(),
                    });
                }
                Ok(None) => {}
            }
            cancel.check()?;
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = strongroom_child::kill(&mut self.child, "QEMU");
    }
}

/// QEMU's arguments. Each file is a descriptor that it inherits.
fn arguments(
    machine: &Machine<'_>,
    words: &UnixStream,
    console: &UnixStream,
    typed: &Typed,
    inherited: &mut Vec<OwnedFd>,
) -> io::Result<Vec<OsString>> {
    // A duplicate without close-on-exec; it is ours for as long as it takes to start the child.
    let mut inherit = |file: BorrowedFd<'_>| -> io::Result<i32> {
        let copy = dup(file)?;
        let number = copy.as_raw_fd();
        inherited.push(copy);
        Ok(number)
    };
    let mut all: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| all.extend([option.to_owned(), value]);
    // `vectors=0` below: without MSI-X there is less to go wrong. QEMU 10.0 has been seen to fail an assertion in its
    // emulation (`msix_table_mmio_write`) while the kernel was starting.
    add("-name", "strongroom-create".into());
    add("-machine", "q35".into());
    let (accelerator, processor) = match machine.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg", "max"),
    };
    add("-accel", accelerator.into());
    add("-cpu", processor.into());
    add("-smp", "2".into());
    add("-m", machine.memory_mib.to_string());
    add("-display", "none".into());
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
    );
    let kernel = inherit(machine.template.kernel.as_fd())?;
    let initrd = inherit(machine.template.initrd.as_fd())?;
    add("-kernel", format!("/proc/self/fd/{kernel}"));
    add("-initrd", format!("/proc/self/fd/{initrd}"));
    add("-append", "console=ttyS0 quiet panic=-1".into());
    add("-object", "rng-random,id=random,filename=/dev/urandom".into());
    add("-device", "virtio-rng-pci,rng=random,vectors=0".into());
    let disks = [
        (TEMPLATE_DISK, Some(&machine.template.root), true),
        (SYSTEM_DISK, Some(machine.system), false),
        (SWAP_DISK, machine.swap, false),
    ];
    for (set, (serial, file, read_only)) in disks.into_iter().enumerate() {
        let Some(file) = file else { continue };
        let number = inherit(file.as_fd())?;
        let switch = if read_only { "on" } else { "off" };
        add("-add-fd", format!("fd={number},set={set}"));
        add(
            "-blockdev",
            format!(
                "driver=qcow2,node-name={serial},read-only={switch},discard=unmap,cache.no-flush=on,\
                 file.driver=file,file.filename=/dev/fdset/{set},file.read-only={switch},\
                 file.discard=unmap,file.cache.no-flush=on"
            ),
        );
        add(
            "-device",
            format!("virtio-blk-pci,drive={serial},serial={serial},vectors=0,werror=report,rerror=report"),
        );
    }
    let words = inherit(words.as_fd())?;
    let console = inherit(console.as_fd())?;
    add("-chardev", format!("socket,id=console,fd={console}"));
    add("-serial", "chardev:console".into());
    add("-device", "virtio-serial-pci,vectors=0".into());
    add("-chardev", format!("socket,id=words,fd={words}"));
    add("-device", format!("virtserialport,chardev=words,name={PORT}"));
    if !matches!(typed, Typed::Nothing) {
        add("-chardev", "stdio,id=typed,signal=off".into());
        add(
            "-device",
            format!("virtserialport,chardev=typed,name={PASSPHRASE_PORT}"),
        );
    }
    let switches = ["-nodefaults", "-no-user-config", "-no-reboot"];
    Ok(switches
        .into_iter()
        .map(OsString::from)
        .chain(all.into_iter().map(OsString::from))
        .collect())
}

/// User and group number of QEMU's user.
fn user() -> io::Result<(String, String)> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    for wanted in USERS {
        for line in users.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, user, group, ..] = fields.as_slice()
                && *name == wanted
            {
                return Ok(((*user).to_owned(), (*group).to_owned()));
            }
        }
    }
    Err(io::Error::other(
        "there is no user `libvirt-qemu` or `nobody` to run QEMU as",
    ))
}

/// The terminal as it was before QEMU got it, which puts it into raw mode.
struct Terminal {
    terminal: File,
    before: Termios,
}

impl Terminal {
    fn keep() -> io::Result<Self> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&terminal)?;
        Ok(Self { terminal, before })
    }

    fn give_back(&self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests;
