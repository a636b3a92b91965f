//! The port to the hypervisor ([`Hypervisor`]): what a backup or a restore needs to know of a virtual machine and to ask of
//! its host.
//!
//! The words are libvirt's (domain, checkpoint, pull-mode backup job, target). The rules that every implementation keeps:
//!
//! * An error means *unknown*, never "not done". Callers re-read ([`Hypervisor::backup_job`],
//!   [`Hypervisor::checkpoints`]) before they decide what to do next.
//! * Nothing is probed. A disk's format is the one in the domain's definition; a guest can write the rest.
//! * A call touches the one domain that it names, and there only objects that the caller names.

mod agent;
mod chains;
mod definitions;
pub mod device;
mod files;
mod hotadd;
mod identity;
mod listener;
mod machine;
pub mod names;
mod nbd_tls;
mod new;
mod timed;
mod tracking;
mod uses;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_nbd::Target;
use uuid::Uuid;

pub use self::agent::{Agent, FreezeStatus, GuestExit};
pub use self::chains::{BlockJob, BlockJobState, Chain, Chains, Overlay, Repair, SnapshotDisk};
pub use self::definitions::{Definitions, Lack};
pub use self::files::Files;
pub use self::hotadd::{HotAdd, HotAddDisk, MAX_SERIAL};
pub use self::identity::{FileIdentity, Identity};
pub use self::listener::Listener;
pub use self::machine::MachineFiles;
pub use self::nbd_tls::NbdTls;
pub use self::new::{
    Accelerator, Boot, Channel, Console, Creation, Extras, Firmware, Host, ImageFormat, LaunchSecurity,
    Network, NewDisk, NewDomain, Support,
};
pub use self::timed::Timed;
pub use self::tracking::{StoredBitmap, Tracking};
pub use self::uses::{Role, Store, Use, User, Uses};

/// Why the hypervisor did not do, or did not say, what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// No connection, or the connection was lost.
    #[error("connect to the hypervisor at {uri}: {message}")]
    Connect {
        /// The URI as configured.
        uri: String,
        /// The hypervisor's own words.
        message: String,
    },
    /// No domain of that name or UUID.
    #[error("find a domain {0:?} on {1}")]
    NoSuchDomain(String, String),
    /// Something of that name or UUID exists already.
    #[error("define domain {0:?}: a domain of that {1} exists already")]
    Exists(String, &'static str),
    /// The definition could not be understood, or is not one that can be handled.
    #[error("read the definition of domain {domain:?}: {reason}")]
    Definition {
        /// Name of the domain.
        domain: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another job holds the domain.
    #[error("domain {domain:?} is busy with another job: {message}")]
    Busy {
        /// Name or UUID of the domain.
        domain: String,
        /// The hypervisor's own words.
        message: String,
    },
    /// The guest agent has answered that it will not, or cannot. An answer, not silence: what was asked is not done.
    #[error("{what}: the guest agent answers: {message}")]
    Refused {
        /// What was asked, of which domain.
        what: String,
        /// The agent's words, on one line. Hostile input.
        message: String,
    },
    /// Any other failure.
    #[error("{what}: {message}")]
    Failed {
        /// What was asked, on which domain.
        what: String,
        /// The hypervisor's own words.
        message: String,
    },
}

/// What a domain is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Its CPUs run.
    Running,
    /// It exists as a process, but its CPUs stand still (paused, suspended, I/O error).
    Paused,
    /// There is no process.
    ShutOff,
}

impl RunState {
    /// Whether there is a QEMU process that owns the disks.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::ShutOff)
    }
}

/// Where a disk's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A regular file on the hypervisor.
    File(PathBuf),
    /// A block device on the hypervisor.
    Block(PathBuf),
    /// A volume of a storage pool that the hypervisor has not resolved to a file or block device: the pool does not run, or
    /// lacks it, or is network storage. Others are [`DiskSource::File`] and [`DiskSource::Block`].
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's name.
        volume: String,
    },
    /// Anything else (network, vhost-user …), named by libvirt's `type`.
    Other(String),
    /// No medium (an empty drive).
    None,
}

