//! How a disk is cut into chunks: which of the parent's are kept, and which cells are read anew.
//!
//! Chunks of our own archives lie on a fixed grid. Those of an archive that went through other tools
//! (`borg recreate`) may lie anywhere, so offsets are always the sum of the lengths before.

use strongroom_borg::ChunkRef;
use strongroom_disk::{Extent, ExtentMap, Kind, RangeSet};

/// Length of a grid cell, and so of a new chunk, in bytes.
pub const GRID: u64 = 4 << 20;

/// One chunk of the new archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// Untouched since the parent: its chunk is referred to.
    Keep(ChunkRef),
    /// To be read: the whole cell is `extent`, and all that is not in `data` reads as zeroes.
    Read {
        /// The bytes of the disk that become this chunk.
        extent: Extent,
        /// The allocated parts of it.
        data: Vec<Extent>,
    },
}

/// Cuts a disk.
///
/// `parent` are the chunks of the same disk in the parent archive, in order (none for a full backup). One is kept
/// if no byte of it is in `changed`; everything else is cut anew at multiples of [`GRID`]. `allocation` covers the
/// whole disk and says which parts of a cell have to be read at all.
pub fn cut(parent: &[ChunkRef], changed: &RangeSet, allocation: &ExtentMap) -> Vec<Cell> {
    let size = allocation.size();
    let mut cells = Vec::new();
    let mut offset = 0; // of the chunk at hand
    let mut unkept = 0; // all before is in `cells`
    for chunk in parent {
        let length = u64::from(chunk.size);
        let Ok(extent) = Extent::new(offset, length) else {
            break;
        };
        if extent.end() > size {
            break;
        }
        if length > 0 && !changed.overlaps(extent) {
            cut_anew(&mut cells, unkept, offset, allocation);
            cells.push(Cell::Keep(*chunk));
            unkept = extent.end();
        }
        offset = extent.end();
    }
    cut_anew(&mut cells, unkept, size, allocation);
    cells
}

/// Appends cells for the bytes from `start` to `end`, on the grid.
fn cut_anew(cells: &mut Vec<Cell>, mut start: u64, end: u64, allocation: &ExtentMap) {
    while start < end {
        let stop = (start / GRID + 1).saturating_mul(GRID).min(end);
        let Ok(extent) = Extent::new(start, stop - start) else {
            return;
        };
        let data = allocation
            .within(extent)
            .filter(|(_, kind)| *kind == Kind::Data)
            .map(|(part, _)| part)
            .collect();
        cells.push(Cell::Read { extent, data });
        start = stop;
    }
}

/// Bytes of a list of cells that have to be read.
pub fn bytes_to_read(cells: &[Cell]) -> u64 {
    cells
        .iter()
        .map(|cell| match cell {
            Cell::Keep(_) => 0,
            Cell::Read { data, .. } => data.iter().map(|part| part.length()).sum(),
        })
        .sum()
}

/// Bytes of a list of cells that become chunks anew, and their number: cells with data, holes inside them included.
pub fn bytes_to_seal(cells: &[Cell]) -> (u64, u64) {
    cells.iter().fold((0, 0), |(bytes, count), cell| match cell {
        Cell::Read { extent, data } if !data.is_empty() => (bytes + extent.length(), count + 1),
        _ => (bytes, count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use strongroom_borg::ChunkId;

    fn chunk(tag: u8, size: u64) -> ChunkRef {
        ChunkRef {
            id: ChunkId([tag; 32]),
            size: u32::try_from(size).unwrap(),
            csize: 1,
        }
    }

    fn length(cell: &Cell) -> u64 {
        match cell {
            Cell::Keep(chunk) => u64::from(chunk.size),
            Cell::Read { extent, .. } => extent.length(),
        }
    }

    fn ranges(list: &[(u64, u64)]) -> RangeSet {
        let mut set = RangeSet::new();
        for &(offset, length) in list {
            set.insert(Extent::new(offset, length).unwrap());
        }
        set
    }

    #[test]
    fn a_full_backup_reads_allocated_parts_on_the_grid() {
        let size = 2 * GRID + 512;
        let data = ranges(&[(GRID - 100, 200)]);
        let map = ExtentMap::of_ranges(size, &data, Kind::Data, Kind::Zero);
        let cells = cut(&[], &RangeSet::all(size), &map);
        assert_eq!(cells.iter().map(length).collect::<Vec<_>>(), [GRID, GRID, 512]);
        assert_eq!(bytes_to_read(&cells), 200);
        assert_eq!(bytes_to_seal(&cells), (2 * GRID, 2));
        assert!(matches!(&cells[2], Cell::Read { data, .. } if data.is_empty()));
    }

    #[test]
    fn only_touched_chunks_are_read_again() {
        let parent = [chunk(1, GRID), chunk(2, GRID), chunk(3, GRID)];
        let map = ExtentMap::uniform(3 * GRID, Kind::Data);
        let cells = cut(&parent, &ranges(&[(GRID + 5, 1)]), &map);
        assert_eq!(cells[0], Cell::Keep(parent[0]));
        assert!(matches!(&cells[1], Cell::Read { extent, .. } if extent.offset() == GRID));
        assert_eq!(cells[2], Cell::Keep(parent[2]));
    }

    #[test]
    fn a_change_on_a_border_touches_both_sides() {
        let parent = [chunk(1, GRID), chunk(2, GRID)];
        let map = ExtentMap::uniform(2 * GRID, Kind::Data);
        let cells = cut(&parent, &ranges(&[(GRID - 1, 2)]), &map);
        assert!(cells.iter().all(|cell| matches!(cell, Cell::Read { .. })));
    }

    proptest! {
        /// Whatever the parent looks like: the cells cover the disk without gap, a kept chunk lies where it lay
        /// and has not changed, and every changed, allocated byte is read.
        #[test]
        fn cells_cover_the_disk_and_miss_no_change(
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

            let cells = cut(&parent, &changed, &map);
            let mut offset = 0;
            let mut read = RangeSet::new();
            for cell in &cells {
                let whole = Extent::new(offset, length(cell)).unwrap();
                match cell {
                    Cell::Keep(kept) => {
                        prop_assert!(!changed.overlaps(whole));
                        let mut at = 0;
                        let lay_there = parent.iter().any(|old| {
                            let here = at == offset && old == kept;
                            at += u64::from(old.size);
                            here
                        });
                        prop_assert!(lay_there);
                    }
                    Cell::Read { extent, data } => {
                        prop_assert_eq!(*extent, whole);
                        prop_assert!(extent.length() <= GRID);
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
