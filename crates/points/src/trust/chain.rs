//! The chain of restore points: each manifest has a number and names the digest of the one before.
//!
//! What can be told, from the archives that are there and from the [`Head`]s that are remembered:
//!
//! * **Rollback**: the newest archive is older than a remembered head, and the repository as a whole is older than that
//!   head's commit. An old copy has been put back.
//! * **Omission**: the newest archive is older than a remembered head, in a repository that was written since. The newest
//!   archives were taken away.
//! * **Fork**: two manifests with one number; or one that does not name the one before it; or one that is not what was
//!   remembered under its number.
//! * **Lost**: what was omitted stays a failure when a next restore point has been made, until it is acknowledged.
//!   Only what was the newest can be lost: no pruning takes that away.
//! * **Removed**: numbers are missing in the middle or at the old end. Pruning does that too, and a repository cannot
//!   tell who did it: the numbers are reported, and it is no failure.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;

pub use super::record::{Head, Records};
use crate::catalog::Entry;
use crate::manifest::{LostPoint, Manifest};
use crate::restore_point::RestorePoint;

/// One restore point that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The archive's name.
    pub archive: String,
    /// Its number.
    pub sequence: u64,
    /// SHA-256 of its manifest.
    pub hash: String,
    /// What it names as the one before.
    pub previous: Option<String>,
    /// A trusted key has signed it.
    pub trusted: bool,
}

impl Link {
    /// Of a restore point that was read.
    pub fn of(point: &RestorePoint, trusted: bool) -> Self {
        Self::new(point.name(), &point.manifest, &point.link, trusted)
    }

    /// Of a restore point in the catalog.
    pub fn listed(entry: &Entry, trusted: bool) -> Self {
        Self::new(entry.name(), &entry.manifest, &entry.link, trusted)
    }

    fn new(archive: String, manifest: &Manifest, hash: &str, trusted: bool) -> Self {
        Self {
            archive,
            sequence: manifest.sequence,
            hash: hash.to_owned(),
            previous: manifest.previous.clone(),
            trusted,
        }
    }
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainProblem {
    /// An old copy of the repository.
    #[error(
        "rollback: the repository is from {repository}, restore point {sequence} ({archive}) was committed at {committed}; \
         the newest that it has is {newest}"
    )]
    Rollback {
        /// The repository's time.
        repository: Timestamp,
        /// The number remembered.
        sequence: u64,
        /// The archive remembered.
        archive: String,
        /// When it was committed.
        committed: Timestamp,
        /// The newest number that is there, or "none".
        newest: String,
    },
    /// An old copy of the repository, by Borg's own record.
    #[error("rollback: the repository is from {repository}, and was seen from here with changes of {seen}")]
    Replayed {
        /// The repository's time.
        repository: Timestamp,
        /// The time of the newest state that was seen, as Borg has it on record.
        seen: String,
    },
    /// The newest archives are gone.
    #[error(
        "omission: restore point {sequence} ({archive}) was the newest and is gone; the newest that is there is {newest}"
    )]
    Omission {
        /// The number remembered.
        sequence: u64,
        /// The archive remembered.
        archive: String,
        /// The newest number that is there, or "none".
        newest: String,
    },
    /// The newest archives were gone, and another one has been made since.
    #[error(
        "omission: restore point {sequence} ({archive}) was the newest and was gone when the next one was made"
    )]
    Lost {
        /// The number remembered.
        sequence: u64,
        /// The archive remembered.
        archive: String,
    },
    /// Two histories.
    #[error("fork: {0}")]
    Fork(String),
    /// A number or a predecessor that no writer produces.
    #[error("chain broken: {0}")]
    Broken(String),
    /// The remembered head is in another repository.
    #[error(
        "another repository: restore point {sequence} ({archive}), the newest on record, is in repository {repository}"
    )]
    Elsewhere {
        /// The number remembered.
        sequence: u64,
        /// The archive remembered.
        archive: String,
        /// Where it is.
        repository: String,
    },
}

