//! `strongroom status`.

use jiff::Timestamp;
use serde_json::{Value, json};
use strongroom_borg::{Access, ArchiveInfo};
use strongroom_engine::vm::{Hypervisor as _, HypervisorError, RunState};

use crate::args::Status;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Parts, Settings};
use crate::ui::Ui;
use crate::ui::human;

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

/// Says for each VM whether it is protected. A VM that cannot be looked at is a warning.
pub fn run(settings: &Settings, args: &Status) -> Result<Exit, Failure> {
    let parts = Settings::parts(settings.config()?)?;
    let names = Settings::chosen(&parts.config, &args.vms)?;
    let vms: Vec<Vm> = names.iter().map(|name| look(settings, &parts, name)).collect();
    for vm in &vms {
        if let Some(problem) = &vm.problem {
            settings.ui.warn(&format!("{}: {problem}", vm.name));
        }
    }
    if settings.ui.json() {
        Ui::document(&json!({ "vms": vms.iter().map(document).collect::<Vec<_>>() }));
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
    Ok(Exit::Done)
}

fn look(settings: &Settings, parts: &Parts, name: &str) -> Vm {
    let mut vm = Vm {
        name: name.to_owned(),
        state: None,
        newest: None,
        points: 0,
        interrupted: false,
        tracking: false,
        problem: None,
    };
    match parts.hypervisor.domain(name) {
        Ok(domain) => {
            vm.state = Some(domain.state);
            match parts.state.peek(domain.uuid) {
                Ok(Some(records)) => {
                    vm.interrupted = records.run.is_some();
                    vm.tracking = records.committed.is_some();
                }
                Ok(None) => {}
                Err(error) => vm.problem = Some(format!("failed to {error}")),
            }
        }
        Err(HypervisorError::NoSuchDomain(..)) => vm.problem = Some("the hypervisor does not know it".into()),
        Err(error) => vm.problem = Some(format!("failed to {error}")),
    }
    match archives(settings, &parts.config.repository_of(name)) {
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
    let archives = repository.archives().cloned().collect();
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
