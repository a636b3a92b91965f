//! Counters of AES blocks, of which none is ever used twice under one key.
//!
//! Before use, a range is reserved in the repository and in the local security directory, both durably. Whatever is
//! left of a range after a crash or at the end is lost, which is what makes reuse impossible.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::msgpack::Value;
use crate::rpc::Rpc;
use crate::security::SecurityDir;
use crate::{Error, Result};

/// Counters reserved at once: 4 GiB worth of data, as stock Borg does.
const RESERVATION: u64 = 1 << 28;

/// Counters left out where this machine does not know which were used: those of runs that were given up are in no manifest,
/// and a server can put back what it has on record. 2^40 counters are 16 TiB of data, and there are 2^24 times as many.
const UNKNOWN: u64 = 1 << 40;

/// Ranges of reserved counters, shared by all threads that encrypt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    end: u64,
    /// Counters promised to a sealer and not taken yet.
    promised: u64,
    /// No counter below this is reserved.
    floor: u64,
}

impl Ledger {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `blocks` consecutive counters out of the reservation.
    pub fn take(&self, blocks: u64) -> Result<u64> {
        let mut state = self.state();
        if blocks > state.end - state.next {
            return Err(Error::NonceReservation);
        }
        let start = state.next;
        state.next += blocks;
        state.promised = state.promised.saturating_sub(blocks);
        Ok(start)
    }

    /// Promises `blocks` more counters, if the reservation suffices for all promises.
    fn promise(&self, blocks: u64) -> bool {
        let mut state = self.state();
        match state.promised.checked_add(blocks) {
            Some(promised) if promised <= state.end - state.next => {
                state.promised = promised;
                true
            }
            _ => false,
        }
    }

    /// The first counter that is not reserved; 0 as long as none was.
    pub fn end(&self) -> u64 {
        self.state().end
    }

    /// Counters below this are used, whatever the repository says.
    pub fn start_above(&self, floor: u64) {
        let mut state = self.state();
        state.floor = state.floor.max(floor);
    }

    /// Adds a durably reserved range, and promises `blocks` of it. A range that does not continue the present one
    /// replaces it.
    fn extend(&self, start: u64, end: u64, blocks: u64) {
        let mut state = self.state();
        if start != state.end {
            state.next = start;
        }
        state.end = end;
        state.promised += blocks;
    }
}

/// Reserves ranges with the server.
#[derive(Debug)]
pub(crate) struct Reserver {
    ledger: Ledger,
    security: SecurityDir,
    /// First counter that the manifest as it was read does not use.
    after_manifest: u64,
}

impl Reserver {
    pub fn new(security: SecurityDir, after_manifest: u64) -> Self {
        Self {
            ledger: Ledger::default(),
            security,
            after_manifest,
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// True if `blocks` counters could be promised without asking the server.
    pub fn promise(&self, blocks: u64) -> bool {
        self.ledger.promise(blocks)
    }

    /// Reserves at least `blocks` more counters and promises them. No other requests may be pending.
    pub fn reserve(&self, rpc: &mut Rpc, blocks: u64) -> Result<()> {
        let exhausted = || Error::NonceState("the space of counters is used up".to_owned());
        let (own_end, promised, floor) = {
            let state = self.ledger.state();
            (state.end, state.promised, state.floor)
        };
        let in_repository = match rpc.call("get_free_nonce", &[])? {
            Value::Nil => None,
            value => Some(
                value
                    .as_u64()
                    .ok_or_else(|| Error::Protocol("a counter that is no number".to_owned()))?,
            ),
        };
        let local = self.security.free_nonce()?;
        let start = start(in_repository, local, self.after_manifest, own_end, floor).ok_or_else(exhausted)?;
        let end = [promised, blocks, RESERVATION]
            .into_iter()
            .try_fold(start, u64::checked_add);
        let end = end.ok_or_else(exhausted)?;
        rpc.call(
            "commit_nonce_reservation",
            &[
                ("next_unreserved", end.into()),
                ("start_nonce", in_repository.map_or(Value::Nil, Value::from)),
            ],
        )?;
        self.security.set_free_nonce(end)?;
        self.ledger.extend(start, end, blocks);
        Ok(())
    }
}

/// Where a new range starts: above all that is known to be used. What only the repository knows is what its server
/// says; without a record of this machine's own, some are left out.
fn start(
    in_repository: Option<u64>,
    local: Option<u64>,
    after_manifest: u64,
    own_end: u64,
    floor: u64,
) -> Option<u64> {
    let known = [
        in_repository,
        local,
        Some(after_manifest),
        Some(own_end),
        Some(floor),
    ];
    let start = known.into_iter().flatten().max()?;
    if local.is_none() {
        start.checked_add(UNKNOWN)
    } else {
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// R9: with neither a record here nor an honest one there, what the witness has seen counts.
    #[test]
    fn a_range_starts_above_whatever_anybody_knows() {
        for [repository, manifest, own, floor] in [[9, 1, 1, 1], [1, 9, 1, 1], [1, 1, 9, 1], [1, 1, 1, 9]] {
            let here = start(Some(repository), Some(0), manifest, own, floor);
            assert_eq!(here, Some(9));
            // A machine that was made anew.
            let anew = start(Some(repository), None, manifest, own, floor);
            assert_eq!(anew, Some(9 + UNKNOWN));
        }
        assert_eq!(start(None, Some(7), 0, 0, 0), Some(7));
        assert_eq!(start(Some(u64::MAX), None, 0, 0, 0), None);
    }

    #[test]
    fn nothing_without_a_reservation() {
        let ledger = Ledger::default();
        assert!(matches!(ledger.take(1), Err(Error::NonceReservation)));
        assert!(!ledger.promise(1));
        ledger.extend(10, 20, 4);
        assert!(ledger.promise(6) && !ledger.promise(1));
        assert_eq!(ledger.take(10).unwrap(), 10);
        assert!(ledger.take(1).is_err());
    }

    #[test]
    fn a_gap_drops_what_is_left() {
        let ledger = Ledger::default();
        ledger.extend(0, 10, 0);
        ledger.extend(10, 20, 0);
        assert_eq!(ledger.take(15).unwrap(), 0);
        ledger.extend(100, 110, 0);
        assert_eq!(ledger.take(10).unwrap(), 100);
        assert!(ledger.take(1).is_err());
    }

    proptest! {
        #[test]
        fn ranges_of_threads_are_disjoint(sizes in prop::collection::vec(prop::collection::vec(1u64..50, 0..40), 1..5)) {
            let ledger = Ledger::default();
            let total: u64 = sizes.iter().flatten().sum();
            ledger.extend(7, 7 + total, total);
            let mut taken: Vec<(u64, u64)> = std::thread::scope(|scope| {
                let threads: Vec<_> = sizes
                    .iter()
                    .map(|sizes| scope.spawn(|| sizes.iter().map(|n| (ledger.take(*n).unwrap(), *n)).collect::<Vec<_>>()))
                    .collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            taken.sort_unstable();
            let mut next = 7;
            for (start, len) in taken {
                prop_assert_eq!(start, next);
                next = start + len;
            }
            prop_assert!(ledger.take(1).is_err());
        }
    }
}
