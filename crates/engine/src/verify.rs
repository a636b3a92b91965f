//! The story of a verification: from the repositories, a file of trusted public keys and what is remembered elsewhere, is
//! everything there that should be, whole, unaltered, in its place, and not rolled back?
//!
//! [`run`] goes from VM to VM: the restore points one by one ([`point`]), the LUKS headers apart from them ([`headers`]), their chain ([`crate::trust::chain`]), whether
//! the repository has every chunk, and, if asked for, what is in each chunk ([`data`]). With all VMs, the inventory of
//! the newest restore point has to be met.
//!
//! It fails closed: what cannot be read, is not signed or is not known is a [`Problem`]. No hypervisor is needed, and no
//! earlier state: an empty machine with the configuration, `allowed_signers` and the witness can tell.

mod data;
mod headers;
mod point;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;
use strongroom_borg::{Access, ArchiveInfo, ChunkId, ChunkRef, Item, Repository};

use self::headers::Ledger;
use crate::cancel::{Cancel, Cancelled};
use crate::config::Config;
use crate::context::Repositories;
use crate::event::{Event, Observer};
use crate::headers::Headers;
use crate::history::{self, HistoryError, Point};
use crate::manifest;
use crate::state::StateDirectory;
use crate::trust::chain::{self, Head, Link};
use crate::trust::memory::Memory;
pub use crate::trust::part::{Part, Share};
use crate::trust::witness;
use crate::when::{PointName, When};

/// How many problems of one VM are listed one by one; the rest is counted.
const MOST_PROBLEMS: usize = 1000;

/// What a verification works with.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Our own records.
    pub state: &'a StateDirectory,
    /// How repositories are reached.
    pub repositories: &'a Repositories,
    /// Who hears of what happens.
    pub observer: &'a dyn Observer,
    /// Asks long work to stop.
    pub cancel: &'a Cancel,
}

/// What is to be verified.
#[derive(Debug, Clone)]
pub struct Request {
    /// These VMs with all their restore points, or only the ones named.
    pub what: Vec<Scope>,
    /// Everything that is configured, and everything that the inventory lists.
    pub all: bool,
    /// Read every byte.
    pub data: bool,
    /// Only this share of the chunks.
    pub part: Option<Share>,
}

/// A VM, or one of its restore points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The VM.
    pub vm: String,
    /// One restore point; all if there is none.
    pub when: Option<When>,
}

impl FromStr for Scope {
    type Err = crate::when::WhenError;

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
    links: Vec<(Link, Timestamp)>,
    ledger: Ledger,
    inventory: Option<(Timestamp, Vec<String>)>,
}

/// Verifies. An error is only that it was interrupted: everything else is in the report.
pub fn run(here: &Surroundings<'_>, request: &Request) -> Result<Report, Cancelled> {
    let mut report = Report {
        ok: false,
        vms: Vec::new(),
        problems: Vec::new(),
    };
    let known = match here
        .config
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
    let mut scopes: Vec<Scope> = request.what.clone();
    if request.all {
        let all = here.config.vm.keys().cloned();
        scopes.extend(all.map(|vm| Scope { vm, when: None }));
    }
    // The newest restore point of all says which VMs there have to be. Looking at those may reveal a newer one.
    let mut done = BTreeSet::new();
    let mut inventory: Option<(Timestamp, Vec<String>)> = None;
    loop {
        for scope in std::mem::take(&mut scopes) {
            here.cancel.check()?;
            if !done.insert(scope.vm.clone()) && scope.when.is_none() {
                continue;
            }
            let (vm, found) = verify_vm(here, request, &scope, known.as_deref())?;
            report.vms.push(vm);
            inventory = inventory.into_iter().chain(found).max_by_key(|(at, _)| *at);
        }
        let Some((_, vms)) = inventory.as_ref().filter(|_| request.all) else {
            break;
        };
        scopes = vms
            .iter()
            .filter(|vm| !done.contains(*vm))
            .map(|vm| Scope {
                vm: vm.clone(),
                when: None,
            })
            .collect();
        if scopes.is_empty() {
            break;
        }
    }
    report.ok = report.problems.is_empty() && report.vms.iter().all(|vm| vm.problems.is_empty());
    Ok(report)
}

/// Where an item's bytes are on a disk.
struct Place<'a> {
    disk: Option<&'a str>,
    start: u64,
}

impl<'a> Place<'a> {
    /// Of a disk, or of a header area of one; small files are on none.
    fn of(path: &'a str) -> Self {
        let area = crate::headers::area_of(path).map(|(disk, start)| (Some(disk), start));
        let (disk, start) = area.unwrap_or((manifest::disk_of(path), 0));
        Self { disk, start }
    }

