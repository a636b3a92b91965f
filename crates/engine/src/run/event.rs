//! What long work reports while it runs. The engine prints nothing; its caller hands in an [`Observer`].

mod code;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use strongroom_nbd::Target;

pub use self::code::Code;
use crate::run::plan::Plan;

/// The steps of a backup or a restore, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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

/// Something that happened: to which VM, and when. Written as JSON, it is a line of `--progress json`.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    /// When.
    pub at: Timestamp,
    /// The VM that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<&'a str>,
    /// What.
    #[serde(flatten)]
    pub kind: Kind<'a>,
}

impl<'a> Event<'a> {
    /// It happened just now.
    pub fn now(vm: Option<&'a str>, kind: Kind<'a>) -> Self {
        Self {
            at: Timestamp::now(),
            vm,
            kind,
        }
    }
}

/// What can happen.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind<'a> {
    /// A step begins.
    Step {
        /// Which one.
        step: Step,
    },
    /// Something is not as it should be, but the work goes on. Counts towards exit code 3.
    Warning {
        /// What it is about: this does not change.
        code: Code,
        /// For people.
        text: String,
    },
    /// Something worth knowing, for `-v`.
    Note {
        /// For people.
        text: String,
    },
    /// A stage of long work begins.
    Stage {
        /// For people, in words that fit "failed to …".
        text: String,
    },
    /// What will be read, and why.
    Planned {
        /// The plan.
        plan: &'a Plan,
    },
    /// The disks stand still.
    Captured {
        /// The frozen views. They stay until [`Step::Release`].
        #[serde(skip)]
        exports: &'a [OpenExport],
        /// How long the hypervisor took.
        #[serde(rename = "call_us", serialize_with = "microseconds")]
        call: Duration,
    },
    /// A disk, or a file of such a size, is about to be transferred.
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
        /// What [`Kind::DiskStarted`] called it.
        target: &'a str,
        /// Bytes of content.
        bytes: u64,
    },
    /// A disk has been read.
    DiskRead {
        /// Target device name.
        target: &'a str,
        /// Bytes read from the hypervisor, or of a file.
        read: u64,
        /// Bytes stored in the repository.
        stored: u64,
    },
    /// A disk has been written.
    DiskWritten {
        /// Target device name.
        target: &'a str,
        /// Bytes read from the repository, or of a file.
        read: u64,
        /// Bytes written to the image.
        written: u64,
    },
}

impl Kind<'_> {
    /// A step begins.
    pub fn step(step: Step) -> Self {
        Self::Step { step }
    }

    /// A stage of long work begins.
    pub fn stage(text: impl Into<String>) -> Self {
        Self::Stage { text: text.into() }
    }

    /// Something is worth knowing.
    pub fn note(text: impl Into<String>) -> Self {
        Self::Note { text: text.into() }
    }

    /// Something is not as it should be.
    pub fn warning(code: Code, text: impl Into<String>) -> Self {
        let text = text.into();
        Self::Warning { code, text }
    }
}

fn microseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// Takes events. Shared between threads.
pub trait Observer: Send + Sync {
    /// Called at once when something happens; the work waits meanwhile.
    fn event(&self, event: &Event<'_>);

    /// Reports what has just happened, and is about no VM in particular.
    fn report(&self, kind: Kind<'_>) {
        self.event(&Event::now(None, kind));
    }
}

/// Ignores everything.
impl Observer for () {
    fn event(&self, _: &Event<'_>) {}
}
