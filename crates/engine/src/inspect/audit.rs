//! What is unsafe about VMs, told from outside and without a key: [`run`].
//!
//! Everything is only looked at. Images are opened read-only and without a lock, also those that a running guest writes
//! to: headers do not move, and of the data only samples are taken, so that a block which is seen half-written decides
//! nothing. `inspect` does that; `rules` (pure) makes findings of it; `clones` (pure) compares every volume of the
//! hypervisor with every other; `shared` (pure) finds images that belong to several VMs.

mod clones;
mod inspect;
mod rules;
mod shared;

use std::cmp::Reverse;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use strongroom_base::cancel::Cancelled;
use strongroom_disk::Luks;
use strongroom_disk::survey::Content;
use strongroom_hypervisor::{Domain, HypervisorError, RunState};
use strongroom_points::trust::ledger::Ledger;

pub use self::inspect::InspectedDisk;
pub use self::rules::clear_text;
use crate::files::Inventory;
use crate::run::context::Context;
use crate::run::state::StateError;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Worth knowing. Nothing to be done.
    Note,
    /// It works against you, or will.
    Warning,
    /// Secrets or data lie open.
    Unsafe,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name: part of the interface, explained in `docs/guide/audit.md`.
    pub code: &'static str,
    /// How much it matters.
    pub level: Level,
    /// The disk, unless it is about the VM.
    pub disk: Option<String>,
    /// What was found, in words.
    pub text: String,
}

/// A LUKS volume of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// The disk.
    pub disk: String,
    /// Number of the partition; `None` is the whole disk.
    pub partition: Option<u32>,
    /// 1 or 2.
    pub version: u16,
    /// Its UUID.
    pub uuid: String,
    /// How its data is encrypted.
    pub ciphers: Vec<String>,
    /// Its key slots.
    pub slots: Vec<Slot>,
}

/// A key slot in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Its number.
    pub slot: u32,
    /// What each guess costs.
    pub kdf: String,
    /// What opens it without a passphrase (`clevis: tang http://…`).
    pub opened_by: Vec<String>,
}

/// What was found about one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmReport {
    /// Its name.
    pub vm: String,
    /// What it is doing.
    pub state: Option<RunState>,
    /// Its LUKS volumes.
    pub volumes: Vec<Volume>,
    /// What was found, what matters most first.
    pub findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub problems: Vec<String>,
}

/// What was found.
#[derive(Default, Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The VMs asked for.
    pub vms: Vec<VmReport>,
    /// What of other VMs could not be compared with them.
    pub not_compared: Vec<String>,
}

impl Report {
    /// Adds what was found on another hypervisor. VMs of different hypervisors are not compared.
    pub fn extend(&mut self, other: Self) {
        self.vms.extend(other.vms);
        self.not_compared.extend(other.not_compared);
    }

    /// Whether anything matters more than a note.
    pub fn is_unsafe(&self) -> bool {
        let mut findings = self.vms.iter().flat_map(|vm| &vm.findings);
        findings.any(|finding| finding.level > Level::Note)
    }

