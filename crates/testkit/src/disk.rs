//! Disk images.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::run::run;

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// qcow2 version 3, which can hold dirty bitmaps.
    Qcow2,
    /// qcow2 version 2 (`compat=0.10`), which cannot.
    Qcow2V2,
    /// A plain sparse file.
    Raw,
}

impl Format {
    /// What QEMU and libvirt call the driver.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Qcow2 | Self::Qcow2V2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// Creates an empty image of `mib` MiB; nothing but metadata is allocated.
pub fn create_disk(path: &Path, format: Format, mib: u64) {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", format.driver()]);
    if format == Format::Qcow2V2 {
        command.args(["-o", "compat=0.10"]);
    }
    run(command.arg(path).arg(format!("{mib}M")));
}

/// Creates an image of `mib` MiB that holds an empty ext4 file system.
pub fn create_ext4(path: &Path, format: Format, mib: u64) {
    let raw = path.with_extension("mkfs");
    create_disk(&raw, Format::Raw, mib);
    // All tables are written now: the guest should write nothing but what a test makes it write.
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-L", "data", "-J", "size=8"])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"])
        .arg(&raw)
        .env("PATH", sbin_path()));
    if format == Format::Raw {
        fs::rename(&raw, path).expect("rename the new file system");
    } else {
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", "qcow2"]);
        if format == Format::Qcow2V2 {
            command.args(["-o", "compat=0.10"]);
        }
        run(command.arg(&raw).arg(path));
        fs::remove_file(&raw).expect("remove the raw file system");
    }
}

/// The SHA-256 of what a guest would read from this image (qcow2 of either version, or raw when
/// `format` says so), in hexadecimal. The image must not be in use.
pub fn sha256_of_raw(path: &Path, format: Format) -> String {
    let mut copy = Command::new("nbdcopy")
        .args(["--", "[", "qemu-nbd", "--read-only", "-f", format.driver()])
        .arg(path)
        .args(["]", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run nbdcopy");
    let bytes = copy.stdout.take().expect("the pipe from nbdcopy");
    let sum = run(Command::new("sha256sum").stdin(bytes));
    assert!(
        copy.wait().expect("wait for nbdcopy").success(),
        "nbdcopy has failed on {}",
        path.display()
    );
    sum.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Whether files in `dir` can be opened for direct I/O (`cache='none'`).
pub fn has_direct_io(dir: &Path) -> bool {
    let path = dir.join("direct-io");
    let opened = File::create(&path).and_then(|_| {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
    });
    fs::remove_file(&path).expect("remove the direct I/O probe");
    opened.is_ok()
}

/// `PATH` with the directories of administrative programs, which a user's `PATH` may lack.
pub fn sbin_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
