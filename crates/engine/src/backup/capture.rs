//! The frozen view: begun before anything is read, ended whatever happens.
//!
//! A running VM's view is a pull-mode backup job ([`job`]), or its images below the overlays of an external snapshot
//! ([`snapshot`]); a shut-off VM's is its images ([`offline`]). The first two survive this process, so everything about
//! them is in the journal before they are begun. A [`Capture`] that is dropped (an error, a panic, ctrl-C) ends a job
//! and closes what reads images; overlays are brought home by [`crate::overlay`] afterwards.

mod job;
mod lent;
mod offline;
mod snapshot;
mod stamp;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use strongroom_nbd::{QemuNbd, Target};

pub use self::job::end_job;
use self::lent::Lent;
pub use self::lent::take_back;
use self::stamp::Stamps;
pub use self::stamp::stamp;
use super::BackupError;
use crate::context::Context;
use crate::event::{Event, OpenExport};
use crate::manifest::{Method, Mode};
use crate::quiesce::Rest;
use crate::run::plan::{DiskPlan, Plan};
use crate::state::Run;
use crate::vm::{BackupJob, Domain, RunState};

/// Frozen views of all disks of a [`Plan`] at one instant.
pub struct Capture<'a> {
    context: &'a Context<'a>,
    plan: &'a Plan,
    /// When the views were frozen.
    pub at: Timestamp,
    /// How long the hypervisor took to freeze them: an upper bound of the guest-visible pause.
    pub call: Duration,
    /// The views, in the order of the plan's disks.
    pub exports: Vec<OpenExport>,
    servers: Vec<Server>,
    /// Views that are read as disks of this machine.
    lent: Vec<Lent>,
    /// What the journal says of this run: how its job is told from others'.
    run: &'a Run,
    ended: bool,
}

/// A read-only server of an image, and how the image and those below it were before they were read.
struct Server {
    _process: QemuNbd,
    stamps: Stamps,
}

/// The journal entry of a run that is about to act.
pub fn intent(
    context: &Context<'_>,
    plan: &Plan,
    domain: &Domain,
    started: Timestamp,
) -> Result<Run, BackupError> {
    let listener = match plan.method {
        Method::Checkpoint => Some(context.hypervisor.listener(plan.uuid, &socket_name(plan))?),
        Method::Snapshot | Method::Offline => None,
    };
    let scratch = match plan.method {
        Method::Checkpoint => plan.disks.iter().map(|disk| disk.scratch.clone()).collect(),
        Method::Snapshot | Method::Offline => Vec::new(),
    };
    let overlays = match plan.method {
        Method::Snapshot => snapshot::overlays(context, plan)?,
        Method::Checkpoint | Method::Offline => Vec::new(),
    };
    Ok(Run {
        id: plan.run.clone(),
        started,
        archive: plan.archive.clone(),
        checkpoint: plan.checkpoint.clone(),
        listener,
        scratch,
        running: domain.state == RunState::Running,
        overlays,
    })
}

/// Short: a unix socket's path has 107 bytes at most, and libvirt's directories are long already.
fn socket_name(plan: &Plan) -> String {
    format!("sr-{}.sock", short_id(&plan.run))
}

/// What tells a run from others where there is little room: the end of its id.
fn short_id(run: &str) -> &str {
    run.rsplit('-').next().unwrap_or(run)
}

impl<'a> Capture<'a> {
    /// Freezes the views, by a call that is made with the guest at rest. Where the hypervisor cannot do as planned, what
    /// is read in full instead, and why, is written into the plan.
    pub fn begin(
        context: &'a Context<'a>,
        plan: &'a mut Plan,
        run: &'a Run,
        rest: &mut Rest<'_>,
    ) -> Result<Self, BackupError> {
        let (call, exports, servers) = match plan.method {
            Method::Checkpoint => job::begin(context, plan, run, rest)?,
            Method::Snapshot => snapshot::begin(context, plan, run, rest)?,
            Method::Offline => offline::begin(context, plan)?,
        };
        let lent = match plan.method {
            Method::Checkpoint => lent::borrow(context, plan, run),
            Method::Snapshot | Method::Offline => Vec::new(),
        };
        Ok(Self {
            context,
            plan,
            at: rest.at.unwrap_or_else(Timestamp::now),
            call,
            exports,
            servers,
            lent,
            run,
            ended: false,
        })
    }

    /// Reports the views.
    pub fn report(&self) {
        self.context.report(&Event::Captured {
            exports: &self.exports,
            call: self.call,
        });
    }

    /// The plan as it was carried out.
    pub fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// Where to read a disk, and the dirty bitmap to ask for, if it is read incrementally.
    pub fn target(&self, disk: &DiskPlan) -> Option<(Target, Option<String>)> {
        let export = self.exports.iter().find(|export| export.target == disk.target)?;
        let dirty = match self.plan.method {
            _ if disk.mode != Mode::Incremental => None,
            Method::Snapshot => disk.since.clone(),
            Method::Checkpoint | Method::Offline => Some(BackupJob::dirty_bitmap(&disk.target)),
        };
        Some((export.at.clone(), dirty))
    }

    /// Where the bytes of a disk are read, where that is another place than the one that has the maps.
    pub fn data(&self, disk: &DiskPlan) -> Option<Target> {
        let lent = self.lent.iter().find(|lent| lent.target == disk.target)?;
        Some(lent.at())
    }

    /// Gives back what was lent: QEMU could not read from it once the job has ended.
    fn give_back(&mut self) {
        if !self.lent.is_empty() {
            self.lent.clear();
            take_back(self.context, self.run);
        }
    }

    /// Whether what was read is one state of the disks. Nothing else can touch a backup job's views; a shut-off VM
    /// may have been started meanwhile, which we do not hinder, and somebody else may have merged an overlay; then
    /// the copy is worthless.
    pub fn check(&self) -> Result<(), BackupError> {
        // First of all: what was written before a VM went off again has reached its images then.
        let started = self.plan.method == Method::Offline
            && self
                .context
                .hypervisor
                .domain(&self.plan.uuid.to_string())?
                .state
                .is_active();
        let written = self.servers.iter().find_map(|server| server.stamps.changed());
        if let (Method::Snapshot, Some(image)) = (self.plan.method, written) {
            return Err(BackupError::Merged {
                vm: self.plan.vm.clone(),
                image: Path::to_owned(image),
            });
        }
        if started || written.is_some() {
            return Err(BackupError::Disturbed(self.plan.vm.clone()));
        }
        Ok(())
    }

    /// Ends the views.
    pub fn end(mut self) -> Result<(), BackupError> {
        self.give_back();
        if self.plan.method == Method::Checkpoint {
            end_job(self.context, self.plan.uuid, self.run)?;
            if let Some(wanted) = self.context.hypervisor.wanted() {
                self.context.warn(wanted);
            }
        }
        self.ended = true;
        Ok(())
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        self.give_back();
        if !self.ended
            && self.plan.method == Method::Checkpoint
            && let Err(error) = end_job(self.context, self.plan.uuid, self.run)
        {
            self.context.warn(format!(
                "the backup job may still run on {}: failed to {error}",
                self.plan.vm
            ));
        }
    }
}

/// What is begun.
type Begun = (Duration, Vec<OpenExport>, Vec<Server>);
