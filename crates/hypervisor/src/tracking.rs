//! The part of the port about what is left of checkpoints: the dirty bitmaps themselves, which outlive what a hypervisor knows
//! of them. A domain that is undefined, or transient and off, takes its checkpoints with it; the bitmaps stay in the images.

use uuid::Uuid;

use crate::HypervisorError;

/// A dirty bitmap of a disk that outlives its domain's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBitmap {
    /// Target device name.
    pub target: String,
    /// Its name: that of its checkpoint.
    pub name: String,
    /// It was closed properly and goes on recording.
    pub sound: bool,
}

/// Bitmaps, and checkpoints without theirs. The images of a domain that is off are opened only on this machine.
pub trait Tracking {
    /// The persistent bitmaps of a domain's disks, of any maker: as QEMU has them, or as they are in the images of a
    /// domain that is off.
    fn bitmaps(&self, domain: Uuid) -> Result<Vec<StoredBitmap>, HypervisorError>;

    /// Removes a bitmap from a disk. Succeeds if there is none of that name.
    fn remove_bitmap(&self, domain: Uuid, target: &str, name: &str) -> Result<(), HypervisorError>;

    /// Removes what the hypervisor knows of a checkpoint and leaves the bitmaps alone. Succeeds if there is none of that name.
    fn forget_checkpoint(&self, domain: Uuid, name: &str) -> Result<(), HypervisorError>;

    /// Makes a checkpoint known again whose bitmaps these disks of a running domain have. The hypervisor checks that they do.
    fn redefine_checkpoint(
        &self,
        domain: Uuid,
        name: &str,
        targets: &[String],
    ) -> Result<(), HypervisorError>;
}
