//! `strongroom init`.

use std::collections::BTreeMap;
use std::path::Path;

use strongroom_borg::{Access, Encryption, Error as BorgError};
use strongroom_engine::config::{Config, Signing, Vm};
use strongroom_engine::run::settings::VmJob;
use strongroom_hypervisor::{DiskSource, Hypervisor as _};

use super::signing_key;
use crate::args::Init;
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
    let Draft {
        config,
        text,
        new_signing,
    } = draft(settings, args)?;
    // Nothing in particular is wanted: what the configuration says already.
    let vms = if args.vms.is_empty() && args.signing_key.is_none() {
        config.vm.keys().cloned().collect()
    } else {
        args.vms.clone()
    };
    let resolved = settings.resolve_draft(&config)?;
    for (hypervisor, vms) in resolved.by_hypervisor(&vms) {
        let parts = Settings::parts(&resolved, &hypervisor)?;
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

/// What the configuration is to be.
struct Draft {
    config: Config,
    /// The file's text, if it changes.
    text: Option<String>,
    /// Who signs, if that is new.
    new_signing: Option<Signing>,
}

/// Adds what is missing to the configuration; checks all of it before anything is made.
fn draft(settings: &Settings, args: &Init) -> Result<Draft, Failure> {
    let file = &settings.path;
    let old = file
        .exists()
        .then(|| std::fs::read_to_string(file))
        .transpose()
        .map_err(|error| Failure::usage(format!("read the configuration {}: {error}", file.display())))?;
    let mut config = match (&old, &args.protect.repository) {
        (Some(text), _) => Config::parse(text, file).map_err(Failure::usage)?,
        (None, Some(repository)) => new_file(settings, repository),
        (None, None) => {
            return Err(
                Failure::usage("write the configuration: where are the repositories to be?")
                    .hint("for example --repository '/srv/backup/{vm}'"),
            );
        }
    };
    let mut new = BTreeMap::new();
    for name in &args.vms {
        let wanted = args
            .protect
            .repository
            .as_ref()
            .map(|pattern| pattern.replace("{vm}", name));
        let repository = wanted.filter(|wanted| *wanted != config.repository_of(name));
        match config.vm.get(name) {
            None => {
                let vm = Vm {
                    swap: args.protect.swap.clone(),
                    exclude: args.protect.exclude.clone(),
                    hypervisor: settings.own_hypervisor(&config),
                    repository,
                    ..Vm::default()
                };
                new.insert(name.clone(), vm);
            }
            Some(vm) => {
                let known = args.protect.swap.iter().all(|target| vm.swap.contains(target))
                    && args
                        .protect
                        .exclude
                        .iter()
                        .all(|target| vm.exclude.contains(target))
                    && repository.is_none();
                if !known {
                    return Err(Failure::usage(format!("change {name}: it is configured already"))
                        .hint(format!("edit [vm.{name}] in {}", file.display())));
                }
            }
        }
    }
    let new_signing = match &args.signing_key {
        None => None,
        Some(key) => signing_key::wanted(&config, file, key)?,
    };
    if let Some(signing) = &new_signing {
        config.signing = Some(signing.clone());
    }
    config.vm.extend(new.clone());
    config.check().map_err(|message| {
        Failure::usage(format!("use the configuration: {message}"))
            .hint("for example --repository '/srv/backup/{vm}'; BORG_REPO counts as --repository")
    })?;
    let text = match old {
        None => config.to_toml(),
        Some(_) if new.is_empty() && new_signing.is_none() => {
            return Ok(Draft {
                config,
                text: None,
                new_signing,
            });
        }
        // Whoever wrote the file may have commented it.
        Some(old) => {
            let signing = new_signing.as_ref().map(Config::signing_table);
            let tables = [signing, (!new.is_empty()).then(|| Config::vm_tables(&new))];
            let parts = [old.trim_end().to_owned() + "\n"].into_iter();
            parts
                .chain(tables.into_iter().flatten())
                .collect::<Vec<_>>()
                .join("\n")
        }
    };
    match Config::parse(&text, file) {
        Ok(read) if read.vm == config.vm && read.signing == config.signing => Ok(Draft {
            config,
            text: Some(text),
            new_signing,
        }),
        _ => Err(Failure::usage(format!(
            "add to {}: tables cannot be appended to it",
            file.display()
        ))
        .hint("add the VMs by hand")),
    }
}

/// A configuration file that names no VM yet.
fn new_file(settings: &Settings, repository: &str) -> Config {
    let mut file = Config::new(repository);
    if let Some(uri) = &settings.arguments.connect {
        file.hypervisor.clone_from(uri);
    }
    file
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
        } else if disk.read_only || !matches!(disk.device.as_str(), "disk" | "lun") {
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
        Err(BorgError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    settings.repositories.create(location, encryption)?;
    settings
        .ui
        .info(format!("{name}: made repository {location} ({encryption})"));
    if matches!(encryption, Encryption::Repokey | Encryption::RepokeyBlake2) {
        settings.ui.info(format!(
            "{name}: its key is in the repository, protected by the passphrase; `borg key export {location}` saves a copy"
        ));
    }
    Ok(())
}

/// Adds a VM to the configuration file, as it is now. Whoever wrote it may have commented it.
pub(super) fn add_vm(path: &Path, name: &str, vm: Vm) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("add {name} to {}: {error}", path.display()))
            .hint(format!("`strongroom init {name}` does so"))
    };
    let old = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    let table = Config::vm_tables(&BTreeMap::from([(name.to_owned(), vm)]));
    let text = format!("{}\n\n{table}", old.trim_end());
    Config::parse(&text, path).map_err(|error| failed(&error))?;
    replace(path, &text).map_err(|error| failed(&error))
}
