//! One VM's thread, as those see it who wait for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::thread;

use strongroom_hypervisor::{Hypervisor, Timed};

use super::records::Records;
use super::{Done, FleetError, OfVm, Work};
use crate::backup::{self, Outcome};
use crate::run::context::Context;
use crate::run::settings::VmJob;
use crate::run::state::StateDirectory;

/// A VM that is being backed up.
pub(super) struct Running<H, O> {
    pub(super) turn: usize,
    job: Arc<VmJob>,
    observer: Arc<O>,
    hypervisor: Arc<OnceLock<Timed<H>>>,
}

impl<H, O> Running<H, O> {
    /// Why it is not waited for any longer, if so.
    pub(super) fn given_up(&self, records: &Records) -> Option<FleetError> {
        let limit = self.job.limits.answer?;
        if let Some(time) = records.time().filter(|time| *time > limit) {
            return Some(FleetError::RecordsHang(time.as_secs()));
        }
        let (call, time) = self.hypervisor.get()?.longest()?;
        (time > limit).then(|| FleetError::NoAnswer {
            call,
            seconds: time.as_secs(),
        })
    }

    /// It has come to this.
    pub(super) fn done(self, result: Result<Outcome, FleetError>) -> Done<O> {
        Done {
            turn: self.turn,
            vm: self.job.name.clone(),
            result,
            observer: Some(self.observer),
        }
    }
}

/// Begins. What comes of it is sent, with its turn.
pub(super) fn start<H, O>(
    work: &Work<H>,
    turn: usize,
    vm: &str,
    observer: Arc<O>,
    results: Sender<(usize, Result<Outcome, FleetError>)>,
) -> Running<H, O>
where
    H: Hypervisor + 'static,
    O: OfVm + 'static,
{
    let hypervisor = Arc::new(OnceLock::new());
    let job = work.settings.job(vm);
    let running = Running {
        turn,
        job: Arc::clone(&job),
        observer: Arc::clone(&observer),
        hypervisor: Arc::clone(&hypervisor),
    };
    let work = work.clone();
    thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| back_up(&work, &job, &observer, &hypervisor)));
        // It may have been given up meanwhile: then there is no receiver any more.
        let _ = results.send((turn, result.unwrap_or(Err(FleetError::Defect))));
    });
    running
}

fn back_up<H, O>(
    work: &Work<H>,
    job: &VmJob,
    observer: &Arc<O>,
    connection: &OnceLock<Timed<H>>,
) -> Result<Outcome, FleetError>
where
    H: Hypervisor + 'static,
    O: OfVm + 'static,
{
    let opened = (work.connect)(job).map_err(FleetError::Connect)?;
    let hypervisor = connection.get_or_init(|| Timed::new(opened));
    let state = StateDirectory::open(&work.settings.state_directory).map_err(FleetError::State)?;
    let watchdog = (work.watchdog)(hypervisor.uri());
    let heard = Arc::clone(observer);
    let repositories = work.repositories.clone();
    let repositories = repositories
        .patient(job.limits.repository)
        .heard_by(move |event| heard.repository(event));
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
    Ok(backup::run(&context, &job.name, work.request)?)
}
