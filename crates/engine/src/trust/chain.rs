//! The chain of restore points: each manifest has a number and names the digest of the one before.
//!
//! What can be told, from the archives that are there and from the [`Head`]s that somebody remembers:
//!
//! * **Rollback**: the newest archive is older than a remembered head, and the repository as a whole is older than that
//!   head's commit. Somebody has put back an old copy.
//! * **Omission**: the newest archive is older than a remembered head, in a repository that was written since. The newest
//!   archives were taken away.
//! * **Fork**: two manifests with one number; or one that does not name the one before it; or one that is not what was
//!   remembered under its number.
//! * **Removed**: numbers are missing in the middle or at the old end. Pruning does that too, and a repository cannot
//!   tell who did it: the numbers are reported, and it is no failure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;

/// The version of a remembered head.
const FORMAT: u32 = 1;

/// What is remembered of a restore point when it is made: by us, and by the witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Version of this record.
    pub format: u32,
    /// The VM's name.
    pub vm: String,
    /// The repository's id, in hexadecimal.
    pub repository: String,
    /// The archive's name.
    pub archive: String,
    /// Its number.
    pub sequence: u64,
    /// SHA-256 of its manifest.
    pub hash: String,
    /// The time of the repository's own manifest after the commit: it only ever grows.
    pub committed: Timestamp,
}

impl Head {
    /// What is to be remembered of an archive.
    pub fn of(
        manifest: &Manifest,
        archive: &str,
        hash: String,
        repository: &str,
        committed: Timestamp,
    ) -> Self {
        Self {
            format: FORMAT,
            vm: manifest.vm.name.clone(),
            repository: repository.to_owned(),
            archive: archive.to_owned(),
            sequence: manifest.sequence,
            hash,
            committed,
        }
    }

    /// Reads one record; whatever is not one is an error.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let head: Self = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if head.format != FORMAT {
            return Err(format!(
                "its format is {}, this version knows {FORMAT}",
                head.format
            ));
        }
        Ok(head)
    }

    /// One line of JSON.
    pub fn line(&self) -> String {
        // Strings, numbers and a time: JSON can hold all of them.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

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
            Self::Rollback { .. } => "rollback",
            Self::Omission { .. } => "omission",
            Self::Fork(_) => "fork",
            Self::Broken(_) => "chain-broken",
            Self::Elsewhere { .. } => "other-repository",
        }
    }
}

/// What a walk along the chain has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walk {
    /// Failures.
    pub problems: Vec<ChainProblem>,
    /// Numbers, first and last, that were pruned or removed.
    pub removed: Vec<(u64, u64)>,
}

/// Walks along the chain: `links` are all restore points of a VM that are there, `known` is what is remembered of this
/// VM, `repository` the repository's id and `time` the time of its own manifest.
pub fn walk(links: &[Link], known: &[Head], repository: &str, time: Timestamp) -> Walk {
    let mut walk = Walk::default();
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
        if let Some(other) = by_number.insert(link.sequence, link) {
            walk.problems.push(ChainProblem::Fork(format!(
                "{} and {} both have number {}",
                other.archive, link.archive, link.sequence
            )));
        }
    }
    let mut before: Option<&Link> = None;
    for (&number, &link) in &by_number {
        let expected = before.map_or(1, |before| before.sequence.saturating_add(1));
        match before {
            Some(before) if number == expected && link.previous.as_ref() != Some(&before.hash) => {
                walk.problems.push(ChainProblem::Fork(format!(
                    "{} does not follow {}",
                    link.archive, before.archive
                )));
            }
            _ if number > expected => walk.removed.push((expected, number - 1)),
            _ => {}
        }
        before = Some(link);
    }

    if let Some(last) = known.iter().max_by_key(|head| (head.committed, head.sequence))
        && last.repository != repository
    {
        walk.problems.push(ChainProblem::Elsewhere {
            sequence: last.sequence,
            archive: last.archive.clone(),
            repository: last.repository.clone(),
        });
        return walk;
    }
    let here = || known.iter().filter(|head| head.repository == repository);
    for head in here() {
        if let Some(link) = by_number.get(&head.sequence)
            && link.hash != head.hash
        {
            let fork = ChainProblem::Fork(format!(
                "{} is not what is on record as number {} ({})",
                link.archive, head.sequence, head.archive
            ));
            if !walk.problems.contains(&fork) {
                walk.problems.push(fork);
            }
        }
    }
    // What was pruned is on record all the same: its successor has to follow it.
    for head in here().filter(|head| !by_number.contains_key(&head.sequence)) {
        let next = by_number.get(&head.sequence.saturating_add(1));
        if let Some(next) = next.filter(|next| next.previous.as_ref() != Some(&head.hash)) {
            walk.problems.push(ChainProblem::Fork(format!(
                "{} does not follow {}, which is on record as number {}",
                next.archive, head.archive, head.sequence
            )));
        }
    }
    if let Some(head) = here().max_by_key(|head| head.sequence) {
        let newest = by_number.last_key_value().map(|(number, _)| *number);
        if newest.is_none_or(|newest| newest < head.sequence) {
            let newest = newest.map_or_else(|| "none".to_owned(), |number| format!("number {number}"));
            let (sequence, archive) = (head.sequence, head.archive.clone());
            walk.problems.push(if time < head.committed {
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
    }
    walk
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(sequence: u64) -> Link {
        Link {
            archive: format!("vm-{sequence}"),
            sequence,
            hash: format!("h{sequence}"),
            previous: (sequence > 1).then(|| format!("h{}", sequence - 1)),
        }
    }

    fn head(sequence: u64) -> Head {
        Head {
            format: FORMAT,
            vm: "vm".into(),
            repository: "r".into(),
            archive: format!("vm-{sequence}"),
            sequence,
            hash: format!("h{sequence}"),
            committed: time(sequence),
        }
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

    #[test]
    fn pruned_numbers_are_named_and_no_failure() {
        let found = walk(&links(&[3, 4, 8]), &[head(5), head(8)], "r", time(9));
        assert_eq!(
            found,
            Walk {
                problems: vec![],
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

    #[test]
    fn a_record_is_read_as_it_was_written_or_not_at_all() {
        assert_eq!(Head::parse(head(3).line().trim().as_bytes()), Ok(head(3)));
        for bad in ["", "{}", "[]", "{\"format\":1}"] {
            Head::parse(bad.as_bytes()).unwrap_err();
        }
        let newer = head(3).line().replace("\"format\":1", "\"format\":2");
        Head::parse(newer.as_bytes()).unwrap_err();
    }

    proptest! {
        /// Whoever takes away, swaps or alters anything that the newest record covers, but for pruning, is noticed.
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
