//! How the status of a VM is shown.

use jiff::Timestamp;
use strongroom_engine::inspect::status::{Newest, Run, Vm};
use strongroom_hypervisor::RunState;

use crate::documents::StatusOfVm;
use crate::ui::human;

fn state(vm: &Vm) -> &'static str {
    match vm.state {
        Some(RunState::Running) => "running",
        Some(RunState::Paused) => "paused",
        Some(RunState::ShutOff) => "shut off",
        None => "unknown",
    }
}

/// A line of the table.
pub fn row(vm: &Vm) -> Vec<String> {
    let (time, age) = match &vm.newest {
        Newest::There(time, _) | Newest::Recorded(time, _) => {
            (human::time(*time), human::age(*time, Timestamp::now()))
        }
        Newest::Never => ("never".into(), String::new()),
        Newest::Unknown => ("unknown".into(), String::new()),
    };
    let run = match vm.run {
        Run::None => None,
        Run::UnderWay(Some(since)) => Some(format!("a backup runs since {} UTC", human::time(since))),
        Run::UnderWay(None) => Some("a run is under way".into()),
        Run::Interrupted => Some("the last run was interrupted; the next one tidies up".into()),
    };
    let recorded = matches!(vm.newest, Newest::Recorded(..))
        .then(|| "the last backup is the one on record here".to_owned());
    let notes: Vec<String> = [vm.problem.clone(), run, recorded]
        .into_iter()
        .flatten()
        .collect();
    vec![
        vm.name.clone(),
        state(vm).to_owned(),
        vm.points
            .map_or_else(|| "unknown".into(), |points| points.to_string()),
        time,
        age,
        if vm.tracking { "incremental" } else { "full" }.to_owned(),
        notes.join("; "),
    ]
}

/// The same as JSON. What is not known is `null`.
pub fn document(vm: &Vm) -> StatusOfVm<'_> {
    let (time, archive, source) = match &vm.newest {
        Newest::There(time, archive) => (Some(time), Some(archive), "repository"),
        Newest::Recorded(time, archive) => (Some(time), Some(archive), "records"),
        Newest::Never => (None, None, "repository"),
        Newest::Unknown => (None, None, "unknown"),
    };
    let since = match vm.run {
        Run::UnderWay(since) => since,
        _ => None,
    };
    StatusOfVm {
        vm: &vm.name,
        state: state(vm),
        restore_points: vm.points,
        last_backup: time.copied(),
        last_archive: archive.map(String::as_str),
        last_backup_known_from: source,
        running: matches!(vm.run, Run::UnderWay(_)),
        running_since: since,
        interrupted: vm.run == Run::Interrupted,
        next: if vm.tracking { "incremental" } else { "full" },
        problem: vm.problem.as_deref(),
    }
}
