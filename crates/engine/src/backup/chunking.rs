//! How a disk is cut into chunks: which of the parent's are referred to again, and what is read anew.
//!
//! Chunks of our own archives lie on a fixed grid of 4 MiB cells, and a cell that is written to in small places is cut into
//! small pieces from then on: the first such change costs a whole cell, the next ones what they touch. The rules:
//!
//! * **Splitting.** What is read anew of a cell is cut into pieces as long as the changes in it are on average: a power
//!   of two between [`PIECE`] and [`GRID`].
//! * **Joining.** Pieces that have changed in one long run come back as one; so does a cell that has changed as a whole.
//! * **The bound.** There are at most [`most`] chunks. If the pieces would be more, all of them get longer, evenly. Before
//!   that, when three quarters of the room for pieces are used, cells in pieces that have not changed today are read and
//!   joined again: for up to a quarter of the bytes that have changed, or one cell.
//!
//! All of that follows from the parent's list, the changes and the allocation alone; there is no record of what is hot, and
//! the same input gives the same pieces.
//!
//! Chunks of an archive that went through other tools (`borg recreate`) may lie anywhere, so offsets are always the sum of
//! the lengths before.

use strongroom_disk::{Extent, ExtentMap, Kind, RangeSet};
use strongroom_points::store::ChunkRef;

/// Length of a grid cell, and so of the longest new chunk, in bytes.
pub const GRID: u64 = 4 << 20;

/// Length of the shortest piece of a cell, in bytes: what QEMU's dirty bitmaps tell apart.
pub const PIECE: u64 = 64 << 10;

/// Chunks that a disk may have beyond one for each cell, whatever its size.
const PIECES: u64 = 64 << 10;

/// The most chunks that a disk of `size` bytes is cut into: one for each cell, and half as many again, or 65,536 more.
/// A list of them takes 46 bytes each.
pub const fn most(size: u64) -> u64 {
    let cells = size.div_ceil(GRID);
    let more = cells / 2;
    cells + if more > PIECES { more } else { PIECES }
}

/// One chunk of the new archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Untouched since the parent: its chunk is referred to.
    Reuse(ChunkRef),
    /// To be read: the whole piece is `extent`, and all that is not in `data` reads as zeroes.
    Read {
        /// The bytes of the disk that become this chunk.
        extent: Extent,
        /// The allocated parts of it.
        data: Vec<Extent>,
    },
}

/// Plans the chunks of a disk.
///
/// `parent` are the chunks of the same disk in the parent archive, in order (none for a full backup). One is kept
/// if no byte of it is in `changed`; everything else is cut anew. `allocation` covers the whole disk and says which parts of
/// a piece have to be read at all.
pub fn plan_chunks(parent: &[ChunkRef], changed: &RangeSet, allocation: &ExtentMap) -> Vec<Piece> {
    plan_within(parent, changed, allocation, most(allocation.size()))
}

/// A chunk of the parent that could be kept, and where it lies.
struct Kept {
    extent: Extent,
    chunk: ChunkRef,
}

/// What is cut anew of one cell, and how long the pieces should be.
struct Gap {
    start: u64,
    end: u64,
    piece: u64,
}

impl Gap {
    /// Where the piece that starts at `start` ends.
    fn stop(&self, start: u64, shortest: u64) -> u64 {
        let piece = self.piece.max(shortest);
        (start / piece + 1).saturating_mul(piece).min(self.end)
    }

    fn pieces(&self, shortest: u64) -> u64 {
        let piece = self.piece.max(shortest);
        self.end.div_ceil(piece) - self.start / piece
    }
}

