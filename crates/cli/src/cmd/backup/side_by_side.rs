//! Several VMs at the same time, each by a thread of its own with a connection of its own.
//!
//! They share the configuration, the terminal and the passphrase, and nothing that one could hold up for another. So one
//! that fails, panics, or hangs in a call that the hypervisor does not answer, or in one of the storage that has the records,
//! is one VM without a backup. A thread that
//! hangs is left to itself: what its run was about to do is in its journal, and the next run undoes it, like after a death.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_base::cancel::Cancel;
use strongroom_engine::backup::{self, BackupError, Outcome};
use strongroom_engine::run::context::{Context, Repositories};
use strongroom_engine::run::settings::{Settings, VmJob};
use strongroom_engine::run::state::StateDirectory;
use strongroom_hypervisor::{Hypervisor as _, Timed};
use strongroom_libvirt::Libvirt;

use crate::cmd::thaw_watchdog;
use crate::failure::Failure;
use crate::settings::connect;
use crate::ui::of_vm::OfVm;
use crate::ui::{Ui, Warned};

/// Between two looks at whether the hypervisor still answers.
const LOOK: Duration = Duration::from_millis(500);

/// What all of them share.
#[derive(Clone)]
pub struct Work {
    pub settings: Arc<Settings>,
    pub repositories: Repositories,
    pub ui: Arc<Ui>,
    pub cancel: Cancel,
    pub request: backup::Request,
}

/// What came of one VM.
pub struct Done {
    pub vm: String,
    pub result: Result<Outcome, Failure>,
    /// Warnings about it.
    pub warnings: Vec<Warned>,
}

/// A VM that is being backed up.
struct Running {
    place: usize,
    job: Arc<VmJob>,
    observer: Arc<OfVm>,
    hypervisor: Arc<OnceLock<Timed<Libvirt>>>,
}

/// Since when the storage with the records has been waited for, if it is. It is asked all the time: any of a run's own calls
/// may hang in it.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Option<Instant>>>);

impl Records {
    /// Of this directory, for as long as this is there.
    fn of(directory: PathBuf) -> Self {
        let records = Self::default();
        let asked = records.clone();
        thread::spawn(move || {
            while Arc::strong_count(&asked.0) > 1 {
                asked.waited_for(true);
                // What it says is not the point.
                let _ = rustix::fs::statvfs(&directory);
                asked.waited_for(false);
                thread::sleep(LOOK);
            }
        });
        records
    }

    fn waited_for(&self, is: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = is.then(Instant::now);
    }

    fn time(&self) -> Option<Duration> {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }
}

/// Backs up the VMs, so many at a time, and tells of each as soon as it is done. Those whose turn has not come when
/// the work is interrupted are told of as well. Gives what came of them in the order in which they were named.
pub fn run(work: &Work, vms: &[String], jobs: usize, mut tell: impl FnMut(&Done)) -> Vec<Done> {
    let (results, ended) = channel();
    let records = Records::of(work.settings.state_directory.clone());
    let mut waiting: VecDeque<(usize, &String)> = vms.iter().enumerate().collect();
    let mut running: Vec<Running> = Vec::new();
    let mut done: Vec<(usize, Done)> = Vec::new();
    let mut finish = |done: &mut Vec<(usize, Done)>, place: usize, one: Done| {
        tell(&one);
        done.push((place, one));
    };
    loop {
        while running.len() < jobs.max(1)
            && let Some((place, vm)) = waiting.pop_front()
        {
            if let Err(cancelled) = work.cancel.check() {
                let one = Done {
                    vm: vm.clone(),
                    result: Err(Failure::failed(format!("begin: {cancelled}"))),
                    warnings: Vec::new(),
                };
                finish(&mut done, place, one);
                continue;
            }
            running.push(start(work, place, vm, results.clone()));
        }
        if running.is_empty() {
            break;
        }
        match ended.recv_timeout(LOOK) {
            Ok((place, result)) => {
                // One that was given up may come back after all.
                if let Some(at) = running.iter().position(|one| one.place == place) {
                    let one = running.swap_remove(at);
                    let (vm, warnings) = (one.job.name.clone(), one.observer.warned());
                    finish(&mut done, place, Done { vm, result, warnings });
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                for one in std::mem::take(&mut running) {
                    let Some(why) = given_up(&one, &records) else {
                        running.push(one);
                        continue;
                    };
                    let (place, vm, warnings) = (one.place, one.job.name.clone(), one.observer.warned());
                    let result = Err(why);
                    finish(&mut done, place, Done { vm, result, warnings });
                }
            }
            // There is a sender here.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, one)| one).collect()
}

/// Why a VM is not waited for any longer, if so.
fn given_up(one: &Running, records: &Records) -> Option<Failure> {
    let limit = one.job.limits.answer;
    if let Some(time) = records
        .time()
        .filter(|time| limit.is_some_and(|limit| *time > limit))
    {
        return Some(
            Failure::failed(format!(
                "keep records: the storage of the state directory has not answered for {} s; what was begun is undone by \
                 the next run",
                time.as_secs()
            ))
            .hint("put it on storage of this machine: `state` in the configuration"),
        );
    }
    let (call, time) = one.hypervisor.get()?.longest()?;
    (time > limit?).then(|| {
        Failure::failed(format!(
            "get an answer from the hypervisor within {} s (call `{call}`); what was begun is undone by the next run",
            time.as_secs()
        ))
        .hint("QEMU or libvirtd hangs: `virsh domstate VM`, `virsh domcontrol VM`; limits.answer_s is how long it is waited for")
    })
}

fn start(work: &Work, place: usize, vm: &str, results: Sender<(usize, Result<Outcome, Failure>)>) -> Running {
    let observer = Arc::new(OfVm::new(Arc::clone(&work.ui), vm));
    let hypervisor = Arc::new(OnceLock::new());
    let job = work.settings.job(vm);
    let running = Running {
        place,
        job: Arc::clone(&job),
        observer: Arc::clone(&observer),
        hypervisor: Arc::clone(&hypervisor),
    };
    let work = work.clone();
    thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| one(&work, &job, &observer, &hypervisor)));
        let result = result.unwrap_or_else(|_| {
            Err(Failure::failed(
                "go on: this is a defect of strongroom, whose words are above",
            ))
        });
        // Nobody may be waiting any longer.
        let _ = results.send((place, result));
    });
    running
}

/// Backs up one VM.
fn one(
    work: &Work,
    job: &VmJob,
    observer: &Arc<OfVm>,
    connection: &OnceLock<Timed<Libvirt>>,
) -> Result<Outcome, Failure> {
    let opened = connect(&job.hypervisor)?;
    let hypervisor = connection.get_or_init(|| Timed::new(opened));
    let state = StateDirectory::open(&work.settings.state_directory).map_err(Failure::failed)?;
    let watchdog = thaw_watchdog::launch(hypervisor.uri());
    let mut repositories = work.repositories.clone();
    repositories.settings.patience = job.limits.repository;
    let heard = Arc::clone(observer);
    repositories.settings.events = Some(Arc::new(move |event| heard.repository(&event)));
    let context = Context {
        vm: Some(&job.name),
        hypervisor,
        own_domain: job.hypervisor.own_domain.as_deref(),
        settings: Arc::clone(&work.settings),
        state: &state,
        repositories: &repositories,
        observer: &**observer,
        cancel: &work.cancel,
        watchdog: &*watchdog,
    };
    backup::run(&context, &job.name, work.request).map_err(|error: BackupError| error.into())
}
