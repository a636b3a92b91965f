//! From the kernel's first process to a system with the template's tools: the template, read-only, under a file system
//! in memory.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::system::{RebootCommand, finit_module, reboot};

use super::Failed;
use crate::protocol::TEMPLATE_DISK;

/// The kernel modules, and the order in which they are loaded.
const MODULES: &str = "/modules";

/// Mounts, loads modules, finds the template and moves into it.
pub fn boot() -> Result<(), Failed> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
    ] {
        make(place)?;
        attach(kind, place, kind, MountFlags::empty(), "")?;
    }
    modules()?;
    let template = disk(TEMPLATE_DISK)?;
    for place in ["/lower", "/rw", "/new"] {
        make(place)?;
    }
    attach(&template, "/lower", "ext4", MountFlags::RDONLY, "noload")?;
    attach("tmpfs", "/rw", "tmpfs", MountFlags::empty(), "size=75%")?;
    make("/rw/upper")?;
    make("/rw/work")?;
    let layers = "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work";
    attach("overlay", "/new", "overlay", MountFlags::empty(), layers)?;
    for place in ["/proc", "/sys", "/dev", "/run"] {
        let new = format!("/new{place}");
        make(&new)?;
        mount_move(place, &new).map_err(|error| format!("move {place}: {error}"))?;
    }
    std::env::set_current_dir("/new").map_err(|error| format!("enter the template: {error}"))?;
    mount_move("/new", "/").map_err(|error| format!("move the root: {error}"))?;
    rustix::process::chroot(".").map_err(|error| format!("change the root: {error}"))?;
    std::env::set_current_dir("/").map_err(|error| format!("enter the root: {error}"))?;
    // There is no udev; shells want these.
    for (to, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ] {
        let _ = symlink(to, link);
    }
    Ok(())
}

fn make(directory: &str) -> Result<(), Failed> {
    fs::create_dir_all(directory).map_err(|error| format!("make {directory}: {error}"))
}

fn attach(what: &str, place: &str, kind: &str, flags: MountFlags, options: &str) -> Result<(), Failed> {
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    mount(what, place, kind, flags, options.as_c_str())
        .map_err(|error| format!("mount {what} at {place}: {error}"))
}

/// Loads the modules. One that the kernel has built in, or that this machine needs not, does no harm when it is missing:
/// what is needed is missed soon enough.
fn modules() -> Result<(), Failed> {
    let order = fs::read_to_string(format!("{MODULES}/order"))
        .map_err(|error| format!("read the list of modules: {error}"))?;
    for name in order.lines() {
        if let Ok(file) = File::open(Path::new(MODULES).join(name))
            && let Err(error) = finit_module(&file, c"", 0)
            && error != rustix::io::Errno::EXIST
        {
            log(&format!("load {name}: {error}"));
        }
    }
    Ok(())
}

/// The disk with this serial number. It takes a moment until the kernel has found them.
pub fn disk(serial: &str) -> Result<String, Failed> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            if found.trim() == serial {
                return Ok(format!("/dev/{}", entry.file_name().display()));
            }
        }
        if Instant::now() > end {
            return Err(format!("find the disk {serial}: there is none"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A line into the kernel's log, and so onto the console.
pub fn log(text: &str) {
    if let Ok(mut kernel) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = writeln!(kernel, "<2>strongroom: failed to {text}");
    }
}

/// Ends this VM.
pub fn switch_off() {
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    // Where that cannot be: QEMU ends a machine that starts again.
    let _ = reboot(RebootCommand::Restart);
    std::process::exit(0);
}
