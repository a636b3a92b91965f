//! A new restore point's position in the chain, and its entry in the ledger.

use std::collections::{BTreeSet, HashSet};

use super::chain::{Head, Link, Records};
use super::grounds::{Doubt, Grounds};
use super::ledger::Ledger;
use super::{standing, witness};
use crate::manifest::{LostPoint, Manifest};
use crate::restore_point::RestorePoint;
use crate::store::{ChunkId, Repository};

/// How many lost restore points are stated: the newest of them. One is enough for an alarm.
const MOST_LOST: usize = 1000;

/// Number and predecessor of a new restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Successor {
    /// Its number.
    pub sequence: u64,
    /// The digest of the manifest before it.
    pub previous: Option<String>,
    /// What was the newest, is gone, and has not been acknowledged to be.
    pub lost: Vec<LostPoint>,
}

/// The next restore point's position: after the newest one that is there or on record, so that no number is ever given twice.
/// A repository that has lost its newest ones gets a new one all the same, and a warning; what was lost stays on record,
/// and is stated by the restore points to come, until it is acknowledged.
pub fn successor(
    grounds: &Grounds<'_>,
    vm: &str,
    repository: &Repository,
    newest: Option<&RestorePoint>,
    records: &Records,
) -> Successor {
    let before = newest.map_or(&[][..], |point| &point.manifest.lost);
    let newest = newest.map(|point| Link::of(point, true));
    let gone = gone(newest.as_ref(), records);
    if let Some(last) = gone.iter().max_by_key(|lost| lost.sequence) {
        grounds.log.warn(Doubt::RestorePointMissing, format!(
            "restore point {} (number {}) is missing or unreadable. The repository may have been rolled back, or the archive \
             deleted. `strongroom verify {vm}` has details and fails until you acknowledge it",
            last.archive, last.sequence
        ));
        let home = repository.id().to_string();
        let kept = Ledger::open(grounds.records, vm).and_then(|mut ledger| ledger.lose(&home, &gone));
        if let Err(error) = kept {
            grounds.log.warn(
                Doubt::Records,
                format!("what is missing is not on record here: failed to {error}"),
            );
        }
    } else if let Some(head) = newest.as_ref().and_then(|newest| forked(newest, records)) {
        grounds.log.warn(Doubt::HistoryForked, format!(
            "archive {} is on record as number {}, and what the repository has does not fit: there are two histories; \
             `strongroom verify {vm}` says more",
            head.archive, head.sequence
        ));
    } else if grounds.believed().is_none()
        && let Some(head) = records.heads.iter().max_by_key(|head| head.sequence)
        && !repository.archives().any(|info| info.name == *head.archive)
    {
        grounds.log.warn(Doubt::RestorePointMissing, format!(
            "restore point {} (number {}), the newest on record, is gone, though there are newer ones: pruning leaves it, \
             so another writer may have made those; without [signing] that cannot be determined",
            head.archive, head.sequence
        ));
    }
    follow(newest.as_ref(), before, gone, records)
}

/// What is on record as newer than the newest one that is there.
fn gone(newest: Option<&Link>, records: &Records) -> Vec<LostPoint> {
    let there = newest.map_or(0, |newest| newest.sequence);
    stated(standing::missing(there, records), records)
}

/// Of restore points that are gone those that have not been acknowledged to be: each once, and not more than can be
/// stated.
fn stated(gone: impl Iterator<Item = LostPoint>, records: &Records) -> Vec<LostPoint> {
    let excused = records.excused();
    let mut seen = HashSet::new();
    let mut stated: Vec<LostPoint> = gone
        .filter(|lost| !excused.contains(lost.sha256.as_str()) && seen.insert(lost.sha256.clone()))
        .collect();
    if stated.len() > MOST_LOST {
        stated.sort_by_key(|lost| lost.sequence);
        stated.drain(..stated.len() - MOST_LOST);
    }
    stated
}

/// What is on record as the newest one, or the one before it, and is not what they say.
fn forked<'a>(newest: &Link, records: &'a Records) -> Option<&'a Head> {
    records.heads.iter().find(|head| {
        let same = head.sequence == newest.sequence;
        let before = head.sequence.checked_add(1) == Some(newest.sequence);
        (same && head.hash != newest.hash) || (before && newest.previous.as_ref() != Some(&head.hash))
    })
}

fn follow(newest: Option<&Link>, before: &[LostPoint], gone: Vec<LostPoint>, records: &Records) -> Successor {
    let there = newest.map(|newest| (newest.sequence, &newest.hash));
    let heads = records.heads.iter().map(|head| (head.sequence, &head.hash));
    let given_up = &records.acknowledged;
    let given_up = given_up.iter().map(|lost| (lost.sequence, &lost.sha256));
    // The last of equal ones counts: what is there goes before what is on record.
    let last = heads
        .chain(given_up)
        .chain(there)
        .max_by_key(|(sequence, _)| *sequence);
    let lost = records.lost.iter().chain(before).cloned().chain(gone);
    Successor {
        // A number that is too large for a manifest is refused when it is written.
        sequence: last.map_or(1, |(sequence, _)| sequence.saturating_add(1)),
        previous: last.map(|(_, hash)| hash.clone()),
        lost: stated(lost, records),
    }
}

