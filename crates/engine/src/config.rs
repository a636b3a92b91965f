//! The configuration file: which hypervisor, which VMs, where their repositories are.
//!
//! One TOML file, `/etc/strongroom/strongroom.toml` for root and `$XDG_CONFIG_HOME/strongroom/strongroom.toml`
//! for others. Unknown keys are errors. Everything but `repository` and the VMs has a default.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strongroom_borg::{Compression, Location};

use crate::rights;

mod nbd_tls;

pub use self::nbd_tls::NbdTls;

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
    /// A VM is asked for that the configuration does not name.
    #[error("find {0:?} in the configuration: no [vm.{0}] there; `strongroom init {0}` adds it")]
    UnknownVm(String),
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
    /// Where a VM's repository is, as Borg writes locations; `{vm}` stands for the VM's name.
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
    #[serde(default)]
    pub audit: Audit,
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

/// How hard a running guest's disk is read. Requests in flight are what its own requests have to queue behind; how many there
/// are follows from how long those take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reader {
    /// Requests of at most 1 MiB in flight, at most.
    pub depth: usize,
    /// How long the guest's own requests may take on average, in milliseconds, before less is read at once; 0 does not
    /// look at them. On storage that is slower than that by itself, twice what they took before.
    pub latency_ms: u64,
    /// Bytes a second at most, in MiB; 0 for no limit.
    pub limit_mib: u64,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            depth: 4,
            latency_ms: 10,
            limit_mib: 200,
        }
    }
}

/// What a backup may take: of the storage that holds a running VM's disks, and of time. Beyond that it gives up, before the
/// storage is full and the guest stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Size of a scratch file, in MiB; 0 for no limit.
    pub scratch_mib: u64,
    /// Free space that has to stay, in MiB; 0 for none.
    pub free_mib: u64,
    /// How long the backup of a VM may take, in seconds; 0 for no limit.
    pub run_s: u64,
    /// How long the hypervisor may take to answer one call, in seconds; then the VM is given up; 0 for no limit.
    pub answer_s: u64,
}

impl Limits {
    /// How long the backup of a VM may take.
    pub fn run(&self) -> Option<Duration> {
        (self.run_s > 0).then(|| Duration::from_secs(self.run_s))
    }

    /// How long the hypervisor may take to answer.
    pub fn answer(&self) -> Option<Duration> {
        (self.answer_s > 0).then(|| Duration::from_secs(self.answer_s))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            scratch_mib: 0,
            free_mib: 1024,
            run_s: 0,
            answer_s: 600,
        }
    }
}

/// How much of what has not changed is read all the same, to find out whether that is true.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// With which probability a map of changes that is wrong is noticed; 0 for no audit.
    pub confidence: f64,
    /// Within how many incremental backups.
    pub runs: u32,
    /// How wrong it is: the share of the chunks called unchanged that have changed.
    pub share: f64,
    /// So many chunks a disk and run instead, whatever that is worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<usize>,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            confidence: 0.99,
            runs: 7,
            share: 0.1,
            chunks: None,
        }
    }
}

impl Audit {
    /// How many chunks of a disk to read in each run. A sample of `k` chunks misses a share `s` of wrong ones with
    /// probability `(1 - s)^k`, `n` runs with `(1 - s)^(k n)`; that must not be more than `1 - confidence`.
    pub fn count(&self) -> usize {
        if let Some(chunks) = self.chunks {
            return chunks;
        }
        let needed = (1.0 - self.confidence).ln() / (1.0 - self.share).ln();
        (needed / f64::from(self.runs.max(1))).ceil() as usize
    }

    fn check(&self) -> Result<(), String> {
        if !(0.0..1.0).contains(&self.confidence) {
            return Err("audit.confidence: a probability from 0 to less than 1".into());
        }
        if !(0.000_001..=0.9).contains(&self.share) {
            return Err("audit.share: 0.000001 to 0.9".into());
        }
        if self.runs == 0 {
            return Err("audit.runs: at least 1".into());
        }
        Ok(())
    }
}

/// Who signs, and whose signatures are trusted. All of it is OpenSSH's: see `ssh-keygen(1)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signing {
    /// The key to sign with: a private key's file, or the file of a public key whose private part is in an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The identity in `allowed_signers` that has to have signed; any in there if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Whose signatures are trusted: `ssh-keygen`'s file of allowed signers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_signers: Option<PathBuf>,
    /// Keys that are trusted no more: a key revocation list, or public keys one a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_keys: Option<PathBuf>,
}

