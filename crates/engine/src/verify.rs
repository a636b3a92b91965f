//! The story of a verification: from the repositories, a file of trusted public keys and what is remembered elsewhere, is
//! everything there that should be, whole, unaltered, in its place, and not rolled back?
//!
//! [`run`] goes from VM to VM: the restore points one by one ([`point`]), the LUKS headers apart from them ([`headers`]),
//! their chain ([`strongroom_points::trust::chain`]) and what is on record of it ([`history`]), disks that have dropped out
//! ([`missing_disks`]), whether the repository has every chunk, and, if asked for, what is in each chunk ([`data`]). With all VMs,
//! each that is known anywhere has to be there ([`roster`]).
//!
//! It fails closed: what cannot be read, is not signed or is not known is a [`Problem`]. No hypervisor is needed, and no
//! earlier state: an empty machine with the configuration, `allowed_signers` and the witness can tell.

mod chunks;
mod data;
mod headers;
mod history;
mod missing_disks;
mod point;
mod roster;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;
use strongroom_base::cancel::Cancelled;
use strongroom_points::archive::PointError;
use strongroom_points::catalog::{Catalog, Entry};
use strongroom_points::headers::Headers;
use strongroom_points::manifest::LostPoint;
use strongroom_points::names::is_vm_name;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::selector::{PointName, Selector};
use strongroom_points::store::{Access, ArchiveInfo, ChunkId, ChunkRef, Repository};
use strongroom_points::trust::Signer;
use strongroom_points::trust::chain::{Head, Link, Records};
use strongroom_points::trust::ledger::Ledger;
use strongroom_points::trust::order::{self, Order};
pub use strongroom_points::trust::part::{Part, Share};
use strongroom_points::trust::witness;

use self::headers::HeaderInventory;
use self::missing_disks::Disks;
pub use self::missing_disks::MissingDisk;
use self::roster::{Inventories, Roster};
pub use crate::run::context::Surroundings;

/// How many problems of one VM are listed one by one; the rest is counted.
const MOST_PROBLEMS: usize = 1000;

/// What is to be verified.
#[derive(Debug, Clone)]
pub struct Request {
    /// These VMs with all their restore points, or only the ones named.
    pub what: Vec<Scope>,
    /// Everything that is configured, listed in an inventory, or on record here or at the witness.
    pub all: bool,
    /// Read every byte.
    pub data: bool,
    /// Only this share of the chunks.
    pub part: Option<Share>,
    /// What is missing of these VMs, but not damaged or altered, is meant to be.
    pub acknowledge: bool,
}

/// A VM, or one of its restore points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The VM.
    pub vm: String,
    /// One restore point; all if there is none.
    pub when: Option<Selector>,
}

impl FromStr for Scope {
    type Err = strongroom_points::selector::SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let PointName { vm, when } = text.parse()?;
        let when = text.contains('@').then_some(when);
        Ok(Self { vm, when })
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// One word for it; part of the interface.
    pub kind: &'static str,
    /// The restore point concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// The disk concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// First byte on that disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Bytes concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// In words.
    pub text: String,
}

impl Problem {
    fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self {
            kind,
            archive: None,
            disk: None,
            offset: None,
            length: None,
            text: text.into(),
        }
    }

    fn of(kind: &'static str, archive: &str, text: impl Into<String>) -> Self {
        Self {
            archive: Some(archive.to_owned()),
            ..Self::new(kind, text)
        }
    }
}

/// One VM.
#[derive(Debug, Clone, Serialize)]
pub struct VmReport {
    /// Its name.
    pub vm: String,
    /// Its repository.
    pub repository: String,
    /// Restore points looked at.
    pub points: Vec<PointReport>,
    /// Numbers, first and last, that were pruned or removed.
    pub removed: Vec<(u64, u64)>,
    /// Disks that are not backed up any more, as long as that is not acknowledged.
    pub dropped: Vec<MissingDisk>,
    /// What has been acknowledged just now.
    pub acknowledged: Vec<String>,
    /// Different chunks that these restore points consist of.
    pub chunks: u64,
    /// The share of the chunks that was read, if not all.
    pub part: Option<Part>,
    /// Bytes read and found good, with `data`.
    pub verified_bytes: u64,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Problems beyond those listed.
    pub more_problems: u64,
    /// What could not be told, and why.
    pub notes: Vec<String>,
}

