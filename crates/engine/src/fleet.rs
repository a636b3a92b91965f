//! Several VMs at the same time, each by a thread of its own with a connection of its own.
//!
//! They share the settings and the passphrase, and nothing that one could hold up for another. So one that fails, panics, or
//! hangs in a call that the hypervisor does not answer, or in one of the storage that has the records, is one VM without a
//! backup. A thread that hangs is left to itself: what its run was about to do is in its journal, and the next run undoes it,
//! like after a death.

mod one;
mod records;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use strongroom_base::cancel::{Cancel, Cancelled};
use strongroom_hypervisor::{Hypervisor, HypervisorError};
use strongroom_points::store::Repositories;

use self::one::Running;
use self::records::Records;
use crate::backup::{self, BackupError, Outcome};
use crate::run::context::Launch;
use crate::run::event::Observer;
use crate::run::settings::{Settings, VmJob};
use crate::run::state::StateError;

/// Between two looks at whether the hypervisor still answers.
const LOOK: Duration = Duration::from_millis(500);

/// Hears of what happens to one VM, and of what its repository's server says.
pub trait OfVm: Observer {
    /// Takes what the repository's server and the Borg client say.
    fn repository(&self, event: &strongroom_points::store::Event);
}

/// How a hypervisor is reached.
pub type Connect<H> = dyn Fn(&VmJob) -> Result<H, HypervisorError> + Send + Sync;

/// How the thaw watchdog of a hypervisor is started.
pub type Watchdog = dyn Fn(&str) -> Box<Launch> + Send + Sync;

/// What all of them share.
pub struct Work<H> {
    /// What holds for all VMs, and for each.
    pub settings: Arc<Settings>,
    /// How repositories are reached.
    pub repositories: Repositories,
    /// How hypervisors are.
    pub connect: Arc<Connect<H>>,
    /// How their thaw watchdogs are started, by their URIs.
    pub watchdog: Arc<Watchdog>,
    /// Asks long work to stop.
    pub cancel: Cancel,
    /// What is asked for, beyond the settings.
    pub request: backup::Request,
}

impl<H> Clone for Work<H> {
    fn clone(&self) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
            repositories: self.repositories.clone(),
            connect: Arc::clone(&self.connect),
            watchdog: Arc::clone(&self.watchdog),
            cancel: self.cancel.clone(),
            request: self.request,
        }
    }
}

/// Why a VM has no backup.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The backup's own reason.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The hypervisor cannot be reached.
    #[error(transparent)]
    Connect(HypervisorError),
    /// Our records cannot be opened.
    #[error(transparent)]
    State(StateError),
    /// The work was interrupted before its turn.
    #[error("begin: {0}")]
    NotBegun(Cancelled),
    /// The hypervisor does not answer.
    #[error(
        "get an answer from the hypervisor within {seconds} s (call `{call}`); what was begun is undone by the next run"
    )]
    NoAnswer {
        /// The call.
        call: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// The storage of our records does not answer.
    #[error(
        "keep records: the storage of the state directory has not answered for {0} s; what was begun is undone by the next run"
    )]
    RecordsHang(u64),
    /// A panic.
    #[error("go on: this is a defect of strongroom, whose words are above")]
    Defect,
}

/// What came of one VM, and who heard of it.
pub struct Done<O> {
    /// Its place among those that were named.
    pub turn: usize,
    /// Its name.
    pub vm: String,
    /// What came of it.
    pub result: Result<Outcome, FleetError>,
    /// Its observer; none if its turn has not come.
    pub observer: Option<Arc<O>>,
}

/// Backs up the VMs, `at_once` at a time, each with an observer of its own, and reports each as soon as it is done. Those whose
/// turn has not come when the work is interrupted are reported as well.
pub fn run<H, O>(
    work: &Work<H>,
    vms: &[String],
    at_once: usize,
    observer: impl Fn(&str) -> Arc<O>,
    mut report: impl FnMut(Done<O>),
) where
    H: Hypervisor + 'static,
    O: OfVm + 'static,
{
    let (results, ended) = channel();
    let records = Records::of(work.settings.state_directory.clone());
    let mut waiting: VecDeque<(usize, &String)> = vms.iter().enumerate().collect();
    let mut running: Vec<Running<H, O>> = Vec::new();
    loop {
        while running.len() < at_once.max(1)
            && let Some((turn, vm)) = waiting.pop_front()
        {
            if let Err(cancelled) = work.cancel.check() {
                report(Done {
                    turn,
                    vm: vm.clone(),
                    result: Err(FleetError::NotBegun(cancelled)),
                    observer: None,
                });
                continue;
            }
            running.push(one::start(work, turn, vm, observer(vm), results.clone()));
        }
        if running.is_empty() {
            break;
        }
        match ended.recv_timeout(LOOK) {
            Ok((turn, result)) => {
                // One that was given up may come back after all.
                if let Some(at) = running.iter().position(|one| one.turn == turn) {
                    let one = running.swap_remove(at);
                    report(one.done(result));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                for one in std::mem::take(&mut running) {
                    match one.given_up(&records) {
                        Some(why) => report(one.done(Err(why))),
                        None => running.push(one),
                    }
                }
            }
            // There is a sender here.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
}

#[cfg(test)]
mod tests;
