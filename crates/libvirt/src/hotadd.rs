//! Exports as disks of another domain.
//!
//! libvirt asks for the right to change a domain before it attaches a disk to it, which is also the right to QEMU's monitor. So
//! this is asked of the account on the hypervisor that begins and ends backup jobs: see `strongroom hypervisor-rights`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{Disk, HotAdd, HotAddDisk, HypervisorError};

use crate::connection::Libvirt;
use crate::rights::words;

/// How long a guest may take to let a disk go.
const DEADLINE: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

impl HotAdd for Libvirt {
    fn attach_export(&self, to: &str, disk: &HotAddDisk<'_>) -> Result<(), HypervisorError> {
        let failed = |message| HypervisorError::Failed {
            what: format!("attach export {:?} to domain {to:?}", disk.export),
            message,
        };
        let mut failure = "all targets are taken".to_owned();
        for target in words::HOTADD_TARGETS.map(|letter| format!("{}{letter}", words::HOTADD_PREFIX)) {
            if self.live_disks_of(to)?.iter().any(|disk| disk.target == target) {
                continue;
            }
            match self.attach_there(to, disk, &target) {
                Ok(()) => return Ok(()),
                Err(message) => failure = message,
            }
            // Another backup may have taken the target since; then the next one may be free.
            if !self.live_disks_of(to)?.iter().any(|disk| disk.target == target) {
                break;
            }
        }
        Err(failed(failure))
    }

    fn detach_exports(&self, from: &str, serials: &str) -> Result<usize, HypervisorError> {
        let ours = |disk: &Disk| {
            let serial = disk.serial.as_deref();
            serial.is_some_and(|serial| serial.starts_with(serials))
        };
        let begun = Instant::now();
        let mut asked = BTreeSet::new();
        let mut failure = None;
        loop {
            let mut left: Vec<Disk> = self.live_disks_of(from)?;
            left.retain(ours);
            if left.is_empty() {
                return Ok(asked.len());
            }
            if begun.elapsed() > DEADLINE {
                let targets: Vec<String> = left.into_iter().map(|disk| disk.target).collect();
                return Err(HypervisorError::Failed {
                    what: format!("detach {} from domain {from:?}", targets.join(", ")),
                    message: failure.unwrap_or_else(|| {
                        format!("its guest has not let go within {} s", DEADLINE.as_secs())
                    }),
                });
            }
            for disk in left {
                if asked.insert(disk.target.clone()) {
                    failure = self.detach_there(from, &disk.target).err();
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}
