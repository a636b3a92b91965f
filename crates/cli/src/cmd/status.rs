//! `strongroom status`.

use jiff::Timestamp;
use serde_json::{Value, json};
use strongroom_borg::{Access, ArchiveInfo};
use strongroom_engine::config::Config;
use strongroom_engine::history;
use strongroom_engine::storage::{self, Pool};
use strongroom_engine::vm::{Domain, Hypervisor as _, HypervisorError, RunState};

use crate::args::Status;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Parts, Settings};
use crate::ui::Ui;
use crate::ui::human::{self, bytes};

/// What is known of one VM.
struct Vm {
    name: String,
    state: Option<RunState>,
    newest: Option<ArchiveInfo>,
    points: usize,
    interrupted: bool,
    tracking: bool,
    problem: Option<String>,
}

impl Vm {
    fn unknown(name: &str, problem: impl Into<Option<String>>) -> Self {
        Self {
            name: name.to_owned(),
            state: None,
            newest: None,
            points: 0,
            interrupted: false,
            tracking: false,
            problem: problem.into(),
        }
    }
}

/// Says for each VM whether it is protected. A VM that cannot be looked at is a warning.
pub fn run(settings: &Settings, args: &Status) -> Result<Exit, Failure> {
    let config = settings.config()?;
    let names = Settings::chosen(&config, &args.vms)?;
    let (mut vms, mut pools) = (Vec::new(), Vec::new());
    for (config, names) in config.by_hypervisor(&names) {
        match Settings::parts(config.clone()) {
            Ok(parts) => {
                vms.extend(names.iter().map(|name| look(settings, &parts, name)));
                pools.extend(storage_of(settings, &parts, &names));
            }
            Err(failure) => vms.extend(names.iter().map(|name| {
                let unknown = Vm::unknown(name, format!("failed to {}", failure.message));
                with_archives(settings, &config, unknown)
            })),
        }
    }
    for vm in &vms {
        if let Some(problem) = &vm.problem {
            settings.ui.warn(&format!("{}: {problem}", vm.name));
        }
    }
    for pool in &pools {
        if let Some(lack) = pool.overcommitted() {
            settings.ui.warn(&format!(
                "{}: guests may yet write {}, but {} are free: {} too little. When it is full, they stop",
                pool.place.display(),
                bytes(pool.promised),
                bytes(pool.free),
                bytes(lack),
            ));
        }
    }
    if settings.ui.json() {
        let vms: Vec<Value> = vms.iter().map(document).collect();
        Ui::document(&json!({ "vms": vms, "pools": pools, "warnings": settings.ui.said() }));
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
    for line in human::table(&headings, &vms.iter().map(row).collect::<Vec<_>>()) {
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
        settings
            .ui
            .warn(&format!("the storage of the images cannot be told: {error}"));
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

fn look(settings: &Settings, parts: &Parts, name: &str) -> Vm {
    let mut vm = Vm::unknown(name, None);
    match parts.hypervisor.domain(name) {
        Ok(domain) => {
            vm.state = Some(domain.state);
            match parts.state.peek(domain.uuid) {
                Ok(Some(records)) => {
                    vm.interrupted = records.run.is_some();
                    // The records alone prove nothing: somebody may have deleted the checkpoint.
                    vm.tracking = records.committed.is_some_and(|committed| {
                        let there = parts.hypervisor.checkpoints(domain.uuid);
                        there.is_ok_and(|names| names.contains(&committed.checkpoint))
                    });
                }
                Ok(None) => {}
                Err(error) => vm.problem = Some(format!("failed to {error}")),
            }
        }
        Err(HypervisorError::NoSuchDomain(..)) => vm.problem = Some("the hypervisor does not know it".into()),
        Err(error) => vm.problem = Some(format!("failed to {error}")),
    }
    with_archives(settings, &parts.config, vm)
}

fn with_archives(settings: &Settings, config: &Config, mut vm: Vm) -> Vm {
    match archives(settings, &config.repository_of(&vm.name)) {
        Ok(archives) => {
            vm.points = archives.len();
            vm.newest = archives.into_iter().max_by_key(|info| info.time);
            if vm.newest.is_none() {
                vm.problem.get_or_insert("there is no backup".into());
            }
        }
        Err(error) => vm.problem = Some(format!("failed to {error}")),
    }
    vm
}

fn archives(settings: &Settings, location: &str) -> Result<Vec<ArchiveInfo>, strongroom_borg::Error> {
    let repository = settings.repositories.open(location, Access::Read)?;
    let archives = history::points(&repository);
    repository.close()?;
    Ok(archives)
}

fn state(vm: &Vm) -> &'static str {
    match vm.state {
        Some(RunState::Running) => "running",
        Some(RunState::Paused) => "paused",
        Some(RunState::ShutOff) => "shut off",
        None => "unknown",
    }
}

fn row(vm: &Vm) -> Vec<String> {
    let newest = vm.newest.as_ref();
    vec![
        vm.name.clone(),
        state(vm).to_owned(),
        vm.points.to_string(),
        newest.map_or_else(|| "never".into(), |info| human::time(info.time)),
        newest.map_or_else(String::new, |info| human::age(info.time, Timestamp::now())),
        if vm.tracking { "incremental" } else { "full" }.to_owned(),
        match (&vm.problem, vm.interrupted) {
            (Some(problem), _) => problem.clone(),
            (None, true) => "the last run was interrupted; the next one tidies up".into(),
            (None, false) => String::new(),
        },
    ]
}

fn document(vm: &Vm) -> Value {
    json!({
        "vm": vm.name,
        "state": state(vm),
        "restore_points": vm.points,
        "last_backup": vm.newest.as_ref().map(|info| info.time),
        "last_archive": vm.newest.as_ref().map(|info| info.name.to_string()),
        "interrupted": vm.interrupted,
        "next": if vm.tracking { "incremental" } else { "full" },
        "problem": vm.problem,
    })
}