fn plan_within(parent: &[ChunkRef], changed: &RangeSet, allocation: &ExtentMap, most: u64) -> Vec<Piece> {
    let size = allocation.size();
    let kept = join(unchanged(parent, changed, size), changed, size, most);
    let gaps = gaps(&kept, changed, size);
    // Longer pieces, if there would be too many of them.
    let mut shortest = PIECE;
    let count = |shortest| kept.len() as u64 + gaps.iter().map(|gap| gap.pieces(shortest)).sum::<u64>();
    while shortest < GRID && count(shortest) > most {
        shortest *= 2;
    }
    let mut pieces = Vec::with_capacity(count(shortest) as usize);
    let mut kept = kept.into_iter().peekable();
    let mut gaps = gaps.into_iter().peekable();
    loop {
        let before = |gap: &Gap| kept.peek().is_none_or(|kept| gap.start < kept.extent.offset());
        if let Some(gap) = gaps.next_if(before) {
            read_anew(&mut pieces, &gap, shortest, allocation);
        } else if let Some(kept) = kept.next() {
            pieces.push(Piece::Reuse(kept.chunk));
        } else {
            return pieces;
        }
    }
}

/// The parent's chunks of which no byte has changed.
fn unchanged(parent: &[ChunkRef], changed: &RangeSet, size: u64) -> Vec<Kept> {
    let mut kept = Vec::new();
    let mut offset = 0;
    for chunk in parent {
        let length = u64::from(chunk.size);
        let Some(extent) = Extent::new(offset, length)
            .ok()
            .filter(|extent| extent.end() <= size)
        else {
            break;
        };
        if length > 0 && !changed.overlaps(extent) {
            kept.push(Kept {
                extent,
                chunk: *chunk,
            });
        }
        offset = extent.end();
    }
    kept
}

/// Lets go of the pieces of some cells, which become one chunk again, if pieces are getting scarce.
fn join(kept: Vec<Kept>, changed: &RangeSet, size: u64, most: u64) -> Vec<Kept> {
    let cells = size.div_ceil(GRID);
    let enough = cells + most.saturating_sub(cells) / 4 * 3;
    let mut excess = (kept.len() as u64).saturating_sub(enough);
    if excess == 0 {
        return kept;
    }
    // Whole cells in pieces: their number, how many pieces, and where the first of them is in the list.
    let mut candidates = Vec::new();
    let mut at = 0;
    for run in kept.chunk_by(|a, b| a.extent.end() == b.extent.offset() && cell_of(a) == cell_of(b)) {
        let (first, last) = (run.first(), run.last());
        if let (Some(first), Some(last), true) = (first, last, run.len() > 1) {
            let cell = cell_of(first);
            let end = ((cell + 1) * GRID).min(size);
            if first.extent.offset() == cell * GRID && last.extent.end() == end {
                candidates.push((first.chunk.id, cell, run.len() as u64));
            }
        }
        at += run.len();
    }
    debug_assert_eq!(at, kept.len());
    // Ids are as good as random, so this order favours no part of the disk.
    candidates.sort_unstable();
    let mut affordable = (changed.total_len() / 4).max(GRID);
    let mut joined = std::collections::HashSet::new();
    for (_, cell, pieces) in candidates {
        if excess == 0 || affordable < GRID {
            break;
        }
        affordable -= GRID;
        excess = excess.saturating_sub(pieces - 1);
        joined.insert(cell);
    }
    kept.into_iter()
        .filter(|kept| !joined.contains(&cell_of(kept)))
        .collect()
}

/// The cell in which a chunk starts.
fn cell_of(kept: &Kept) -> u64 {
    kept.extent.offset() / GRID
}

/// What is not kept, cell by cell.
fn gaps(kept: &[Kept], changed: &RangeSet, size: u64) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut start = 0;
    let ends = kept.iter().map(|kept| (kept.extent.offset(), kept.extent.end()));
    for (end, next) in ends.chain([(size, size)]) {
        while start < end {
            let stop = (start / GRID + 1).saturating_mul(GRID).min(end);
            let piece = piece_for(start / GRID * GRID, size, changed);
            gaps.push(Gap {
                start,
                end: stop,
                piece,
            });
            start = stop;
        }
        start = next;
    }
    gaps
}

