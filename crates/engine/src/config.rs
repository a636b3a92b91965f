//! The configuration file: which hypervisor, which VMs, where their repositories are.
//!
//! One TOML file, `/etc/strongroom/strongroom.toml` for root and `$XDG_CONFIG_HOME/strongroom/strongroom.toml`
//! for others. Unknown keys are errors. Everything but `repository` and the VMs has a default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strongroom_hypervisor::NbdTls;
use strongroom_hypervisor::names::{is_plain, is_target};
use strongroom_points::store::{Compression, Location};
pub use strongroom_points::trust::settings::{Signing, Witness};

mod naming;
mod quiesce;
mod reading;

pub use self::naming::{name_problem, uuid_in};
pub use self::quiesce::{IfMissed, Level, Quiesce};
pub use self::reading::{Limits, Reader, SpotCheck};

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not valid TOML, or has keys or values that are not understood.
    #[error("understand the configuration {path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A value makes no sense.
    #[error("use the configuration {path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What and why.
        message: String,
    },
    /// The same, of a configuration that was not read from a file.
    #[error("{0}")]
    Setting(String),
    /// A VM is asked for that the configuration does not name.
    #[error("find {0:?} in the configuration: no [vm.{0}] there; `strongroom init {0}` adds it")]
    UnknownVm(String),
    /// A VM is named twice, by its name and by its UUID.
    #[error("tell what holds for {0:?}: [vm.{1:?}] and [vm.{2:?}] are the same VM; remove one of them")]
    Ambiguous(String, String, String),
}

/// The configuration file, as written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// libvirt URI of the hypervisor, for VMs that name no other.
    #[serde(default = "default_hypervisor")]
    pub hypervisor: String,
    /// The domain on the hypervisor in which this program runs. Disks are then attached to it, read-only, and read there
    /// instead of over ssh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_domain: Option<String>,
    /// Where a VM's repository is, as Borg writes locations; `{vm}` stands for the VM's name. From the root on, if it is on
    /// this machine.
    pub repository: String,
    /// Where restored disks go on the hypervisor.
    #[serde(default = "default_images")]
    pub images: PathBuf,
    /// Where our own records are kept; the default is `/var/lib/strongroom` for root, the XDG state directory for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// Where templates are kept; the default is `templates` beside our own records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates: Option<PathBuf>,
    /// `none`, `lz4`, `zstd` or `zstd,LEVEL`. Data that does not shrink is stored as it is.
    #[serde(default = "default_compression")]
    pub compression: String,
    /// How many VMs are backed up at the same time.
    #[serde(default = "default_jobs")]
    pub jobs: usize,
    /// Disks that are not ciphertext are not read unless the VM's own `plaintext` allows it. On another machine they never
    /// are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ciphertext_only: bool,
    /// How the disks of another machine's VMs are reached where that is not over ssh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_tls: Option<NbdTls>,
    /// How a running guest's disks are read.
    #[serde(default)]
    pub reader: Reader,
    /// What a backup may take of storage and time.
    #[serde(default)]
    pub limits: Limits,
    /// How the map of changes is checked.
    #[serde(default, rename = "audit")]
    pub spot_check: SpotCheck,
    /// Who signs restore points, and whose signatures are trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Signing>,
    /// Who remembers the newest restore points, where the repository's host cannot reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
    /// The VMs that are to be protected: the inventory.
    #[serde(default)]
    pub vm: BTreeMap<String, Vm>,
}

/// One protected VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Disks that hold nothing but swap. They are never read, and come back empty. A disk whose serial number
    /// starts with `swap` counts as one without being named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub swap: Vec<String>,
    /// Other disks that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// libvirt URI of this VM's hypervisor, where it is not the one of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
    /// This VM's repository, where the pattern does not fit; `{vm}` stands for the VM's name here as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Its disks may be read although they, or parts of them, are not encrypted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub plaintext: bool,
    /// How the disks of the running VM are held still.
    #[serde(default, skip_serializing_if = "is_default")]
    pub method: CaptureMethod,
    /// How the guest is brought to rest before.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quiesce: Quiesce,
    /// Where the header areas of LUKS volumes go, and so for how long a revoked passphrase opens old backups.
    #[serde(default, skip_serializing_if = "is_default")]
    pub luks_headers: LuksHeaders,
    /// Changes are tracked although there are snapshots inside the VM's images, which cannot be reverted to then before
    /// `strongroom release`. Without this such a VM is read in full.
    #[serde(default, skip_serializing_if = "is_default")]
    pub track_beside_snapshots: bool,
    /// Whether libvirt's hook lets this VM start only with a good seal on its images.
    #[serde(default, skip_serializing_if = "is_default")]
    pub require_seal: bool,
}

/// Where the header areas of LUKS volumes go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LuksHeaders {
    /// Into an archive of their own, which can be pruned earlier than the restore point.
    #[default]
    Apart,
    /// Into the restore point, as part of the disk.
    Inside,
}

/// How the disks of a running VM are held still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureMethod {
    /// A backup job with a checkpoint; an external snapshot where the hypervisor cannot do that.
    #[default]
    Auto,
    /// A backup job, or nothing.
    Checkpoint,
    /// An external snapshot whose overlay is merged back afterwards.
    Snapshot,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_hypervisor() -> String {
    "qemu:///system".into()
}

fn default_images() -> PathBuf {
    "/var/lib/libvirt/images".into()
}

fn default_jobs() -> usize {
    1
}

fn default_compression() -> String {
    "zstd,3".into()
}

