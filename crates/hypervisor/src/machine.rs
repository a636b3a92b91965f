//! A shut-off VM as a set of files.

use std::path::PathBuf;

use uuid::Uuid;

use crate::Disk;

/// What a definition says of the files of a VM. It need not be defined.
#[derive(Debug, Clone)]
pub struct MachineFiles {
    /// The VM's name.
    pub name: String,
    /// Its UUID; a definition that was never defined may have none.
    pub uuid: Option<Uuid>,
    /// Its disks and drives.
    pub disks: Vec<Disk>,
    /// Other files by what they are (`nvram`, `kernel`, `initrd`). They need not exist.
    pub files: Vec<(&'static str, PathBuf)>,
}
