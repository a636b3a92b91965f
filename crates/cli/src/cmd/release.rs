//! `strongroom release`.

use strongroom_engine::capture::release::release;

use crate::args::LetGo;
use crate::documents::{Released, ReleasedVm};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;

/// Lets go of VMs, one after the other. One that cannot be let go of does not keep the others from their turn.
pub fn run(settings: &Settings, args: &LetGo) -> Result<Exit, Failure> {
    let resolved = settings.resolve()?;
    settings.signals.undo_first();
    let mut documents = Vec::new();
    let mut worst = Exit::Done;
    for (hypervisor, vms) in resolved.by_hypervisor(&args.vms) {
        let parts = settings.parts(&resolved, &hypervisor)?;
        for vm in vms {
            match release(&settings.context(&parts), &vm, args.dry_run) {
                Ok(found) => {
                    say(settings, &vm, &found, args.dry_run);
                    documents.push(ReleasedVm::Done {
                        vm,
                        found,
                        removed: !args.dry_run,
                    });
                }
                Err(error) => {
                    let failure = Failure::failed(format!("release {vm}: {error}"));
                    worst = Exit::Failed;
                    settings.ui.failure(&failure);
                    let error = failure.message;
                    documents.push(ReleasedVm::Failed { vm, error });
                }
            }
        }
    }
    if settings.ui.json() {
        settings.ui.document_with_warnings(Released { vms: documents });
    }
    Ok(worst)
}

fn say(settings: &Settings, vm: &str, found: &[String], dry_run: bool) {
    if settings.ui.json() {
        return;
    }
    for line in found {
        settings.ui.info(format!("{vm}: {line}"));
    }
    let summary = match (found.is_empty(), dry_run) {
        (true, _) => "nothing of strongroom's is there",
        (false, true) => "a run without --dry-run removes this",
        (false, false) => "let go of; the next backup reads everything",
    };
    settings.ui.info(format!("{vm}: {summary}"));
}
