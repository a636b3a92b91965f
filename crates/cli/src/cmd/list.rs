//! `strongroom list`.

use serde_json::json;
use strongroom_borg::{Access, ArchiveInfo};
use strongroom_engine::history::{self, HistoryError};
use strongroom_engine::manifest::{Manifest, Mode};

use crate::args::List;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;
use crate::ui::human::{self, bytes};

/// Lists restore points, oldest first. VMs need not exist any more, nor be configured.
pub fn run(settings: &Settings, args: &List) -> Result<Exit, Failure> {
    let config = settings.config()?;
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    for vm in Settings::chosen(&config, &args.vms)? {
        let mut repository = settings
            .repositories
            .open(&config.repository_of(&vm), Access::Read)?;
        for info in history::points(&repository) {
            let manifest = match history::manifest(&mut repository, &info) {
                Ok(manifest) => manifest,
                Err(HistoryError::Foreign(name)) => {
                    settings.ui.engine(&strongroom_engine::event::Event::Note(format!(
                        "{vm}: archive {name} was not made by strongroom"
                    )));
                    continue;
                }
                Err(error) if error.concerns_one_archive() => {
                    settings.ui.warn(&format!("{vm}: failed to {error}"));
                    rows.push(unreadable_row(&vm, &info));
                    documents.push(
                        json!({ "vm": vm, "archive": info.name.to_string(), "error": error.to_string() }),
                    );
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            rows.push(row(&vm, &info, &manifest));
            documents.push(json!({ "vm": vm, "archive": info.name.to_string(), "manifest": manifest }));
        }
        repository.close()?;
    }
    if settings.ui.json() {
        Ui::document(&json!({ "restore_points": documents, "warnings": settings.ui.said() }));
        return Ok(Exit::Done);
    }
    let headings = [
        "VM",
        "TIME (UTC)",
        "SIZE",
        "READ",
        "STORED",
        "MODE",
        "CONSISTENCY",
        "STALL",
        "ARCHIVE",
    ];
    for line in human::table(&headings, &rows) {
        Ui::out(line);
    }
    Ok(Exit::Done)
}

/// A restore point that cannot be read is one that is missing: it must not be left out in silence.
fn unreadable_row(vm: &str, info: &ArchiveInfo) -> Vec<String> {
    let none = || "-".to_owned();
    vec![
        vm.to_owned(),
        none(),
        none(),
        none(),
        none(),
        "unreadable".to_owned(),
        none(),
        none(),
        info.name.to_string(),
    ]
}

fn row(vm: &str, info: &ArchiveInfo, manifest: &Manifest) -> Vec<String> {
    let sum =
        |part: fn(&strongroom_engine::manifest::DiskRecord) -> u64| manifest.disks.iter().map(part).sum();
    let incremental = manifest
        .disks
        .iter()
        .filter(|disk| disk.mode == Mode::Incremental)
        .count();
    let mode = match (incremental, manifest.disks.len()) {
        (0, _) => "full",
        (some, all) if some == all => "incremental",
        _ => "mixed",
    };
    vec![
        vm.to_owned(),
        human::time(manifest.captured),
        bytes(sum(|disk| disk.size)),
        bytes(sum(|disk| disk.bytes_read)),
        bytes(sum(|disk| disk.bytes_stored)),
        // Whatever was taken from earlier restore points is in doubt.
        if manifest.disks.iter().any(|disk| disk.map_wrong_at.is_some()) {
            format!("{mode}, MAP WRONG")
        } else {
            mode.to_owned()
        },
        human::consistency(manifest.consistency).to_owned(),
        format!("{} ms", manifest.stall_us / 1000),
        info.name.to_string(),
    ]
}