impl DiskSource {
    /// The path on the hypervisor, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Block(path) => Some(path),
            Self::Volume { .. } | Self::Other(_) | Self::None => None,
        }
    }

    /// What it is, in words.
    pub fn words(&self) -> String {
        match self {
            Self::File(path) | Self::Block(path) => path.display().to_string(),
            Self::Volume { pool, volume } => format!("volume {volume} of storage pool {pool}"),
            Self::Other(kind) => format!("storage of type {kind}"),
            Self::None => "no medium".into(),
        }
    }

    /// Why it has no path, and what to do; nothing if it has one.
    pub fn why_no_path(&self) -> Option<String> {
        match self {
            Self::File(_) | Self::Block(_) => None,
            Self::Volume { pool, volume } => Some(format!(
                "storage pool {pool} does not tell where its volume {volume} is; `virsh pool-start {pool}` or \
                 `virsh pool-refresh {pool}`"
            )),
            Self::Other(kind) => Some(format!("it is neither a file nor a block device ({kind})")),
            Self::None => Some("it has no medium".into()),
        }
    }
}

/// Whether a disk's format can keep a dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bitmaps {
    /// It can.
    Supported,
    /// It cannot, and why (`"raw has no place for a dirty bitmap"`, `"qcow2 version 2 …"`).
    Unsupported(String),
    /// It cannot be told from here; trying will tell.
    Unknown,
}

/// One disk of a domain, as defined.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct Disk {
    /// Target device name, unique in the domain (`vda`); letters and digits only.
    pub target: String,
    /// libvirt's `device` attribute: `disk`, `lun`, `cdrom`, `floppy`.
    pub device: String,
    /// Where the bytes lie.
    pub source: DiskSource,
    /// Image format as defined (`qcow2`, `raw`), never probed.
    pub format: String,
    /// `<serial>`, if any.
    pub serial: Option<String>,
    /// `<readonly/>` is set.
    pub read_only: bool,
    /// What the guest discards becomes a hole in the image (`discard='unmap'`).
    pub discard: bool,
    /// Guest-visible size in bytes; `None` without a medium.
    pub size: Option<u64>,
    /// Whether the format can keep a dirty bitmap.
    pub bitmaps: Bitmaps,
    /// The hypervisor encrypts the image: what is read through it is not encrypted.
    pub encrypted: bool,
    /// What the guest writes is thrown away when it goes off (`<transient/>`).
    pub transient: bool,
    /// Other VMs may write to it at the same time (`<shareable/>`).
    pub shared: bool,
    /// Which disk it is.
    pub identity: Identity,
}

impl Disk {
    /// Why its image cannot be read without the VM, and what to do; nothing if it can.
    pub fn why_unreadable(&self) -> Option<String> {
        let sealed = || "its image is encrypted by the host, and libvirt alone has the key".to_owned();
        self.source.why_no_path().or_else(|| self.encrypted.then(sealed))
    }

    /// Whether it is a disk that a backup can have: no drive, nothing that takes no writes, and with a medium.
    pub fn is_writable_disk(&self) -> bool {
        let device = matches!(self.device.as_str(), "disk" | "lun");
        device && !self.read_only && self.source != DiskSource::None
    }

    /// Whether it holds nothing but swap: by its serial number, or because it is among these targets.
    pub fn is_swap(&self, targets: &[String]) -> bool {
        let marked = self
            .serial
            .as_deref()
            .is_some_and(|serial| serial.starts_with("swap"));
        marked || targets.contains(&self.target)
    }
}

/// A virtual machine as its hypervisor has defined it.
#[derive(Clone)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct Domain {
    /// Name.
    pub name: String,
    /// UUID; what the rest of the port addresses it by.
    pub uuid: Uuid,
    /// What it is doing.
    pub state: RunState,
    /// Its disks in the order of the definition (of the live one while it runs).
    pub disks: Vec<Disk>,
    /// The definition with its secrets: what [`Hypervisor::define`] takes back. It is the stored one, but for the disks of a
    /// domain that runs with others: those are as they run.
    pub xml: String,
    /// How the disks that it runs with differ from those in its stored definition, a sentence each.
    pub differences: Vec<Difference>,
    /// UEFI variable store, if any.
    pub nvram: Option<PathBuf>,
    /// Its memory is saved: the next start resumes it, with the disks as they are now.
    pub saved: bool,
    /// It starts with its host.
    pub autostart: bool,
    /// It is off because its guest shut down, so that its disks are as the guest left them.
    pub shut_down: bool,
    /// It is off here because it was migrated to another host, which uses its disks now.
    pub away: bool,
    /// Whether it has an emulated TPM, whose state lies in [`Hypervisor::tpm_directory`].
    pub has_tpm: bool,
    /// How its memory is kept from the hypervisor (`sev`, `sev-snp`, `tdx` …), if it is.
    pub memory_encryption: Option<String>,
    /// Ways in and out that a server does not need, in words (`"a screen (spice) on 0.0.0.0"`).
    pub extras: Vec<String>,
    /// What it is busy with, or what is wrong with it, so that it cannot be backed up now (`"a migration is under way"`).
    /// Jobs of our own show here, too.
    pub busy: Option<String>,
    /// External snapshots that the hypervisor knows of and whose overlays are in use.
    pub snapshots: Vec<Snapshot>,
    /// Snapshots inside of images: those that the hypervisor has on record, and the images that hold others.
    pub internal_snapshots: Vec<String>,
}