impl ChainProblem {
    /// One word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Rollback { .. } | Self::Replayed { .. } => "rollback",
            Self::Omission { .. } | Self::Lost { .. } => "omission",
            Self::Fork(_) => "fork",
            Self::Broken(_) => "chain-broken",
            Self::Elsewhere { .. } => "other-repository",
        }
    }

    /// Whether what is there may not be the newest: a restore of the newest stops.
    pub fn hides_the_newest(&self) -> bool {
        matches!(
            self,
            Self::Rollback { .. }
                | Self::Replayed { .. }
                | Self::Omission { .. }
                | Self::Fork(_)
                | Self::Elsewhere { .. }
        )
    }

    /// Whether it is that what is on record is missing, which may be acknowledged.
    pub fn can_be_acknowledged(&self) -> bool {
        matches!(
            self,
            Self::Rollback { .. }
                | Self::Replayed { .. }
                | Self::Omission { .. }
                | Self::Lost { .. }
                | Self::Elsewhere { .. }
        )
    }
}

/// What a walk along the chain has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walk {
    /// Failures.
    pub problems: Vec<ChainProblem>,
    /// Restore points that were the newest, are gone, and have not been acknowledged to be: what such problems are about.
    pub missing: Vec<LostPoint>,
    /// The newest one on record, if it is in another repository and has not been left behind on purpose.
    pub elsewhere: Option<Head>,
    /// Numbers, first and last, that were pruned or removed.
    pub removed: Vec<(u64, u64)>,
}

/// Walks along the chain: `links` are all restore points of a VM that are there, `known` is what is remembered of this
/// VM, `repository` the repository's id and `time` the time of its own manifest.
///
/// What no trusted key vouches for is part of the chain only as a problem: it hides no omission.
pub fn walk(links: &[Link], known: &Records, repository: &str, time: Timestamp) -> Walk {
    let mut walk = Walk::default();
    let believed = |link: &Link| link.trusted || known.vouches(&link.hash);
    let mut by_number: BTreeMap<u64, &Link> = BTreeMap::new();
    for link in links {
        if link.sequence == 0 || link.previous.is_none() != (link.sequence == 1) {
            walk.problems.push(ChainProblem::Broken(format!(
                "{} has number {} and {} one before it",
                link.archive,
                link.sequence,
                if link.previous.is_some() {
                    "names"
                } else {
                    "names no"
                }
            )));
        }
        let other = by_number.get(&link.sequence);
        if let Some(other) = other {
            walk.problems.push(ChainProblem::Fork(format!(
                "{} and {} both have number {}",
                other.archive, link.archive, link.sequence
            )));
        }
        if other.is_none_or(|other| believed(link) || !believed(other)) {
            by_number.insert(link.sequence, link);
        }
    }
    walk.succession(&by_number);

    if let Some(last) = known
        .heads
        .iter()
        .max_by_key(|head| (head.committed, head.sequence))
        && last.repository != repository
        && !known.left_behind.contains(&last.lost())
    {
        walk.elsewhere = Some(last.clone());
        walk.problems.push(ChainProblem::Elsewhere {
            sequence: last.sequence,
            archive: last.archive.clone(),
            repository: last.repository.clone(),
        });
        return walk;
    }
    let here: Vec<&Head> = known
        .heads
        .iter()
        .filter(|head| head.repository == repository)
        .collect();
    walk.compare(&by_number, &here);
    let newest = links
        .iter()
        .filter(|link| believed(link))
        .map(|link| link.sequence)
        .max();
    walk.absence(links, known, &here, newest, time);
    walk
}

impl Walk {
    /// Whether each follows the one before it, and which numbers are missing.
    fn succession(&mut self, by_number: &BTreeMap<u64, &Link>) {
        let mut before: Option<&Link> = None;
        for (&number, &link) in by_number {
            let expected = before.map_or(1, |before| before.sequence.saturating_add(1));
            match before {
                Some(before) if number == expected && link.previous.as_ref() != Some(&before.hash) => {
                    self.problems.push(ChainProblem::Fork(format!(
                        "{} does not follow {}",
                        link.archive, before.archive
                    )));
                }
                _ if number > expected => self.removed.push((expected, number - 1)),
                _ => {}
            }
            before = Some(link);
        }
    }

