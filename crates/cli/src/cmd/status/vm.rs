//! What is known of one VM: from the hypervisor, from our own records, and from its repository, which is read without a lock, so
//! that a backup that runs meanwhile is no reason to wait.

use std::sync::Arc;

use jiff::Timestamp;
use strongroom_borg::{Access, ArchiveInfo};
use strongroom_engine::capture::tracking;
use strongroom_engine::config::uuid_in;
use strongroom_engine::run::event::Code;
use strongroom_engine::run::settings::{self as resolved, VmJob};
use strongroom_engine::run::state::{Records, StateDirectory};
use strongroom_hypervisor::{Domain, Hypervisor as _, HypervisorError, RunState};
use strongroom_points::archive::HistoryError;
use strongroom_points::catalog::{Catalog, Entry};
use strongroom_points::names::archive_prefix;
use strongroom_points::trust::memory::Memory;
use strongroom_points::trust::{self, Standing};

use crate::documents::StatusOfVm;
use crate::settings::{Parts, Settings};
use crate::ui::human;

/// The time in an archive's name, as a run writes it.
const TIME: &str = "%Y-%m-%dT%H:%M:%S%.fZ";

/// What is known of one VM.
pub struct Vm {
    pub name: String,
    state: Option<RunState>,
    newest: Newest,
    /// How many restore points there are; nothing if the repository cannot be asked.
    points: Option<usize>,
    run: Run,
    tracking: bool,
    pub problem: Option<String>,
}

/// The newest restore point.
enum Newest {
    /// In the repository: its time, and its archive.
    There(Timestamp, String),
    /// On record here, since the repository cannot be asked.
    Recorded(Timestamp, String),
    /// There is none.
    Never,
    /// The repository cannot be asked, and nothing is on record.
    Unknown,
}

/// What runs, or did.
#[derive(PartialEq)]
enum Run {
    None,
    /// Under way, since then; without a time it has not come to the guest yet.
    UnderWay(Option<Timestamp>),
    Interrupted,
}

impl Vm {
    /// Of which nothing is known, for this reason.
    fn unknown(name: &str, problem: Option<String>) -> Self {
        Self {
            name: name.to_owned(),
            state: None,
            newest: Newest::Unknown,
            points: None,
            run: Run::None,
            tracking: false,
            problem,
        }
    }
}

/// Looks at a VM whose hypervisor answers.
pub fn look(settings: &Settings, parts: &Parts, name: &str) -> Vm {
    let job = parts.settings.job(name);
    let mut vm = Vm::unknown(name, None);
    let mut names = vec![name.to_owned()];
    match parts.hypervisor.domain(&job.domain()) {
        Ok(domain) => {
            vm.state = Some(domain.state);
            recorded(&mut vm, parts, &job, &domain);
            names.push(domain.name);
        }
        Err(HypervisorError::NoSuchDomain(..)) => vm.problem = Some("the hypervisor does not know it".into()),
        Err(error) => vm.problem = Some(format!("failed to {error}")),
    }
    with_archives(settings, &parts.settings, &job, vm, &names)
}

/// Looks at a VM whose hypervisor does not answer.
pub fn look_without(
    settings: &Settings,
    resolved: &Arc<resolved::Settings>,
    name: &str,
    problem: String,
) -> Vm {
    let vm = Vm::unknown(name, Some(problem));
    with_archives(settings, resolved, &resolved.job(name), vm, &[name.to_owned()])
}

fn recorded(vm: &mut Vm, parts: &Parts, job: &VmJob, domain: &Domain) {
    let records = parts.state.peek(domain.uuid);
    // After the records: a run that has ended meanwhile has left nothing open in what is read next.
    let under_way = parts.state.is_worked_on(domain.uuid);
    let records = match records {
        Ok(records) if under_way => records,
        Ok(_) => match parts.state.peek(domain.uuid) {
            Ok(records) => records,
            Err(error) => return vm.problem = Some(format!("failed to {error}")),
        },
        Err(error) => return vm.problem = Some(format!("failed to {error}")),
    };
    vm.run = run(records.as_ref(), under_way);
    let checkpoints = parts.hypervisor.checkpoints(domain.uuid).unwrap_or_default();
    // The records alone prove nothing: the checkpoint may have been deleted.
    vm.tracking = records
        .and_then(|records| records.committed)
        .is_some_and(|committed| checkpoints.contains(&committed.checkpoint));
    if !job.track_beside_snapshots {
        vm.problem = tracking::conflict(domain, &checkpoints);
    }
}

fn run(records: Option<&Records>, under_way: bool) -> Run {
    let open = records.and_then(|records| records.run.as_ref());
    match (under_way, open) {
        (true, open) => Run::UnderWay(open.map(|run| run.started)),
        (false, Some(_)) => Run::Interrupted,
        (false, None) => Run::None,
    }
}