/// A disk that is not the same in the running domain and in its stored definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Target device name.
    pub target: String,
    /// It is a removable or read-only one, of which nothing is backed up.
    pub medium: bool,
    /// What differs (`it is attached to the running domain only`).
    pub what: String,
}

/// Without the definition, which holds secrets.
impl fmt::Debug for Domain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            uuid,
            state,
            disks,
            ..
        } = self;
        out.debug_struct("Domain")
            .field("name", name)
            .field("uuid", uuid)
            .field("state", state)
            .field("disks", disks)
            .finish_non_exhaustive()
    }
}

/// An external snapshot of one disk, as its hypervisor keeps it on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The snapshot's name.
    pub name: String,
    /// Target device name.
    pub target: String,
    /// The image that the guest's writes have gone to since.
    pub overlay: PathBuf,
}

/// One disk in a [`BackupJob`].
#[derive(Debug, Clone)]
pub struct JobDisk {
    /// Target device name; also the name of its NBD export.
    pub target: String,
    /// File that takes the old contents of blocks that the guest overwrites meanwhile. Must not exist yet; the
    /// hypervisor makes it and removes it when the job ends.
    pub scratch: PathBuf,
    /// Checkpoint since which changes are exported as a dirty bitmap; `None` for a full export.
    pub since: Option<String>,
    /// Whether the new checkpoint includes this disk.
    pub checkpoint: bool,
}

/// A pull-mode backup: frozen views of some disks at one instant, served over NBD until the job is ended.
#[derive(Debug, Clone)]
pub struct BackupJob {
    /// Exactly the disks to export. No other disk takes part.
    pub disks: Vec<JobDisk>,
    /// Name of the checkpoint to make at the same instant; `None` for none.
    pub checkpoint: Option<String>,
    /// Where it is served.
    pub listener: Listener,
}

impl BackupJob {
    /// Name of the exported dirty bitmap with the blocks of `target` changed since its `since` checkpoint: what
    /// libvirt calls it unless told otherwise (`exportbitmap` in the backup XML).
    pub fn dirty_bitmap(target: &str) -> String {
        format!("backup-{target}")
    }
}

/// A backup job found running on a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningJob {
    /// Its NBD socket, if it listens on one.
    pub socket: Option<PathBuf>,
    /// Its scratch files: they tell whose job it is.
    pub scratch: Vec<PathBuf>,
}

/// How a definition is changed before it is defined again.
#[derive(Debug, Clone, Default)]
pub struct Retarget {
    /// New name; `None` keeps the old one.
    pub name: Option<String>,
    /// New UUID; `None` keeps the old one.
    pub uuid: Option<Uuid>,
    /// Claim nothing that only one domain can have: no MAC addresses, sockets, ports, devices, files of the original.
    pub copy: bool,
    /// A new generation id, where the definition has one.
    pub genid: Option<Uuid>,
    /// `(target, file)`: these disks become qcow2 files at these paths, without a backing store. A disk that the definition
    /// lacks is added.
    pub disks: Vec<(String, PathBuf)>,
    /// These disks are taken out.
    pub drop_disks: Vec<String>,
    /// These drives lose their medium.
    pub empty_drives: Vec<String>,
    /// The UEFI variable store lies here.
    pub nvram: Option<PathBuf>,
}

/// A changed definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retargeted {
    /// The definition.
    pub xml: String,
    /// What a copy does not have as its original has it, a line each.
    pub notes: Vec<String>,
}

/// Requests of one kind that a guest has made of a disk since it was started, and that are done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// How many.
    pub count: u64,
    /// How long they took altogether, in nanoseconds.
    pub nanoseconds: u64,
}

/// A disk whose bitmap of some checkpoint is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadBitmap {
    /// Target device name.
    pub target: String,
    /// What is wrong with it.
    pub why: String,
}