    /// Whether what is there is what is on record, or follows it.
    fn compare(&mut self, by_number: &BTreeMap<u64, &Link>, heads: &[&Head]) {
        for head in heads {
            if let Some(link) = by_number.get(&head.sequence)
                && link.hash != head.hash
            {
                let fork = ChainProblem::Fork(format!(
                    "{} is not what is on record as number {} ({})",
                    link.archive, head.sequence, head.archive
                ));
                if !self.problems.contains(&fork) {
                    self.problems.push(fork);
                }
            }
        }
        // What was pruned is on record all the same: its successor has to follow it.
        for head in heads
            .iter()
            .filter(|head| !by_number.contains_key(&head.sequence))
        {
            let next = by_number.get(&head.sequence.saturating_add(1));
            if let Some(next) = next.filter(|next| next.previous.as_ref() != Some(&head.hash)) {
                self.problems.push(ChainProblem::Fork(format!(
                    "{} does not follow {}, which is on record as number {}",
                    next.archive, head.archive, head.sequence
                )));
            }
        }
    }

    /// Whether what was the newest is there, or has a successor that knew it.
    fn absence(
        &mut self,
        links: &[Link],
        known: &Records,
        heads: &[&Head],
        newest: Option<u64>,
        time: Timestamp,
    ) {
        let mut named = known.excused();
        let newer = heads
            .iter()
            .filter(|head| newest.is_none_or(|newest| newest < head.sequence));
        let gone: Vec<_> = newer.filter(|head| named.insert(&head.hash)).collect();
        if let Some(head) = gone.iter().max_by_key(|head| head.sequence) {
            let newest = newest.map_or_else(|| "none".to_owned(), |number| format!("number {number}"));
            let (sequence, archive) = (head.sequence, head.archive.clone());
            self.problems.push(if time < head.committed {
                ChainProblem::Rollback {
                    repository: time,
                    sequence,
                    archive,
                    committed: head.committed,
                    newest,
                }
            } else {
                ChainProblem::Omission {
                    sequence,
                    archive,
                    newest,
                }
            });
        }
        self.missing = gone.iter().map(|head| head.lost()).collect();
        let there: HashSet<&str> = links.iter().map(|link| link.hash.as_str()).collect();
        for lost in &known.lost {
            if !there.contains(lost.sha256.as_str()) && named.insert(&lost.sha256) {
                self.problems.push(ChainProblem::Lost {
                    sequence: lost.sequence,
                    archive: lost.archive.clone(),
                });
                self.missing.push(lost.clone());
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn link(sequence: u64) -> Link {
        Link {
            archive: format!("vm-{sequence}"),
            sequence,
            hash: format!("h{sequence}"),
            previous: (sequence > 1).then(|| format!("h{}", sequence - 1)),
            trusted: true,
        }
    }

    pub fn head(sequence: u64) -> Head {
        Head {
            format: 1,
            vm: "vm".into(),
            repository: "r".into(),
            archive: format!("vm-{sequence}"),
            sequence,
            hash: format!("h{sequence}"),
            committed: time(sequence),
            counter: None,
        }
    }

    /// With nothing on record but these.
    fn walk(links: &[Link], heads: &[Head], repository: &str, time: Timestamp) -> Walk {
        let known = Records {
            heads: heads.to_vec(),
            ..Records::default()
        };
        super::walk(links, &known, repository, time)
    }

    fn time(sequence: u64) -> Timestamp {
        Timestamp::from_second(sequence as i64 * 1000).unwrap()
    }

    fn links(numbers: &[u64]) -> Vec<Link> {
        numbers.iter().map(|number| link(*number)).collect()
    }

    fn kinds(walk: &Walk) -> Vec<&'static str> {
        walk.problems.iter().map(ChainProblem::kind).collect()
    }

    #[test]
    fn a_whole_chain_is_fine_with_or_without_a_memory() {
        let chain = links(&[1, 2, 3]);
        assert_eq!(walk(&chain, &[], "r", time(3)), Walk::default());
        assert_eq!(walk(&chain, &[head(3)], "r", time(3)), Walk::default());
        assert_eq!(walk(&chain, &[head(1), head(2)], "r", time(3)), Walk::default());
        assert_eq!(walk(&[], &[], "r", time(0)), Walk::default());
    }

    /// What stops a restore of the newest, and what may be acknowledged: a fork may not, and what was lost stops nothing.
    #[test]
    fn each_problem_says_what_it_stops() {
        let (at, name) = (time(1), || "vm-1".to_owned());
        let rollback = ChainProblem::Rollback {
            repository: at,
            sequence: 1,
            archive: name(),
            committed: at,
            newest: "none".into(),
        };
        let replayed = ChainProblem::Replayed {
            repository: at,
            seen: name(),
        };
        let omission = ChainProblem::Omission {
            sequence: 1,
            archive: name(),
            newest: "none".into(),
        };
        let lost = ChainProblem::Lost {
            sequence: 1,
            archive: name(),
        };
        let elsewhere = ChainProblem::Elsewhere {
            sequence: 1,
            archive: name(),
            repository: "r".into(),
        };
        for (problem, hides, acknowledged) in [
            (rollback, true, true),
            (replayed, true, true),
            (omission, true, true),
            (lost, false, true),
            (ChainProblem::Fork(name()), true, false),
            (ChainProblem::Broken(name()), false, false),
            (elsewhere, true, true),
        ] {
            assert_eq!(problem.hides_the_newest(), hides, "{problem}");
            assert_eq!(problem.can_be_acknowledged(), acknowledged, "{problem}");
        }
    }

    #[test]
    fn pruned_numbers_are_named_and_no_failure() {
        let found = walk(&links(&[3, 4, 8]), &[head(5), head(8)], "r", time(9));
        assert_eq!(
            found,
            Walk {
                problems: vec![],
                missing: vec![],
                elsewhere: None,
                removed: vec![(1, 2), (5, 7)]
            }
        );
    }

    #[test]
    fn rollback_omission_and_fork_are_told_apart() {
        assert_eq!(
            kinds(&walk(&links(&[1, 2]), &[head(4)], "r", time(2))),
            ["rollback"]
        );
        assert_eq!(
            kinds(&walk(&links(&[1, 2]), &[head(4)], "r", time(5))),
            ["omission"]
        );
        // As old as the commit on record: this is no copy from before it.
        assert_eq!(
            kinds(&walk(&links(&[1, 2]), &[head(4)], "r", time(4))),
            ["omission"]
        );
        assert_eq!(kinds(&walk(&[], &[head(4)], "r", time(5))), ["omission"]);
        assert_eq!(kinds(&walk(&[], &[head(4)], "r", time(0))), ["rollback"]);
        let mut other = head(2);
        other.hash = "x".into();
        assert_eq!(kinds(&walk(&links(&[1, 2, 3]), &[other], "r", time(3))), ["fork"]);
        let mut fork = links(&[1, 2, 3]);
        fork[2].previous = Some("x".into());
        assert_eq!(kinds(&walk(&fork, &[], "r", time(3))), ["fork"]);
        let mut twice = links(&[1, 2, 2]);
        twice[2].hash = "x".into();
        assert_eq!(kinds(&walk(&twice, &[], "r", time(3))), ["fork"]);
        assert_eq!(
            kinds(&walk(&links(&[1]), &[head(4)], "other", time(9))),
            ["other-repository"]
        );
        // It is acknowledged that it has been left behind. What is on record of this one counts all the same.
        let mut known = Records {
            heads: vec![head(4)],
            left_behind: vec![head(4).lost()],
            ..Records::default()
        };
        let chain = links(&[1]);
        assert_eq!(super::walk(&chain, &known, "other", time(9)), Walk::default());
        known.heads.push(head(3));
        known.heads[1].repository = "other".into();
        assert_eq!(
            kinds(&super::walk(&chain, &known, "other", time(9))),
            ["omission"]
        );
        // A new repository begins anew, once it is on record.
        let mut new = head(1);
        new.repository = "new".into();
        new.committed = time(9);
        assert_eq!(
            walk(&links(&[1]), &[head(4), new], "new", time(9)),
            Walk::default()
        );
    }

    #[test]
    fn what_nobody_vouches_for_hides_no_omission() {
        // Number 4 taken away, and a forged number 1000 in its place.
        let mut forged = links(&[1, 2, 3, 1000]);
        forged[3].trusted = false;
        let found = walk(&forged, &[head(4)], "r", time(9));
        assert_eq!(kinds(&found), ["omission"]);
        assert_eq!(found.missing, [head(4).lost()]);
        // A forgery with a number that is taken does not stand in for what it copies, wherever it is listed.
        for at in [2, 3] {
            let mut twice = links(&[1, 2, 3]);
            let mut copy = link(3);
            (copy.trusted, copy.hash) = (false, "x".into());
            twice.insert(at, copy);
            assert_eq!(kinds(&walk(&twice, &[head(3)], "r", time(9))), ["fork"]);
        }
        // The record vouches for what it names, whether or not its signer is trusted any more.
        let mut revoked = links(&[1, 2]);
        revoked[1].trusted = false;
        assert_eq!(walk(&revoked, &[head(2)], "r", time(9)), Walk::default());
    }

    #[test]
    fn what_was_lost_stays_a_failure_until_it_is_acknowledged() {
        let chain = links(&[1, 2, 4, 5]);
        let mut known = Records {
            heads: vec![head(5)],
            lost: vec![head(3).lost(), head(3).lost()],
            ..Records::default()
        };
        let found = super::walk(&chain, &known, "r", time(9));
        assert_eq!(kinds(&found), ["omission"]);
        assert_eq!(found.missing, [head(3).lost()]);
        // It has been put back.
        let whole = super::walk(&links(&[1, 2, 3, 4, 5]), &known, "r", time(9));
        assert_eq!(whole, Walk::default());
        known.acknowledged = found.missing;
        assert_eq!(super::walk(&chain, &known, "r", time(9)).problems, []);
        // That is about this one alone.
        let fewer = super::walk(&links(&[1, 2, 4]), &known, "r", time(9));
        assert_eq!(fewer.missing, [head(5).lost()]);
        // An old copy of everything, acknowledged: from then on all of the copy is watched over.
        known.heads = vec![head(1), head(2), head(3), head(4)];
        let found = super::walk(&links(&[1, 2]), &known, "r", time(2));
        assert_eq!(kinds(&found), ["rollback"]);
        known.acknowledged.extend(found.missing);
        assert_eq!(
            super::walk(&links(&[1, 2]), &known, "r", time(2)),
            Walk::default()
        );
        assert_eq!(
            kinds(&super::walk(&links(&[1]), &known, "r", time(5))),
            ["omission"]
        );
    }

    #[test]
    fn numbers_that_nobody_writes_are_noticed() {
        let mut chain = links(&[1, 2]);
        chain[0].previous = Some("x".into());
        assert_eq!(kinds(&walk(&chain, &[], "r", time(3))), ["chain-broken"]);
        let mut chain = links(&[5]);
        chain[0].previous = None;
        assert_eq!(kinds(&walk(&chain, &[], "r", time(3))), ["chain-broken"]);
        let mut chain = links(&[1]);
        chain[0].sequence = 0;
        assert_eq!(kinds(&walk(&chain, &[], "r", time(3))), ["chain-broken"]);
    }

    proptest! {
        /// Taking away, swapping or altering anything that the newest record covers, but for pruning, is noticed.
        #[test]
        fn no_tampering_goes_unnoticed(count in 2u64..12, at in 0usize..12, kind in 0..4) {
            let mut chain: Vec<Link> = (1..=count).map(link).collect();
            let at = at % chain.len();
            match kind {
                0 => { chain.truncate(chain.len() - 1); }
                1 => { chain[at].hash = "x".into(); }
                2 if at > 0 => { chain[at].previous = Some("x".into()); }
                2 => { chain[at].previous = Some("x".into()); }
                _ => { let number = chain[at].sequence; chain[at].sequence = number + 1; }
            }
            let found = walk(&chain, &[head(count)], "r", time(count + 1));
            prop_assert!(!found.problems.is_empty(), "{chain:?}");
        }
    }
}