impl Signing {
    fn check(&self) -> Result<(), String> {
        let files = [
            ("key", &self.key),
            ("allowed_signers", &self.allowed_signers),
            ("revoked_keys", &self.revoked_keys),
        ];
        for (name, path) in files {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(format!("signing.{name}: a path from the root on is needed"));
            }
        }
        if self.allowed_signers.is_none() && (self.revoked_keys.is_some() || self.identity.is_some()) {
            return Err("signing: identity and revoked_keys mean nothing without allowed_signers".into());
        }
        let plain = |identity: &String| {
            !identity.is_empty() && !identity.starts_with('-') && !identity.contains(char::is_whitespace)
        };
        if self.identity.as_ref().is_some_and(|identity| !plain(identity)) {
            return Err("signing.identity: one word, such as backup@host".into());
        }
        Ok(())
    }
}

/// Who remembers the newest restore points: a file, a command, or both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// A file that gets a line of JSON for each restore point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Program and arguments that take such a line on standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Program and arguments that print all lines that `command` got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_command: Option<Vec<String>>,
}

impl Witness {
    fn check(&self) -> Result<(), String> {
        if self.file.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err("witness.file: a path from the root on is needed".into());
        }
        let commands = [&self.command, &self.read_command].into_iter().flatten();
        if commands
            .into_iter()
            .any(|words| words.first().is_none_or(String::is_empty))
        {
            return Err("witness: a command is a list of words, the program first".into());
        }
        if self.file.is_none() && self.command.is_none() && self.read_command.is_none() {
            return Err("witness: name a file or a command".into());
        }
        Ok(())
    }
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
    /// This VM's repository, where the pattern does not fit.
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

/// How a guest is brought to rest at the instant of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quiesce {
    /// The level of consistency to reach.
    pub level: Level,
    /// What to do when it is not reached.
    pub if_missed: IfMissed,
    /// How long the guest's file systems may stay frozen, in milliseconds; then they are thawed, whatever happens.
    pub budget_ms: u64,
    /// Run the scripts over `ssh` with this destination (`root@web01`, or a `Host` of `~/.ssh/config`); without it they
    /// are run by the guest agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<String>,
    /// Shell command that brings the application to rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre: Option<String>,
    /// Shell command that lets the application go on. Runs whenever `pre` may have been started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post: Option<String>,
    /// How long either command may take, in seconds.
    pub timeout_s: u64,
}

impl Default for Quiesce {
    fn default() -> Self {
        Self {
            level: Level::default(),
            if_missed: IfMissed::default(),
            budget_ms: 1000,
            ssh: None,
            pre: None,
            post: None,
            timeout_s: 60,
        }
    }
}

impl Quiesce {
    /// Whether the values make sense, and fit each other.
    fn check(&self) -> Result<(), String> {
        if !(50..=60_000).contains(&self.budget_ms) {
            return Err("budget_ms: 50 to 60000 milliseconds".into());
        }
        if !(1..=3600).contains(&self.timeout_s) {
            return Err("timeout_s: 1 to 3600 seconds".into());
        }
        let application = self.level == Level::Application;
        let scripts = [&self.pre, &self.post];
        if application && self.pre.is_none() {
            return Err("level application needs a script `pre`".into());
        }
        if !application && (scripts.iter().any(|script| script.is_some()) || self.ssh.is_some()) {
            return Err("`pre`, `post` and `ssh` belong to level application".into());
        }
        if scripts
            .into_iter()
            .flatten()
            .any(|script| script.trim().is_empty() || script.contains('\0'))
        {
            return Err("`pre` and `post` are shell commands".into());
        }
        if let Some(ssh) = &self.ssh
            && (ssh.is_empty()
                || ssh.starts_with('-')
                || ssh.contains(|c: char| c.is_whitespace() || c.is_control()))
        {
            return Err(format!("ssh: {ssh:?} is not a destination such as root@web01"));
        }
        Ok(())
    }
}

/// A level of consistency that a running guest can be brought to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As after a power cut.
    #[default]
    Crash,
    /// File systems frozen by the guest agent.
    Filesystem,
    /// The application brought to rest by scripts, and file systems frozen where there is an agent.
    Application,
}

