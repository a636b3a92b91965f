//! `strongroom status`.

mod vm;

use strongroom_engine::inspect::storage::{self, Pool};
use strongroom_engine::run::event::Code;
use strongroom_hypervisor::{Domain, Hypervisor as _};

use crate::args::Status;
use crate::documents;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Parts, Settings};
use crate::ui::Ui;
use crate::ui::human::{self, bytes};

/// Says for each VM whether it is protected. A VM that cannot be looked at is a warning.
pub fn run(settings: &Settings, args: &Status) -> Result<Exit, Failure> {
    let resolved = settings.resolve_live()?;
    let names = Settings::chosen(&resolved, &args.vms)?;
    let (mut vms, mut pools) = (Vec::new(), Vec::new());
    for (hypervisor, names) in resolved.by_hypervisor(&names) {
        match Settings::parts(&resolved, &hypervisor) {
            Ok(parts) => {
                vms.extend(names.iter().map(|name| vm::look(settings, &parts, name)));
                pools.extend(storage_of(settings, &parts, &names));
            }
            Err(failure) => vms.extend(names.iter().map(|name| {
                vm::look_without(
                    settings,
                    &resolved,
                    name,
                    format!("failed to {}", failure.message),
                )
            })),
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

/// The storage of these VMs' images, with what all VMs of the hypervisor have there. Empty for a hypervisor on another
/// machine, whose storage is not to be seen from here.
fn storage_of(settings: &Settings, parts: &Parts, names: &[String]) -> Vec<Pool> {
    let look = || -> Result<Vec<Pool>, String> {
        let all = parts
            .hypervisor
            .domain_names()
            .map_err(|error| error.to_string())?;
        // One that cannot be read is a warning already, or none of ours.
        let domains = |names: &[String]| -> Vec<Domain> {
            let found = names.iter().map(|name| parts.hypervisor.domain(name));
            found.filter_map(Result::ok).collect()
        };
        let failed = |error: std::io::Error| error.to_string();
        let ours = storage::pools(&domains(names)).map_err(failed)?;
        let mut pools = storage::pools(&domains(&all)).map_err(failed)?;
        pools.retain(|pool| ours.iter().any(|other| other.place == pool.place));
        Ok(pools)
    };
    if !parts.hypervisor.is_local() {
        return Vec::new();
    }
    look().unwrap_or_else(|error| {
        settings.ui.warn(
            Code::StorageUnknown,
            None,
            format!("the storage of the images is unknown: {error}"),
        );
        Vec::new()
    })
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
