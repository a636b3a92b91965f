//! Exports as disks of another domain.
//!
//! libvirt asks for the right to change a domain before it attaches a disk to it, which is also the right to QEMU's monitor. So
//! this is done by a command on the hypervisor that an account can be allowed to run, word for word, like the end of a
//! backup job: see `strongroom hypervisor-rights`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use strongroom_engine::rights;
use strongroom_engine::vm::{Disk, HypervisorError, Lending, Lent};

use crate::connection::Libvirt;

/// How long a guest may take to let a disk go.
const DEADLINE: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

impl Lending for Libvirt {
    fn lend(&self, to: &str, lent: &Lent<'_>) -> Result<(), HypervisorError> {
        let failed = |message| HypervisorError::Failed {
            what: format!("attach export {:?} to domain {to:?}", lent.export),
            message,
        };
        let socket = lent
            .socket
            .to_str()
            .ok_or_else(|| failed("the socket's path is not in UTF-8".into()))?;
        let mut failure = "all targets are taken".to_owned();
        for target in rights::LENT_TARGETS.map(|letter| format!("{}{letter}", rights::LENT_PREFIX)) {
            if self.live_disks_of(to)?.iter().any(|disk| disk.target == target) {
                continue;
            }
            let command = rights::lend_command(to, lent.export, &target, socket, lent.serial);
            match self.run_there(&command) {
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

    fn take_back(&self, from: &str, serials: &str) -> Result<usize, HypervisorError> {
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
                    failure = self
                        .run_there(&rights::take_back_command(from, &disk.target))
                        .err();
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}