/// The hypervisor. Implementations are shared between threads.
pub trait Hypervisor:
    Agent + Chains + Creation + Definitions + Files + HotAdd + Repair + Tracking + Uses + Send + Sync
{
    /// The URI as configured, for messages.
    fn uri(&self) -> &str;

    /// Whether the paths in definitions are paths on this machine.
    fn is_local(&self) -> bool;

    /// Names of all domains, running or not, sorted.
    fn domain_names(&self) -> Result<Vec<String>, HypervisorError>;

    /// Finds a domain by name or, failing that, by UUID.
    fn domain(&self, name_or_uuid: &str) -> Result<Domain, HypervisorError>;

    /// Names of all snapshots of the domain that the hypervisor keeps on record, of any kind and of any maker.
    fn snapshot_names(&self, domain: Uuid) -> Result<Vec<String>, HypervisorError>;

    /// Names of all checkpoints of the domain, of any maker, oldest first.
    fn checkpoints(&self, domain: Uuid) -> Result<Vec<String>, HypervisorError>;

    /// Returns the disks whose bitmaps of a checkpoint cannot be believed; of the others the hypervisor has found an
    /// unbroken chain of bitmaps that are consistent and record. An error concerns the checkpoint as a whole. Of a
    /// domain that does not run, only that the checkpoint exists can be said.
    fn check_checkpoint(&self, domain: Uuid, name: &str) -> Result<Vec<BadBitmap>, HypervisorError>;

    /// Makes a checkpoint of these disks of a running domain: from now on their changes are known.
    fn create_checkpoint(&self, domain: Uuid, name: &str, targets: &[String]) -> Result<(), HypervisorError>;

    /// Deletes a checkpoint; where its bitmaps are lost or broken, at least its metadata. Succeeds if there is none of that name.
    fn delete_checkpoint(&self, domain: Uuid, name: &str) -> Result<(), HypervisorError>;

    /// Why no backup job can run on a domain of this kind, if its host says so: an old hypervisor, or another one.
    fn lacks_backup_jobs(&self, domain: Uuid) -> Result<Option<String>, HypervisorError>;

    /// Starts a pull-mode backup. Returns how long the call took: an upper bound of the guest-visible pause.
    fn begin_backup(&self, domain: Uuid, job: &BackupJob) -> Result<Duration, HypervisorError>;

    /// The backup job running on the domain, if any.
    fn backup_job(&self, domain: Uuid) -> Result<Option<RunningJob>, HypervisorError>;

    /// Ends the backup job and waits until it is gone. Succeeds if there is none.
    fn end_backup(&self, domain: Uuid) -> Result<(), HypervisorError>;

    /// What the guest of a running domain has asked of these disks: reads, writes and flushes of the first, then of the
    /// second, and so on. What others read from the disks meanwhile does not count.
    fn requests(&self, domain: Uuid, targets: &[&str]) -> Result<Vec<Requests>, HypervisorError>;

    /// Lets a domain run on that is paused because of an I/O error (its storage was full). Returns whether it was;
    /// a domain that is paused for another reason stays so.
    fn resume_after_io_error(&self, domain: Uuid) -> Result<bool, HypervisorError>;

    /// What its administrator ought to do, as far as the calls until now have shown: a sentence to warn with.
    fn wanted(&self) -> Option<String> {
        None
    }

    /// Where a backup job of this (running) domain can be served so that a client on this machine reaches it; `name` is
    /// what a socket is called. Fails where there is no such place.
    fn listener(&self, domain: Uuid, name: &str) -> Result<Listener, HypervisorError>;

    /// How a client on this machine reaches an export that is served there.
    fn export(&self, listener: &Listener, export: &str) -> Result<Target, HypervisorError>;

    /// Whether a domain is paused because of an I/O error (its storage was full).
    fn stopped_by_io_error(&self, domain: Uuid) -> Result<bool, HypervisorError>;

    /// The directory on the hypervisor in which the emulated TPM of a domain with this UUID keeps its state.
    fn tpm_directory(&self, domain: Uuid) -> PathBuf;

    /// Rewrites a definition as [`Retarget`] says. Pure: nothing is defined yet.
    fn retarget(&self, xml: &str, change: &Retarget) -> Result<Retargeted, HypervisorError>;

    /// Whether [`Hypervisor::define`] would refuse, and why.
    fn check_definable(&self, xml: &str, replace: bool) -> Result<(), HypervisorError>;

    /// Defines a domain. Refuses ([`HypervisorError::Exists`]) a name or UUID that is taken, unless `replace`.
    fn define(&self, xml: &str, replace: bool) -> Result<Uuid, HypervisorError>;
}
