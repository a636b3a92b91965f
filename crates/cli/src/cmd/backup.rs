//! `strongroom backup`.

use serde_json::json;
use strongroom_engine::backup::{self, BackupError, Outcome, Report};

use crate::args::Backup;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;
use crate::ui::human::bytes;

/// Backs up the VMs one after the other. One that fails does not keep the others from their turn.
pub fn run(settings: &Settings, args: &Backup) -> Result<Exit, Failure> {
    let parts = Settings::parts(settings.config()?)?;
    settings.signals.undo_first();
    let context = settings.context(&parts);
    let mut documents = Vec::new();
    let mut worst = Exit::Done;
    for vm in Settings::chosen(&parts.config, &args.vms)? {
        match backup::run(&context, &vm, args.dry_run) {
            Ok(Outcome::Planned(plan)) => documents.push(json!({ "vm": vm, "plan": plan })),
            Ok(Outcome::Done(report)) => {
                summary(settings, &report);
                documents.push(json!({ "vm": vm, "backup": report }));
            }
            Err(error) => {
                let interrupted = matches!(error, BackupError::Cancelled(_));
                let failure = Failure::from(error);
                documents.push(json!({ "vm": vm, "error": failure.message, "hint": failure.hint }));
                worst = if worst == Exit::Failed {
                    worst
                } else {
                    failure.exit
                };
                settings.ui.failure(&Failure {
                    message: format!("back up {vm}: {}", failure.message),
                    ..failure
                });
                if interrupted {
                    break;
                }
            }
        }
    }
    if settings.ui.json() {
        Ui::document(&json!({ "backups": documents, "warnings": settings.ui.said() }));
    }
    Ok(worst)
}

fn summary(settings: &Settings, report: &Report) {
    if settings.ui.json() {
        return;
    }
    let read: u64 = report.manifest.disks.iter().map(|disk| disk.bytes_read).sum();
    settings.ui.info(format!(
        "{}: {} in {:.1} s, {} read, {} stored",
        report.vm,
        report.archive,
        report.seconds,
        bytes(read),
        bytes(report.bytes_stored),
    ));
}
