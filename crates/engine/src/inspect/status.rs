//! Whether VMs are protected: what is known of each from the hypervisor, from our own records, and from its repository. That is
//! read without a lock, so that a backup that runs meanwhile is no reason to wait.

use jiff::Timestamp;
use strongroom_hypervisor::{Domain, HypervisorError, RunState};
use strongroom_points::archive::PointError;
use strongroom_points::catalog::{Catalog, Entry};
use strongroom_points::names::archive_prefix;
use strongroom_points::store::{Access, ArchiveInfo};
use strongroom_points::trust::ledger::Ledger;
use strongroom_points::trust::{self, Standing};

use super::storage::{self, Pool};
use crate::capture::tracking;
use crate::config::uuid_in;
use crate::run::context::{Context, Surroundings};
use crate::run::event::Code;
use crate::run::settings::VmJob;
use crate::run::state::Records;

/// The time in an archive's name, as a run writes it.
const TIME: &str = "%Y-%m-%dT%H:%M:%S%.fZ";

/// What is known of one VM.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// What it is doing, if the hypervisor knows it.
    pub state: Option<RunState>,
    /// The newest restore point.
    pub newest: Newest,
    /// How many restore points there are; nothing if the repository cannot be asked.
    pub points: Option<usize>,
    /// What runs, or did.
    pub run: Run,
    /// Whether its changes are tracked, so that the next backup is an incremental one.
    pub tracking: bool,
    /// What is wrong.
    pub problem: Option<String>,
}

/// The newest restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Newest {
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// Nothing.
    None,
    /// Under way, since then; without a time it has not come to the guest yet.
    UnderWay(Option<Timestamp>),
    /// The last run has died.
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
pub fn look(context: &Context<'_>, name: &str) -> Vm {
    let job = context.settings.job(name);
    let mut vm = Vm::unknown(name, None);
    let mut names = vec![name.to_owned()];
    match context.hypervisor.domain(&job.domain()) {
        Ok(domain) => {
            vm.state = Some(domain.state);
            recorded(&mut vm, context, &job, &domain);
            names.push(domain.name);
        }
        Err(HypervisorError::NoSuchDomain(..)) => vm.problem = Some("the hypervisor does not know it".into()),
        Err(error) => vm.problem = Some(format!("failed to {error}")),
    }
    with_archives(&context.here(), &job, vm, &names)
}

/// Looks at a VM whose hypervisor does not answer.
pub fn look_without(here: &Surroundings<'_>, name: &str, problem: String) -> Vm {
    let vm = Vm::unknown(name, Some(problem));
    with_archives(here, &here.settings.job(name), vm, &[name.to_owned()])
}

/// The storage of these VMs' images, with what all VMs of the hypervisor have there. Empty for a hypervisor on another
/// machine, whose storage is not to be seen from here.
pub fn pools(context: &Context<'_>, names: &[String]) -> Vec<Pool> {
    let hypervisor = context.hypervisor;
    let look = || -> Result<Vec<Pool>, String> {
        let all = hypervisor.domain_names().map_err(|error| error.to_string())?;
        // One that cannot be read is a warning already, or none of ours.
        let domains = |names: &[String]| -> Vec<Domain> {
            let found = names.iter().map(|name| hypervisor.domain(name));
            found.filter_map(Result::ok).collect()
        };
        let failed = |error: std::io::Error| error.to_string();
        let ours = storage::pools(&domains(names)).map_err(failed)?;
        let mut pools = storage::pools(&domains(&all)).map_err(failed)?;
        pools.retain(|pool| ours.iter().any(|other| other.place == pool.place));
        Ok(pools)
    };
    if !hypervisor.is_local() {
        return Vec::new();
    }
    look().unwrap_or_else(|error| {
        context.warn(
            Code::StorageUnknown,
            format!("the storage of the images is unknown: {error}"),
        );
        Vec::new()
    })
}

fn recorded(vm: &mut Vm, context: &Context<'_>, job: &VmJob, domain: &Domain) {
    let records = context.state.peek(domain.uuid);
    // After the records: a run that has ended meanwhile has left nothing open in what is read next.
    let under_way = context.state.is_worked_on(domain.uuid);
    let records = match records {
        Ok(records) if under_way => records,
        Ok(_) => match context.state.peek(domain.uuid) {
            Ok(records) => records,
            Err(error) => return vm.problem = Some(format!("failed to {error}")),
        },
        Err(error) => return vm.problem = Some(format!("failed to {error}")),
    };
    vm.run = run(records.as_ref(), under_way);
    let checkpoints = context.hypervisor.checkpoints(domain.uuid).unwrap_or_default();
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
fn with_archives(here: &Surroundings<'_>, job: &VmJob, mut vm: Vm, names: &[String]) -> Vm {
    let here = Surroundings {
        vm: names.last().map(String::as_str),
        ..here.clone()
    };
    match archives(&here, &job.repository, names) {
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
            vm.newest = on_record(&here, names)
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
fn archives(here: &Surroundings<'_>, location: &str, names: &[String]) -> Result<Found, PointError> {
    let mut repository = here
        .repositories
        .open_as_it_is(location, Access::ReadWithoutLock)?;
    let catalog = Catalog::look(&mut repository, here.state.path())?;
    let ours = |entry: &&Entry| {
        let vm = &entry.manifest.vm;
        is_named(&vm.name, &vm.uuid.to_string(), names)
    };
    let chain: Vec<&Entry> = catalog.entries.iter().filter(ours).collect();
    let unreadable = catalog.unreadable.iter().filter(|(info, _)| is_of(info, names));
    let mut points = chain.len();
    for (_, error) in unreadable {
        here.warn(Code::ArchivePassedOver, format!("failed to {error}"));
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
fn on_record(here: &Surroundings<'_>, names: &[String]) -> Option<(Timestamp, String)> {
    let mut heads = names.iter().rev().filter_map(|name| {
        let ledger = here
            .state
            .path()
            .exists()
            .then(|| Ledger::open(here.state.path(), name).ok())??;
        let head = ledger.head()?;
        Some((head.committed, head.archive.clone()))
    });
    heads.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_points::store::ChunkId;

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
