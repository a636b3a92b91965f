//! What a repository's newest restore point is worth: every command that reads asks here before it believes it.
//!
//! What is there is compared with what is on record, here and at the witness. A repository that was rolled back, or that
//! lacks what was the newest, looks whole by itself.

use jiff::Timestamp;

use super::chain::{self, ChainProblem, Head, Link, Records};
use super::grounds::{Doubt, Grounds};
use super::ledger::Ledger;
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
    let mut records = match Ledger::open(grounds.records, vm) {
        Ok(ledger) => ledger.records(repository),
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
                .filter(|entry| entry.number() < newest.number());
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
    use crate::catalog::tests::entry;
    use crate::manifest::Manifest;
    use crate::testing::{Heard, Listing};
    use crate::trust::settings::{Signing, Witness};

    /// Three restore points of one VM, of the seconds 100, 200 and 300.
    fn chain() -> Vec<Entry> {
        let mut chain: Vec<Entry> = Vec::new();
        for number in 1..=3 {
            let mut entry = entry("web", number, number as i64 * 100);
            entry.manifest.previous = chain.last().map(|before| before.link.clone());
            entry.bytes = entry.manifest.to_bytes().unwrap();
            entry.link = Manifest::link(&entry.bytes);
            chain.push(entry);
        }
        chain
    }

    /// What is on record of a number, committed at this second.
    fn head(sequence: u64, hash: &str, second: i64) -> Head {
        Head {
            format: 1,
            vm: "web".into(),
            repository: Listing::of(0).id.to_string(),
            archive: format!("web-{sequence}"),
            sequence,
            hash: hash.into(),
            committed: Timestamp::from_second(second).unwrap(),
            counter: None,
        }
    }

    fn records(heads: &[Head]) -> Records {
        Records {
            heads: heads.to_vec(),
            ..Records::default()
        }
    }

    fn kinds(standing: &Standing<'_>) -> Vec<&'static str> {
        standing.problems.iter().map(ChainProblem::kind).collect()
    }

    #[test]
    fn a_newest_that_is_on_record_stands() {
        let (directory, heard) = (tempfile::tempdir().unwrap(), Heard::default());
        let (grounds, repository) = (heard.grounds(directory.path()), Listing::of(300).open());
        let entries = chain();
        let chain: Vec<&Entry> = entries.iter().collect();
        let known = records(&[head(3, &entries[2].link, 300)]);
        let standing = Standing::of(&grounds, &repository, &chain, &known);
        assert_eq!(standing.newest.map(Entry::number), Some(3));
        assert_eq!((standing.doubtful.len(), kinds(&standing)), (0, vec![]));
        assert_eq!((standing.hidden(), standing.problem()), (None, None));
        assert_eq!(standing.line("web"), None);
        let at = |second| standing.is_of_the_future(Timestamp::from_second(second).unwrap());
        assert_eq!([at(299), at(300), at(301)], [true, false, false]);
        let none = Standing::of(&grounds, &repository, &[], &records(&[]));
        assert!(!none.is_of_the_future(Timestamp::MIN));
    }

    #[test]
    fn what_hides_the_newest_is_said_first() {
        let (directory, heard) = (tempfile::tempdir().unwrap(), Heard::default());
        let grounds = heard.grounds(directory.path());
        let mut entries = chain();
        let mut listing = Listing::of(300);
        listing.replayed = Some("2030".into());
        let of = |entries: &[Entry], listing: &Listing, known: &Records| {
            let chain: Vec<&Entry> = entries.iter().collect();
            let standing = Standing::of(&grounds, &listing.open(), &chain, known);
            let hidden = standing.problems.iter().any(ChainProblem::hides_the_newest);
            assert_eq!(standing.hidden().is_some(), hidden);
            (kinds(&standing), standing.problem(), standing.line("web"))
        };
        // Borg's own record tells it where ours are gone, and says nothing new where ours tell it.
        let (kinds, problem, _) = of(&entries, &listing, &records(&[]));
        assert_eq!(kinds, ["rollback"]);
        assert!(problem.unwrap().contains("seen from here with changes of 2030"));
        let older = records(&[head(4, "h4", 400)]);
        let (kinds, problem, line) = of(&entries, &listing, &older);
        assert_eq!(kinds, ["rollback"]);
        let problem = problem.unwrap();
        assert!(
            problem.ends_with("the newest that it has is number 3"),
            "{problem}"
        );
        assert_eq!(
            line.unwrap(),
            format!("{problem}; `strongroom verify web` says more")
        );
        // What the newest states as lost is a problem that stops nothing: it comes after what does.
        listing.replayed = None;
        entries[2].manifest.lost = vec![head(2, "other", 200).lost()];
        let (kinds, problem, _) = of(&entries, &listing, &records(&[]));
        assert_eq!(kinds, ["omission"]);
        assert!(problem.unwrap().contains("was gone when the next one was made"));
        let forked = records(&[head(3, "h3", 300), head(2, "h2", 200)]);
        let (kinds, problem, _) = of(&entries, &listing, &forked);
        assert_eq!(kinds, ["fork", "fork", "omission"]);
        let problem = problem.unwrap();
        assert!(
            problem.starts_with("fork: ") && problem.ends_with(" (and 2 more)"),
            "{problem}"
        );
    }

    /// With keys to believe: what is signed or on record, and not what copies it.
    #[test]
    fn an_unsigned_newer_one_neither_counts_nor_hides() {
        let (directory, heard) = (tempfile::tempdir().unwrap(), Heard::default());
        let key = directory.path().join("key");
        strongroom_testkit::ssh_keygen(&key, "key");
        let public = std::fs::read_to_string(directory.path().join("key.pub")).unwrap();
        let signers = directory.path().join("signers");
        std::fs::write(&signers, format!("me@host {public}")).unwrap();
        let signing = Signing {
            allowed_signers: Some(signers),
            ..Signing::default()
        };
        let mut grounds = heard.grounds(directory.path());
        grounds.signing = Some(&signing);
        let mut entries = chain();
        for entry in &mut entries[..2] {
            let at = entry.manifest.captured;
            let signature = signature::sign(&signing, &key, NAMESPACE, &entry.bytes, at, grounds.cancel);
            entry.signature = Some(signature.unwrap());
        }
        let repository = Listing::of(300).open();
        let of = |entries: &[Entry], known: &Records| {
            let chain: Vec<&Entry> = entries.iter().collect();
            let standing = Standing::of(&grounds, &repository, &chain, known);
            let doubtful: Vec<String> = standing.doubtful.iter().map(|(name, _)| name.clone()).collect();
            let newest = standing.newest.map(Entry::number);
            (newest, doubtful, kinds(&standing), standing.problem())
        };
        let (newest, doubtful, kinds, _) = of(&entries, &records(&[]));
        assert_eq!((newest, doubtful, kinds), (Some(2), vec!["web-3".into()], vec![]));
        // The record vouches for it.
        let (newest, doubtful, ..) = of(&entries, &records(&[head(3, &entries[2].link, 300)]));
        assert_eq!((newest, doubtful), (Some(3), vec![]));
        // What was the newest is gone, and what stands there unsigned does not hide it.
        let (newest, _, kinds, problem) = of(&entries, &records(&[head(4, "h4", 300)]));
        assert_eq!((newest, kinds), (Some(2), vec!["omission"]));
        let problem = problem.unwrap();
        assert!(problem.contains("that is there is number 2"), "{problem}");
        // Copies of old ones, with the time of a new one.
        entries.truncate(2);
        for number in [0, 1] {
            let mut copied = chain();
            copied.truncate(2);
            for (copy, entry) in copied.iter_mut().zip(&entries) {
                copy.signature.clone_from(&entry.signature);
            }
            copied[number].info.name = "copy".into();
            copied[number].info.time = Timestamp::from_second(500).unwrap();
            copied[number].list_as_said();
            let (newest, doubtful, ..) = of(&copied, &records(&[]));
            assert_eq!(doubtful, ["copy"], "{number}");
            assert_eq!(newest, [Some(2), Some(1)][number]);
        }
        // One with the number of the newest is passed over before it, and counts once.
        let mut copy = chain().swap_remove(1);
        copy.info.name = "copy".into();
        copy.info.time = Timestamp::from_second(500).unwrap();
        copy.list_as_said();
        entries.push(copy);
        let (newest, doubtful, ..) = of(&entries, &records(&[]));
        assert_eq!((newest, doubtful), (Some(2), vec!["copy".into()]));
    }

    #[test]
    fn the_witness_is_asked_of_this_vm() {
        let (directory, heard) = (tempfile::tempdir().unwrap(), Heard::default());
        let witness = Witness {
            file: Some(directory.path().join("witness.jsonl")),
            ..Witness::default()
        };
        let mut grounds = heard.grounds(directory.path());
        assert_eq!(witnessed(&grounds), []);
        grounds.witness = Some(&witness);
        let (ours, mut other) = (head(3, "h3", 3), head(4, "h4", 4));
        other.vm = "db".into();
        for head in [&ours, &other] {
            witness::report(&witness, head, grounds.cancel).unwrap();
        }
        let told = witnessed(&grounds);
        assert_eq!(told, [ours.clone(), other]);
        let home = ours.repository.clone();
        assert_eq!(recall(&grounds, "web", &home, &told).heads, [ours]);
        assert_eq!(heard.doubts(), []);
        // It cannot be asked, and our own records cannot be read: both are said, and the work goes on.
        std::fs::write(witness.file.as_ref().unwrap(), "{").unwrap();
        assert_eq!(witnessed(&grounds), []);
        std::fs::write(directory.path().join("trust/web.json"), "{").unwrap();
        assert_eq!(recall(&grounds, "web", &home, &[]), Records::default());
        assert_eq!(heard.doubts(), [Doubt::WitnessNotAsked, Doubt::Records]);
    }

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
