//! `strongroom status`.

mod vm;

use strongroom_engine::inspect::status;
use strongroom_engine::inspect::storage::Pool;
use strongroom_engine::run::event::Code;
use strongroom_engine::run::state::StateDirectory;

use crate::args::Status;
use crate::documents;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;
use crate::ui::human::{self, bytes};

/// Says for each VM whether it is protected. A VM that cannot be looked at is a warning.
pub fn run(settings: &Settings, args: &Status) -> Result<Exit, Failure> {
    let resolved = settings.resolve_live()?;
    let names = Settings::chosen(&resolved, &args.vms)?;
    let (mut vms, mut pools) = (Vec::new(), Vec::new());
    for (hypervisor, names) in resolved.by_hypervisor(&names) {
        match settings.parts(&resolved, &hypervisor) {
            Ok(parts) => {
                let context = settings.context(&parts);
                vms.extend(names.iter().map(|name| status::look(&context, name)));
                pools.extend(status::pools(&context, &names));
            }
            Err(failure) => {
                let state = StateDirectory::at(&resolved.state_directory);
                let here = settings.here(&resolved, &state);
                let problem = format!("failed to {}", failure.message);
                vms.extend(
                    names
                        .iter()
                        .map(|name| status::look_without(&here, name, problem.clone())),
                );
            }
        }
    }
    for vm in &vms {
        if let Some(problem) = &vm.problem {
            settings.ui.warn(Code::VmProblem, Some(&vm.name), problem);
        }
    }
    for pool in &pools {
        if let Some(lack) = pool.overcommitted() {
            settings.ui.warn(
                Code::StorageOvercommitted,
                None,
                format!(
                    "{}: guests may yet write {}, but {} are free: {} too little. When it is full, they stop",
                    pool.place.display(),
                    bytes(pool.promised),
                    bytes(pool.free),
                    bytes(lack),
                ),
            );
        }
    }
    if settings.ui.json() {
        let vms = vms.iter().map(vm::document).collect();
        settings
            .ui
            .document_with_warnings(documents::Status { vms, pools: &pools });
        return Ok(Exit::Done);
    }
    let headings = [
        "VM",
        "STATE",
        "POINTS",
        "LAST BACKUP (UTC)",
        "AGE",
        "NEXT",
        "NOTE",
    ];
    for line in human::table(&headings, &vms.iter().map(vm::row).collect::<Vec<_>>()) {
        Ui::out(line);
    }
    if !pools.is_empty() {
        Ui::out(String::new());
        let headings = [
            "STORAGE", "SIZE", "FREE", "IMAGES", "VIRTUAL", "ACTUAL", "PROMISED",
        ];
        for line in human::table(&headings, &pools.iter().map(pool_row).collect::<Vec<_>>()) {
            Ui::out(line);
        }
    }
    Ok(Exit::Done)
}

fn pool_row(pool: &Pool) -> Vec<String> {
    vec![
        pool.place.display().to_string(),
        bytes(pool.size),
        bytes(pool.free),
        pool.images.to_string(),
        bytes(pool.virtual_size),
        bytes(pool.actual),
        bytes(pool.promised),
    ]
}