/// One restore point.
#[derive(Debug, Clone, Serialize)]
pub struct PointReport {
    /// The archive.
    pub archive: String,
    /// Its number in the chain.
    pub sequence: u64,
    /// The instant that it shows.
    pub captured: Timestamp,
    /// Who vouches for it.
    pub signer: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Nothing is wrong.
    pub ok: bool,
    /// The VMs.
    pub vms: Vec<VmReport>,
    /// VMs that were not looked for, of all, because it is acknowledged that they were given up.
    pub given_up: Vec<String>,
    /// What is wrong with no single VM.
    pub problems: Vec<Problem>,
}

/// A VM's report under way.
struct Work<'a> {
    here: Surroundings<'a>,
    report: VmReport,
    /// All ids of the repository.
    ids: HashSet<ChunkId>,
    /// The chunks of the restore points looked at, each once, in the order of the archives.
    chunks: Vec<ChunkRef>,
    seen: HashSet<ChunkId>,
    damaged: BTreeSet<ChunkId>,
    links: Vec<Link>,
    header_inventory: HeaderInventory,
    inventories: Inventories,
    disks: Disks,
    /// All that is on record of the VM.
    known: Records,
    /// The times that count for the validity of keys.
    order: Order,
    /// Who vouches for which restore point, by the digest of its manifest.
    signers: HashMap<String, Result<Signer, String>>,
    /// The newest trusted restore point's number, and what it says is lost.
    stated: Option<(u64, Vec<LostPoint>)>,
    /// The repository has no restore point at all.
    is_empty: bool,
}

/// Verifies. An error is only that it was interrupted: everything else is in the report.
pub fn run(here: &Surroundings<'_>, request: &Request) -> Result<Report, Cancelled> {
    let mut report = Report {
        ok: false,
        vms: Vec::new(),
        given_up: Vec::new(),
        problems: Vec::new(),
    };
    let known = match here
        .settings
        .witness
        .as_ref()
        .map(|asked| witness::ask(asked, here.cancel))
    {
        None => None,
        Some(Ok(heads)) => Some(heads),
        Some(Err(error)) => {
            here.cancel.check()?;
            report
                .problems
                .push(Problem::new("witness", format!("failed to {error}")));
            Some(Vec::new())
        }
    };
    let mut roster = if request.all {
        all_known(here, known.as_deref(), &mut report.problems)
    } else {
        Roster::default()
    };
    let mut scopes: Vec<Scope> = request.what.clone();
    let mut done = BTreeSet::new();
    // What is found in one VM's repository may tell of others.
    loop {
        if request.all {
            let due = roster.due(here.state, &done).into_iter();
            scopes.extend(due.map(|vm| Scope { vm, when: None }));
        }
        if scopes.is_empty() {
            break;
        }
        for scope in std::mem::take(&mut scopes) {
            here.cancel.check()?;
            if !done.insert(scope.vm.clone()) && scope.when.is_none() {
                continue;
            }
            let (vm, found) = verify_vm(here, request, &scope, known.as_deref())?;
            report.vms.push(vm);
            roster.learn(&found);
        }
    }
    if request.all {
        for vm in &mut report.vms {
            vm.notes.extend(roster.note(&vm.vm));
        }
        report.given_up = roster.given_up(&done);
    }
    report.ok = report.problems.is_empty() && report.vms.iter().all(|vm| vm.problems.is_empty());
    Ok(report)
}

/// The VMs that are on record anywhere, before any repository has been opened.
fn all_known(here: &Surroundings<'_>, witness: Option<&[Head]>, problems: &mut Vec<Problem>) -> Roster {
    let own = roster::remembered(here).unwrap_or_else(|error| {
        problems.push(Problem::new("records", format!("failed to {error}")));
        Vec::new()
    });
    let witness = witness.unwrap_or_default();
    // Names of repositories and of records are made from these.
    let (usable, odd): (Vec<&Head>, Vec<&Head>) = witness.iter().partition(|head| is_vm_name(&head.vm));
    if let Some(odd) = odd.first() {
        let text = format!("the witness speaks of {:?}, which is no VM's name", odd.vm);
        problems.push(Problem::new("witness", text));
    }
    let configured = here.settings.names().cloned();
    Roster::new(configured, own.iter().chain(usable))
}