/// How long the pieces of the cell at `start` should be: as long as the changes in it are on average.
fn piece_for(start: u64, size: u64, changed: &RangeSet) -> u64 {
    let end = start.saturating_add(GRID).min(size);
    let Ok(cell) = Extent::between(start, end) else {
        return GRID;
    };
    let (count, bytes) = changed
        .within(cell)
        .fold((0, 0), |(count, bytes), run| (count + 1, bytes + run.length()));
    if count == 0 || bytes == cell.length() {
        return GRID;
    }
    let average: u64 = bytes / count;
    // The power of two that is not longer.
    (1u64 << average.max(1).ilog2()).clamp(PIECE, GRID)
}

/// Appends the pieces of a gap.
fn read_anew(pieces: &mut Vec<Piece>, gap: &Gap, shortest: u64, allocation: &ExtentMap) {
    let mut start = gap.start;
    while start < gap.end {
        let stop = gap.stop(start, shortest);
        let Ok(extent) = Extent::between(start, stop) else {
            return;
        };
        let data = allocation
            .within(extent)
            .filter(|(_, kind)| *kind == Kind::Data)
            .map(|(part, _)| part)
            .collect();
        pieces.push(Piece::Read { extent, data });
        start = stop;
    }
}

/// Bytes of a list of pieces that have to be read.
pub fn bytes_to_read(pieces: &[Piece]) -> u64 {
    pieces
        .iter()
        .map(|piece| match piece {
            Piece::Reuse(_) => 0,
            Piece::Read { data, .. } => data.iter().map(|part| part.length()).sum(),
        })
        .sum()
}