/// What to do when a level of consistency is not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IfMissed {
    /// Back up all the same, with a warning (exit code 3) and the level that was reached on record.
    #[default]
    Degrade,
    /// No backup.
    Fail,
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
            audit: Audit::default(),
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
        self.audit.check()?;
        self.nbd_tls.as_ref().map_or(Ok(()), NbdTls::check)?;
        self.signing.as_ref().map_or(Ok(()), Signing::check)?;
        self.witness.as_ref().map_or(Ok(()), Witness::check)?;
        if let Some(own) = &self.own_domain {
            if self.nbd_tls.is_some() {
                return Err(
                    "own_domain: what is attached to it is served at a socket, not by nbd_tls".into(),
                );
            }
            if !rights::is_plain(own) {
                return Err("own_domain: letters, digits and ._+- only".into());
            }
            if self.vm.contains_key(own) {
                return Err(format!(
                    "own_domain: {own} cannot back itself up; another machine has to"
                ));
            }
        }
        let mut owners: BTreeMap<String, &str> = BTreeMap::new();
        for name in self.vm.keys() {
            let location = self.repository_of(name);
            // The same place can be written in several ways.
            let place = location
                .parse()
                .map_or_else(|_| location.clone(), |location: Location| location.canonical());
            if let Some(other) = owners.insert(place, name) {
                return Err(format!(
                    "repository: {other} and {name} would share {location}; with `{{vm}}` in it each has one of its own"
                ));
            }
        }
        for (name, vm) in &self.vm {
            if !is_vm_name(name) {
                return Err(format!(
                    "vm.{name:?}: a VM's name has no slash and no leading dot"
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

    /// One VM's settings and its repository's location.
    pub fn vm(&self, name: &str) -> Result<(&Vm, String), ConfigError> {
        let vm = self
            .vm
            .get(name)
            .ok_or_else(|| ConfigError::UnknownVm(name.to_owned()))?;
        Ok((vm, self.repository_of(name)))
    }

    /// libvirt URI of the hypervisor of a VM of this name, configured or not.
    pub fn hypervisor_of(&self, name: &str) -> &str {
        let own = self.vm.get(name).and_then(|vm| vm.hypervisor.as_deref());
        own.unwrap_or(&self.hypervisor)
    }

    /// The configuration as it is for the VMs on one hypervisor. The domain in which this program runs is on the hypervisor
    /// of all.
    #[must_use]
    pub fn on(&self, hypervisor: &str) -> Self {
        let mut config = self.clone();
        if config.hypervisor != hypervisor {
            hypervisor.clone_into(&mut config.hypervisor);
            config.own_domain = None;
        }
        config
    }

    /// These VMs, hypervisor by hypervisor, with the configuration as it is there. Both in the order in which they are named.
    pub fn by_hypervisor(&self, vms: &[String]) -> Vec<(Self, Vec<String>)> {
        let mut groups: Vec<(&str, Vec<String>)> = Vec::new();
        for vm in vms {
            let hypervisor = self.hypervisor_of(vm);
            match groups.iter_mut().find(|(other, _)| *other == hypervisor) {
                Some((_, group)) => group.push(vm.clone()),
                None => groups.push((hypervisor, vec![vm.clone()])),
            }
        }
        groups
            .into_iter()
            .map(|(hypervisor, group)| (self.on(hypervisor), group))
            .collect()
    }

    /// Where the repository of a VM of this name is, configured or not.
    pub fn repository_of(&self, name: &str) -> String {
        match self.vm.get(name).and_then(|vm| vm.repository.as_ref()) {
            Some(own) => own.clone(),
            None => self.repository.replace("{vm}", name),
        }
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

/// Whether a VM can be called so: names of repositories and of records are made from it.
pub fn is_vm_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.')
}

/// Whether this can be a disk's target name (`vda`, `sdb`, `nvme0n1`): two or more lower-case letters, then letters
/// and digits; Linux allows 31 characters for a block device. Such names are part of paths, NBD export names and
/// archive paths. Both what is backed up and what is restored goes by this rule.
pub fn is_target(name: &str) -> bool {
    let letters = name.bytes().take_while(u8::is_ascii_lowercase).count();
    (2..=31).contains(&name.len())
        && letters >= 2
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

impl fmt::Display for Reader {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "up to {} requests in flight", self.depth)?;
        if self.limit_mib > 0 {
            write!(out, ", {} MiB/s at most", self.limit_mib)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::read(file.path())
    }

    #[test]
    fn a_minimal_file_gets_the_defaults() {
        let config = parse("repository = '/srv/{vm}'\n[vm.web01]\n").unwrap();
        assert_eq!(config.hypervisor, "qemu:///system");
        assert_eq!(config.vm("web01").unwrap().1, "/srv/web01");
        assert_eq!(
            config.reader,
            Reader {
                depth: 4,
                latency_ms: 10,
                limit_mib: 200
            }
        );
    }

    #[test]
    fn the_audit_reads_what_its_confidence_takes() {
        let count = |text: &str| {
            parse(&format!("repository = '/srv/{{vm}}'\n[audit]\n{text}"))
                .unwrap()
                .audit
                .count()
        };
        assert_eq!(count(""), 7, "ln 0.01 / ln 0.9 = 43.7, over 7 runs");
        assert_eq!(count("runs = 1"), 44);
        assert_eq!(count("confidence = 0.95\nshare = 0.01\nruns = 1"), 299);
        assert_eq!(count("confidence = 0.0"), 0);
        assert_eq!(count("chunks = 3"), 3);
        for bad in [
            "confidence = 1.0",
            "confidence = -0.1",
            "share = 0.0",
            "share = 1.0",
            "runs = 0",
            "confidence = nan",
        ] {
            let text = format!("repository = '/srv/{{vm}}'\n[audit]\n{bad}");
            assert!(parse(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut config = Config::new("ssh://backup@host/./{vm}");
        config.vm.insert(
            "db".into(),
            Vm {
                swap: vec!["vdb".into()],
                ..Vm::default()
            },
        );
        let again = parse(&config.to_toml()).unwrap();
        assert_eq!(again.vm, config.vm);
        assert_eq!(again.repository, config.repository);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("repository = '/srv/{vm}'\nrepositry = 'x'\n", "repositry"),
            ("repository = '/srv/one'\n[vm.a]\n[vm.b]\n", "{vm}"),
            (
                "repository = '/srv/{vm}'\n[vm.a]\n[vm.b]\nrepository = 'file:///srv/./a/'\n",
                "a and b would share",
            ),
            ("repository = '/srv/{vm}'\ncompression = 'rar'\n", "compression"),
            ("repository = '/srv/{vm}'\n[vm.a]\nswap = ['../x']\n", "target"),
            ("repository = '/srv/{vm}'\n[vm.\"../a\"]\n", "slash"),
            ("repository = '/srv/{vm}'\n[reader]\ndepth = 0\n", "depth"),
            ("hypervisor = 'qemu:///system'\n", "repository"),
            (
                "repository = '/srv/{vm}'\n[vm.a.quiesce]\nbudget_ms = 49\n",
                "budget_ms",
            ),
            (
                "repository = '/srv/{vm}'\n[vm.a.quiesce]\ntimeout_s = 0\n",
                "timeout_s",
            ),
            (
                "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'perfect'\n",
                "perfect",
            ),
            (
                "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'application'\n",
                "needs a script",
            ),
            (
                "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'filesystem'\npost = 'true'\n",
                "belong to level application",
            ),
            (
                "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'application'\npre = ' '\n",
                "shell commands",
            ),
            (
                "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'application'\npre = 'x'\nssh = '-oProxyCommand=x'\n",
                "vm.a.quiesce: ssh",
            ),
            (
                "repository = '/srv/{vm}'\n[nbd_tls]\nports = '0-4'\n",
                "nbd_tls.ports",
            ),
            (
                "repository = '/srv/{vm}'\n[nbd_tls]\nlisten = 'hv1'\n",
                "listen = 'hv1'",
            ),
            (
                "repository = '/srv/{vm}'\n[nbd_tls]\ncertificates = 'pki'\n",
                "nbd_tls.certificates",
            ),
            (
                "repository = '/srv/{vm}'\nown_domain = 'b'\n[nbd_tls]\n",
                "own_domain",
            ),
            ("repository = '/srv/{vm}'\n[signing]\nkey = 'id'\n", "signing.key"),
            ("repository = '/srv/{vm}'\n[witness]\n", "a file or a command"),
            (
                "repository = '/srv/{vm}'\n[witness]\nfile = 'x'\n",
                "witness.file",
            ),
            (
                "repository = '/srv/{vm}'\n[witness]\ncommand = []\n",
                "the program first",
            ),
            (
                "repository = '/srv/{vm}'\n[signing]\nidentity = 'me'\n",
                "allowed_signers",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error:?} does not name {word:?}");
        }
    }

    #[test]
    fn tables_can_be_appended() {
        let text = "# mine\nrepository = '/srv/{vm}'\n[vm.a]\nswap = ['vdb']\n";
        let other = Vm {
            exclude: vec!["vdc".into()],
            ..Vm::default()
        };
        let new = BTreeMap::from([("b".to_owned(), other), ("c d".to_owned(), Vm::default())]);
        let both = format!("{text}\n{}", Config::vm_tables(&new));
        let mut expected = parse(text).unwrap().vm;
        expected.extend(new);
        assert_eq!(parse(&both).unwrap().vm, expected, "{both}");
    }

    #[test]
    fn target_names_have_one_rule() {
        for good in ["vda", "sdaa", "nvme0n1", "vdabcdefghijklmnop", &"v".repeat(31)] {
            assert!(is_target(good), "{good}");
        }
        for bad in [
            "",
            "v",
            "1a",
            "v1a",
            "VDA",
            "vd a",
            "../x",
            "vd/a",
            "vdä",
            &"v".repeat(32),
        ] {
            assert!(!is_target(bad), "{bad}");
        }
    }

    #[test]
    fn a_vm_that_is_not_configured_is_refused_with_advice() {
        let config = parse("repository = '/srv/{vm}'\n[vm.web01]\n").unwrap();
        let error = config.vm("web02").unwrap_err().to_string();
        assert!(error.contains("strongroom init web02"), "{error}");
    }
}
