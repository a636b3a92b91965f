//! Editing the configuration file: text is added to it, and what is there stays as it is.

use std::collections::BTreeMap;
use std::path::Path;

use strongroom_engine::config::{Config, Signing, Vm};

use crate::args::Init;
use crate::failure::Failure;
use crate::replace::replace;
use crate::settings::Settings;

/// What the configuration is to be.
pub struct Draft {
    pub config: Config,
    /// The file's text, if it changes.
    pub text: Option<String>,
    /// Who signs, if that is new.
    pub new_signing: Option<Signing>,
}

/// Adds what is missing to the configuration; checks all of it before anything is made.
pub fn draft(settings: &Settings, args: &Init) -> Result<Draft, Failure> {
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
        Some(key) => signing(&config, file, key)?,
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
        // You may have commented the file.
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

/// What `[signing]` is to say; nothing if it says so already.
fn signing(config: &Config, file: &Path, key: &Path) -> Result<Option<Signing>, Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Failure::failed(format!("find {}: {error}", path.display())))
    };
    let key = absolute(key)?;
    if let Some(signing) = &config.signing {
        return if signing.key.as_ref() == Some(&key) {
            Ok(None)
        } else {
            Err(
                Failure::usage("change the signing key: [signing] is configured already").hint(format!(
                    "edit [signing] in {}; docs/guide/verify.md tells how keys are changed",
                    file.display()
                )),
            )
        };
    }
    Ok(Some(Signing {
        key: Some(key),
        identity: Some(identity()),
        allowed_signers: Some(absolute(file)?.with_file_name("allowed_signers")),
        revoked_keys: None,
    }))
}

/// `strongroom@HOST`.
fn identity() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let word: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c))
        .collect();
    format!("strongroom@{}", if word.is_empty() { "localhost" } else { &word })
}

/// Adds a VM to the configuration file, as it is now. You may have commented it.
pub fn add_vm(path: &Path, name: &str, vm: Vm) -> Result<(), Failure> {
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
