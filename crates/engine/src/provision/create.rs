//! The story of how a machine is made, from top to bottom.
//!
//! [`run`] decides where everything goes, has a throwaway VM ([`machine`]) make the encrypted disk from a verified template,
//! looks at that disk without a key, moves everything to its place, and defines the domain last. What fails, or is
//! interrupted, leaves nothing. No key is ever here: not in this process, not in a file, not in what is said to it.

pub mod input;
pub mod machine;
pub mod tang;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use strongroom_base::cancel::Cancelled;
use strongroom_disk::Luks;
use strongroom_guest::protocol::{
    Backups, Kdf, Order, RECOVERY_TOKEN, Report, SWAP_DISK, SYSTEM_DISK, Unlock, VERSION,
};
use strongroom_hypervisor::{
    Accelerator, Channel, Console, Extras, Firmware, HypervisorError, ImageFormat, LaunchSecurity, Network,
    NewDisk, NewDomain,
};
use strongroom_nbd::{Client, Format, Options, QemuNbd, Serve, format_qcow2};
use uuid::Uuid;

use self::input::InputError;
use self::machine::{Limits, Machine, MachineError, Typed};
use crate::files::define::define;
use crate::files::journal::Journal;
use crate::files::room::{self, Need, Shortage};
use crate::files::staged::{InstalledFile, StagedFile};
use crate::files::unfinished;
use crate::files::{InUse, Inventory, Own};
use crate::provision::template::Template;
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::state::StateError;

/// What lies before the encrypted volume: boot loaders and `/boot`.
pub const BEFORE_ROOT: u64 = 512 << 20;
/// What else the system disk needs beyond the template's file system: LUKS2 header, table, room to boot.
const BEYOND_ROOT: u64 = 128 << 20;
/// Memory that the throwaway VM needs beside that for deriving keys, in MiB.
const MACHINE_MIB: u64 = 448;
/// QEMU.
const QEMU: &str = "qemu-system-x86_64";
/// How domains are marked that were made here.
pub const MARK: &str = "strongroom create";

/// What is wanted.
#[derive(Debug)]
pub struct Request {
    /// The domain's name.
    pub name: String,
    /// The machine's own name.
    pub hostname: String,
    /// Size of the system disk in bytes.
    pub size: u64,
    /// Size of the swap disk in bytes; without one there is none.
    pub swap: Option<u64>,
    /// Memory in bytes.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// What opens the disk at boot.
    pub unlock: Unlock,
    /// To whom the recovery secret is encrypted.
    pub recovery: Option<String>,
    /// Who may log in as root.
    pub authorized_keys: Vec<String>,
    /// Whether discards pass through.
    pub discard: bool,
    /// How keys are derived from passphrases.
    pub kdf: Kdf,
    /// Where the images go.
    pub directory: PathBuf,
    /// Who runs its instructions, and those of the throwaway VM; KVM where the host has it if neither is named.
    pub accelerator: Option<Accelerator>,
    /// What the machine starts with.
    pub firmware: Firmware,
    /// Whether it has an emulated TPM.
    pub tpm: bool,
    /// Its network interface.
    pub network: Network,
    /// Devices beyond the needful.
    pub extras: Extras,
    /// Whether its memory is encrypted.
    pub launch_security: Option<LaunchSecurity>,
    /// What it gets if it makes backups of others.
    pub backups: Option<Backups>,
    /// PCI Express ports for disks that are attached while it runs.
    pub spare_ports: u8,
    /// More virtio channels than the guest agent's, by their names.
    pub channels: Vec<String>,
    /// How long the throwaway VM may take.
    pub limits: Limits,
}

