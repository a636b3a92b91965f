//! What the bytes of a repository's files belong to. The format of segments is that of Borg 1.x's
//! `docs/internals/data-structures.rst`: a magic of 8 bytes, then entries, each with CRC-32, size, tag, and the id of the
//! object that is put or deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use strongroom_points::store::{Access, ChunkId};

use super::Bench;

const MAGIC: &[u8] = b"BORG_SEG";
/// CRC-32, size, tag.
const HEADER: usize = 9;

/// What an entry of a segment is to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Content of a disk, as the newest restore point needs it.
    NewestData,
    /// Content of a disk that only older restore points need.
    OlderData,
    /// Any other object that is in use.
    Metadata,
    /// An object that was deleted or replaced, a deletion, a commit before the last.
    Superseded,
    /// The last commit.
    LastCommit,
}

impl Role {
    /// As the documentation calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NewestData => "`data/…`: disks' data that the newest restore point needs",
            Self::OlderData => "`data/…`: disks' data that only older ones need",
            Self::Metadata => "`data/…`: archives, items, manifests and small files in use",
            Self::Superseded => "`data/…`: superseded objects, older commits",
            Self::LastCommit => "`data/…`: the last commit",
        }
    }
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The segment's path below the repository.
    pub file: String,
    /// Its first byte, and its length.
    pub at: usize,
    pub length: usize,
    pub role: Role,
}

/// All entries of a repository's segments.
pub fn entries(bench: &Bench, vm: &str) -> Vec<Entry> {
    let repository = bench.repository(vm);
    let (newest, older) = data(bench, &repository);
    let mut found: Vec<(Entry, Option<Vec<u8>>)> = Vec::new();
    // Where each object is: the last one counts.
    let mut live: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for file in segments(&repository) {
        let bytes = fs::read(repository.join(&file)).unwrap();
        assert!(bytes.starts_with(MAGIC), "{file} is no segment");
        let mut at = MAGIC.len();
        while at < bytes.len() {
            let size = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
            let tag = bytes[at + 8];
            let id = (tag != 2).then(|| bytes[at + HEADER..at + HEADER + 32].to_vec());
            match (tag, &id) {
                (0 | 3, Some(id)) => drop(live.insert(id.clone(), found.len())),
                (1, Some(id)) => drop(live.remove(id)),
                (2, None) => {}
                _ => panic!("{file}: tag {tag} at {at}"),
            }
            let entry = Entry {
                file: file.clone(),
                at,
                length: size,
                role: if tag == 2 {
                    Role::LastCommit
                } else {
                    Role::Superseded
                },
            };
            found.push((entry, id));
            at += size;
        }
    }
    let last = found
        .iter()
        .rposition(|(entry, _)| entry.role == Role::LastCommit);
    let numbered = found.into_iter().enumerate();
    let judged = numbered.map(|(number, (entry, id))| {
        let id = id.filter(|id| live.get(id) == Some(&number));
        let role = match id {
            Some(id) if newest.contains(&id) => Role::NewestData,
            Some(id) if older.contains(&id) => Role::OlderData,
            Some(_) => Role::Metadata,
            None if Some(number) == last => Role::LastCommit,
            None => Role::Superseded,
        };
        Entry { role, ..entry }
    });
    judged.collect()
}

/// The segments, in their order.
fn segments(repository: &Path) -> Vec<String> {
    let mut segments = Vec::new();
    for directory in super::names(&repository.join("data")) {
        let below = super::names(&repository.join("data").join(&directory));
        segments.extend(below.into_iter().map(|name| format!("data/{directory}/{name}")));
    }
    segments.sort_by_key(|path| path.rsplit('/').next().unwrap().parse::<u64>().unwrap());
    segments
}

/// The ids of disks' chunks, LUKS headers included: of the newest restore point, and of the others.
fn data(bench: &Bench, location: &Path) -> (BTreeSet<Vec<u8>>, BTreeSet<Vec<u8>>) {
    let location = location.display().to_string();
    let mut repository = bench.repositories.open(&location, Access::Read).unwrap();
    let mut archives: Vec<_> = repository.archives().cloned().collect();
    archives.sort_by_key(|info| info.time);
    let newest = archives.last().unwrap().name.to_string();
    let (mut of_newest, mut of_others) = (BTreeSet::new(), BTreeSet::new());
    for info in archives {
        let name = info.name.to_string();
        let ids = if name.trim_end_matches(".headers") == newest {
            &mut of_newest
        } else {
            &mut of_others
        };
        let archive = repository.archive_by_info(&info).unwrap();
        for item in repository.items(&archive) {
            let item = item.unwrap();
            let path = item.path.to_string();
            if path.starts_with("disks/") || path.starts_with("headers/") {
                let chunks: Vec<ChunkId> = item.chunks.iter().flatten().map(|chunk| chunk.id).collect();
                ids.extend(chunks.iter().map(|id| id.0.to_vec()));
            }
        }
    }
    repository.close().unwrap();
    (of_newest, of_others)
}