    /// The problem of a chunk at an offset of the item, with its place on the disk.
    fn name(&self, offset: u64, chunk: &ChunkRef, problem: Problem) -> Problem {
        Problem {
            disk: self.disk.map(str::to_owned),
            offset: self.disk.map(|_| self.start.saturating_add(offset)),
            length: Some(chunk.size.into()),
            ..problem
        }
    }
}

type Inventory = Option<(Timestamp, Vec<String>)>;

fn verify_vm(
    here: &Surroundings<'_>,
    request: &Request,
    scope: &Scope,
    witness: Option<&[Head]>,
) -> Result<(VmReport, Inventory), Cancelled> {
    let location = here.config.repository_of(&scope.vm);
    let mut work = Work {
        here: *here,
        report: VmReport {
            vm: scope.vm.clone(),
            repository: location.clone(),
            points: Vec::new(),
            removed: Vec::new(),
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
        ledger: Ledger::default(),
        inventory: None,
    };
    match here.repositories.open(&location, Access::Read) {
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
            work.problem(Problem::new("repository", format!("failed to open it: {error}")));
        }
    }
    work.report.chunks = work.seen.len() as u64;
    Ok((work.report, work.inventory))
}

impl Work<'_> {
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
    ) -> Result<(), HistoryError> {
        let all = history::points(repository);
        let chosen = match &scope.when {
            None => all.clone(),
            Some(when) => {
                let name = PointName {
                    vm: scope.vm.clone(),
                    when: when.clone(),
                };
                name.candidates(all.clone()).into_iter().take(1).collect()
            }
        };
        if chosen.is_empty() {
            self.problem(Problem::new("no-restore-point", "there is no such restore point"));
        }
        self.ids = repository.list_ids().collect::<Result<_, _>>()?;
        for info in &chosen {
            if self.here.cancel.is_cancelled() {
                return Ok(());
            }
            let read = Point::read(repository, info);
            match read {
                Ok(point) => self.point(repository, &point)?,
                Err(error) => self.unreadable(info, error)?,
            }
        }
        self.all_headers(repository, scope.when.is_none())?;
        self.chain(repository, scope, witness);
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
    fn unreadable(&mut self, info: &ArchiveInfo, error: HistoryError) -> Result<(), HistoryError> {
        match error {
            HistoryError::Repository(error) if error.is_connection_lost() => Err(error.into()),
            error => {
                let kind = if matches!(error, HistoryError::Foreign(_)) {
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
    fn point(&mut self, repository: &mut Repository, point: &Point) -> Result<(), HistoryError> {
        let (signer, problems) = point::check(&self.here, repository, &self.report.vm, point)?;
        self.problems(problems);
        let archive = point.name();
        self.report.points.push(PointReport {
            archive: archive.clone(),
            sequence: point.manifest.sequence,
            captured: point.manifest.captured,
            signer: signer.clone(),
        });
        let link = Link {
            archive: archive.clone(),
            sequence: point.manifest.sequence,
            hash: point.link.clone(),
            previous: point.manifest.previous.clone(),
        };
        self.links.push((link, point.manifest.captured));
        // Only who is trusted says which VMs there have to be.
        if signer.is_some()
            && self
                .inventory
                .as_ref()
                .is_none_or(|(at, _)| *at < point.manifest.captured)
        {
            self.inventory = Some((point.manifest.captured, point.manifest.inventory.clone()));
        }
        self.ledger.needs(point);
        for (path, item) in &point.items {
            self.chunks_of(&archive, path, item);
        }
        Ok(())
    }

    /// The archives of headers: all of them, or what one restore point needs of them.
    fn all_headers(&mut self, repository: &mut Repository, all: bool) -> Result<(), HistoryError> {
        for info in crate::headers::archives(repository) {
            if self.here.cancel.is_cancelled() {
                return Ok(());
            }
            let report = all || self.ledger.belongs(&info);
            match Headers::read(repository, &info) {
                Ok(headers) => self.headers(repository, &headers, report),
                Err(error) if report || !error.concerns_one_archive() => self.unreadable(&info, error)?,
                Err(_) => {}
            }
        }
        let problems = self.ledger.problems(all);
        self.problems(problems);
        Ok(())
    }

    /// The chunks of an item: each is to be there, and counts once.
    fn chunks_of(&mut self, archive: &str, path: &str, item: &Item) {
        let place = Place::of(path);
        let mut offset = 0;
        for chunk in item.chunks.iter().flatten() {
            if self.seen.insert(chunk.id) {
                self.chunks.push(*chunk);
            }
            if !self.ids.contains(&chunk.id) {
                self.damaged.insert(chunk.id);
                self.problem(place.name(
                    offset,
                    chunk,
                    Problem::of(
                        "missing-chunk",
                        archive,
                        format!("{path}: the chunk at offset {offset} is not in the repository"),
                    ),
                ));
            }
            offset += u64::from(chunk.size);
        }
    }

    /// Which part that is. Records that cannot be read are a problem of the chain already; a cycle begins anew then.
    fn part(&self, vm: &str, share: Share) -> Part {
        match share {
            Share::Part(part) => part,
            Share::Next(of) => {
                let last = Memory::open(self.here.state, vm)
                    .ok()
                    .and_then(|memory| memory.cycle());
                last.map_or(Part::first(of), |last| last.next(of))
            }
        }
    }

    fn chain(&mut self, repository: &Repository, scope: &Scope, witness: Option<&[Head]>) {
        let id = repository.id().to_string();
        let mut known: Vec<Head> = witness
            .unwrap_or_default()
            .iter()
            .filter(|head| head.vm == scope.vm)
            .cloned()
            .collect();
        match Memory::open(self.here.state, &scope.vm) {
            Ok(memory) => known.extend(memory.head().cloned()),
            Err(error) => self.problem(Problem::new("records", format!("failed to {error}"))),
        }
        let links: Vec<Link> = self.links.iter().map(|(link, _)| link.clone()).collect();
        if scope.when.is_some() {
            // One of many: it can only be compared with what is on record of it.
            known.retain(|head| {
                links.iter().any(|link| link.sequence == head.sequence) && head.repository == id
            });
        } else if known.is_empty() {
            self.report.notes.push(
                "no record of the newest restore point, neither here nor at a witness: that the newest ones are missing, \
                 or all of the repository is an old copy, cannot be told"
                    .into(),
            );
        }
        let walk = chain::walk(&links, &known, &id, repository.timestamp());
        let one = scope.when.is_some();
        self.problems(
            walk.problems
                .iter()
                .map(|problem| Problem::new(problem.kind(), problem.to_string())),
        );
        if !one {
            self.report.removed = walk.removed;
        }
    }

    /// Says of damaged chunks where they are used, in all archives.
    fn name(
        &mut self,
        repository: &mut Repository,
        all: &[ArchiveInfo],
        damaged: &BTreeMap<ChunkId, String>,
    ) {
        if damaged.is_empty() {
            return;
        }
        let mut archives: Vec<(String, BTreeMap<String, Item>)> = Vec::new();
        for info in all {
            // What cannot be read was said before.
            let read = Point::read(repository, info);
            archives.extend(read.map(|point| (point.name(), point.items)));
        }
        for info in crate::headers::archives(repository) {
            let read = Headers::read(repository, &info);
            archives.extend(read.map(|headers| (headers.name(), headers.items)));
        }
        for (archive, items) in &archives {
            for (path, item) in items {
                let place = Place::of(path);
                let mut offset = 0;
                for chunk in item.chunks.iter().flatten() {
                    if let (Some(why), true) = (damaged.get(&chunk.id), self.ids.contains(&chunk.id)) {
                        let text =
                            format!("{path}: damaged at offset {offset} ({} bytes): {why}", chunk.size);
                        let problem = Problem::of("damaged-chunk", archive, text);
                        self.problem(place.name(offset, chunk, problem));
                    }
                    offset += u64::from(chunk.size);
                }
            }
        }
    }

    /// What this machine knows from now on: the newest restore point, if all is well, and what is damaged.
    fn remember(&mut self, repository: &Repository, request: &Request, scope: &Scope) {
        let part = self.report.part;
        let looked_at = |id: &ChunkId| {
            let read = request.data && part.is_none_or(|part| part.has(id));
            // A chunk that no restore point uses any more is nobody's damage.
            (read && self.seen.contains(id)) || (scope.when.is_none() && !self.seen.contains(id))
        };
        let newest = self.links.iter().max_by_key(|(link, _)| link.sequence);
        let head = newest.map(|(link, _)| Head {
            format: 1,
            vm: scope.vm.clone(),
            repository: repository.id().to_string(),
            archive: link.archive.clone(),
            sequence: link.sequence,
            hash: link.hash.clone(),
            committed: repository.timestamp(),
        });
        let head = head.filter(|_| self.report.problems.is_empty() && scope.when.is_none());
        let kept = Memory::open(self.here.state, &scope.vm).and_then(|mut memory| {
            memory.looked_at(&self.damaged, looked_at)?;
            if let (Some(Share::Next(_)), Some(part), None) = (request.part, part, &scope.when) {
                memory.read(part)?;
            }
            head.map_or(Ok(()), |head| memory.advance(head))
        });
        if let Err(error) = kept {
            let text = format!("what was found is not kept: failed to {error}");
            self.here.observer.event(&Event::Warning(text));
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
        assert_eq!(scope("web@latest"), Some(When::Latest));
        assert_eq!(scope("web@2026"), Some(When::Text("2026".into())));
        "@x".parse::<Scope>().unwrap_err();
    }
}