    /// Whether something that was asked for could not be looked at.
    pub fn is_incomplete(&self) -> bool {
        self.vms.iter().any(|vm| !vm.problems.is_empty())
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The hypervisor does not answer.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// It was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A VM with its disks as they were seen.
struct Seen {
    name: String,
    domain: Domain,
    disks: Vec<InspectedDisk>,
    configured: bool,
}

/// Looks at these VMs, and compares them with all others of the hypervisor. A backup older than `max_age` is a finding.
pub fn run(context: &Context<'_>, vms: &[String], max_age: SignedDuration) -> Result<Report, AuditError> {
    let mut report = Report::default();
    let mut seen = Vec::new();
    for name in vms {
        match context.hypervisor.domain(&context.settings.job(name).domain()) {
            Ok(domain) => seen.push(see(context, name, domain)?),
            Err(error) => report.vms.push(VmReport {
                vm: name.clone(),
                state: None,
                volumes: Vec::new(),
                findings: Vec::new(),
                problems: vec![format!("failed to {error}")],
            }),
        }
    }
    let asked = seen.len();
    for name in context.hypervisor.domain_names()? {
        let domain = match context.hypervisor.domain(&name) {
            Ok(domain) if seen.iter().any(|other| other.domain.uuid == domain.uuid) => continue,
            Ok(domain) => domain,
            // It went away meanwhile.
            Err(HypervisorError::NoSuchDomain(..)) => continue,
            Err(error) => {
                report.not_compared.push(format!("{name}: failed to {error}"));
                continue;
            }
        };
        let other = see(context, &name, domain)?;
        report
            .not_compared
            .extend(problems(&other).map(|problem| format!("{name} {problem}")));
        seen.push(other);
    }
    let inventory = Inventory::take(context.hypervisor).unwrap_or_else(|error| {
        report.not_compared.push(format!(
            "which VMs use the same files is unknown: failed to {error}"
        ));
        Inventory::default()
    });
    for unread in inventory.unread() {
        let words = format!(
            "{}: which files it uses is unknown: {}",
            unread.domain, unread.reason
        );
        report.not_compared.push(words);
    }
    let located: Vec<clones::LocatedVolume<'_>> = seen
        .iter()
        .flat_map(|vm| vm.disks.iter().flat_map(|disk| clones::volumes(&vm.name, disk)))
        .collect();
    for vm in seen.iter().take(asked) {
        let mut findings = about(context, vm, max_age);
        findings.extend(clones::findings(&vm.name, &located));
        findings.extend(shared::findings(&inventory, vm.domain.uuid));
        findings.sort_by_key(|finding| Reverse(finding.level));
        report.vms.push(VmReport {
            vm: vm.name.clone(),
            state: Some(vm.domain.state),
            volumes: vm.disks.iter().flat_map(volumes).collect(),
            findings,
            problems: problems(vm).collect(),
        });
    }
    Ok(report)
}

/// Targets of the disks that hold nothing but swap, so that they are not backed up: what the configuration does not
/// say yet.
pub fn swap_disks(domain: &Domain) -> Vec<String> {
    let disks = inspect::disks(domain, &[]);
    disks
        .iter()
        .filter(|disk| rules::is_only_swap(disk))
        .map(|disk| disk.target.clone())
        .collect()
}

fn see(context: &Context<'_>, name: &str, domain: Domain) -> Result<Seen, AuditError> {
    context.cancel.check()?;
    context.about(name).note("looking at its disks");
    let job = context.settings.job_of(name, &domain.name, domain.uuid).ok();
    let swap = job.as_ref().map_or(&[][..], |job| &job.swap);
    let disks = if context.hypervisor.is_local() {
        inspect::disks(&domain, swap)
    } else {
        inspect::out_of_reach(&domain, swap)
    };
    Ok(Seen {
        name: name.to_owned(),
        domain,
        disks,
        configured: job.is_some(),
    })
}

fn problems(vm: &Seen) -> impl Iterator<Item = String> {
    vm.disks.iter().filter_map(|disk| {
        let problem = disk.survey.as_ref().err()?;
        Some(format!("disk {}: {problem}", disk.target))
    })
}

/// Findings about one VM by itself.
fn about(context: &Context<'_>, vm: &Seen, max_age: SignedDuration) -> Vec<Finding> {
    let mut findings: Vec<Finding> = vm.disks.iter().flat_map(rules::disk).collect();
    let snapshots = context.hypervisor.snapshot_names(vm.domain.uuid);
    findings.extend(rules::domain(
        &vm.domain,
        snapshots.as_deref().unwrap_or_default(),
    ));
    let checkpoints = context.hypervisor.checkpoints(vm.domain.uuid).unwrap_or_default();
    let committed = context.state.peek(vm.domain.uuid).ok().flatten();
    let mut known = checkpoints.clone();
    known.extend(
        committed
            .and_then(|records| records.committed)
            .map(|of| of.checkpoint),
    );
    findings.extend(rules::tracking(&vm.domain, &checkpoints));
    findings.extend(vm.disks.iter().filter_map(|disk| rules::leftovers(disk, &known)));
    let protection = rules::Protection {
        configured: vm.configured,
        signed: context.settings.signing.is_some(),
        interrupted: records(context, vm),
        last: last_backup(context, &vm.domain.name),
    };
    findings.extend(rules::protection(&protection, Timestamp::now(), max_age));
    findings
}

/// Whether the records tell of a run that died. Records that cannot be read are no reason to stop: `status` says so.
fn records(context: &Context<'_>, vm: &Seen) -> bool {
    let records = context.state.peek(vm.domain.uuid).ok().flatten();
    records.is_some_and(|records| records.run.is_some())
}

/// When the newest restore point that was ever seen here was committed. The repository is not asked: it takes a key.
fn last_backup(context: &Context<'_>, vm: &str) -> Result<Option<Timestamp>, StateError> {
    let ledger = Ledger::open(context.state.path(), vm)?;
    Ok(ledger.head().map(|head| head.committed))
}

fn volumes(disk: &InspectedDisk) -> Vec<Volume> {
    let parts = disk.survey.iter().flat_map(|survey| &survey.parts);
    let found = parts.filter_map(|part| match &part.content {
        Content::Luks(luks) => Some((part.region.partition, luks)),
        _ => None,
    });
    found
        .map(|(partition, luks)| volume(&disk.target, partition, luks))
        .collect()
}

fn volume(disk: &str, partition: Option<u32>, luks: &Luks) -> Volume {
    let slots = luks.slots.iter().map(|slot| Slot {
        slot: slot.number,
        kdf: slot.kdf.to_string(),
        opened_by: rules::openers(luks, slot.number),
    });
    Volume {
        disk: disk.to_owned(),
        partition,
        version: luks.version,
        uuid: luks.uuid.clone(),
        ciphers: luks
            .segments
            .iter()
            .filter_map(|segment| segment.cipher.clone())
            .collect(),
        slots: slots.collect(),
    }
}
