//! `strongroom recover`.

use serde_json::json;
use strongroom_engine::recover::{Request, recover};

use crate::args::Recover;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;

/// Undoes what interrupted runs left of the VMs, one after the other. One that stays as it is does not keep the others from
/// their turn.
pub fn run(settings: &Settings, args: &Recover) -> Result<Exit, Failure> {
    let parts = Settings::parts(settings.config()?)?;
    settings.signals.undo_first();
    let context = settings.context(&parts);
    let request = Request {
        dry_run: args.dry_run,
        repair_status: args.repair_libvirt_status,
    };
    let mut documents = Vec::new();
    let mut worst = Exit::Done;
    for vm in Settings::chosen(&parts.config, &args.vms)? {
        match recover(&context, &vm, request) {
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
                documents.push(json!({ "vm": vm, "found": found }));
            }
            Err(error) => {
                let failure = Failure::failed(format!("recover {vm}: {error}"));
                documents.push(json!({ "vm": vm, "error": failure.message }));
                worst = Exit::Failed;
                settings.ui.failure(&failure);
            }
        }
    }
    if settings.ui.json() {
        Ui::document(&json!({ "vms": documents, "warnings": settings.ui.said() }));
    }
    Ok(worst)
}