fn verify_vm(
    here: &Surroundings<'_>,
    request: &Request,
    scope: &Scope,
    witness: Option<&[Head]>,
) -> Result<(VmReport, Inventories), Cancelled> {
    let location = here.settings.job(&scope.vm).repository.clone();
    let mut work = Work {
        here: Surroundings {
            vm: Some(&scope.vm),
            ..here.clone()
        },
        report: VmReport {
            vm: scope.vm.clone(),
            repository: location.clone(),
            points: Vec::new(),
            removed: Vec::new(),
            dropped: Vec::new(),
            acknowledged: Vec::new(),
            chunks: 0,
            part: None,
            verified_bytes: 0,
            problems: Vec::new(),
            more_problems: 0,
            notes: Vec::new(),
        },
        ids: HashSet::new(),
        chunks: Vec::new(),
        seen: HashSet::new(),
        damaged: BTreeSet::new(),
        links: Vec::new(),
        header_inventory: HeaderInventory::default(),
        inventories: Inventories::default(),
        disks: Disks::default(),
        known: Records::default(),
        order: Order::default(),
        signers: HashMap::new(),
        stated: None,
        is_empty: false,
    };
    match here.repositories.open_as_it_is(&location, Access::Read) {
        Ok(mut repository) => {
            let looked = work.repository(&mut repository, request, scope, witness);
            here.cancel.check()?;
            if let Err(error) = looked {
                work.problem(Problem::new("repository", format!("failed to {error}")));
            }
            if let Err(error) = repository.close() {
                work.problem(Problem::new("repository", error.to_string()));
            }
        }
        Err(error) => {
            here.cancel.check()?;
            work.unopened(request, &error.to_string());
        }
    }
    work.report.chunks = work.seen.len() as u64;
    Ok((work.report, work.inventories))
}

/// The archives that can be restore points, by number; those that have none by their time, before the ones that are newer.
fn in_order(repository: &Repository, catalog: &Catalog) -> Vec<ArchiveInfo> {
    let archives = repository
        .archives()
        .filter(|info| !strongroom_points::archive::is_headers(info));
    let numberless = archives.filter(|info| !catalog.entries.iter().any(|entry| entry.info == **info));
    let mut all: Vec<ArchiveInfo> = catalog.entries.iter().map(|entry| entry.info.clone()).collect();
    for info in numberless {
        let at = all.iter().position(|other| other.time > info.time);
        all.insert(at.unwrap_or(all.len()), info.clone());
    }
    all
}

