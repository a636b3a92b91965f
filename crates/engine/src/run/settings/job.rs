//! What holds for one VM: all that a run, a restore or a look at it needs of the configuration, as one value.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use strongroom_hypervisor::NbdTls;
use strongroom_points::store::Compression;
use uuid::Uuid;

use super::Arguments;
use crate::config::{
    self, CaptureMethod, Config, ConfigError, IfMissed, Level, LuksHeaders, Reader, Vm, uuid_in,
};

const MIB: u64 = 1 << 20;

/// What holds for one VM. It does not change any more.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct VmJob {
    /// The name by which its records and restore points go.
    pub name: String,
    /// Its UUID, where the configuration names it so.
    pub uuid: Option<Uuid>,
    /// Whether the configuration names it at all.
    pub configured: bool,
    /// Its hypervisor.
    pub hypervisor: HypervisorSettings,
    /// Its repository's location.
    pub repository: String,
    /// How new chunks are compressed.
    pub compression: Compression,
    /// Where scratch files go whose disk is no file.
    pub images: PathBuf,
    /// Disks that hold nothing but swap, beside those that say so by their serial number.
    pub swap: Vec<String>,
    /// Other disks that are left out.
    pub exclude: Vec<String>,
    /// `swap` and `exclude` mean the disks that are there now.
    pub disks_confirmed: bool,
    /// Its disks may be read although they, or parts of them, are not encrypted.
    pub plaintext: bool,
    /// Without `plaintext`, disks that are not ciphertext are not read on this machine either.
    pub ciphertext_only: bool,
    /// How the disks of the running VM are held still.
    pub method: CaptureMethod,
    /// How the guest is brought to rest before.
    pub quiesce: Quiesce,
    /// Where the header areas of LUKS volumes go.
    pub luks_headers: LuksHeaders,
    /// Changes are tracked although there are snapshots inside the VM's images.
    pub track_beside_snapshots: bool,
    /// How hard the running guest's disks are read.
    pub throttle: Throttle,
    /// How many chunks of a disk are read in each run to check the map of changes.
    pub spot_check: usize,
    /// What a backup may take of storage and time.
    pub limits: Limits,
    /// Whether libvirt's hook lets it start only with a good seal on its images.
    pub require_seal: bool,
}

/// A hypervisor, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HypervisorSettings {
    /// Its libvirt URI.
    pub uri: String,
    /// The domain on it in which this program runs.
    pub own_domain: Option<String>,
    /// How the disks of its VMs are reached where that is not over ssh.
    pub nbd_tls: Option<NbdTls>,
}

/// How the guest is brought to rest at the instant of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quiesce {
    /// The level of consistency to reach.
    pub level: Level,
    /// What to do when it is not reached.
    pub if_missed: IfMissed,
    /// How long the guest's file systems may stay frozen.
    pub budget: Duration,
    /// Where the scripts run, if not by the guest agent: a destination of ssh.
    pub ssh: Option<String>,
    /// Shell command that brings the application to rest.
    pub pre: Option<String>,
    /// Shell command that lets the application go on.
    pub post: Option<String>,
    /// How long either command may take.
    pub timeout: Duration,
}

impl From<&config::Quiesce> for Quiesce {
    fn from(file: &config::Quiesce) -> Self {
        Self {
            level: file.level,
            if_missed: file.if_missed,
            budget: Duration::from_millis(file.budget_ms),
            ssh: file.ssh.clone(),
            pre: file.pre.clone(),
            post: file.post.clone(),
            timeout: Duration::from_secs(file.timeout_s),
        }
    }
}

/// How hard a running guest's disks are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Requests in flight, at most.
    pub depth: usize,
    /// How long the guest's own requests may take on average before less is read at once; `None` does not look at them.
    pub latency: Option<Duration>,
    /// Bytes a second, at most.
    pub bytes_per_second: Option<NonZeroU64>,
}

