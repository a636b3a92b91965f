//! The part of the port by which a VM that makes backups reads disks of its neighbours without a network between them.
//!
//! The export of a backup job is attached to the VM in which this program runs, as a disk that the hypervisor lets no guest write
//! to. The guest there sees plain read-only disks; it has no way to the images, and none to what is not attached.

use std::path::Path;

use crate::HypervisorError;

/// An export that is attached to another domain.
#[derive(Debug, Clone, Copy)]
pub struct HotAddDisk<'a> {
    /// The name of the VM that it shows a disk of.
    pub vm: &'a str,
    /// The socket on the hypervisor.
    pub socket: &'a Path,
    /// The name of the export.
    pub export: &'a str,
    /// The serial number by which the other domain finds the disk, at most [`MAX_SERIAL`] characters: `sr-`, the digits that
    /// the socket's name has, a dash, the export.
    pub serial: &'a str,
}

/// How much of a serial number a virtio disk shows to its guest, in bytes (`VIRTIO_BLK_ID_BYTES`, Virtio 1.2, section 5.2.6).
pub const MAX_SERIAL: usize = 20;

/// Exports that are attached as disks.
pub trait HotAdd {
    /// Attaches an export to a running domain as a read-only disk, until it is detached or the domain is shut off.
    fn attach_export(&self, to: &str, disk: &HotAddDisk<'_>) -> Result<(), HypervisorError>;

    /// Detaches all disks of a domain whose serial numbers begin so, and waits until they are gone. Returns how many there were.
    fn detach_exports(&self, from: &str, serials: &str) -> Result<usize, HypervisorError>;
}
