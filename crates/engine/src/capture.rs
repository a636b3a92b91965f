//! The frozen view: begun before anything is read, ended whatever happens.
//!
//! A running VM's view is a pull-mode backup job ([`job`]), or its images below the overlays of an external snapshot
//! ([`snapshot`]); a shut-off VM's is its images ([`offline`]). The first two survive this process, so everything about
//! them is in the journal before they are begun. A [`Capture`] that is dropped (an error, a panic, ctrl-C) ends a job
//! and closes what reads images; overlays are brought home by [`crate::capture::overlay`] afterwards.

mod hotadd;
mod job;
mod offline;
pub mod overlay;
pub mod quiesce;
pub mod reconcile;
pub mod recover;
pub mod release;
pub mod scratch;
mod snapshot;
pub mod tracking;
pub mod watchdog;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use strongroom_hypervisor::{BackupJob, Domain, HypervisorError, RunState};
use strongroom_nbd::{QemuNbd, Target};
use strongroom_points::manifest::{Method, Mode};

use self::hotadd::HotAdded;
pub use self::hotadd::detach as detach_exports;
pub use self::job::end_job;
use crate::capture::quiesce::{QuiesceError, Quiescer};
use crate::files::stamp::Stamps;
use crate::run::context::Context;
use crate::run::event::{Code, Kind, OpenExport};
use crate::run::plan::{DiskPlan, Plan};
use crate::run::state::Run;

/// Why the disks cannot be read as they were at one instant.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The guest was not brought to rest as it has to be.
    #[error(transparent)]
    Quiesce(#[from] QuiesceError),
    /// A disk's frozen view cannot be served.
    #[error("serve disk {disk}: {source}")]
    Export {
        /// Target device name.
        disk: String,
        /// The server's reason.
        source: strongroom_nbd::ServeError,
    },
    /// There is no room for old contents of what the guest overwrites.
    #[error("back up {vm}: {reason}; the backup has given way, the guest runs on")]
    Scratch {
        /// The VM.
        vm: String,
        /// What there is too little of.
        reason: String,
    },
    /// A format that only the hypervisor can decode.
    #[error("read disk {disk}: format {format:?} can be read only while the VM runs")]
    Format {
        /// Target device name.
        disk: String,
        /// The format as defined.
        format: String,
    },
    /// A disk cannot be backed up by snapshot.
    #[error("back up {vm} by snapshot: disk {disk}: {reason}")]
    Snapshot {
        /// The VM.
        vm: String,
        /// Target device name.
        disk: String,
        /// What is in the way.
        reason: String,
    },
    /// The hypervisor took no snapshot.
    #[error("back up {vm} by snapshot: {reason}")]
    SnapshotRefused {
        /// The VM.
        vm: String,
        /// The hypervisor's reason.
        reason: String,
    },
    /// The images of a remote VM cannot be read by a server of ours.
    #[error(
        "back up {0} by snapshot: its disks lie on another machine; use method \"checkpoint\", or run strongroom there"
    )]
    SnapshotRemote(String),
    /// A base was written to while it was read.
    #[error("back up {vm}: {} was written to while it was read: another program has merged its overlay", .image.display())]
    Merged {
        /// The VM.
        vm: String,
        /// The image.
        image: PathBuf,
    },
    /// A shut-off VM was started while it was read.
    #[error("back up {0}: it was started or written to while it was read; run the backup again")]
    Disturbed(String),
    /// A shut-off VM on another machine.
    #[error("back up {0}: it is shut off, and its disks lie on another machine; start it first")]
    OfflineRemote(String),
}

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
    hot_added: Vec<HotAdded>,
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
) -> Result<Run, CaptureError> {
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
        quiescer: &mut Quiescer<'_>,
    ) -> Result<Self, CaptureError> {
        let (call, exports, servers) = match plan.method {
            Method::Checkpoint => job::begin(context, plan, run, quiescer)?,
            Method::Snapshot => snapshot::begin(context, plan, run, quiescer)?,
            Method::Offline => offline::begin(context, plan)?,
        };
        let hot_added = match plan.method {
            Method::Checkpoint => hotadd::attach(context, plan, run),
            Method::Snapshot | Method::Offline => Vec::new(),
        };
        Ok(Self {
            context,
            plan,
            at: quiescer.at.unwrap_or_else(Timestamp::now),
            call,
            exports,
            servers,
            hot_added,
            run,
            ended: false,
        })
    }

    /// Reports the views.
    pub fn report(&self) {
        self.context.report(Kind::Captured {
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
        let disk = self.hot_added.iter().find(|added| added.target == disk.target)?;
        Some(disk.at())
    }

    /// Detaches what was hot-added: QEMU could not read from it once the job has ended.
    fn detach(&mut self) {
        if !self.hot_added.is_empty() {
            self.hot_added.clear();
            detach_exports(self.context, self.run);
        }
    }

    /// Whether what was read is one state of the disks. Nothing else can touch a backup job's views; a shut-off VM
    /// may have been started meanwhile, which we do not hinder, and another program may have merged an overlay; then
    /// the copy is worthless.
    pub fn check(&self) -> Result<(), CaptureError> {
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
            return Err(CaptureError::Merged {
                vm: self.plan.vm.clone(),
                image: Path::to_owned(image),
            });
        }
        if started || written.is_some() {
            return Err(CaptureError::Disturbed(self.plan.vm.clone()));
        }
        Ok(())
    }

    /// Ends the views.
    pub fn end(mut self) -> Result<(), CaptureError> {
        self.detach();
        if self.plan.method == Method::Checkpoint {
            end_job(self.context, self.plan.uuid, self.run)?;
            if let Some(wanted) = self.context.hypervisor.wanted() {
                self.context.warn(Code::HypervisorRights, wanted);
            }
        }
        self.ended = true;
        Ok(())
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        self.detach();
        if !self.ended
            && self.plan.method == Method::Checkpoint
            && let Err(error) = end_job(self.context, self.plan.uuid, self.run)
        {
            self.context.warn(
                Code::JobLeft,
                format!(
                    "the backup job may still run on {}: failed to {error}",
                    self.plan.vm
                ),
            );
        }
    }
}

/// What is begun.
type Begun = (Duration, Vec<OpenExport>, Vec<Server>);
