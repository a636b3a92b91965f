//! `strongroom template`.

use std::path::PathBuf;

use strongroom_engine::config::Signing;
use strongroom_engine::provision::template::build::{Build, Import, Release, Source, build};
use strongroom_engine::provision::template::{Description, Store, TemplateError};
use strongroom_engine::run::event::Code;
use strongroom_engine::run::settings as resolved;

use crate::args::{ImportFormat, Release as Wanted, Template, TemplateCommand};
use crate::documents::{Removed, Templates};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;
use crate::ui::human::{bytes, table};

/// The program of the throwaway VM, where it is not beside this one.
const INSTALLED: &str = "/usr/lib/strongroom/strongroom-guest";

/// Does it.
pub fn run(settings: &Settings, args: &Template) -> Result<Exit, Failure> {
    let resolved = settings.resolve()?;
    let (store, signing) = store(&resolved);
    match &args.command {
        TemplateCommand::Build {
            release,
            name,
            packages,
            customize_hook,
        } => {
            let release = match release {
                Wanted::Debian12 => Release::Debian12,
                Wanted::Debian13 => Release::Debian13,
            };
            let wanted = Build {
                name: name.as_deref().unwrap_or(release.name()),
                source: Source::Debian(release),
                packages,
                hook: customize_hook.as_deref(),
                program: &program()?,
            };
            make(settings, &store, &signing, &wanted)?;
        }
        TemplateCommand::Import {
            file,
            name,
            format,
            packages,
            customize_hook,
        } => {
            let format = match format {
                Some(ImportFormat::Tar) => Import::Tar,
                Some(ImportFormat::Qcow2) => Import::Qcow2,
                Some(ImportFormat::Raw) => Import::Raw,
                None => Import::of_name(file).ok_or_else(|| {
                    Failure::usage(format!(
                        "import {}: its name does not say what it is",
                        file.display()
                    ))
                    .hint("--format says it")
                })?,
            };
            let wanted = Build {
                name,
                source: Source::Import { file, format },
                packages,
                hook: customize_hook.as_deref(),
                program: &program()?,
            };
            make(settings, &store, &signing, &wanted)?;
        }
        TemplateCommand::List => list(settings, &store, &signing)?,
        TemplateCommand::Verify { names } => {
            let mut good = Vec::new();
            for name in &if names.is_empty() {
                store.names()?
            } else {
                names.clone()
            } {
                let template = store.open(name, &signing, settings.signals.cancel())?;
                settings.ui.info(format!(
                    "{name}: every byte is what {} has signed",
                    template.signer.identity
                ));
                good.push(template.description);
            }
            document(settings, &good);
        }
        TemplateCommand::Rm { names } => {
            for name in names {
                store.remove(name)?;
                settings.ui.info(format!("{name}: removed"));
            }
            if settings.ui.json() {
                Ui::document(&Removed { removed: names });
            }
        }
    }
    Ok(Exit::Done)
}

fn make(settings: &Settings, store: &Store, signing: &Signing, wanted: &Build<'_>) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::usage(
            "make a template: file owners are kept only by root",
        ));
    }
    settings.signals.undo_first();
    let made = build(store, wanted, signing, &*settings.ui, settings.signals.cancel())?;
    let size: u64 = made.files.values().map(|file| file.size).sum();
    settings.ui.info(format!(
        "template {}: {}, {} packages, {}",
        made.name,
        made.source,
        made.packages.len(),
        bytes(size)
    ));
    document(settings, &[made]);
    Ok(())
}

/// Where templates are, and who signs them.
pub(super) fn store(settings: &resolved::Settings) -> (Store, Signing) {
    (
        Store::new(settings.templates_directory.clone()),
        settings.signing.clone().unwrap_or_default(),
    )
}

fn document(settings: &Settings, templates: &[Description]) {
    if settings.ui.json() {
        Ui::document(&Templates { templates });
    }
}

fn list(settings: &Settings, store: &Store, signing: &Signing) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut all = Vec::new();
    for name in store.names()? {
        match store.describe(&name, signing, settings.signals.cancel()) {
            Ok((description, signer)) => {
                let size = description.files.values().map(|file| file.size).sum();
                rows.push(vec![
                    name,
                    description.source.clone(),
                    description.created.strftime("%Y-%m-%d").to_string(),
                    description.kernel.clone(),
                    bytes(size),
                    signer.identity,
                ]);
                all.push(description);
            }
            Err(TemplateError::Cancelled(cancelled)) => return Err(Failure::failed(cancelled)),
            Err(error) => settings
                .ui
                .warn(Code::TemplateUnreadable, None, format!("failed to {error}")),
        }
    }
    if settings.ui.json() {
        settings.ui.document_with_warnings(Templates { templates: &all });
    } else {
        for line in table(
            &["NAME", "SOURCE", "CREATED", "KERNEL", "SIZE", "SIGNED BY"],
            &rows,
        ) {
            Ui::out(line);
        }
    }
    Ok(())
}

/// The program of the throwaway VM: as the environment says, beside this program, or where packages put it.
fn program() -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os("STRONGROOM_GUEST") {
        return Ok(path.into());
    }
    let beside = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name("strongroom-guest"));
    beside
        .into_iter()
        .chain([PathBuf::from(INSTALLED)])
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Failure::failed(format!(
                "find the program of the throwaway VM: strongroom-guest is neither beside this program nor {INSTALLED}"
            ))
            .hint("`make build` makes it; STRONGROOM_GUEST can name it")
        })
}
