//! `strongroom init`.

use strongroom_engine::run::settings::VmJob;
use strongroom_hypervisor::{DiskSource, Hypervisor as _};
use strongroom_points::store::{Access, Encryption, Kind};

use super::signing_key;
use crate::args::Init;
use crate::config_file;
use crate::documents::Initialised;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::replace::replace;
use crate::settings::{Parts, Settings};
use crate::ui::Ui;
use crate::ui::human::bytes;

/// Adds VMs to the configuration and makes their repositories. What exists already is kept.
pub fn run(settings: &Settings, args: &Init) -> Result<Exit, Failure> {
    add(settings, args)?;
    if settings.ui.json() {
        Ui::document(&Initialised {
            configuration: &settings.path,
            vms: &args.vms,
        });
    }
    Ok(Exit::Done)
}

/// The same, for other commands: nothing is printed but what it does.
pub(super) fn add(settings: &Settings, args: &Init) -> Result<(), Failure> {
    let encryption: Encryption = args.protect.encryption.parse().map_err(Failure::usage)?;
    let config_file::Draft {
        config,
        text,
        new_signing,
    } = config_file::draft(settings, args)?;
    // Nothing in particular is wanted: what the configuration says already.
    let vms = if args.vms.is_empty() && args.signing_key.is_none() {
        config.vm.keys().cloned().collect()
    } else {
        args.vms.clone()
    };
    let resolved = settings.resolve_draft(&config)?;
    for (hypervisor, vms) in resolved.by_hypervisor(&vms) {
        let parts = settings.parts(&resolved, &hypervisor)?;
        for name in &vms {
            describe(settings, &parts, &resolved.job(name))?;
        }
    }
    settings.signals.undo_first();
    if let Some(signing) = &new_signing {
        signing_key::make(settings, signing, args.unprotected_signing_key)?;
    }
    // The repositories come first: a configuration never names one that could not be made.
    for name in &vms {
        settings.signals.cancel().check().map_err(Failure::failed)?;
        repository(settings, &resolved.job(name), encryption)?;
    }
    if let Some(text) = text {
        replace(&settings.path, &text)
            .map_err(|error| Failure::failed(format!("write {}: {error}", settings.path.display())))?;
    }
    settings
        .ui
        .info(format!("configuration: {}", settings.path.display()));
    Ok(())
}

/// Says what of a VM will be backed up.
fn describe(settings: &Settings, parts: &Parts, job: &VmJob) -> Result<(), Failure> {
    let name = &job.name;
    let domain = parts.hypervisor.domain(&job.domain()).map_err(Failure::failed)?;
    for target in job.swap.iter().chain(&job.exclude) {
        if !domain.disks.iter().any(|disk| disk.target == *target) {
            return Err(Failure::usage(format!(
                "leave out disk {target} of {name}: it has no such disk"
            )));
        }
    }
    if domain.disks.is_empty() {
        return Err(Failure::usage(format!(
            "protect {name}: it has no disk, so that there is nothing to back up"
        ))
        .hint(format!(
            "`virsh dumpxml --inactive --security-info {name}` saves its definition"
        )));
    }
    for disk in domain.disks.iter().filter(|disk| disk.source != DiskSource::None) {
        let size = disk.size.map(bytes).unwrap_or_default();
        let what = if disk.is_swap(&job.swap) {
            "swap, never backed up"
        } else if job.exclude.contains(&disk.target) {
            "left out"
        } else if !disk.is_writable_disk() {
            "removable or read-only, left out"
        } else {
            "backed up"
        };
        settings
            .ui
            .info(format!("{name} {}: {size} {}, {what}", disk.target, disk.format));
    }
    Ok(())
}

/// Makes a VM's repository unless it is there.
pub(super) fn repository(settings: &Settings, job: &VmJob, encryption: Encryption) -> Result<(), Failure> {
    let (name, location) = (&job.name, &job.repository);
    match settings.repositories.open(location, Access::Read) {
        Ok(repository) => {
            settings.ui.info(format!(
                "{name}: repository {location} is there ({})",
                repository.encryption()
            ));
            repository.close()?;
            return Ok(());
        }
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    settings.repositories.create(location, encryption)?;
    settings
        .ui
        .info(format!("{name}: made repository {location} ({encryption})"));
    if encryption.has_key_inside() {
        settings.ui.info(format!(
            "{name}: its key is in the repository, protected by the passphrase; `borg key export {location}` saves a copy"
        ));
    }
    Ok(())
}