/// Adds what the repository has of the VM, which may have gone by each of these names.
fn with_archives(
    settings: &Settings,
    resolved: &Arc<resolved::Settings>,
    job: &VmJob,
    mut vm: Vm,
    names: &[String],
) -> Vm {
    match archives(settings, resolved, &job.repository, names) {
        Ok(Found {
            points,
            newest,
            problem,
        }) => {
            vm.points = Some(points);
            vm.problem = vm.problem.take().or(problem);
            vm.newest = newest.map_or(Newest::Never, |(time, archive)| Newest::There(time, archive));
            if matches!(vm.newest, Newest::Never) && vm.run == Run::None {
                vm.problem.get_or_insert("there is no backup".into());
            }
        }
        Err(error) => {
            vm.problem = Some(format!("failed to {error}"));
            vm.newest = on_record(resolved, names)
                .map_or(Newest::Unknown, |(time, archive)| Newest::Recorded(time, archive));
        }
    }
    vm
}

/// What a repository has of a VM.
struct Found {
    /// How many restore points, those that cannot be read included.
    points: usize,
    /// The newest: its time, and its archive.
    newest: Option<(Timestamp, String)>,
    /// What does not fit the record.
    problem: Option<String>,
}

/// Looks into the repository. Archives of others do not count, nor those of other VMs.
fn archives(
    settings: &Settings,
    resolved: &Arc<resolved::Settings>,
    location: &str,
    names: &[String],
) -> Result<Found, HistoryError> {
    let state = StateDirectory::at(&resolved.state_directory);
    let here = settings.here(resolved, &state);
    let mut repository = settings
        .repositories
        .open_as_it_is(location, Access::ReadWithoutLock)?;
    let catalog = Catalog::look(&mut repository, state.path())?;
    let ours = |entry: &&Entry| {
        let vm = &entry.manifest.vm;
        is_named(&vm.name, &vm.uuid.to_string(), names)
    };
    let chain: Vec<&Entry> = catalog.entries.iter().filter(ours).collect();
    let unreadable = catalog.unreadable.iter().filter(|(info, _)| is_of(info, names));
    let mut points = chain.len();
    for (_, error) in unreadable {
        settings.ui.warn(
            Code::ArchivePassedOver,
            names.last().map(String::as_str),
            format!("failed to {error}"),
        );
        points += 1;
    }
    let vm = names.last().map_or("", String::as_str);
    let records = trust::recall(
        &here.grounds(),
        vm,
        &repository.id().to_string(),
        &trust::witnessed(&here.grounds()),
    );
    let standing = Standing::of(&here.grounds(), &repository, &chain, &records);
    let future = || {
        let text = "the newest restore point is of the future: a clock is wrong, or was";
        standing
            .is_of_the_future(Timestamp::now())
            .then(|| text.to_owned())
    };
    let found = Found {
        points,
        newest: standing.newest.map(|newest| (newest.info.time, newest.name())),
        problem: standing.problem().or_else(future),
    };
    repository.close()?;
    Ok(found)
}

fn is_named(name: &str, uuid: &str, names: &[String]) -> bool {
    names.iter().any(|known| known == name || known == uuid)
}

/// Whether an archive is called as a run calls the restore points of a VM with one of these names. A UUID says nothing about
/// the name.
fn is_of(info: &ArchiveInfo, names: &[String]) -> bool {
    let Some(text) = info.name.as_str() else {
        return false;
    };
    let any = names.iter().all(|name| uuid_in(name).is_some());
    let timed = |rest: &str| jiff::civil::DateTime::strptime(TIME, rest).is_ok();
    let of = |name: &String| {
        text.strip_prefix(&archive_prefix(name))
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(timed)
    };
    any || names.iter().any(of)
}

/// The newest restore point that was ever seen here.
fn on_record(resolved: &resolved::Settings, names: &[String]) -> Option<(Timestamp, String)> {
    let state = StateDirectory::at(&resolved.state_directory);
    let mut heads = names.iter().rev().filter_map(|name| {
        let memory = state
            .path()
            .exists()
            .then(|| Memory::open(state.path(), name).ok())??;
        let head = memory.head()?;
        Some((head.committed, head.archive.clone()))
    });
    heads.next()
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_borg::ChunkId;

    #[test]
    fn only_what_is_called_like_ours_is_counted() {
        let is = |name: &str, of: &[&str]| {
            let info = ArchiveInfo {
                name: name.into(),
                id: ChunkId([0; 32]),
                time: Timestamp::UNIX_EPOCH,
            };
            is_of(&info, &of.iter().map(|&of| of.to_owned()).collect::<Vec<_>>())
        };
        assert!(is("web-2026-11-30T15:34:45.123Z", &["web"]));
        assert!(is("web_1-2026-11-30T15:34:45.123Z", &["web 1"]));
        assert!(is("web02-2026-11-30T15:34:45.123Z", &["web01", "web02"]));
        for other in [
            "etc-2026-11-30T15:34:45.123Z",
            "web-2026-11-30",
            "web-2026-11-30T15:34:45",
            "web",
            "web-db-2026-11-30T15:34:45.123Z",
        ] {
            assert!(!is(other, &["web"]), "{other}");
        }
    }
}
