//! Where a chunk is on a disk: what is missing or damaged is named by disk and offset.

use std::collections::BTreeMap;

use strongroom_points::headers::Headers;
use strongroom_points::manifest;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::{ArchiveInfo, ChunkId, ChunkRef, Item, Repository};

use super::{Problem, Work};

/// Where an item's bytes are on a disk.
struct DiskOffset<'a> {
    disk: Option<&'a str>,
    start: u64,
}

impl<'a> DiskOffset<'a> {
    /// Of a disk, or of a header area of one; small files are on none.
    fn of(path: &'a str) -> Self {
        let area = strongroom_points::headers::area_of(path).map(|(disk, start)| (Some(disk), start));
        let (disk, start) = area.unwrap_or((manifest::disk_of(path), 0));
        Self { disk, start }
    }

    /// The problem of a chunk at an offset of the item, with its offset on the disk.
    fn name(&self, offset: u64, chunk: &ChunkRef, problem: Problem) -> Problem {
        Problem {
            disk: self.disk.map(str::to_owned),
            offset: self.disk.map(|_| self.start.saturating_add(offset)),
            length: Some(chunk.size.into()),
            ..problem
        }
    }
}

impl Work<'_> {
    /// The chunks of an item: each is to be there, and counts once.
    pub(super) fn chunks_of(&mut self, archive: &str, path: &str, item: &Item) {
        let at = DiskOffset::of(path);
        let mut offset = 0;
        for chunk in item.chunks.iter().flatten() {
            if self.seen.insert(chunk.id) {
                self.chunks.push(*chunk);
            }
            if !self.ids.contains(&chunk.id) {
                self.damaged.insert(chunk.id);
                self.problem(at.name(
                    offset,
                    chunk,
                    Problem::of(
                        "missing-chunk",
                        archive,
                        format!("{path}: the chunk at offset {offset} is not in the repository"),
                    ),
                ));
            }
            offset += u64::from(chunk.size);
        }
    }

    /// Says of damaged chunks where they are used, in all archives.
    pub(super) fn name(
        &mut self,
        repository: &mut Repository,
        all: &[ArchiveInfo],
        damaged: &BTreeMap<ChunkId, String>,
    ) {
        if damaged.is_empty() {
            return;
        }
        let mut archives: Vec<(String, BTreeMap<String, Item>)> = Vec::new();
        for info in all {
            // What cannot be read was said before.
            let read = RestorePoint::read(repository, info);
            archives.extend(read.map(|point| (point.name(), point.items)));
        }
        for info in strongroom_points::headers::archives(repository) {
            let read = Headers::read(repository, &info);
            archives.extend(read.map(|headers| (headers.name(), headers.items)));
        }
        for (archive, items) in &archives {
            for (path, item) in items {
                let at = DiskOffset::of(path);
                let mut offset = 0;
                for chunk in item.chunks.iter().flatten() {
                    if let (Some(why), true) = (damaged.get(&chunk.id), self.ids.contains(&chunk.id)) {
                        let text =
                            format!("{path}: damaged at offset {offset} ({} bytes): {why}", chunk.size);
                        let problem = Problem::of("damaged-chunk", archive, text);
                        self.problem(at.name(offset, chunk, problem));
                    }
                    offset += u64::from(chunk.size);
                }
            }
        }
    }
}