/// Remembers a restore point that has just been committed, here and at the witness, and says what has become of chunks
/// that were damaged. Nothing of this undoes the restore point: what fails is a warning.
pub fn remember(
    grounds: &Grounds<'_>,
    repository: &Repository,
    manifest: &Manifest,
    damaged: &BTreeSet<ChunkId>,
    healed: &BTreeSet<ChunkId>,
) {
    let vm = &manifest.vm.name;
    let (Ok(bytes), Some(archive)) = (manifest.to_bytes(), &manifest.archive) else {
        return;
    };
    let id = repository.id().to_string();
    let head = Head {
        counter: repository.free_counter(),
        ..Head::of(
            manifest,
            archive,
            Manifest::link(&bytes),
            &id,
            repository.timestamp(),
        )
    };
    let kept = Ledger::open(grounds.records, vm).and_then(|mut ledger| {
        ledger.looked_at(&BTreeSet::new(), |id| healed.contains(id))?;
        ledger.advance(head.clone())
    });
    if let Err(error) = kept {
        grounds.log.warn(
            Doubt::Records,
            format!("the restore point is not on record here: failed to {error}"),
        );
    }
    if let Some(asked) = grounds.witness
        && let Err(error) = witness::report(asked, &head, grounds.cancel)
    {
        grounds.log.warn(
            Doubt::WitnessNotTold,
            format!("the restore point is not on record at the witness: failed to {error}"),
        );
    }
    if !healed.is_empty() {
        grounds
            .log
            .note(format!("{} damaged chunks have been stored anew", healed.len()));
    }
    let lost = damaged.len() - healed.len();
    if lost > 0 {
        grounds.log.warn(Doubt::DamageStays, format!(
            "{lost} damaged chunks cannot be stored anew, because {vm} no longer has their content: the older restore points \
             that need them stay damaged; `strongroom verify {vm} --data` names them"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore_point::tests::point;
    use crate::store::ArchiveInfo;
    use crate::testing::{Heard, Listing};
    use crate::trust::chain::tests::{head, link};
    use crate::trust::settings::{Signing, Witness};

    fn next(
        newest: Option<&Link>,
        stated: &[LostPoint],
        records: &Records,
    ) -> (u64, Option<String>, Vec<u64>) {
        let next = follow(newest, stated, gone(newest, records), records);
        let lost = next.lost.iter().map(|lost| lost.sequence).collect();
        (next.sequence, next.previous, lost)
    }

    #[test]
    fn no_number_is_given_twice_and_what_was_lost_is_stated() {
        let mut records = Records::default();
        assert_eq!(next(None, &[], &records), (1, None, vec![]));
        records.heads = vec![head(1), head(2), head(3)];
        let after = |number: u64| Some(format!("h{number}"));
        assert_eq!(next(Some(&link(3)), &[], &records), (4, after(3), vec![]));
        // Another machine has gone on; what is on record may be pruned.
        assert_eq!(next(Some(&link(7)), &[], &records), (8, after(7), vec![]));
        // The newest ones are gone: the next one follows them all the same.
        assert_eq!(next(Some(&link(1)), &[], &records), (4, after(3), vec![2, 3]));
        assert_eq!(next(None, &[], &records), (4, after(3), vec![1, 2, 3]));
        // What was lost before is stated again, be it on record here or in the newest restore point, until acknowledged.
        records.lost = vec![head(2).lost()];
        let stated = [head(2).lost(), head(1).lost()];
        assert_eq!(next(Some(&link(3)), &stated, &records), (4, after(3), vec![2, 1]));
        records.acknowledged = vec![head(1).lost(), head(2).lost()];
        assert_eq!(next(Some(&link(3)), &stated, &records), (4, after(3), vec![]));
        // Acknowledged numbers are not given again either.
        records.heads = vec![head(1)];
        assert_eq!(next(Some(&link(1)), &[], &records), (3, after(2), vec![]));
        records.heads[0].sequence = u64::MAX;
        assert_eq!(next(None, &[], &records).0, u64::MAX);
        // All is gone, and there was much: what is stated has a bound, and the newest ones are in it.
        records.heads = (1..=5000).map(head).collect();
        let (number, _, lost) = next(None, &[], &records);
        assert_eq!((number, lost.len()), (5001, MOST_LOST));
        assert_eq!(lost.last(), Some(&5000));
    }

    #[test]
    fn another_history_is_noticed() {
        let records = Records {
            heads: vec![head(2), head(3)],
            ..Records::default()
        };
        for number in [3, 4, 9] {
            assert_eq!(forked(&link(number), &records), None);
        }
        let mut other = link(3);
        other.hash = "x".into();
        assert_eq!(forked(&other, &records), Some(&head(3)));
        let mut other = link(4);
        other.previous = Some("x".into());
        assert_eq!(forked(&other, &records), Some(&head(3)));
    }

    /// Without keys to believe, the newest on record has to be there, even below newer ones.
    #[test]
    fn a_newest_on_record_that_is_gone_is_a_warning() {
        let directory = tempfile::tempdir().unwrap();
        let heard = Heard::default();
        let mut grounds = heard.grounds(directory.path());
        let mut listing = Listing::of(9);
        let mut point = point();
        point.manifest.sequence = 9;
        let records = Records {
            heads: vec![head(3)],
            ..Records::default()
        };
        let next = |grounds: &Grounds<'_>, listing: &Listing| {
            let next = successor(grounds, "vm", &listing.open(), Some(&point), &records);
            assert_eq!((next.sequence, next.lost), (10, vec![]));
            heard.doubts()
        };
        assert_eq!(next(&grounds, &listing), [Doubt::RestorePointMissing]);
        let signing = Signing {
            allowed_signers: Some("/signers".into()),
            ..Signing::default()
        };
        grounds.signing = Some(&signing);
        assert_eq!(next(&grounds, &listing), [], "signatures tell who made them");
        grounds.signing = None;
        listing.archives.push(ArchiveInfo {
            name: "vm-3".into(),
            ..point.archive.info.clone()
        });
        assert_eq!(next(&grounds, &listing), [], "it is there");
    }

    #[test]
    fn what_is_gone_is_warned_of_and_kept_on_record() {
        let directory = tempfile::tempdir().unwrap();
        let heard = Heard::default();
        let grounds = heard.grounds(directory.path());
        let repository = Listing::of(9).open();
        let records = Records {
            heads: vec![head(3)],
            ..Records::default()
        };
        let next = successor(&grounds, "vm", &repository, Some(&point()), &records);
        assert_eq!((next.sequence, next.lost), (4, vec![head(3).lost()]));
        assert_eq!(heard.doubts(), [Doubt::RestorePointMissing]);
        let ledger = Ledger::open(directory.path(), "vm").unwrap();
        let kept = ledger.records(&repository.id().to_string());
        assert_eq!(kept.lost, [head(3).lost()]);
        drop(ledger);
        // Number 1 is on record as another one.
        let records = Records {
            heads: vec![head(1)],
            ..Records::default()
        };
        successor(&grounds, "vm", &repository, Some(&point()), &records);
        assert_eq!(heard.doubts(), [Doubt::HistoryForked]);
    }

    #[test]
    fn a_new_restore_point_is_on_record_here_and_there() {
        let directory = tempfile::tempdir().unwrap();
        let heard = Heard::default();
        let witness = Witness {
            file: Some(directory.path().join("witness.jsonl")),
            ..Witness::default()
        };
        let mut grounds = heard.grounds(directory.path());
        grounds.witness = Some(&witness);
        let mut listing = Listing::of(9);
        listing.counter = Some(77);
        let manifest = point().manifest;
        let ids =
            |bytes: &[u8]| -> BTreeSet<ChunkId> { bytes.iter().map(|byte| ChunkId([*byte; 32])).collect() };
        let repository = listing.open();
        let remember = |damaged: &[u8], healed: &[u8]| {
            remember(&grounds, &repository, &manifest, &ids(damaged), &ids(healed));
            heard.take()
        };
        let ledger = || Ledger::open(directory.path(), "web").unwrap();
        ledger().looked_at(&ids(&[1, 2]), |_| true).unwrap();
        assert_eq!(remember(&[], &[]), []);
        let head = ledger().head().cloned().unwrap();
        assert_eq!((head.sequence, head.counter), (1, Some(77)));
        assert_eq!(head.committed, listing.time);
        assert_eq!(head.hash, Manifest::link(&manifest.to_bytes().unwrap()));
        assert_eq!(head.repository, repository.id().to_string());
        assert_eq!(witness::ask(&witness, grounds.cancel).unwrap(), [head]);
        // What has been stored anew is damaged no more; what the VM does not have stays so, and is said.
        let said = remember(&[1, 2], &[1]);
        assert_eq!(ledger().damaged(), ids(&[2]));
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], (None, "1 damaged chunks have been stored anew".into()));
        assert_eq!(said[1].0, Some(Doubt::DamageStays));
        assert!(said[1].1.starts_with("1 damaged chunks"), "{said:?}");
        let said = remember(&[2], &[2]);
        assert_eq!((said.len(), said[0].0), (1, None), "{said:?}");
        let said = remember(&[2], &[]);
        assert_eq!((said.len(), said[0].0), (1, Some(Doubt::DamageStays)), "{said:?}");
    }
}
