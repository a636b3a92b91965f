//! `strongroom show`.

use strongroom_engine::run::event::Code;
use strongroom_engine::run::state::StateDirectory;
use strongroom_points::catalog::{Catalog, Entry};
use strongroom_points::manifest::{DiskRecord, Manifest};
use strongroom_points::store::Access;
use strongroom_points::trust::{self, Standing};

use crate::args::Show;
use crate::documents::Shown;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;
use crate::ui::human::{self, bytes};

/// Shows one restore point.
pub fn run(settings: &Settings, args: &Show) -> Result<Exit, Failure> {
    let resolved = settings.resolve_stored()?;
    let point = Settings::point(&resolved, &args.point)?;
    let state = StateDirectory::at(&resolved.state_directory);
    let (here, vm) = (settings.here(&resolved, &state), &point.vm);
    let mut repository = settings
        .repositories
        .open_as_it_is(&resolved.job(vm).repository, Access::Read)?;
    let catalog = Catalog::look(&mut repository, state.path())?;
    let Entry { info, manifest, .. } = catalog.find(&point)?;
    let witnessed = trust::witnessed(&here.grounds());
    let records = trust::recall(&here.grounds(), vm, &repository.id().to_string(), &witnessed);
    let standing = Standing::of(&here.grounds(), &repository, &catalog.of(vm), &records);
    if let Some(line) = standing.line(vm) {
        settings.ui.warn(Code::RestorePointMissing, Some(vm), line);
    }
    repository.close()?;
    if settings.ui.json() {
        Ui::document(&Shown {
            archive: info.name.to_string(),
            manifest,
        });
        return Ok(Exit::Done);
    }
    print(settings, &info.name.to_string(), manifest);
    Ok(Exit::Done)
}

fn print(_settings: &Settings, archive: &str, manifest: &Manifest) {
    let line = |name: &str, value: String| Ui::out(format!("{name:<13}{value}"));
    line("Archive", archive.to_owned());
    line("VM", format!("{} ({})", manifest.vm.name, manifest.vm.uuid));
    line("Captured", format!("{} UTC", human::time(manifest.captured)));
    line(
        "Method",
        match &manifest.method_reason {
            Some(why) => format!("{} ({why})", human::method(manifest.method)),
            None => human::method(manifest.method).to_owned(),
        },
    );
    line("Consistency", consistency_line(manifest));
    if let Some(missed) = &manifest.missed {
        line("Missed", missed.clone());
    }
    line(
        "Stall",
        format!("{} ms at most", manifest.stall_us.div_ceil(1000)),
    );
    line("Sequence", manifest.sequence.to_string());
    line(
        "Checkpoint",
        manifest.checkpoint.clone().unwrap_or_else(|| "none".into()),
    );
    for disk in &manifest.disks {
        line("Disk", disk_line(disk));
        if let Some(offset) = disk.map_wrong_at {
            line(
                "",
                format!(
                    "MAP OF CHANGES WRONG at offset {offset}: earlier incremental restore points of {} may lack changes",
                    disk.target
                ),
            );
        }
        for luks in &disk.luks {
            line(
                "",
                format!("LUKS{} at {}, UUID {}", luks.version, luks.offset, luks.uuid),
            );
        }
    }
    for disk in &manifest.excluded {
        let size = disk.size.map(bytes).unwrap_or_default();
        line(
            "Left out",
            format!("{} {size} ({})", disk.target, human::exclusion(disk.why)),
        );
    }
    for file in &manifest.files {
        line("File", format!("{} {}", file.path, file.sha256));
    }
}

fn consistency_line(manifest: &Manifest) -> String {
    let level = human::consistency(manifest.consistency);
    match manifest.frozen_us {
        0 => level.to_owned(),
        frozen => format!("{level}, frozen for {} ms", frozen.div_ceil(1000)),
    }
}

fn disk_line(disk: &DiskRecord) -> String {
    format!(
        "{} {}: {} ({}), {} read, {} stored, {} chunks",
        disk.target,
        bytes(disk.size),
        human::mode(disk.mode),
        disk.reason,
        bytes(disk.bytes_read),
        bytes(disk.bytes_stored),
        disk.chunks,
    )
}
