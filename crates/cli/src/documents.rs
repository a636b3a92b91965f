//! The documents of `--json`: what each command prints, as types.
//!
//! They are in users' hands. Fields are added, and nothing else ever changes; the tests hold each document, and
//! `docs/reference/json.md` explains it. What they are made of are the engine's reports.

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use strongroom_engine::backup;
use strongroom_engine::inspect::audit;
use strongroom_engine::inspect::image_seal::Seal;
use strongroom_engine::inspect::storage::Pool;
use strongroom_engine::provision::attest;
use strongroom_engine::provision::create;
use strongroom_engine::provision::template::Description;
use strongroom_engine::restore;
use strongroom_engine::run::event::Code;
use strongroom_engine::run::plan::Plan;
use strongroom_engine::verify;
use strongroom_points::manifest::Manifest;

/// A warning, as JSON documents have it.
#[derive(Debug, Clone, Serialize)]
pub struct Warned {
    /// What it is about; see `docs/reference/warnings.md`.
    pub code: Code,
    /// The VM that it is about, if it is about one.
    pub vm: Option<String>,
    /// For people.
    pub text: String,
}

impl Warned {
    /// The line that people read.
    pub fn line(&self) -> String {
        match &self.vm {
            Some(vm) => format!("{vm}: {}", self.text),
            None => self.text.clone(),
        }
    }
}

/// A document with the warnings of the whole command.
#[derive(Serialize)]
pub struct WithWarnings<T> {
    #[serde(flatten)]
    pub document: T,
    /// As people read them.
    pub warnings: Vec<String>,
    /// The same, with codes.
    pub warning_details: Vec<Warned>,
}

/// Of any command that failed as a whole.
#[derive(Serialize)]
pub struct Failed<'a> {
    pub error: &'a str,
    pub hint: Option<&'a str>,
}

/// Of `init`.
#[derive(Serialize)]
pub struct Initialised<'a> {
    pub configuration: &'a Path,
    pub vms: &'a [String],
}

/// Of `adopt`.
#[derive(Serialize)]
pub struct Adopted<'a> {
    pub configuration: &'a Path,
    pub audit: &'a audit::Report,
}

/// Of `create` and `backup-vm create`.
#[derive(Serialize)]
pub struct Created<'a> {
    pub created: &'a create::Created,
}

/// Of `backup`.
#[derive(Serialize)]
pub struct Backups<'a> {
    pub backups: Vec<OneBackup<'a>>,
}

/// What came of one VM.
#[derive(Serialize)]
pub struct OneBackup<'a> {
    pub vm: &'a str,
    #[serde(flatten)]
    pub outcome: BackupOutcome<'a>,
    /// Those about this VM.
    pub warnings: Vec<&'a str>,
    /// The same, with codes.
    pub warning_details: &'a [Warned],
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum BackupOutcome<'a> {
    Planned { plan: &'a Plan },
    Done { backup: &'a backup::Report },
    Failed(Failed<'a>),
}

/// Of `restore`.
#[derive(Serialize)]
pub struct Restored<'a> {
    pub restore: &'a restore::Report,
}

/// Of `restore --dry-run`.
#[derive(Serialize)]
pub struct RestorePlanned<'a> {
    pub plan: &'a restore::RestorePlan,
}

/// Of `list`.
#[derive(Serialize)]
pub struct Listed {
    pub restore_points: Vec<ListedPoint>,
    pub problems: Vec<ProblemOfVm>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum ListedPoint {
    Readable {
        vm: String,
        archive: String,
        manifest: Box<Manifest>,
    },
    Unreadable {
        vm: String,
        archive: String,
        error: String,
    },
}

#[derive(Serialize)]
pub struct ProblemOfVm {
    pub vm: String,
    pub error: String,
    pub hint: Option<String>,
}

/// Of `show`.
#[derive(Serialize)]
pub struct Shown<'a> {
    pub archive: String,
    pub manifest: &'a Manifest,
}

/// Of `status`.
#[derive(Serialize)]
pub struct Status<'a> {
    pub vms: Vec<StatusOfVm<'a>>,
    pub pools: &'a [Pool],
}

/// What is not known is `null`.
#[derive(Serialize)]
pub struct StatusOfVm<'a> {
    pub vm: &'a str,
    pub state: &'static str,
    pub restore_points: Option<usize>,
    pub last_backup: Option<Timestamp>,
    pub last_archive: Option<&'a str>,
    pub last_backup_known_from: &'static str,
    pub running: bool,
    pub running_since: Option<Timestamp>,
    pub interrupted: bool,
    pub next: &'static str,
    pub problem: Option<&'a str>,
}

/// Of `audit`.
#[derive(Serialize)]
pub struct Audited<'a> {
    pub audit: &'a audit::Report,
    pub problems: Vec<ProblemOfHypervisor>,
}

#[derive(Serialize)]
pub struct ProblemOfHypervisor {
    pub hypervisor: String,
    pub error: String,
}

/// Of `verify`.
#[derive(Serialize)]
pub struct Verified<'a> {
    pub verify: &'a verify::Report,
}

/// Of `recover`.
#[derive(Serialize)]
pub struct Recovered {
    pub vms: Vec<RecoveredVm>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum RecoveredVm {
    Done { vm: String, found: Vec<String> },
    Failed { vm: String, error: String },
}

/// Of `release`.
#[derive(Serialize)]
pub struct Released {
    pub vms: Vec<ReleasedVm>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum ReleasedVm {
    Done {
        vm: String,
        found: Vec<String>,
        removed: bool,
    },
    Failed {
        vm: String,
        error: String,
    },
}

/// Of `seal`.
#[derive(Serialize)]
pub struct Sealed<'a> {
    pub vms: Vec<SealedVm<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum SealedVm<'a> {
    Used {
        vm: &'a str,
        used: bool,
    },
    Sealed {
        vm: &'a str,
        seal: Seal,
        file: std::path::PathBuf,
    },
}

/// Of `verify-image`.
#[derive(Serialize)]
pub struct CheckedImages<'a> {
    pub vms: Vec<CheckedVm<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum CheckedVm<'a> {
    Good {
        vm: &'a str,
        ok: bool,
        seal: Seal,
        signer: String,
    },
    NotSealed {
        vm: &'a str,
        ok: bool,
        seal: (),
    },
    Failed {
        vm: &'a str,
        ok: bool,
        error: String,
    },
}

/// Of `repo test-append-only`.
#[derive(Serialize)]
pub struct AppendOnly {
    pub append_only: Vec<AppendOnlyVm>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum AppendOnlyVm {
    Known {
        vm: String,
        repository: String,
        append_only: bool,
    },
    Failed {
        vm: String,
        repository: String,
        error: String,
    },
}

/// Of `template`: what was made, or what there is.
#[derive(Serialize)]
pub struct Templates<'a> {
    pub templates: &'a [Description],
}

/// Of `template rm`.
#[derive(Serialize)]
pub struct Removed<'a> {
    pub removed: &'a [String],
}

/// Of `attest`.
#[derive(Serialize)]
pub struct Attested<'a> {
    pub attested: &'a attest::Attested,
}

/// Of `attest` without a report.
#[derive(Serialize)]
pub struct Measured {
    pub measurement: String,
}

/// Of `hypervisor-rights`.
#[derive(Serialize)]
pub struct HypervisorRights {
    pub polkit: String,
    pub authorized_keys: String,
    pub script: String,
    pub jobs: JobsRights,
    pub commands: Vec<String>,
}

#[derive(Serialize)]
pub struct JobsRights {
    pub account: String,
    pub authorized_keys: String,
    pub script: String,
}

#[cfg(test)]
mod tests;
