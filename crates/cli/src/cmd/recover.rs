//! `strongroom recover`.

use std::sync::Arc;

use strongroom_engine::capture::recover::{Request, recover};
use strongroom_engine::files::unfinished;
use strongroom_engine::run::settings as resolved;

use crate::args::Recover;
use crate::documents::{Recovered, RecoveredVm};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;

/// Undoes what interrupted runs left of the VMs, one after the other. One that stays as it is does not keep the others from
/// their turn.
pub fn run(settings: &Settings, args: &Recover) -> Result<Exit, Failure> {
    let resolved = settings.resolve_live()?;
    let vms = Settings::chosen(&resolved, &args.vms)?;
    settings.signals.undo_first();
    let request = Request {
        dry_run: args.dry_run,
        repair_status: args.repair_libvirt_status,
    };
    let mut documents = Vec::new();
    let mut worst = Exit::Done;
    for (vm, result) in recover_all(settings, &resolved, &vms, request) {
        match result {
            Ok(found) => {
                if !found.is_empty() && worst == Exit::Done {
                    worst = Exit::Warnings;
                }
                if !settings.ui.json() {
                    for line in &found {
                        settings.ui.info(format!("{vm}: {line}"));
                    }
                    let summary = match (found.is_empty(), args.dry_run) {
                        (true, _) => "nothing to do",
                        (false, true) => "a run without --dry-run puts this right",
                        (false, false) => "put right",
                    };
                    settings.ui.info(format!("{vm}: {summary}"));
                }
                documents.push(RecoveredVm::Done { vm, found });
            }
            Err(mut failure) => {
                failure.message.insert_str(0, &format!("recover {vm}: "));
                worst = Exit::Failed;
                settings.ui.failure(&failure);
                let error = failure.message;
                documents.push(RecoveredVm::Failed { vm, error });
            }
        }
    }
    if args.vms.is_empty() {
        match others(settings, &resolved, request) {
            Ok(restores) => {
                for (vm, line) in restores {
                    if worst == Exit::Done {
                        worst = Exit::Warnings;
                    }
                    settings.ui.info(format!("{vm}: {line}"));
                    let found = vec![line];
                    documents.push(RecoveredVm::Done { vm, found });
                }
            }
            Err(failure) => {
                worst = Exit::Failed;
                settings.ui.failure(&failure);
            }
        }
    }
    if settings.ui.json() {
        settings.ui.document_with_warnings(Recovered { vms: documents });
    }
    Ok(worst)
}

/// Interrupted restores of VMs that are not, or not yet, in the configuration: copies, new machines.
fn others(
    settings: &Settings,
    resolved: &Arc<resolved::Settings>,
    request: Request,
) -> Result<Vec<(String, String)>, Failure> {
    let parts = settings.parts(resolved, resolved.default_hypervisor())?;
    let context = settings.context(&parts);
    let mut found = unfinished::recover(&context, None, request.dry_run).map_err(Failure::failed)?;
    let images = &resolved.images;
    let older = unfinished::unjournalled(images, request.dry_run).map_err(|error| {
        Failure::failed(format!(
            "look for what restores left in {}: {error}",
            images.display()
        ))
    })?;
    found.extend(older);
    Ok(found)
}

/// What came of each VM, hypervisor by hypervisor.
fn recover_all<'a>(
    settings: &'a Settings,
    resolved: &'a Arc<resolved::Settings>,
    vms: &[String],
    request: Request,
) -> impl Iterator<Item = (String, Result<Vec<String>, Failure>)> + use<'a> {
    resolved
        .by_hypervisor(vms)
        .into_iter()
        .flat_map(move |(hypervisor, vms)| {
            let mut parts = settings.parts(resolved, &hypervisor);
            let each = move |vm: String| {
                let result = match &mut parts {
                    Ok(parts) => recover(&settings.context(parts), &vm, request).map_err(Failure::failed),
                    Err(failure) => Err(failure.clone()),
                };
                (vm, result)
            };
            vms.into_iter().map(each)
        })
}