/// Bytes of a list of pieces that become chunks anew, and their number: pieces with data, holes inside them included.
pub fn bytes_to_seal(pieces: &[Piece]) -> (u64, u64) {
    pieces.iter().fold((0, 0), |(bytes, count), piece| match piece {
        Piece::Read { extent, data } if !data.is_empty() => (bytes + extent.length(), count + 1),
        _ => (bytes, count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ranges;
    use proptest::prelude::*;
    use strongroom_points::store::ChunkId;

    fn chunk(tag: u8, size: u64) -> ChunkRef {
        ChunkRef {
            id: ChunkId([tag; 32]),
            size: u32::try_from(size).unwrap(),
            stored: 1,
        }
    }

    fn length(piece: &Piece) -> u64 {
        match piece {
            Piece::Reuse(chunk) => u64::from(chunk.size),
            Piece::Read { extent, .. } => extent.length(),
        }
    }

    #[test]
    fn a_full_backup_reads_allocated_parts_on_the_grid() {
        let size = 2 * GRID + 512;
        let data = ranges(&[(GRID - 100, 200)]);
        let map = ExtentMap::of_ranges(size, &data, Kind::Data, Kind::Zero);
        let pieces = plan_chunks(&[], &RangeSet::all(size), &map);
        assert_eq!(pieces.iter().map(length).collect::<Vec<_>>(), [GRID, GRID, 512]);
        assert_eq!(bytes_to_read(&pieces), 200);
        assert_eq!(bytes_to_seal(&pieces), (2 * GRID, 2));
        assert!(matches!(&pieces[2], Piece::Read { data, .. } if data.is_empty()));
    }

    #[test]
    fn only_touched_chunks_are_read_again() {
        let parent = [chunk(1, GRID), chunk(2, GRID), chunk(3, GRID)];
        let map = ExtentMap::uniform(3 * GRID, Kind::Data);
        let pieces = plan_chunks(&parent, &ranges(&[(GRID + 5, 1)]), &map);
        assert_eq!(pieces[0], Piece::Reuse(parent[0]));
        let (last, read) = pieces[1..].split_last().unwrap();
        let starts = (GRID..2 * GRID).step_by(PIECE as usize);
        assert!(starts.eq(read.iter().map(|piece| match piece {
            Piece::Read { extent, .. } => extent.offset(),
            Piece::Reuse(_) => 0,
        })));
        assert_eq!(*last, Piece::Reuse(parent[2]));
    }

    #[test]
    fn a_change_on_a_border_touches_both_sides() {
        let parent = [chunk(1, GRID), chunk(2, GRID)];
        let map = ExtentMap::uniform(2 * GRID, Kind::Data);
        let pieces = plan_chunks(&parent, &ranges(&[(GRID - 1, 2)]), &map);
        assert!(pieces.iter().all(|piece| matches!(piece, Piece::Read { .. })));
    }

    /// A disk, its chunk list, and days of changes to it.
    struct Disk {
        size: u64,
        chunks: Vec<ChunkRef>,
        next: u32,
    }

    impl Disk {
        fn new(cells: u64) -> Self {
            let size = cells * GRID;
            let mut disk = Self {
                size,
                chunks: Vec::new(),
                next: 0,
            };
            disk.backup(&RangeSet::all(size), most(size));
            disk
        }

        /// Takes the pieces as the next list; returns the bytes that were stored.
        fn backup(&mut self, changed: &RangeSet, most: u64) -> u64 {
            let map = ExtentMap::uniform(self.size, Kind::Data);
            let pieces = plan_within(&self.chunks, changed, &map, most);
            let mut stored = 0;
            self.chunks = pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Reuse(kept) => *kept,
                    Piece::Read { extent, .. } => {
                        stored += extent.length();
                        self.next += 1;
                        let mut id = [0; 32];
                        // Spread like ids are.
                        id[..4].copy_from_slice(&self.next.wrapping_mul(0x9e37_79b9).to_be_bytes());
                        ChunkRef {
                            id: ChunkId(id),
                            size: u32::try_from(extent.length()).unwrap(),
                            stored: 1,
                        }
                    }
                })
                .collect();
            assert_eq!(
                self.chunks.iter().map(|chunk| u64::from(chunk.size)).sum::<u64>(),
                self.size
            );
            stored
        }
    }

    /// So many changes of one block of the bitmap, at places that a generator gives.
    fn scattered(count: u64, mut place: impl FnMut() -> u64) -> RangeSet {
        ranges(&(0..count).map(|_| (place() * PIECE, PIECE)).collect::<Vec<_>>())
    }

    /// A generator of numbers that look random.
    fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        }
    }

    #[test]
    fn small_changes_cost_what_they_touch_from_the_second_day_on() {
        let mut disk = Disk::new(256);
        let mut number = numbers(1);
        for day in 0..30 {
            // All in a twentieth of the disk.
            let changed = scattered(200, || 3000 + number(256 * 64 / 20));
            let stored = disk.backup(&changed, most(disk.size));
            if day > 0 {
                assert!(stored * 2 <= changed.total_len() * 3, "day {day}: {stored}");
            }
        }
        assert!(disk.chunks.len() < 256 + 14 * 64);
    }

    #[test]
    fn long_changes_make_long_pieces_and_join_short_ones() {
        let mut disk = Disk::new(4);
        disk.backup(&ranges(&[(GRID, PIECE)]), 1000);
        assert_eq!(disk.chunks.len(), 3 + 64);
        // A run of sixteen pieces becomes one, the others stay.
        let stored = disk.backup(&ranges(&[(GRID + 16 * PIECE, 16 * PIECE)]), 1000);
        assert_eq!((disk.chunks.len(), stored), (3 + 49, 16 * PIECE));
        disk.backup(&ranges(&[(GRID, GRID)]), 1000);
        assert_eq!(disk.chunks.len(), 4);
        // Half a cell at once: two pieces, not sixty-four.
        disk.backup(&ranges(&[(2 * GRID, GRID / 2)]), 1000);
        assert_eq!(disk.chunks.len(), 5);
    }

    #[test]
    fn the_number_of_chunks_is_bounded_and_cold_cells_are_joined() {
        let (cells, most) = (64, 64 + 640);
        let mut disk = Disk::new(cells);
        let mut number = numbers(7);
        let mut pieces = Vec::new();
        for day in 0..60 {
            // The hot area moves every ten days.
            let changed = scattered(40, || (day / 10) * 320 + number(320));
            let stored = disk.backup(&changed, most);
            assert!(
                disk.chunks.len() as u64 <= most,
                "day {day}: {}",
                disk.chunks.len()
            );
            // Ten days after a move, the new area is in pieces although the old ones filled all the room.
            if day % 10 == 9 {
                pieces.push(stored as f64 / changed.total_len() as f64);
            }
        }
        assert!(pieces.iter().all(|share| *share < 3.0), "{pieces:?}");
    }

    proptest! {
        /// However a disk changes: never more chunks than allowed, and the same input gives the same pieces.
        #[test]
        fn the_bound_holds_for_any_changes(
            days in prop::collection::vec(prop::collection::vec((0u64..32 * GRID, 1u64..GRID / 4), 0..40), 1..6),
            room in 0u64..300,
        ) {
            let mut disk = Disk::new(32);
            let most = 32 + room;
            for day in days {
                let mut changed = RangeSet::new();
                for (offset, length) in day {
                    changed.insert(Extent::between(offset, (offset + length).min(disk.size)).unwrap());
                }
                let map = ExtentMap::uniform(disk.size, Kind::Data);
                let pieces = plan_within(&disk.chunks, &changed, &map, most);
                prop_assert_eq!(&pieces, &plan_within(&disk.chunks, &changed, &map, most));
                disk.backup(&changed, most);
                prop_assert!(disk.chunks.len() as u64 <= most);
            }
        }

        /// Whatever the parent looks like: the pieces cover the disk without gap, a kept chunk lies where it lay
        /// and has not changed, and every changed, allocated byte is read.
        #[test]
        fn pieces_cover_the_disk_and_miss_no_change(
            sizes in prop::collection::vec(0u64..3 * GRID, 0..8),
            tail in 0u64..GRID,
            changes in prop::collection::vec((0u64..8 * GRID, 1u64..GRID), 0..6),
            holes in prop::collection::vec((0u64..8 * GRID, 1u64..GRID), 0..6),
        ) {
            let parent: Vec<ChunkRef> =
                sizes.iter().enumerate().map(|(tag, &size)| chunk(tag as u8, size)).collect();
            let size: u64 = sizes.iter().sum::<u64>() + tail;
            let mut changed = ranges(&changes);
            // What lies beyond the parent has changed by definition.
            changed.insert(Extent::new(size - tail, tail).unwrap());
            let map = ExtentMap::of_ranges(size, &ranges(&holes), Kind::Zero, Kind::Data);

            let pieces = plan_chunks(&parent, &changed, &map);
            let mut offset = 0;
            let mut read = RangeSet::new();
            for piece in &pieces {
                let whole = Extent::new(offset, length(piece)).unwrap();
                match piece {
                    Piece::Reuse(kept) => {
                        prop_assert!(!changed.overlaps(whole));
                        let mut at = 0;
                        let lay_there = parent.iter().any(|old| {
                            let here = at == offset && old == kept;
                            at += u64::from(old.size);
                            here
                        });
                        prop_assert!(lay_there);
                    }
                    Piece::Read { extent, data } => {
                        prop_assert_eq!(*extent, whole);
                        prop_assert_eq!(extent.offset() / GRID, (extent.end() - 1) / GRID);
                        for part in data {
                            prop_assert!(part.offset() >= extent.offset() && part.end() <= extent.end());
                            read.insert(*part);
                        }
                    }
                }
                offset = whole.end();
            }
            prop_assert_eq!(offset, size);
            let must = changed.intersect(&map.ranges_of(Kind::Data));
            prop_assert_eq!(must.subtract(&read).total_len(), 0);
        }
    }
}
