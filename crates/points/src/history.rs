//! One restore point as a repository has it: its archive, its items, its manifest. Which there are, and in what order, is
//! [`crate::catalog`].

use std::collections::{BTreeMap, BTreeSet};

use strongroom_disk::Extent;

use crate::archive::{self, HistoryError, Listed, read_item, read_items};
use crate::firmware;
use crate::manifest::{self, Manifest};
use crate::store::{Archive, ArchiveInfo, ChunkId, ChunkRef, Item, Repository};
use crate::trust::signature;

/// One archive of ours, with everything but its disks' bytes.
#[derive(Debug)]
pub struct Point {
    /// The archive.
    pub archive: Archive,
    /// Its manifest.
    pub manifest: Manifest,
    /// The manifest's bytes: what is signed.
    pub bytes: Vec<u8>,
    /// The signature in the archive.
    pub signature: Option<Vec<u8>>,
    /// SHA-256 of the manifest's bytes: what the next one names.
    pub link: String,
    /// Its items by path. Only paths that can be ours are kept.
    pub items: BTreeMap<String, Item>,
    /// Items that are not ours, or there twice: the first of them.
    pub strange: Vec<String>,
    /// Chunks known to be damaged in the repository: what they hold has to be stored anew.
    pub damaged: BTreeSet<ChunkId>,
}

impl Point {
    /// Reads an archive's items and manifest.
    pub fn read(repository: &mut Repository, info: &ArchiveInfo) -> Result<Self, HistoryError> {
        let name = info.name.to_string();
        let (archive, items, strange) = read_items(repository, info, manifest::MANIFEST_PATH, is_ours)?;
        let Some(item) = items.get(manifest::MANIFEST_PATH) else {
            return Err(HistoryError::Foreign(name));
        };
        let bytes = read_item(repository, &name, item, manifest::MAX_BYTES)?;
        let manifest = Manifest::parse(&bytes).map_err(|source| HistoryError::Manifest {
            archive: name.clone(),
            source,
        })?;
        let signature = items
            .get(manifest::SIGNATURE_PATH)
            .map(|item| read_item(repository, &name, item, signature::MAX_BYTES))
            .transpose()?;
        Ok(Self {
            archive,
            link: Manifest::link(&bytes),
            bytes,
            signature,
            manifest,
            items,
            strange,
            damaged: BTreeSet::new(),
        })
    }

    /// The archive's name.
    pub fn name(&self) -> String {
        self.archive.info.name.to_string()
    }

    /// Whether the archive is where its manifest says, under its name and with its time; if not, what differs.
    pub fn place(&self, repository: &str) -> Result<(), String> {
        archive::place(&Listed::of(&self.archive), &self.manifest, repository)
    }

    /// The chunks of a disk, in order; none if it is not there or was damaged and patched by `borg check --repair`.
    pub fn chunks(&self, target: &str) -> Option<&[ChunkRef]> {
        let item = self.items.get(&manifest::disk_path(target))?;
        if item.is_intact() {
            item.chunks.as_deref()
        } else {
            None
        }
    }

    /// The chunks that a new archive can refer to.
    pub fn sound_chunks(&self, target: &str) -> impl Iterator<Item = ChunkRef> {
        let chunks = self.chunks(target).unwrap_or_default().iter();
        chunks.filter(|chunk| !self.damaged.contains(&chunk.id)).copied()
    }

    /// The parts of a disk whose chunks are damaged.
    pub fn damaged_extents(&self, target: &str) -> Vec<Extent> {
        let mut offset = 0;
        let mut extents = Vec::new();
        for chunk in self.chunks(target).unwrap_or_default() {
            let length = u64::from(chunk.size);
            if self.damaged.contains(&chunk.id) {
                extents.extend(Extent::new(offset, length).ok());
            }
            offset += length;
        }
        extents
    }

    /// The content of a small file in the archive.
    pub fn file(
        &self,
        repository: &mut Repository,
        path: &str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, HistoryError> {
        self.items
            .get(path)
            .map(|item| read_item(repository, &self.name(), item, limit))
            .transpose()
    }
}

/// Whether an item of this path can be one that we wrote.
fn is_ours(path: &str) -> bool {
    path == manifest::MANIFEST_PATH
        || path == manifest::SIGNATURE_PATH
        || path == manifest::DOMAIN_PATH
        || firmware::limit(path).is_some()
        || manifest::disk_of(path).is_some()
}
