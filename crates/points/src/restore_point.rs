//! One restore point as a repository has it: its archive, its items, its manifest. Which there are, and in what order, is
//! [`crate::catalog`].

use std::collections::{BTreeMap, BTreeSet};

use strongroom_disk::Extent;

use crate::archive::{self, Listed, PointError, read_item, read_items};
use crate::firmware;
use crate::manifest::{self, Manifest};
use crate::store::{Archive, ArchiveInfo, ChunkId, ChunkRef, Item, Repository};
use crate::trust::signature;

/// One archive of ours, with everything but its disks' bytes.
#[derive(Debug)]
pub struct RestorePoint {
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

impl RestorePoint {
    /// Reads an archive's items and manifest.
    pub fn read(repository: &mut Repository, info: &ArchiveInfo) -> Result<Self, PointError> {
        let name = info.name.to_string();
        let (archive, items, strange) = read_items(repository, info, manifest::MANIFEST_PATH, is_ours)?;
        let Some(item) = items.get(manifest::MANIFEST_PATH) else {
            return Err(PointError::Foreign(name));
        };
        let bytes = read_item(repository, &name, item, manifest::MAX_BYTES)?;
        let manifest = Manifest::parse(&bytes).map_err(|source| PointError::Manifest {
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
    ) -> Result<Option<Vec<u8>>, PointError> {
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use jiff::Timestamp;

    fn id(byte: u8) -> ChunkId {
        ChunkId([byte; 32])
    }

    /// A restore point with one disk of three chunks.
    pub fn point() -> RestorePoint {
        let text = r#"{"format":1,"vm":{"name":"web","uuid":"00000000-0000-0000-0000-000000000000"},"run":"r",
            "archive":"web-1","started":"1970-01-01T00:00:00Z","repository":"00","sequence":1,"previous":null,
            "captured":"1970-01-01T00:00:00Z","method":"offline","consistency":"clean","stall_us":0,"checkpoint":null,
            "disks":[],"excluded":[],"files":[],"inventory":[],"producer":"test"}"#;
        let info = ArchiveInfo {
            name: "web-1".into(),
            id: id(0),
            time: Timestamp::UNIX_EPOCH,
        };
        let chunk = |byte, size| ChunkRef {
            id: id(byte),
            size,
            stored: 0,
        };
        let path = manifest::disk_path("vda");
        let disk = Item::regular(&path, vec![chunk(1, 4096), chunk(2, 8192), chunk(3, 512)]);
        RestorePoint {
            archive: Archive {
                time: info.time,
                authenticated: true,
                item_ids: Vec::new(),
                info,
            },
            manifest: Manifest::parse(text.as_bytes()).unwrap(),
            bytes: text.into(),
            signature: None,
            link: Manifest::link(text.as_bytes()),
            items: [(path, disk)].into(),
            strange: Vec::new(),
            damaged: BTreeSet::new(),
        }
    }

    #[test]
    fn damaged_chunks_are_not_taken_over_but_read_anew() {
        let mut point = point();
        let sound = |point: &RestorePoint| -> Vec<ChunkId> {
            point.sound_chunks("vda").map(|chunk| chunk.id).collect()
        };
        assert_eq!(sound(&point), [id(1), id(2), id(3)]);
        assert_eq!(point.damaged_extents("vda"), []);
        point.damaged = [id(2), id(3)].into();
        assert_eq!(sound(&point), [id(1)]);
        let extents =
            [(4096, 8192), (12288, 512)].map(|(offset, length)| Extent::new(offset, length).unwrap());
        assert_eq!(point.damaged_extents("vda"), extents);
        assert_eq!(point.damaged_extents("vdb"), []);
    }

    #[test]
    fn a_patched_disk_has_no_chunks_to_take_over() {
        let mut point = point();
        assert_eq!(point.chunks("vda").map(<[_]>::len), Some(3));
        assert_eq!(point.chunks("vdb"), None);
        for item in point.items.values_mut() {
            item.intact = false;
        }
        assert_eq!(point.chunks("vda"), None);
        assert_eq!(point.sound_chunks("vda").count(), 0);
    }

    #[test]
    fn a_restore_point_knows_its_name_and_place() {
        let mut point = point();
        assert_eq!(point.name(), "web-1");
        assert_eq!(point.place("00"), Ok(()));
        point.place("11").unwrap_err();
        point.archive.time = Timestamp::MAX;
        point.place("00").unwrap_err();
    }

    #[test]
    fn only_paths_that_a_backup_writes_are_kept() {
        for ours in [
            manifest::MANIFEST_PATH,
            manifest::SIGNATURE_PATH,
            manifest::DOMAIN_PATH,
            manifest::NVRAM_PATH,
            "tpm/tpm2/tpm2-00.permall",
            "disks/vda.raw",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["", "disks/../vda.raw", "disks/vda", "etc/passwd", "headers.json"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
