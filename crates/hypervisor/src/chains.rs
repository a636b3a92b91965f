//! The part of the port that external snapshots need: who says what about a disk's chain of images, and the steps
//! that change it.
//!
//! Three parties have a say, and they can disagree when libvirtd dies inside a call: QEMU (the truth while the VM
//! runs), libvirt's live definition, and the inactive definition that the next start uses. [`Chains::chains`] reads
//! all three; every other call is a request whose outcome is *unknown* until they have been read again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::HypervisorError;

/// What is said about one disk at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Target device name.
    pub target: String,
    /// The image that QEMU itself writes the guest's data to, followed by that image's backing files, as its block
    /// nodes say. Empty while there is no QEMU, and for a disk that is not made of files.
    pub qemu: Vec<PathBuf>,
    /// The same as libvirt's live definition says it. Empty while the VM is off.
    pub live: Vec<PathBuf>,
    /// The same as the inactive definition says it. Only the first is sure to be there: libvirt leaves out backing
    /// files that it can read from the image.
    pub inactive: Vec<PathBuf>,
    /// The block job on the disk as libvirt's live definition shows it (`<mirror>`), if any.
    pub job: Option<BlockJob>,
    /// Whether QEMU itself has a block job on the disk's nodes. A job in the definition that QEMU does not know is
    /// one that libvirt has lost track of.
    pub job_in_qemu: bool,
}

/// A block job (`<mirror>` of the live definition).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockJob {
    /// libvirt's name for the kind: `active-commit`, `copy`. Ours are `active-commit`.
    pub kind: String,
    /// Where the data goes: for an active commit the base image.
    pub to: Option<PathBuf>,
    /// How far it is.
    pub state: BlockJobState,
}

/// How far a block job is (`ready` attribute of `<mirror>`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockJobState {
    /// It copies.
    Copying,
    /// Both sides are equal and are kept so: it can be pivoted.
    Ready,
    /// A pivot was asked for and has not been seen to end.
    Pivoting,
    /// An abort was asked for and has not been seen to end.
    Aborting,
}

/// One disk of a snapshot to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotDisk {
    /// Target device name.
    pub target: String,
    /// The qcow2 file that takes the guest's writes from then on. Must not exist; the hypervisor makes it.
    pub overlay: PathBuf,
}

/// An overlay that a run is about to make, or has made, on a disk's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Target device name.
    pub target: String,
    /// The image that the guest wrote to before, and has to write to again.
    pub base: PathBuf,
    /// The base's format as defined.
    pub format: String,
    /// The file that takes the guest's writes meanwhile.
    pub overlay: PathBuf,
    /// Whether the guest may have been switched back to the base: from then on the overlay no longer has the last word.
    #[serde(default)]
    pub pivoting: bool,
}

/// Chains of images, external snapshots and block commits of running domains.
pub trait Chains {
    /// What QEMU, the live and the inactive definition say about each disk (CD-ROM and floppy drives left out), in
    /// the order of the definition.
    fn chains(&self, domain: Uuid) -> Result<Vec<Chain>, HypervisorError>;

    /// Takes one external, disk-only, atomic snapshot of exactly these disks, without keeping libvirt metadata of it;
    /// every other disk is excluded by name. Returns how long the call took: an upper bound of the guest-visible pause.
    fn take_snapshot(&self, domain: Uuid, disks: &[SnapshotDisk]) -> Result<Duration, HypervisorError>;

    /// Starts to merge a disk's active overlay into its base while the guest runs (an active commit).
    /// `bytes_per_second` of 0 means no limit.
    fn start_commit(
        &self,
        domain: Uuid,
        target: &str,
        overlay: &Path,
        base: &Path,
        bytes_per_second: u64,
    ) -> Result<(), HypervisorError>;

    /// Ends a commit that is ready by switching the guest to the base.
    fn pivot(&self, domain: Uuid, target: &str) -> Result<(), HypervisorError>;

    /// Makes the inactive definition name this image for the disk, without any `<backingStore>`, and changes nothing
    /// else in it.
    fn set_inactive_image(
        &self,
        domain: Uuid,
        target: &str,
        image: &Path,
        format: &str,
    ) -> Result<(), HypervisorError>;

    /// Number of events of this domain so far: block jobs that became ready or ended, I/O errors, the
    /// domain's stops and starts. Counting begins with the first call for the domain.
    fn events(&self, domain: Uuid) -> u64;

    /// Waits until there has been an event after the number `seen`, at most this long, and gives the number then. An
    /// event says only that something may have changed.
    fn await_event(&self, domain: Uuid, seen: u64, at_most: Duration) -> u64;
}

/// What puts right that libvirt and QEMU disagree, after libvirtd died in a call.
pub trait Repair {
    /// Merges an overlay that QEMU writes to, but that libvirt does not know of, into its base by QEMU's own monitor
    /// and switches to the base: the repair for a snapshot that libvirtd forgot when it was killed. Waits until done.
    fn commit_behind_libvirt(
        &self,
        domain: Uuid,
        target: &str,
        overlay: &Path,
        base: &Path,
    ) -> Result<(), HypervisorError>;

    /// Makes libvirt forget block jobs that do not exist any more, on disks whose guest is on the base: it is stopped, its
    /// memory of the domain changed, and started again. The guest runs on; every other user of libvirt is disturbed. Only for
    /// those who ask for it by name.
    fn repair_status(&self, domain: Uuid, disks: &[Overlay]) -> Result<(), HypervisorError>;
}
