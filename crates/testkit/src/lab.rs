//! The owner of everything that a test makes.

pub mod guest;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use self::guest::{GuestBuilder, TestGuest};
use crate::daemon::{PREFIX, inside, owner};
use crate::run::{output_of, run, virsh};

/// A directory and a name space for libvirt domains, both emptied on drop.
///
/// With `STRONGROOM_KEEP` in the environment everything is left in place instead. When a test
/// panics, the ends of its guests' serial logs are printed.
pub struct Lab {
    dir: Option<TempDir>,
    prefix: String,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// Makes the directory (under `/var/tmp`, readable by QEMU's user) and removes what dead test
    /// runs have left. Panics when libvirt does not answer: `scripts/setup` starts it.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if let Err(text) = output_of(&mut virsh(["uri"])) {
            panic!("libvirt does not answer, run scripts/setup\n{text}");
        }
        if inside().is_none() {
            sweep();
        }
        let prefix = format!("{PREFIX}{}-{}", owner(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new()
            .prefix(&format!("{prefix}-"))
            .tempdir_in("/var/tmp")
            .expect("make a directory in /var/tmp");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
            .expect("open the directory to QEMU");
        Self {
            dir: Some(dir),
            prefix,
        }
    }

    /// The directory for all files of the test.
    pub fn dir(&self) -> &Path {
        self.dir
            .as_ref()
            .map(TempDir::path)
            .expect("the directory lives until drop")
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The name that a domain called `suffix` has to bear for this lab to own it.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.prefix)
    }

    /// Describes a new guest.
    pub fn guest(&self) -> GuestBuilder<'_> {
        GuestBuilder::new(self)
    }

    /// The guest of an existing domain, for instance a restored one. Its serial port is
    /// redirected to a log of its own, so that it can run beside the one it was copied from.
    pub fn open(&self, name: &str) -> TestGuest {
        TestGuest::open(self, name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        if std::thread::panicking() {
            print_serial_logs(dir.path());
        }
        if std::env::var_os("STRONGROOM_KEEP").is_some() {
            let _ = dir.keep();
            return;
        }
        for name in domains()
            .iter()
            .filter(|name| name.starts_with(&format!("{}-", self.prefix)))
        {
            remove_domain(name);
        }
    }
}

/// Stops and undefines a domain, whatever state it is in.
pub fn remove_domain(name: &str) {
    // Fails when the domain is not running, which is what is wanted.
    let _ = output_of(&mut virsh(["destroy", name]));
    let undefined = output_of(&mut virsh([
        "undefine",
        name,
        "--nvram",
        "--managed-save",
        "--snapshots-metadata",
        "--checkpoints-metadata",
    ]));
    if let Err(text) = undefined
        && domains().iter().any(|other| other == name)
        && !std::thread::panicking()
    {
        panic!("{text}");
    }
}

fn domains() -> Vec<String> {
    let names = run(&mut virsh(["list", "--all", "--name"]));
    names
        .lines()
        .map(str::to_owned)
        .filter(|name| !name.is_empty())
        .collect()
}

/// Removes the domains and directories of test processes that are no more.
fn sweep() {
    let is_dead = |name: &str| {
        name.strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    for name in domains().iter().filter(|name| is_dead(name)) {
        remove_domain(name);
    }
    if std::env::var_os("STRONGROOM_KEEP").is_some() {
        return;
    }
    for entry in fs::read_dir("/var/tmp").expect("list /var/tmp").flatten() {
        if is_dead(&entry.file_name().to_string_lossy()) {
            // Another test process may be sweeping as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[allow(clippy::print_stderr)] // a failed test has to say why its guest did not do its part
fn print_serial_logs(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "serial")
        {
            let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default();
            eprintln!(
                "---- end of {}\n{}\n----",
                entry.path().display(),
                tail.join("\n")
            );
        }
    }
}

/// The directory with the test guest's kernel, initramfs and probe, built when missing.
pub fn guest_files() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/test-guest");
        PathBuf::from(run(Command::new(script).arg("build")))
    })
}
