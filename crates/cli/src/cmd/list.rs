//! `strongroom list`.

use strongroom_engine::run::context::Surroundings;
use strongroom_engine::run::event::{Code, Event, Kind, Observer as _};
use strongroom_engine::run::state::StateDirectory;
use strongroom_points::catalog::Catalog;
use strongroom_points::manifest::{Manifest, Mode};
use strongroom_points::store::{Access, ArchiveInfo};
use strongroom_points::trust::chain::Head;
use strongroom_points::trust::{self, Standing};

use crate::args::List;
use crate::documents::{Listed, ListedPoint, ProblemOfVm};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;
use crate::ui::human::{self, bytes};

/// What was found so far.
#[derive(Default)]
struct Found {
    rows: Vec<Vec<String>>,
    documents: Vec<ListedPoint>,
}

/// Lists restore points in the order of their numbers. VMs need not exist any more, nor be configured. A repository that cannot be read does not
/// keep the others from being listed.
pub fn run(settings: &Settings, args: &List) -> Result<Exit, Failure> {
    let resolved = settings.resolve_stored()?;
    let state = StateDirectory::at(&resolved.state_directory);
    let here = settings.here(&resolved, &state);
    let witnessed = trust::witnessed(&here.grounds());
    let (mut found, mut problems) = (Found::default(), Vec::new());
    let mut exit = Exit::Done;
    let vms = Settings::chosen(&resolved, &args.vms)?;
    for vm in &vms {
        settings.signals.cancel().check().map_err(Failure::failed)?;
        if let Err(mut failure) = list(&here, &settings.ui, &witnessed, vm, &mut found) {
            failure.message.insert_str(0, &format!("list {vm}: "));
            if vms.len() == 1 {
                return Err(failure);
            }
            settings.ui.failure(&failure);
            problems.push(ProblemOfVm {
                vm: vm.clone(),
                error: failure.message,
                hint: failure.hint,
            });
            exit = Exit::Failed;
        }
    }
    if settings.ui.json() {
        settings.ui.document_with_warnings(Listed {
            restore_points: found.documents,
            problems,
        });
        return Ok(exit);
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
    for line in human::table(&headings, &found.rows) {
        Ui::out(line);
    }
    Ok(exit)
}

/// Adds the restore points of one VM, by number.
fn list(
    here: &Surroundings<'_>,
    ui: &Ui,
    witnessed: &[Head],
    vm: &str,
    found: &mut Found,
) -> Result<(), Failure> {
    let job = here.settings.job(vm);
    let mut repository = here.repositories.open_as_it_is(&job.repository, Access::Read)?;
    let catalog = Catalog::read(&mut repository)?;
    for name in &catalog.foreign {
        let text = format!("archive {name} was not made by strongroom");
        ui.event(&Event::now(Some(vm), Kind::note(text)));
    }
    for (info, error) in &catalog.unreadable {
        ui.warn(Code::ArchivePassedOver, Some(vm), format!("failed to {error}"));
        found.rows.push(unreadable_row(vm, info));
        found.documents.push(ListedPoint::Unreadable {
            vm: vm.to_owned(),
            archive: info.name.to_string(),
            error: error.clone(),
        });
    }
    for entry in &catalog.entries {
        found.rows.push(row(vm, &entry.info, &entry.manifest));
        found.documents.push(ListedPoint::Readable {
            vm: vm.to_owned(),
            archive: entry.name(),
            manifest: Box::new(entry.manifest.clone()),
        });
    }
    let records = trust::recall(&here.grounds(), vm, &repository.id().to_string(), witnessed);
    let standing = Standing::of(&here.grounds(), &repository, &catalog.of(vm), &records);
    if let Some(line) = standing.line(vm) {
        ui.warn(Code::RestorePointMissing, Some(vm), line);
    }
    repository.close()?;
    Ok(())
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
        |part: fn(&strongroom_points::manifest::DiskRecord) -> u64| manifest.disks.iter().map(part).sum();
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