/// What was made. Nothing of it is secret.
#[derive(Debug, Serialize)]
pub struct Created {
    /// The domain's name.
    pub name: String,
    /// The domain's UUID.
    pub uuid: Uuid,
    /// The system disk.
    pub system: PathBuf,
    /// The swap disk.
    pub swap: Option<PathBuf>,
    /// What the system disk takes on the storage, in bytes.
    pub allocated: u64,
    /// The LUKS2 volume as it looks without a key.
    pub luks: LuksFacts,
    /// The recovery secret, encrypted.
    pub recovery: Option<PathBuf>,
    /// The repositories' passphrase of a machine that makes backups, encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<PathBuf>,
    /// Public part of the SSH key of a machine that makes backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_key: Option<String>,
    /// Public part of the key by which it signs restore points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<String>,
    /// Public part of the SSH host key.
    pub ssh_host_key: String,
    /// Its fingerprint.
    pub ssh_fingerprint: String,
    /// The template's name and who signed it.
    pub template: String,
    /// Who signed the template.
    pub template_signer: String,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Public facts of the encrypted volume.
#[derive(Debug, Serialize)]
pub struct LuksFacts {
    /// Its UUID.
    pub uuid: String,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Salted digests of its master key.
    pub digests: Vec<String>,
    /// Types of its tokens.
    pub tokens: Vec<String>,
}

/// Why no machine was made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Ctrl-C.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// What was asked for makes no sense.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The hypervisor lacks something.
    #[error("make {name}: {}", reasons.join("; "))]
    Missing {
        /// The domain's name.
        name: String,
        /// What it lacks.
        reasons: Vec<String>,
    },
    /// The hypervisor's files are not here.
    #[error("make {0}: so far machines are made on the machine on which the hypervisor runs")]
    Remote(String),
    /// A file is in the way, or cannot be made.
    #[error("make {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A domain has a file's place.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// An image could not be made.
    #[error(transparent)]
    Image(#[from] strongroom_nbd::ImageError),
    /// The throwaway VM.
    #[error("{source}{}", space.as_deref().unwrap_or(""))]
    Machine {
        /// What it did.
        source: MachineError,
        /// What the storage has to do with it.
        space: Option<String>,
    },
    /// Our own records.
    #[error(transparent)]
    State(#[from] StateError),
    /// It may not fit.
    #[error(transparent)]
    Room(#[from] Shortage),
    /// What an earlier attempt has left.
    #[error(transparent)]
    Left(#[from] unfinished::RestoreLeft),
    /// The storage was filled meanwhile.
    #[error("{0}; what was made is removed")]
    GaveWay(Shortage),
    /// The disk is not what the throwaway VM says.
    #[error("trust the new disk: {0}")]
    Disk(String),
}

/// Makes a machine.
pub fn run(
    context: &Context<'_>,
    template: &Template,
    request: &Request,
    typed: Typed,
) -> Result<Created, CreateError> {
    let begin = Instant::now();
    let name = &request.name;
    let destinations = Destinations::of(context, request);
    let domain = definition(context, request, &destinations)?;
    check(context, template, request, &destinations, &domain)?;
    let xml = context.hypervisor.compose(&domain)?;
    context.hypervisor.check_definable(&xml, false)?;

    // What an earlier attempt at this name has left when it died: on record, or, of version 0.1.0, known by its name.
    for (_, what) in unfinished::recover(context, Some(name), false)? {
        context.note(what);
    }
    for path in destinations.disks() {
        sweep(path);
    }
    let needs = [Need {
        path: destinations.system.clone(),
        bytes: room::with_tables(template.description.root_size + BEFORE_ROOT, request.size),
    }];
    let floor = context.settings.job(name).limits.free;
    room::check(&needs, floor)?;
    let journal = Journal::begin(context.state, name)?;
    let (system, system_file) = blank(&journal, &destinations.system, request.size)?;
    let swap = match (&destinations.swap, request.swap) {
        (Some(path), Some(size)) => Some(blank(&journal, path, size)?),
        _ => None,
    };
    let machine = Machine {
        name,
        template,
        system: &system_file,
        swap: swap.as_ref().map(|(_, file)| file),
        memory_mib: MACHINE_MIB + u64::from(request.kdf.memory_kib).div_ceil(1024),
        accelerator: domain.accelerator,
        qemu: OsStr::new(QEMU),
        limits: request.limits,
    };
    let (report, shortage) = room::watched(
        context,
        &needs,
        floor,
        || (),
        |context| machine::run(&machine, &order(request), typed, context.observer, context.cancel),
    );
    if let Some(shortage) = shortage {
        return Err(CreateError::GaveWay(shortage));
    }
    let report = report.map_err(|source| match source {
        MachineError::Cancelled(cancelled) => CreateError::Cancelled(cancelled),
        source => CreateError::Machine {
            space: no_space(&destinations.system),
            source,
        },
    })?;
    let luks = look(&system, request, &report)?;

    context.cancel.check()?;
    let mut kept = Vec::new();
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| CreateError::File { path, source }
    };
    let allocated = system_file.metadata().map_err(at(&destinations.system))?.blocks() * 512;
    let mut staged_files = Vec::new();
    for (staged, file) in [(system, system_file)].into_iter().chain(swap) {
        file.sync_all().map_err(at(staged.destination()))?;
        staged_files.push(staged);
    }
    let mut keep_secret = |ciphertext: Option<&String>, what: &str| {
        let Some(ciphertext) = ciphertext else {
            return Ok(None);
        };
        let path = destinations.recovery(name, &luks.uuid, what);
        let staged = journal
            .stage(&path)
            .and_then(|staged| staged.with(ciphertext.as_bytes()));
        staged_files.push(staged.map_err(at(&path))?);
        Ok::<_, CreateError>(Some(path))
    };
    let recovery = keep_secret(report.recovery.as_ref(), "")?;
    let keys = report.backups.as_ref();
    let passphrase = keep_secret(keys.map(|keys| &keys.passphrase), "-repositories")?;
    let ssh_key = keys.map(|keys| keys.ssh_key.clone());
    let signing_key = keys.map(|keys| keys.signing_key.clone());
    journal.taking(&staged_files, false)?;
    for staged in staged_files {
        let path = staged.destination().to_owned();
        kept.push(staged.install(false).map_err(at(&path))?);
    }
    journal.taken(Some(&xml))?;
    let (uuid, kept) = define(context, &xml, kept)?;
    keep(context, kept);
    Ok(Created {
        name: name.clone(),
        uuid,
        system: destinations.system,
        swap: destinations.swap,
        allocated,
        luks,
        recovery,
        passphrase,
        ssh_key,
        signing_key,
        ssh_host_key: report.ssh_host_key,
        ssh_fingerprint: report.ssh_fingerprint,
        template: template.description.name.clone(),
        template_signer: template.signer.identity.clone(),
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// Where everything goes.
struct Destinations {
    system: PathBuf,
    swap: Option<PathBuf>,
    recovery: PathBuf,
}

impl Destinations {
    fn of(context: &Context<'_>, request: &Request) -> Self {
        let disk = |what: &str| request.directory.join(format!("{}-{what}.qcow2", request.name));
        Self {
            system: disk(SYSTEM_DISK),
            swap: request.swap.map(|_| disk(SWAP_DISK)),
            recovery: context.settings.state_directory.join("recovery"),
        }
    }

    fn disks(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.system).chain(&self.swap)
    }

    /// One for each volume: a machine of the same name has been there before, and its secret may still be needed.
    fn recovery(&self, name: &str, volume: &str, what: &str) -> PathBuf {
        self.recovery.join(format!("{name}-{volume}{what}.age"))
    }
}

/// The domain.
fn definition(
    context: &Context<'_>,
    request: &Request,
    destinations: &Destinations,
) -> Result<NewDomain, CreateError> {
    input::check(request)?;
    if !context.hypervisor.is_local() {
        return Err(CreateError::Remote(request.name.clone()));
    }
    let host = context.hypervisor.host()?;
    let accelerator = request.accelerator.unwrap_or(if host.kvm.is_yes() {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    });
    let disk = |target: &str, file: &Path, serial: &str| NewDisk {
        target: target.to_owned(),
        file: file.to_owned(),
        format: ImageFormat::Qcow2,
        serial: Some(serial.to_owned()),
        discard: request.discard,
        read_only: false,
    };
    let mut disks = vec![disk("vda", &destinations.system, SYSTEM_DISK)];
    disks.extend(destinations.swap.iter().map(|file| disk("vdb", file, SWAP_DISK)));
    let more = request.channels.iter().map(|name| Channel {
        name: name.clone(),
        socket: None,
    });
    let domain = NewDomain {
        memory: request.memory,
        vcpus: request.vcpus,
        firmware: request.firmware,
        disks,
        tpm: request.tpm,
        network: request.network.clone(),
        channels: std::iter::once(Channel::guest_agent()).chain(more).collect(),
        console: Console::Terminal,
        extras: request.extras,
        spare_ports: request.spare_ports,
        launch_security: request.launch_security,
        ..NewDomain::new(&request.name, MARK, accelerator)
    };
    let reasons = domain.missing(&host);
    if reasons.is_empty() {
        Ok(domain)
    } else {
        Err(CreateError::Missing {
            name: request.name.clone(),
            reasons,
        })
    }
}

/// Whether it can be made, before anything is.
fn check(
    context: &Context<'_>,
    template: &Template,
    request: &Request,
    destinations: &Destinations,
    domain: &NewDomain,
) -> Result<(), CreateError> {
    match context.hypervisor.domain(&domain.name) {
        Ok(_) => return Err(HypervisorError::Exists(domain.name.clone(), "name").into()),
        Err(HypervisorError::NoSuchDomain(..)) => {}
        Err(error) => return Err(error.into()),
    }
    let needed = template.description.root_size + BEFORE_ROOT + BEYOND_ROOT;
    if request.size < needed {
        return Err(InputError::Size {
            size: request.size,
            needed,
        }
        .into());
    }
    let inventory = Inventory::take(context.hypervisor)?;
    for path in destinations.disks() {
        if path.symlink_metadata().is_ok() {
            return Err(CreateError::File {
                path: path.clone(),
                source: rustix::io::Errno::EXIST.into(),
            });
        }
        // A file that is not there may be a domain's all the same, which would take this one for its own.
        inventory.check(path, &Own::none())?;
    }
    Ok(())
}

/// Removes staged files of runs that were killed.
fn sweep(path: &Path) {
    let Some(directory) = path.parent() else { return };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|file| {
            let rest = file.strip_prefix(".strongroom-")?.strip_prefix(&*name)?;
            rest.strip_prefix('.')?.strip_suffix(".new")?.parse::<u32>().ok()
        });
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// An empty image beside its place.
fn blank(journal: &Journal, path: &Path, size: u64) -> Result<(StagedFile, File), CreateError> {
    let at = |source| CreateError::File {
        path: path.to_owned(),
        source,
    };
    let staged = journal.stage(path).map_err(at)?;
    format_qcow2(staged.file(), path, size)?;
    let file = staged.file().try_clone().map_err(at)?;
    Ok((staged, file))
}

fn order(request: &Request) -> Order {
    Order {
        version: VERSION,
        hostname: request.hostname.clone(),
        swap: request.swap.is_some(),
        discard: request.discard,
        kdf: request.kdf,
        unlock: request.unlock.clone(),
        recovery: request.recovery.clone(),
        authorized_keys: request.authorized_keys.clone(),
        backups: request.backups.clone(),
    }
}

/// A full storage looks like a broken disk from inside.
fn no_space(path: &Path) -> Option<String> {
    let directory = path.parent()?;
    let space = rustix::fs::statvfs(directory).ok()?;
    let free = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    (free < 64).then(|| format!("; {} has {free} MiB left", directory.display()))
}

/// Looks at the new disk without a key: there has to be the volume that was reported, and nothing else where
/// one begins.
fn look(system: &StagedFile, request: &Request, report: &Report) -> Result<LuksFacts, CreateError> {
    let wrong = |error: &dyn std::fmt::Display| CreateError::Disk(error.to_string());
    let serve = Serve {
        opened: Some(strongroom_nbd::through(system.file())),
        ..Serve::read_only(Format::Qcow2)
    };
    let served = QemuNbd::start(system.destination(), &serve).map_err(|error| wrong(&error))?;
    let mut disk = Client::connect(&served.target(), &Options::default()).map_err(|error| wrong(&error))?;
    let mut found = Luks::find(&mut disk).map_err(|error| wrong(&error))?;
    drop(disk);
    served.stop().map_err(|error| wrong(&error))?;
    let (Some(luks), true) = (found.pop(), found.is_empty()) else {
        return Err(CreateError::Disk(
            "it does not have exactly one LUKS volume".into(),
        ));
    };
    let has = |kind: &str| luks.tokens.iter().any(|token| token.kind == kind);
    let wanted = (
        matches!(request.unlock, Unlock::Tang { .. }),
        request.recovery.is_some(),
    );
    if luks.version != 2
        || luks.offset != BEFORE_ROOT
        || luks.uuid != report.luks_uuid
        || (has("clevis"), has(RECOVERY_TOKEN)) != wanted
    {
        return Err(CreateError::Disk(
            "its LUKS header is not the one that was reported".into(),
        ));
    }
    Ok(LuksFacts {
        uuid: luks.uuid,
        offset: luks.offset,
        digests: luks.digests,
        tokens: luks.tokens.into_iter().map(|token| token.kind).collect(),
    })
}

/// They stay. The domain is defined: nothing that goes wrong now takes its disks away.
fn keep(context: &Context<'_>, files: Vec<InstalledFile<'_>>) {
    for file in files {
        if let Err(error) = file.keep() {
            context.warn(
                Code::FileNotSynced,
                format!("failed to make a new file last: {error}"),
            );
        }
    }
}

/// The parameters for Argon2id if you do not ask for others: a quarter of the machine's memory, so that it can open its own
/// disk, and at most 512 MiB.
pub fn default_kdf(memory: u64, vcpus: u32) -> Kdf {
    let mebibytes = (memory >> 22).clamp(32, 512) as u32;
    Kdf {
        memory_kib: mebibytes << 10,
        iterations: 4,
        parallel: vcpus.clamp(1, 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_can_derive_the_key_of_its_own_disk() {
        assert_eq!(default_kdf(1 << 30, 2).memory_kib, 256 << 10);
        assert_eq!(default_kdf(64 << 30, 64).memory_kib, 512 << 10);
        assert_eq!(default_kdf(64 << 30, 64).parallel, 4);
        assert_eq!(default_kdf(0, 0).parallel, 1);
    }

    #[test]
    fn staged_files_of_the_dead_are_removed_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web-system.qcow2");
        let own = std::process::id();
        let dead = ".strongroom-web-system.qcow2.4194305.new".to_owned();
        let others = [
            format!(".strongroom-web-system.qcow2.{own}.new"),
            ".strongroom-web2-system.qcow2.4194305.new".into(),
            "web-system.qcow2".into(),
        ];
        for name in others.iter().chain([&dead]) {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        sweep(&path);
        assert!(!directory.path().join(dead).exists());
        assert!(others.iter().all(|name| directory.path().join(name).exists()));
    }
}
