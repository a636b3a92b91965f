//! The tests that each implementation of the port has to pass: what callers rely on, whatever is behind it.
//!
//! [`conformance!`](crate::conformance!) makes one test of each for an implementation's [`Peer`]. What only libvirt and QEMU can
//! show (its errors, its daemon that dies, its jobs that hang) is tested beside that implementation.

#![allow(clippy::unwrap_used)] // They are tests, and fail by panicking.

mod backups;
mod checkpoints;
mod definitions;
mod snapshots;
mod view;

use std::path::{Path, PathBuf};

use strongroom_hypervisor::{BackupJob, Domain, Hypervisor, JobDisk};
use uuid::Uuid;

pub use self::backups::*;
pub use self::checkpoints::*;
pub use self::definitions::*;
pub use self::snapshots::*;
pub use self::view::{dirty, holds, is_served, sha256, uri};

/// Bytes in a KiB and a MiB.
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A domain to test with: `vda` (qcow2, 64 MiB), `vdb` (qcow2, 16 MiB), `vdc` (raw, 16 MiB), all empty. It is off.
pub trait Peer {
    /// The implementation.
    fn port(&self) -> &dyn Hypervisor;
    /// The domain's UUID.
    fn uuid(&self) -> Uuid;
    /// The directory of its images, `vda.qcow2` and so on; other files may be made in it.
    fn directory(&self) -> &Path;
    /// Writes bytes of one value as the guest of the running domain.
    fn write(&self, target: &str, pattern: u8, offset: u64, length: u64);
    /// Starts it.
    fn start(&self);
    /// Lets its CPUs stand still.
    fn pause(&self);
    /// Ends its process in good order, as far as QEMU is concerned.
    fn stop(&self);
    /// Kills its process.
    fn kill(&self);
}

/// A test of each for a function that makes a [`Peer`].
#[macro_export]
macro_rules! conformance {
    ($make:path: $($name:ident)*) => {
        $(#[test] fn $name() { $crate::conformance::$name(&$make()); })*
    };
    ($make:path) => {
        $crate::conformance! { $make:
            a_domain_is_described
            a_definition_takes_no_name_that_is_taken
            a_changed_definition_is_another_domain
            every_image_has_its_user
            checkpoints_are_listed_checked_and_deleted
            a_domain_that_is_off_keeps_its_checkpoints
            a_death_of_the_process_breaks_all_checkpoints
            bitmaps_outlive_what_is_known_of_a_checkpoint
            a_full_view_is_frozen
            an_incremental_view_tells_what_was_written
            a_job_that_cannot_begin_leaves_nothing
            an_image_goes_onto_an_overlay_and_home
            a_snapshot_is_of_all_disks_or_of_none
            a_checkpoint_knows_what_was_merged
        }
    };
}

/// What is asked often.
trait PeerExt: Peer {
    fn image(&self, target: &str) -> PathBuf {
        let format = if target == "vdc" { "raw" } else { "qcow2" };
        self.directory().join(format!("{target}.{format}"))
    }

    fn overlay(&self, target: &str) -> PathBuf {
        self.directory().join(format!("{target}.overlay"))
    }

    fn scratch(&self, target: &str) -> PathBuf {
        self.directory().join(format!("{target}.scratch"))
    }

    fn facts(&self) -> Domain {
        self.port().domain(&self.uuid().to_string()).expect("the domain")
    }

    fn job(&self, checkpoint: Option<&str>, disks: &[(&str, Option<&str>, bool)]) -> BackupJob {
        let disks = disks.iter().map(|(target, since, tracked)| JobDisk {
            target: (*target).into(),
            scratch: self.scratch(target),
            since: since.map(Into::into),
            checkpoint: *tracked,
        });
        BackupJob {
            disks: disks.collect(),
            checkpoint: checkpoint.map(Into::into),
            listener: self
                .port()
                .listener(self.uuid(), "strongroom.sock")
                .expect("a place for a socket"),
        }
    }

    /// Makes a checkpoint of `vda` in a job that is ended at once.
    fn checkpoint(&self, name: &str) {
        let job = self.job(Some(name), &[("vda", None, true)]);
        self.port().begin_backup(self.uuid(), &job).expect("begin a job");
        self.port().end_backup(self.uuid()).expect("end a job");
    }

    fn checkpoints(&self) -> Vec<String> {
        self.port().checkpoints(self.uuid()).expect("list checkpoints")
    }

    /// The disks whose bitmaps of a checkpoint are bad.
    fn bad(&self, checkpoint: &str) -> Vec<String> {
        let found = self.port().check_checkpoint(self.uuid(), checkpoint);
        found.expect("check").into_iter().map(|bad| bad.target).collect()
    }
}

impl<T: Peer + ?Sized> PeerExt for T {}
