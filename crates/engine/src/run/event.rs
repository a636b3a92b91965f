//! What long work reports while it runs. The engine prints nothing; whoever calls it hands in an [`Observer`].

use std::time::Duration;

use strongroom_nbd::Target;

use crate::run::plan::Plan;

/// The steps of a backup or a restore, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Undo what an interrupted run left.
    Reconcile,
    /// Open the repository and decide what to read.
    Plan,
    /// Switch to the frozen view.
    Capture,
    /// Read, hash, encrypt, store.
    Stream,
    /// Write the archive and commit.
    Seal,
    /// End the job, drop old checkpoints.
    Release,
    /// Write disks back.
    Restore,
}

/// A frozen view of one disk that is open for reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenExport {
    /// Target device name.
    pub target: String,
    /// Where it is served.
    pub at: Target,
}

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A step begins.
    Step(Step),
    /// Something is not as it should be, but the work goes on. Counts towards exit code 3.
    Warning(String),
    /// Something worth knowing, for `-v`.
    Note(String),
    /// A stage of long work begins, in words that fit "failed to …".
    Stage(String),
    /// What will be read, and why.
    Planned(&'a Plan),
    /// The disks stand still; `call` is how long the hypervisor took.
    Captured {
        /// The frozen views. They stay until [`Step::Release`].
        exports: &'a [OpenExport],
        /// Duration of the call.
        call: Duration,
    },
    /// A disk is about to be transferred.
    DiskStarted {
        /// Target device name.
        target: &'a str,
        /// Bytes to transfer.
        bytes: u64,
    },
    /// More of a disk has been transferred.
    DiskProgress {
        /// Target device name.
        target: &'a str,
        /// Bytes since the last report.
        bytes: u64,
    },
    /// A VM's chunks have been read and are good.
    Verified {
        /// The VM's name.
        target: &'a str,
        /// Bytes of content.
        bytes: u64,
    },
    /// A disk is done.
    DiskDone {
        /// Target device name.
        target: &'a str,
        /// Bytes read from the hypervisor (or from the repository, in a restore).
        read: u64,
        /// Bytes stored in the repository (or written to the image, in a restore).
        stored: u64,
    },
}

/// Takes events. Shared between threads.
pub trait Observer: Send + Sync {
    /// Called at once when something happens; the work waits meanwhile.
    fn event(&self, event: &Event<'_>);
}

/// Ignores everything.
impl Observer for () {
    fn event(&self, _: &Event<'_>) {}
}
