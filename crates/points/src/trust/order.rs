//! The time as of which a signing key has to be valid for a restore point.
//!
//! A restore point says when it was captured. A thief of a key that was put out of use can do so as well, and name a
//! time at which the key was good. What a thief cannot choose is what came before: a restore point is not older than one
//! with a smaller number, be it there or on record. A clock that was wrong once must not count for ever: no time is later
//! than that of a successor that is believed, or than now.

use std::collections::HashMap;

use jiff::Timestamp;

use super::chain::Records;
use super::grounds::Grounds;
use super::signature::{self, NAMESPACE, Signer};
use crate::catalog::Entry;

/// The times of a chain, by number.
#[derive(Debug, Default)]
pub struct Order {
    times: Vec<(u64, Timestamp)>,
    /// Digests of those that were on record as soon as they were made.
    recorded: Vec<String>,
}

impl Order {
    /// Of the restore points that are there and those on record.
    pub fn new(chain: &[&Entry], records: &Records) -> Self {
        let there = chain
            .iter()
            .map(|entry| (entry.number(), entry.manifest.captured));
        let heads = records.heads.iter();
        Self {
            times: there
                .chain(heads.clone().map(|head| (head.sequence, head.committed)))
                .collect(),
            recorded: heads.map(|head| head.hash.clone()).collect(),
        }
    }

    /// When what has this number and says that it was captured at `own` was made, for all that others say; no later than
    /// `until`.
    pub fn at(&self, number: u64, own: Timestamp, until: Timestamp) -> Timestamp {
        let before = self.times.iter().filter(|(other, _)| *other < number);
        let earliest = before.map(|(_, time)| *time).max();
        earliest.map_or(own, |earliest| own.max(earliest.min(until)))
    }

    /// The same of a manifest, by its digest: one that is on record is as old as it says.
    pub fn of(&self, number: u64, link: &str, own: Timestamp, until: Timestamp) -> Timestamp {
        if self.recorded.iter().any(|recorded| recorded == link) {
            own
        } else {
            self.at(number, own, until)
        }
    }
}

/// Who vouches for each of these, by digest; or why none does. The newest come first: the times of those that are believed
/// bound those of the ones before.
pub fn signers(
    grounds: &Grounds<'_>,
    chain: &[&Entry],
    order: &Order,
) -> HashMap<String, Result<Signer, String>> {
    let signing = grounds.signing.cloned().unwrap_or_default();
    let mut until = Timestamp::now();
    let mut signers = HashMap::new();
    for entry in chain.iter().rev() {
        let own = entry.manifest.captured;
        let at = order.of(entry.number(), &entry.link, own, until);
        let signature = entry.signature.as_deref();
        let signer = signature::check(&signing, NAMESPACE, signature, &entry.bytes, at, grounds.cancel);
        if signer.is_ok() {
            until = until.min(own.max(at));
        }
        let signer = signer.map_err(|error| error.to_string());
        signers.insert(entry.link.clone(), signer);
    }
    signers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::chain::tests::head;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn order(times: &[(u64, i64)]) -> Order {
        Order {
            times: times
                .iter()
                .map(|(number, second)| (*number, at(*second)))
                .collect(),
            recorded: vec!["known".into()],
        }
    }

    /// R3: a key that was good until 100 is stolen, and makes number 3, which says that it is of 99.
    #[test]
    fn nobody_alone_chooses_the_time_that_counts() {
        let now = at(1000);
        let chain = order(&[(1, 50), (2, 120)]);
        assert_eq!(chain.at(3, at(99), now), at(120));
        assert_eq!(chain.at(3, at(130), now), at(130));
        // Those after it say nothing of it.
        assert_eq!(chain.at(1, at(50), now), at(50));
        assert_eq!(chain.at(2, at(120), now), at(120));
        // Nor does another one with the same number.
        assert_eq!(chain.at(2, at(60), now), at(60));
        // The record counts as well as what is there, and vouches for what it names.
        let records = Records {
            heads: vec![head(2)],
            ..Records::default()
        };
        let recorded = Order::new(&[], &records);
        assert_eq!(recorded.at(3, at(99), at(9000)), head(2).committed);
        assert_eq!(chain.of(3, "known", at(99), now), at(99));
        assert_eq!(chain.of(3, "other", at(99), now), at(120));
    }

    /// A6: a clock two years ahead made number 2; what came after it keeps its own time, as soon as that is bounded.
    #[test]
    fn a_clock_that_was_wrong_once_does_not_count_for_ever() {
        let chain = order(&[(1, 50), (2, 9000), (3, 60), (4, 70)]);
        assert_eq!(chain.at(4, at(70), at(80)), at(80));
        assert_eq!(chain.at(3, at(60), at(70)), at(70));
        assert_eq!(chain.at(1, at(50), at(80)), at(50));
    }
}
