//! The part of the port that tells which files, devices and volumes the domains of the host use.
//!
//! It says what definitions name. What the images name in turn, and which names are of one file, is for its callers to find out.

use std::fmt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::{Disk, HypervisorError};

/// Where bytes lie that a domain uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// A file, device or directory of the hypervisor; also a volume of a storage pool that is one.
    Path(PathBuf),
    /// A volume of a storage pool whose path the hypervisor does not tell.
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's name.
        volume: String,
    },
    /// Network storage and the like, in words that are the same for the same store (`rbd:pool/image`).
    Elsewhere(String),
}

impl Store {
    /// The path on the hypervisor, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Volume { .. } | Self::Elsewhere(_) => None,
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(out, "{}", path.display()),
            Self::Volume { pool, volume } => write!(out, "volume {volume} of storage pool {pool}"),
            Self::Elsewhere(store) => out.write_str(store),
        }
    }
}

/// What a domain has something for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It is the image of this disk or drive, by target device name.
    Disk(String),
    /// It is below the image of this disk, or holds the data of an image in its chain.
    Below(String),
    /// The UEFI variables.
    Variables,
    /// It belongs to a snapshot of this name: an overlay, an image below one, or memory.
    Snapshot(String),
    /// Its saved memory.
    SavedMemory,
    /// Something else, in words with an article (`its kernel`).
    Other(&'static str),
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(target) => write!(out, "its disk {target}"),
            Self::Below(target) => write!(out, "an image below its disk {target}"),
            Self::Variables => out.write_str("its UEFI variables"),
            Self::Snapshot(name) => write!(out, "a part of its snapshot {name:?}"),
            Self::SavedMemory => out.write_str("its saved memory"),
            Self::Other(what) => out.write_str(what),
        }
    }
}

/// Something that a domain uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Where it lies.
    pub store: Store,
    /// What for.
    pub role: Role,
    /// Image format as defined, never probed; `None` where there is none.
    pub format: Option<String>,
    /// The guest can write to it.
    pub writable: bool,
    /// It is meant to be used by several domains (`<shareable/>`).
    pub shareable: bool,
    /// It is in use now, or by memory that is saved: not only at the next start from a stored definition.
    pub now: bool,
}

/// A domain and all that it uses.
#[derive(Debug, Clone)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// There is a QEMU process.
    pub active: bool,
    /// What its definitions name: the live one, the stored one, those of saved memory and of external snapshots.
    pub uses: Vec<Use>,
    /// Why its definitions cannot be read now, in the hypervisor's words, if they cannot: then it has no `uses`, and may use
    /// anything. A QEMU that hangs while a job of libvirt waits for it is such a reason.
    pub unread: Option<String>,
}

/// Which files domains use.
pub trait Uses {
    /// What every domain of the host uses, as far as the account may see them. One that hangs is among them, as
    /// [`User::unread`]: it is no error.
    fn users(&self) -> Result<Vec<User>, HypervisorError>;

    /// The disks in a definition that need not be defined, with volumes resolved where the hypervisor knows them.
    fn disks_in(&self, xml: &str) -> Result<Vec<Disk>, HypervisorError>;
}
