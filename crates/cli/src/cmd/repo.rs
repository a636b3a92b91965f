//! `strongroom repo`.

use strongroom_points::store::Access;

use crate::args::{Repo, RepoCommand};
use crate::documents::{AppendOnly, AppendOnlyVm};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;

/// Looks after repositories.
pub fn run(settings: &Settings, args: &Repo) -> Result<Exit, Failure> {
    match &args.command {
        RepoCommand::TestAppendOnly { vms } => test_append_only(settings, vms),
    }
}

/// Asks each server whether it keeps what this client deletes.
fn test_append_only(settings: &Settings, vms: &[String]) -> Result<Exit, Failure> {
    let resolved = settings.resolve()?;
    settings.signals.undo_first();
    let mut exit = Exit::Done;
    let mut documents = Vec::new();
    for vm in Settings::chosen(&resolved, vms)? {
        let location = resolved.job(&vm).repository.clone();
        let probe = || -> Result<bool, Failure> {
            let repository = settings.repositories.open(&location, Access::Write)?;
            Ok(repository.probe_append_only()?)
        };
        let append_only = match probe() {
            Ok(append_only) => append_only,
            Err(mut failure) => {
                settings.signals.cancel().check().map_err(Failure::failed)?;
                failure
                    .message
                    .insert_str(0, &format!("test the repository of {vm}: "));
                settings.ui.failure(&failure);
                let error = failure.message;
                documents.push(AppendOnlyVm::Failed {
                    vm,
                    repository: location,
                    error,
                });
                exit = Exit::Failed;
                continue;
            }
        };
        if append_only {
            settings.ui.info(format!(
                "{vm}: append-only: what this client deletes or overwrites can be brought back on the server"
            ));
        } else {
            exit = Exit::Failed;
            settings.ui.failure(
                &Failure::failed(format!(
                    "prove {vm} safe from this client: {location} is not append-only, so this client can destroy it"
                ))
                .hint("`borg serve --append-only --restrict-to-repository PATH` as the forced command of its SSH key"),
            );
        }
        documents.push(AppendOnlyVm::Known {
            vm,
            repository: location,
            append_only,
        });
    }
    if settings.ui.json() {
        Ui::document(&AppendOnly {
            append_only: documents,
        });
    }
    Ok(exit)
}
