//! What a repository's newest restore point is worth: every command that reads asks here before it believes it.
//!
//! What is there is compared with what is on record, here and at the witness. A repository that was rolled back, or that
//! lacks what was the newest, looks whole by itself.

use jiff::Timestamp;

use super::chain::{self, ChainProblem, Head, Link, Records};
use super::grounds::{Doubt, Grounds};
use super::memory::Memory;
use super::order::Order;
use super::signature::{self, NAMESPACE};
use super::witness;
use crate::catalog::Entry;
use crate::manifest::LostPoint;
use crate::store::Repository;

/// What the witness says, asked once for all VMs; nothing where there is none. That it cannot be asked is a warning.
pub fn witnessed(grounds: &Grounds<'_>) -> Vec<Head> {
    let Some(asked) = grounds.witness else {
        return Vec::new();
    };
    witness::ask(asked, grounds.cancel).unwrap_or_else(|error| {
        grounds
            .log
            .warn(Doubt::WitnessNotAsked, format!("failed to {error}"));
        Vec::new()
    })
}

/// All that is on record about a VM's restore points: here, about this repository and others, and at the witness.
pub fn recall(grounds: &Grounds<'_>, vm: &str, repository: &str, witnessed: &[Head]) -> Records {
    let mut records = match Memory::open(grounds.records, vm) {
        Ok(memory) => memory.records(repository),
        Err(error) => {
            grounds.log.warn(Doubt::Records, format!("failed to {error}"));
            Records::default()
        }
    };
    let told = witnessed.iter().filter(|head| head.vm == vm);
    records.heads.extend(told.cloned());
    records
}

/// What is known of a VM's newest restore point.
#[derive(Debug)]
pub struct Standing<'a> {
    /// The newest that is vouched for, where it is said who is trusted; else the one with the largest number.
    pub newest: Option<&'a Entry>,
    /// Newer ones that no trusted key has signed, the newest first, and why.
    pub doubtful: Vec<(String, String)>,
    /// What does not fit the record.
    pub problems: Vec<ChainProblem>,
}

impl<'a> Standing<'a> {
    /// Compares a VM's restore points, by number, with what is on record.
    pub fn of(
        grounds: &Grounds<'_>,
        repository: &Repository,
        chain: &[&'a Entry],
        records: &Records,
    ) -> Self {
        let id = repository.id().to_string();
        let mut known = records.clone();
        let mut doubtful = Vec::new();
        let mut newest = None;
        let order = Order::new(chain, &records.of(&id));
        for entry in chain.iter().rev() {
            match vouched_for(grounds, entry, &id, records, &order) {
                Ok(()) => {
                    newest = Some(*entry);
                    break;
                }
                Err(why) => doubtful.push((entry.name(), why)),
            }
        }
        // By its number an old one, by its time a new one: a copy under another name, in the place of one of ours.
        if let Some(newest) = newest.filter(|_| grounds.believed().is_some()) {
            let older = chain
                .iter()
                .rev()
                .filter(|entry| entry.number() <= newest.number());
            for entry in older.filter(|entry| entry.info.time > newest.info.time) {
                if let Some(Err(why)) = place(entry, &id) {
                    doubtful.push((entry.name(), why));
                }
            }
        }
        let believed = newest.map_or(0, Entry::number);
        let links: Vec<Link> = chain
            .iter()
            .map(|entry| {
                let named = |(name, _): &(String, String)| *name == entry.name();
                Link::listed(entry, entry.number() <= believed && !doubtful.iter().any(named))
            })
            .collect();
        let stated = newest.map_or(&[][..], |entry| &entry.manifest.lost);
        known.lost.extend(stated.iter().cloned());
        let mut problems = chain::walk(&links, &known, &id, repository.timestamp()).problems;
        // Borg's own record, where ours and the witness's are gone.
        let rolled_back = problems
            .iter()
            .any(|problem| matches!(problem, ChainProblem::Rollback { .. }));
        if let Some(seen) = repository.replayed().filter(|_| !rolled_back) {
            problems.insert(
                0,
                ChainProblem::Replayed {
                    repository: repository.timestamp(),
                    seen: seen.to_owned(),
                },
            );
        }
        Self {
            newest,
            doubtful,
            problems,
        }
    }

    /// Why what is there may not be the newest.
    pub fn hidden(&self) -> Option<&ChainProblem> {
        self.problems.iter().find(|problem| problem.hides_the_newest())
    }

    /// The first problem, in words; nothing if all is well.
    pub fn problem(&self) -> Option<String> {
        let first = self.hidden().or(self.problems.first())?;
        Some(match self.problems.len() - 1 {
            0 => first.to_string(),
            more => format!("{first} (and {more} more)"),
        })
    }

    /// What a command says that only reads: the first problem, in one line.
    pub fn line(&self, vm: &str) -> Option<String> {
        let problem = self.problem()?;
        Some(format!("{problem}; `strongroom verify {vm}` says more"))
    }

    /// Whether the newest one says that it is of the future: a clock was wrong.
    pub fn is_of_the_future(&self, now: Timestamp) -> bool {
        self.newest.is_some_and(|newest| newest.info.time > now)
    }
}

/// Whether it is in its place; nothing for what early versions wrote, which does not say where it belongs.
fn place(entry: &Entry, repository: &str) -> Option<Result<(), String>> {
    entry.manifest.archive.as_ref().map(|_| entry.place(repository))
}

fn vouched_for(
    grounds: &Grounds<'_>,
    entry: &Entry,
    repository: &str,
    records: &Records,
    order: &Order,
) -> Result<(), String> {
    let Some(signing) = grounds.believed() else {
        return Ok(());
    };
    let at = order.of(
        entry.number(),
        &entry.link,
        entry.manifest.captured,
        Timestamp::now(),
    );
    let signature = entry.signature.as_deref();
    believed(records.vouches(&entry.link), place(entry, repository), || {
        let signer = signature::check(signing, NAMESPACE, signature, &entry.bytes, at, grounds.cancel);
        signer.map(drop).map_err(|error| error.to_string())
    })
}

/// Whether a restore point is believed: it is in its place (nothing for what early versions wrote, which does not say where it
/// belongs), and on record, or signed.
fn believed(
    recorded: bool,
    place: Option<Result<(), String>>,
    signed: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    match place {
        None if recorded => return Ok(()),
        None => return Err("its manifest does not say which archive it belongs to".into()),
        // A copy of what is on record, under a newer name or time, is not what is on record.
        Some(place) => place?,
    }
    if recorded { Ok(()) } else { signed() }
}

/// What is on record as newer than the newest one that is there, and has not been acknowledged to be gone.
pub fn missing(newest: u64, records: &Records) -> impl Iterator<Item = LostPoint> {
    let newer = records.heads.iter().filter(move |head| head.sequence > newest);
    newer.map(Head::lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mutants of `vouched_for`: the place counts for what is on record, too.
    #[test]
    fn what_is_believed_is_in_its_place_and_on_record_or_signed() {
        let elsewhere = || Some(Err("elsewhere".to_owned()));
        let no = || Err("unsigned".to_owned());
        assert_eq!(believed(true, Some(Ok(())), no), Ok(()));
        assert_eq!(believed(false, Some(Ok(())), || Ok(())), Ok(()));
        assert_eq!(believed(false, Some(Ok(())), no), no());
        assert_eq!(believed(true, elsewhere(), || Ok(())), Err("elsewhere".into()));
        assert_eq!(believed(false, elsewhere(), || Ok(())), Err("elsewhere".into()));
        assert_eq!(believed(true, None, no), Ok(()));
        assert!(believed(false, None, || Ok(())).is_err());
    }
}