impl Config {
    /// A configuration with nothing but a repository pattern.
    pub fn new(repository: impl Into<String>) -> Self {
        Self {
            hypervisor: default_hypervisor(),
            own_domain: None,
            repository: repository.into(),
            images: default_images(),
            state: None,
            templates: None,
            compression: default_compression(),
            ciphertext_only: false,
            nbd_tls: None,
            reader: Reader::default(),
            jobs: default_jobs(),
            limits: Limits::default(),
            spot_check: SpotCheck::default(),
            signing: None,
            witness: None,
            vm: BTreeMap::new(),
        }
    }

    /// Reads and checks a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Understands and checks the text of a configuration file; the path is for errors only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        config.check().map_err(|message| ConfigError::Invalid {
            path: path.to_owned(),
            message,
        })?;
        Ok(config)
    }

    /// The file's text; the opposite of [`Config::read`].
    pub fn to_toml(&self) -> String {
        // Strings, numbers, lists and string-keyed tables only: TOML can hold all of them.
        toml::to_string_pretty(self).unwrap_or_default()
    }

    /// The tables of these VMs alone, to be appended to a file's text.
    pub fn vm_tables(vm: &BTreeMap<String, Vm>) -> String {
        #[derive(Serialize)]
        struct Tables<'a> {
            vm: &'a BTreeMap<String, Vm>,
        }
        toml::to_string_pretty(&Tables { vm }).unwrap_or_default()
    }

    /// The table `[signing]` alone, to be put in front of the VMs' tables.
    pub fn signing_table(signing: &Signing) -> String {
        #[derive(Serialize)]
        struct Table<'a> {
            signing: &'a Signing,
        }
        toml::to_string_pretty(&Table { signing }).unwrap_or_default()
    }

    /// Whether the values make sense, and fit each other.
    pub fn check(&self) -> Result<(), String> {
        self.compression()?;
        if self.reader.depth == 0 || self.reader.depth > 64 {
            return Err("reader.depth: 1 to 64 requests".into());
        }
        if self.jobs == 0 || self.jobs > 64 {
            return Err("jobs: 1 to 64 VMs at the same time".into());
        }
        self.spot_check.check()?;
        self.nbd_tls.as_ref().map_or(Ok(()), NbdTls::check)?;
        self.signing.as_ref().map_or(Ok(()), Signing::check)?;
        self.witness.as_ref().map_or(Ok(()), Witness::check)?;
        if let Some(own) = &self.own_domain {
            if self.nbd_tls.is_some() {
                return Err(
                    "own_domain: what is attached to it is served at a socket, not by nbd_tls".into(),
                );
            }
            if !is_plain(own) {
                return Err("own_domain: letters, digits and ._+- only".into());
            }
            if self.vm.contains_key(own) {
                return Err(format!(
                    "own_domain: {own} cannot back itself up; another machine has to"
                ));
            }
        }
        if self.vm.is_empty() {
            self.place_of("vm")?;
        }
        let mut owners: BTreeMap<String, &str> = BTreeMap::new();
        for (name, vm) in &self.vm {
            name_problem(name).map_or(Ok(()), Err)?;
            let place = self.place_of(name).map_err(|reason| match &vm.repository {
                Some(_) => format!("vm.{name}.{reason}"),
                None if self.place_of("vm").is_err() => reason,
                None => format!("vm.{name}: it needs a `repository` of its own: {reason}"),
            })?;
            // The same place can be written in several ways.
            if let Some(other) = owners.insert(place.canonical(), name) {
                return Err(format!(
                    "repository: {other} and {name} would share {place}; with `{{vm}}` in it each has one of its own"
                ));
            }
            for target in vm.swap.iter().chain(&vm.exclude) {
                if !is_target(target) {
                    return Err(format!(
                        "vm.{name}: {target:?} is not a disk's target name (such as vda)"
                    ));
                }
            }
            vm.quiesce
                .check()
                .map_err(|reason| format!("vm.{name}.quiesce: {reason}"))?;
        }
        Ok(())
    }

    /// How new chunks are compressed.
    pub fn compression(&self) -> Result<Compression, String> {
        self.compression
            .parse()
            .map_err(|error| format!("compression: {error}"))
    }

    /// Where the repository of a VM of this name is, configured or not.
    pub fn repository_of(&self, name: &str) -> String {
        let own = self.vm.get(name).and_then(|vm| vm.repository.as_ref());
        own.unwrap_or(&self.repository).replace("{vm}", name)
    }

    /// The same, if every command, wherever it is started, takes it for the same place.
    fn place_of(&self, name: &str) -> Result<Location, String> {
        let text = self.repository_of(name);
        let location: Location = text.parse().map_err(|error| format!("repository: {error}"))?;
        if location.is_relative() {
            return Err(format!(
                "repository: {text:?} depends on where the program is started; write the whole path, from the root on"
            ));
        }
        Ok(location)
    }

    /// Where our own records are kept.
    pub fn state_directory(&self) -> PathBuf {
        if let Some(state) = &self.state {
            return state.clone();
        }
        default_directory("XDG_STATE_HOME", ".local/state", "/var/lib/strongroom")
    }

    /// Where templates are kept.
    pub fn templates_directory(&self) -> PathBuf {
        self.templates
            .clone()
            .unwrap_or_else(|| self.state_directory().join("templates"))
    }

    /// The configuration file that is read when none is named.
    pub fn default_path() -> PathBuf {
        default_directory("XDG_CONFIG_HOME", ".config", "/etc/strongroom").join("strongroom.toml")
    }
}

fn default_directory(variable: &str, below_home: &str, for_root: &str) -> PathBuf {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if is_root {
        return for_root.into();
    }
    let base = std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(below_home)));
    base.map_or_else(|| for_root.into(), |base| base.join("strongroom"))
}

#[cfg(test)]
mod tests;
