//! The views of a backup job as disks of the VM in which this program runs.
//!
//! The hypervisor attaches them, and lets no guest write to them; nothing of this machine's networks is between, and no copy
//! goes through ssh. They are found by their serial numbers, and read through a `qemu-nbd` like an image. Maps of holes and
//! changes still come from the job itself: a disk cannot tell them.
//!
//! What is attached is in no other's way: it goes when it is detached, when the next run of the VM tidies up, or when this
//! machine is shut off. It is detached before the job ends, since QEMU could read no more from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{Listener, MAX_SERIAL};
use strongroom_nbd::{Cache, Format, QemuNbd, Serve, Target};

use super::short_id;
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::plan::{DiskPlan, Plan};
use crate::run::state::Run;

/// Where Linux lists the disks of this machine.
const DISKS: &str = "/sys/block";
/// How long a disk may take to appear here when the hypervisor has attached it.
const APPEAR: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// A view that is read as a disk. Its server ends on drop.
pub struct HotAdded {
    /// Target device name in the VM that is backed up.
    pub target: String,
    server: QemuNbd,
}

impl HotAdded {
    /// Where it is read.
    pub fn at(&self) -> Target {
        self.server.target()
    }
}

/// Has the views of a job attached to the VM in which this runs, where the configuration says which one that is. What
/// cannot be had in this way is read as it would be without.
pub fn attach(context: &Context<'_>, plan: &Plan, run: &Run) -> Vec<HotAdded> {
    let Some(own) = context.own_domain else {
        return Vec::new();
    };
    let mut attached = Vec::new();
    for disk in &plan.disks {
        match one(context, own, &plan.vm, run, disk) {
            Ok(one) => attached.push(one),
            Err(why) => context.warn(
                Code::HotAddFailed,
                format!(
                    "disk {} is not read as a disk of {own}, but over ssh: failed to {why}",
                    disk.target
                ),
            ),
        }
    }
    attached
}

/// Has what [`attach`] got detached. To be called when nothing reads it any more.
pub fn detach(context: &Context<'_>, run: &Run) {
    let Some(own) = context.own_domain else {
        return;
    };
    if let Err(error) = context.hypervisor.detach_exports(own, &serials(run)) {
        context.warn(
            Code::HotAddLeft,
            format!(
                "disks that were read may still be attached to {own}; they are read-only: failed to {error}"
            ),
        );
    }
}

fn serials(run: &Run) -> String {
    format!("sr-{}-", short_id(&run.id))
}

fn one(context: &Context<'_>, own: &str, vm: &str, run: &Run, disk: &DiskPlan) -> Result<HotAdded, String> {
    let serial = format!("{}{}", serials(run), disk.target);
    if serial.len() > MAX_SERIAL {
        return Err("name it: its target name is too long".into());
    }
    let socket = run.listener.as_ref().and_then(Listener::socket);
    let added = strongroom_hypervisor::HotAddDisk {
        vm,
        socket: socket.ok_or("attach it: it is not served at a socket")?,
        export: &disk.target,
        serial: &serial,
    };
    context
        .hypervisor
        .attach_export(own, &added)
        .map_err(|error| error.to_string())?;
    let device = appear(context, &serial)?;
    let serve = Serve {
        // What is read here is read once.
        cache: Cache::None,
        export: disk.target.clone(),
        ..Serve::read_only(Format::Raw)
    };
    let server = QemuNbd::start(&device, &serve).map_err(|error| error.to_string())?;
    context.note(format!(
        "disk {} is read as {}, which takes no writes",
        disk.target,
        device.display()
    ));
    Ok(HotAdded {
        target: disk.target.clone(),
        server,
    })
}

/// Waits for a disk.
fn appear(context: &Context<'_>, serial: &str) -> Result<PathBuf, String> {
    let clock = Instant::now();
    loop {
        context
            .cancel
            .check()
            .map_err(|cancelled| format!("wait for it: {cancelled}"))?;
        if let Some(name) = find(Path::new(DISKS), serial)? {
            let device = Path::new("/dev").join(name);
            if device.exists() {
                return Ok(device);
            }
        }
        if clock.elapsed() > APPEAR {
            return Err(format!(
                "find a disk with the serial number {serial} in this machine within {} s: does `own_domain` name another one, \
                 or has it no free PCI Express port?",
                APPEAR.as_secs()
            ));
        }
        thread::sleep(LOOK);
    }
}

/// The name of the disk with a serial number. One that can be written to is not what was asked for.
fn find(disks: &Path, serial: &str) -> Result<Option<String>, String> {
    let entries = fs::read_dir(disks).map_err(|error| format!("look at {}: {error}", disks.display()))?;
    let says = |entry: &fs::DirEntry, file: &str| {
        let text = fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        text.trim().to_owned()
    };
    for entry in entries.flatten() {
        if says(&entry, "serial") != serial {
            continue;
        }
        return match (says(&entry, "ro").as_str(), entry.file_name().into_string()) {
            ("1", Ok(name)) => Ok(Some(name)),
            _ => Err(format!("use the disk {serial}: it can be written to")),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_by_its_serial_number_and_used_only_if_it_takes_no_writes() {
        let disks = tempfile::tempdir().unwrap();
        for (name, serial, read_only) in [
            ("vda", "root\n", "0\n"),
            ("vdb", "sr-0123abcd-vda", "1\n"),
            ("vdc", "sr-0123abcd-vdb\n", "0\n"),
        ] {
            let disk = disks.path().join(name);
            fs::create_dir(&disk).unwrap();
            fs::write(disk.join("serial"), serial).unwrap();
            fs::write(disk.join("ro"), read_only).unwrap();
        }
        fs::create_dir(disks.path().join("loop0")).unwrap();
        let found = |serial| find(disks.path(), serial);
        assert_eq!(found("sr-0123abcd-vda"), Ok(Some("vdb".into())));
        assert_eq!(found("sr-0123abcd-vd"), Ok(None));
        assert_eq!(found(""), Err("use the disk : it can be written to".into()));
        assert!(found("sr-0123abcd-vdb").unwrap_err().contains("written to"));
    }
}