impl Work<'_> {
    /// A repository that cannot be opened: that of a VM that was given up need not be there.
    fn unopened(&mut self, request: &Request, error: &str) {
        if request.acknowledge && self.may_be_given_up() {
            if let Err(error) = self.give_up() {
                self.problem(Problem::new("records", format!("failed to {error}")));
            }
            return;
        }
        let hint = self.how_to_give_up();
        self.problem(Problem::new(
            "repository",
            format!("failed to open it: {error}{hint}"),
        ));
    }

    fn problem(&mut self, problem: Problem) {
        if self.report.problems.len() < MOST_PROBLEMS {
            self.report.problems.push(problem);
        } else {
            self.report.more_problems += 1;
        }
    }

    fn problems(&mut self, problems: impl IntoIterator<Item = Problem>) {
        problems.into_iter().for_each(|problem| self.problem(problem));
    }

    fn repository(
        &mut self,
        repository: &mut Repository,
        request: &Request,
        scope: &Scope,
        witness: Option<&[Head]>,
    ) -> Result<(), PointError> {
        let catalog = Catalog::read(repository)?;
        let all = in_order(repository, &catalog);
        let chosen = match &scope.when {
            None => all.clone(),
            Some(when) => {
                let name = PointName {
                    vm: scope.vm.clone(),
                    when: when.clone(),
                };
                let fitting = all.iter().enumerate().filter(|(_, info)| name.fits(info));
                let best = fitting.max_by_key(|(at, info)| (name.names(info), *at));
                best.map(|(_, info)| info.clone()).into_iter().collect()
            }
        };
        self.known(repository, scope, witness);
        let chain: Vec<&Entry> = catalog.entries.iter().collect();
        self.order = Order::new(&chain, &self.known.of(&repository.id().to_string()));
        let wanted = |entry: &&&Entry| scope.when.is_none() || chosen.contains(&entry.info);
        let wanted: Vec<&Entry> = chain.iter().filter(wanted).copied().collect();
        self.signers = order::signers(&self.here.grounds(), &wanted, &self.order);
        self.is_empty = all.is_empty();
        let is_given_up = request.acknowledge && self.is_empty && self.may_be_given_up();
        if chosen.is_empty() && !is_given_up {
            let text = if scope.when.is_some() {
                "there is no such restore point".to_owned()
            } else {
                format!("there is no restore point{}", self.how_to_give_up())
            };
            self.problem(Problem::new("no-restore-point", text));
        }
        self.ids = repository.list_ids().collect::<Result<_, _>>()?;
        for info in &chosen {
            if self.here.cancel.is_cancelled() {
                return Ok(());
            }
            let read = RestorePoint::read(repository, info);
            match read {
                Ok(point) => self.point(repository, &point)?,
                Err(error) => self.unreadable(info, error)?,
            }
        }
        self.all_headers(repository, scope.when.is_none())?;
        self.chain(repository, request, scope);
        if request.data {
            let part = request.part.map(|share| self.part(&scope.vm, share));
            self.chunks
                .retain(|chunk| part.is_none_or(|part| part.has(&chunk.id)));
            let chunks = std::mem::take(&mut self.chunks);
            let damaged = data::read(&self.here, repository, &scope.vm, &chunks)?;
            // Interrupted: what was not read is neither whole nor damaged.
            if self.here.cancel.is_cancelled() {
                return Ok(());
            }
            self.report.part = part;
            self.report.verified_bytes = chunks
                .iter()
                .filter(|chunk| !damaged.contains_key(&chunk.id))
                .map(|chunk| u64::from(chunk.size))
                .sum();
            self.damaged.extend(damaged.keys());
            self.name(repository, &all, &damaged);
        }
        self.remember(repository, request, scope);
        Ok(())
    }

    /// An archive that cannot be read: it is a problem, and only that, unless the connection is gone.
    fn unreadable(&mut self, info: &ArchiveInfo, error: PointError) -> Result<(), PointError> {
        match error {
            PointError::Repository(error) if error.is_connection_lost() => Err(error.into()),
            error => {
                let kind = if matches!(error, PointError::Foreign(_)) {
                    "foreign"
                } else {
                    "unreadable"
                };
                let text = format!("failed to {error}");
                self.problem(Problem::of(kind, &info.name.to_string(), text));
                Ok(())
            }
        }
    }

    /// One restore point: what it says of itself, who vouches for it, and whether its chunks are there.
    fn point(&mut self, repository: &mut Repository, point: &RestorePoint) -> Result<(), PointError> {
        let signer = self.signers.get(&point.link).cloned();
        let (signer, problems) = point::check(repository, &self.report.vm, point, signer)?;
        // What is signed for another place, or by a key that is not named, says nothing of this chain.
        let in_place = problems.iter().all(|problem| problem.kind != "place");
        let signing = self.here.settings.signing.as_ref();
        let any_key = signing.is_none_or(|signing| signing.allowed_signers.is_none());
        let trusted = in_place && (signer.is_some() || any_key);
        self.problems(problems);
        let archive = point.name();
        self.report.points.push(PointReport {
            archive: archive.clone(),
            sequence: point.manifest.sequence,
            captured: point.manifest.captured,
            signer: signer.clone(),
        });
        self.links.push(Link::of(point, trusted));
        if signer.is_some() {
            self.inventories.add(point);
        }
        if trusted {
            self.disks.add(point);
            let number = point.manifest.sequence;
            if self.stated.as_ref().is_none_or(|(newest, _)| *newest < number) {
                self.stated = Some((number, point.manifest.lost.clone()));
            }
        }
        self.header_inventory.needs(point);
        for (path, item) in &point.items {
            self.chunks_of(&archive, path, item);
        }
        Ok(())
    }

    /// The archives of headers: all of them, or what one restore point needs of them.
    fn all_headers(&mut self, repository: &mut Repository, all: bool) -> Result<(), PointError> {
        for info in strongroom_points::headers::archives(repository) {
            if self.here.cancel.is_cancelled() {
                return Ok(());
            }
            let report = all || self.header_inventory.belongs(&info);
            match Headers::read(repository, &info) {
                Ok(headers) => self.headers(repository, &headers, report),
                Err(error) if report || !error.concerns_one_archive() => self.unreadable(&info, error)?,
                Err(_) => {}
            }
        }
        let problems = self.header_inventory.problems(all);
        self.problems(problems);
        Ok(())
    }

    /// Which part that is. Records that cannot be read are a problem of the chain already; a cycle begins anew then.
    fn part(&self, vm: &str, share: Share) -> Part {
        match share {
            Share::Part(part) => part,
            Share::Next(of) => {
                let last = Ledger::open(self.here.state.path(), vm)
                    .ok()
                    .and_then(|ledger| ledger.cycle());
                last.map_or(Part::first(of), |last| last.next(of))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_alone_means_all_its_restore_points() {
        let scope = |text: &str| text.parse::<Scope>().unwrap().when;
        assert_eq!(scope("web"), None);
        assert_eq!(scope("web@latest"), Some(Selector::Latest));
        assert_eq!(scope("web@2026"), Some(Selector::Text("2026".into())));
        "@x".parse::<Scope>().unwrap_err();
    }
}
