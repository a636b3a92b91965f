//! The repair of libvirt's own memory of a domain, for the one state that nothing else cures while the guest runs.
//!
//! Killed while it ended an active commit, libvirtd may come back showing a block job that QEMU has ended long before: the guest
//! is on its base, libvirt believes it to be on the overlay, refuses to end the job, which does not exist, and refuses every
//! new one because of it. A power cycle cures that. So does what is done here: the daemon is stopped, the disk's source in its
//! status file is made what it is, and the daemon is started. The file's format is libvirt's own business; that is why this
//! happens only when you ask for it by name.
//!
//! If the daemon does not know the guest any more afterwards, the old file is put back.

mod daemon;
pub mod status;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{Chains as _, HypervisorError};
use uuid::Uuid;

use self::daemon::Daemon;
use self::status::Wedged;
use crate::connection::Libvirt;

/// Where libvirt keeps the status of system domains.
const DIRECTORY: &str = "/run/libvirt/qemu";
/// How long the daemon may take to answer, and to find its guests.
const LIMIT: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Puts libvirt's memory of these disks right.
pub fn repair(libvirt: &Libvirt, domain: Uuid, disks: &[Wedged]) -> Result<(), HypervisorError> {
    let failed = |message: String| HypervisorError::Failed {
        what: format!("repair libvirt's record of domain {domain}"),
        message,
    };
    let system =
        libvirt.reported.starts_with("qemu:///system") || libvirt.reported.starts_with("qemu+unix:///system");
    if !libvirt.local() || !system {
        return Err(failed(
            "that is only possible on its host, with qemu:///system".into(),
        ));
    }
    let handle = libvirt.handle(domain)?;
    let name = handle
        .name()
        .map_err(|error| failed(crate::connection::words(&error)))?;
    if !libvirt.is_active(&handle)? {
        return Err(failed("it does not run; nothing has to be repaired then".into()));
    }
    if name.contains(['/', '\0']) {
        return Err(failed("its name does not fit a file".into()));
    }
    let file = Path::new(DIRECTORY).join(format!("{name}.xml"));
    // Before the daemon is disturbed: whether it can be done at all.
    let read = || fs::read_to_string(&file).map_err(|error| format!("read {}: {error}", file.display()));
    read()
        .and_then(|text| status::rewrite(&text, disks))
        .map_err(failed)?;
    let daemon = Daemon::find().map_err(failed)?;

    let stopped = daemon.stop();
    // What it writes last counts.
    let kept = stopped.and_then(|()| {
        let text = read()?;
        let changed = status::rewrite(&text, disks)?;
        let kept = keep(&file, &text)?;
        replace(&file, &changed)?;
        Ok(kept)
    });
    // Whatever came of that: the host is not to be left without a daemon.
    daemon.start().map_err(failed)?;
    let kept = kept.map_err(failed)?;
    if is_well(libvirt, domain, disks) {
        let _ = fs::remove_file(kept);
        return Ok(());
    }
    let back = Daemon::find().and_then(|daemon| {
        let stopped = daemon.stop();
        let replaced = stopped.and_then(|()| {
            fs::rename(&kept, &file).map_err(|error| format!("put {} back: {error}", file.display()))
        });
        daemon.start().and(replaced)
    });
    Err(failed(match back {
        Ok(()) => {
            "afterwards libvirt did not show the guest on its own images; its old memory has been put back"
                .into()
        }
        Err(error) => format!(
            "afterwards libvirt did not show the guest on its own images, and its old memory is in {}: {error}",
            kept.display()
        ),
    }))
}

/// Whether libvirt knows the running guest, and QEMU and both definitions have the disks on their bases.
fn is_well(libvirt: &Libvirt, domain: Uuid, disks: &[Wedged]) -> bool {
    let begin = Instant::now();
    loop {
        let well = libvirt.chains(domain).is_ok_and(|chains| {
            disks.iter().all(|disk| {
                let chain = chains.iter().find(|chain| chain.target == disk.target);
                chain.is_some_and(|chain| {
                    let on_base = |images: &[PathBuf]| images.first() == Some(&disk.base);
                    chain.job.is_none() && on_base(&chain.qemu) && on_base(&chain.live)
                })
            })
        });
        if well {
            return true;
        }
        if begin.elapsed() > LIMIT {
            return false;
        }
        sleep(LOOK);
    }
}

/// Keeps a copy beside the file, under a name that libvirt does not read.
fn keep(file: &Path, text: &str) -> Result<PathBuf, String> {
    let kept = file.with_extension("before-strongroom");
    write(&kept, text)?;
    Ok(kept)
}

fn replace(file: &Path, text: &str) -> Result<(), String> {
    let new = file.with_extension("new-strongroom");
    write(&new, text)?;
    fs::rename(&new, file).map_err(|error| format!("replace {}: {error}", file.display()))
}

/// Writes a file that only its owner can read, as libvirt does: there are secrets in it.
fn write(file: &Path, text: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("write {}: {error}", file.display());
    let mut open = fs::OpenOptions::new();
    let mut open = open
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    if open.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(format!("{} can be read by others", file.display()));
    }
    open.write_all(text.as_bytes())
        .and_then(|()| open.sync_all())
        .map_err(failed)
}
