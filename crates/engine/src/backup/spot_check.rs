//! The map of changes is a trusted input: what it calls unchanged is not read. So a random sample of that is read all
//! the same, and compared by id.
//!
//! If a share `f` of the chunks called unchanged has changed, `k` samples miss that with probability `(1 - f)^k`. The
//! configuration says what share has to be noticed, with which confidence, and within how many runs; see
//! [`crate::config::SpotCheck::count`].

use std::collections::HashMap;
use std::ops::ControlFlow;

use strongroom_disk::{Extent, ExtentMap, Kind, RangeSet};
use strongroom_nbd::{Client, ReadOptions};
use strongroom_points::store::{ChunkId, ChunkRef, Sealer};
use uuid::Uuid;

use super::chunking::Piece;

/// What a spot check found.
#[derive(Debug)]
pub enum SpotCheckError {
    /// A chunk that the map calls unchanged has changed.
    Changed {
        /// Where it starts on the disk, in bytes.
        offset: u64,
    },
    /// The disk cannot be read.
    Read(strongroom_nbd::Error),
}

/// Reads up to `count` kept chunks, chosen at random, and compares their ids. Returns how many it read. Chunks of zeroes
/// are passed over where the disk has holes there still; the parts that are `excised` from the disk are zeroes in its
/// chunks.
pub fn sample(
    pieces: &[Piece],
    allocation: &ExtentMap,
    excised: &RangeSet,
    count: usize,
    source: &mut Client,
    options: &ReadOptions<'_>,
    sealer: &Sealer,
) -> Result<u64, SpotCheckError> {
    let mut kept = kept(pieces);
    // Chunks of zeroes have few lengths.
    let mut zeroes: HashMap<u64, ChunkId> = HashMap::new();
    kept.retain(|(extent, chunk)| {
        let length = extent.length();
        !allocation.is_all(*extent, Kind::Zero)
            || *zeroes
                .entry(length)
                .or_insert_with(|| sealer.zero_id(length as usize))
                != chunk.id
    });
    let chosen = choose(kept, count, || Uuid::new_v4().as_u128());
    let expected: HashMap<u64, ChunkId> = chosen
        .iter()
        .map(|(extent, chunk)| (extent.offset(), chunk.id))
        .collect();
    let mut changed = None;
    let end = source.read_pipelined(
        chosen.iter().map(|(extent, _)| *extent),
        options,
        |offset, mut bytes| {
            let parts = Extent::new(offset, bytes.len() as u64).map(|whole| excised.within(whole));
            for part in parts.into_iter().flatten() {
                let start = (part.offset() - offset) as usize;
                let part = bytes.get_mut(start..start + part.length() as usize);
                part.unwrap_or_default().fill(0);
            }
            if expected.get(&offset) == Some(&sealer.id(&bytes)) {
                return ControlFlow::Continue(());
            }
            changed = Some(offset);
            ControlFlow::Break(())
        },
    );
    match (end, changed) {
        (_, Some(offset)) => Err(SpotCheckError::Changed { offset }),
        (Err(error), None) => Err(SpotCheckError::Read(error)),
        (Ok(_), None) => Ok(chosen.len() as u64),
    }
}

/// The kept pieces and where they lie.
fn kept(pieces: &[Piece]) -> Vec<(Extent, ChunkRef)> {
    let mut offset = 0;
    let mut kept = Vec::new();
    for piece in pieces {
        let length = match piece {
            Piece::Reuse(chunk) => u64::from(chunk.size),
            Piece::Read { extent, .. } => extent.length(),
        };
        let Ok(extent) = Extent::new(offset, length) else {
            break;
        };
        if let Piece::Reuse(chunk) = piece {
            kept.push((extent, *chunk));
        }
        offset = extent.end();
    }
    kept
}

/// `count` of the items, each with the same chance (a partial Fisher-Yates shuffle); all if there are fewer.
fn choose<T>(mut items: Vec<T>, count: usize, mut random: impl FnMut() -> u128) -> Vec<T> {
    let count = count.min(items.len());
    for place in 0..count {
        let left = (items.len() - place) as u128;
        items.swap(place, place + (random() % left) as usize);
    }
    items.truncate(count);
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(tag: u8) -> ChunkRef {
        ChunkRef {
            id: ChunkId([tag; 32]),
            size: 10,
            stored: 1,
        }
    }

    #[test]
    fn kept_cells_lie_behind_what_comes_before_them() {
        let read = Piece::Read {
            extent: Extent::new(10, 7).unwrap(),
            data: Vec::new(),
        };
        let pieces = [Piece::Reuse(chunk(1)), read, Piece::Reuse(chunk(2))];
        let places: Vec<u64> = kept(&pieces).iter().map(|(extent, _)| extent.offset()).collect();
        assert_eq!(places, [0, 17]);
    }

    #[test]
    fn every_item_can_be_chosen_and_none_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50u128 {
            let chosen = choose((0..10).collect::<Vec<_>>(), 3, || {
                seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7
            });
            let unique: std::collections::BTreeSet<_> = chosen.iter().copied().collect();
            assert_eq!((chosen.len(), unique.len()), (3, 3));
            seen.extend(unique);
        }
        assert_eq!(seen.len(), 10);
        assert_eq!(choose(vec![1, 2], 5, || 1).len(), 2);
    }
}