impl From<&Reader> for Throttle {
    fn from(file: &Reader) -> Self {
        Self {
            depth: file.depth,
            latency: (file.latency_ms > 0).then(|| Duration::from_millis(file.latency_ms)),
            bytes_per_second: NonZeroU64::new(file.limit_mib.saturating_mul(MIB)),
        }
    }
}

/// What a backup may take of storage and time. Beyond that it gives up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a scratch file, at most.
    pub scratch: Option<u64>,
    /// Bytes of free space that have to stay.
    pub free: u64,
    /// How long the backup may take.
    pub run: Option<Duration>,
    /// How long the repository's server may give no sign of life to a call that waits for it.
    pub repository: Option<Duration>,
    /// How long the hypervisor may take to answer one call.
    pub answer: Option<Duration>,
}

impl From<&config::Limits> for Limits {
    fn from(file: &config::Limits) -> Self {
        let seconds = |count: u64| (count > 0).then(|| Duration::from_secs(count));
        Self {
            scratch: (file.scratch_mib > 0).then(|| file.scratch_mib.saturating_mul(MIB)),
            free: file.free_mib.saturating_mul(MIB),
            run: seconds(file.run_s),
            repository: seconds(file.repository_s),
            answer: seconds(file.answer_s),
        }
    }
}

impl VmJob {
    /// What holds for VMs that the configuration does not name. Its repository's location is still the pattern.
    pub(super) fn of_others(file: &Config, arguments: &Arguments) -> Result<Self, ConfigError> {
        let none = Vm::default();
        let limits = config::Limits {
            run_s: arguments.time_limit.unwrap_or(file.limits.run_s),
            ..file.limits
        };
        Ok(Self {
            name: String::new(),
            uuid: None,
            configured: false,
            hypervisor: HypervisorSettings {
                uri: arguments
                    .connect
                    .clone()
                    .unwrap_or_else(|| file.hypervisor.clone()),
                own_domain: file.own_domain.clone(),
                nbd_tls: file.nbd_tls.clone(),
            },
            repository: file.repository.clone(),
            compression: file.compression().map_err(ConfigError::Setting)?,
            images: file.images.clone(),
            swap: none.swap,
            exclude: none.exclude,
            disks_confirmed: arguments.disks_confirmed,
            plaintext: none.plaintext,
            ciphertext_only: file.ciphertext_only,
            method: none.method,
            quiesce: (&none.quiesce).into(),
            luks_headers: none.luks_headers,
            track_beside_snapshots: none.track_beside_snapshots,
            throttle: (&file.reader).into(),
            spot_check: file.spot_check.count(),
            limits: (&limits).into(),
            require_seal: none.require_seal,
        })
    }

    /// What holds for a VM that the configuration names by this key.
    pub(super) fn of(others: &Self, file: &Config, arguments: &Arguments, key: &str, vm: &Vm) -> Self {
        let mut hypervisor = others.hypervisor.clone();
        if let (None, Some(own)) = (&arguments.connect, &vm.hypervisor)
            && *own != hypervisor.uri
        {
            hypervisor.uri.clone_from(own);
            // The domain in which this program runs is on the hypervisor of all.
            hypervisor.own_domain = None;
        }
        Self {
            name: key.to_owned(),
            uuid: uuid_in(key),
            configured: true,
            hypervisor,
            repository: file.repository_of(key),
            swap: vm.swap.clone(),
            exclude: vm.exclude.clone(),
            plaintext: vm.plaintext,
            method: vm.method,
            quiesce: (&vm.quiesce).into(),
            luks_headers: vm.luks_headers,
            track_beside_snapshots: vm.track_beside_snapshots,
            require_seal: vm.require_seal,
            ..others.clone()
        }
    }

    /// The same for a VM of this name, from what holds for those that are not named.
    pub(super) fn called(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            repository: self.repository.replace("{vm}", name),
            ..self.clone()
        }
    }

    /// What to ask the hypervisor for: the UUID where the configuration names it so. The name may be another VM's by now.
    pub fn domain(&self) -> String {
        self.uuid
            .map_or_else(|| self.name.clone(), |uuid| uuid.to_string())
    }
}
