//! One restore point as a repository has it: its archive, its items, its manifest. Which there are, and in what order, is
//! [`crate::catalog`].

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use strongroom_borg::{Archive, ArchiveInfo, ChunkId, ChunkRef, Item, Name, Repository};
use strongroom_disk::Extent;

use crate::firmware;
use crate::manifest::{self, Manifest, ManifestError};
use crate::trust::signature;

/// Why a restore point cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The repository's reason.
    #[error("use the repository: {0}")]
    Repository(#[from] strongroom_borg::Error),
    /// The archive was not made by strongroom.
    #[error("find manifest.json in archive {0}: strongroom did not make it")]
    Foreign(String),
    /// The archive is of another VM.
    #[error("use archive {archive}: it is of VM {vm:?}")]
    OtherVm {
        /// The archive's name.
        archive: String,
        /// The VM in its manifest.
        vm: String,
    },
    /// No archive fits.
    #[error(
        "find restore point {0}: the repository has none that fits; `strongroom list` shows what there is"
    )]
    None(String),
    /// One that fits cannot be read, and may be the one that is meant.
    #[error("{reason}")]
    Unreadable {
        /// The archive's name.
        archive: String,
        /// Why not.
        reason: String,
    },
    /// Its manifest makes no sense.
    #[error("read archive {archive}: {source}")]
    Manifest {
        /// The archive's name.
        archive: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// An archive of headers makes no sense.
    #[error("read archive {archive}: understand headers.json: {reason}")]
    Headers {
        /// The archive's name.
        archive: String,
        /// What is wrong.
        reason: String,
    },
    /// An item is larger than such an item can be.
    #[error("read {path} of archive {archive}: it has {size} bytes, at most {limit} are expected")]
    TooLarge {
        /// The archive's name.
        archive: String,
        /// The item.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// What was expected at most.
        limit: u64,
    },
}

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

/// How many strange items are named.
const MOST_STRANGE: usize = 20;

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
        place(&Listed::of(&self.archive), &self.manifest, repository)
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

impl HistoryError {
    /// Whether it is this archive that cannot be used, and not the repository.
    pub fn concerns_one_archive(&self) -> bool {
        use strongroom_borg::Error;
        match self {
            Self::Repository(error) => matches!(
                error,
                Error::Damaged { .. }
                    | Error::ObjectNotFound(_)
                    | Error::TooLarge { .. }
                    | Error::Unsupported(_)
            ),
            _ => true,
        }
    }
}

/// An archive, its items by path, and the names of strange ones.
pub(crate) type Content = (Archive, BTreeMap<String, Item>, Vec<String>);

/// An archive's items by path, those of paths that can be `ours`, and the names of others: the first of them. `first` has to
/// be the first item.
pub(crate) fn read_items(
    repository: &mut Repository,
    info: &ArchiveInfo,
    first: &str,
    ours: fn(&str) -> bool,
) -> Result<Content, HistoryError> {
    let archive = repository.archive_by_info(info)?;
    let mut items = BTreeMap::new();
    let mut strange = Vec::new();
    for item in repository.items(&archive) {
        let item = item?;
        if items.is_empty() && item.path.as_str() != Some(first) {
            return Err(HistoryError::Foreign(info.name.to_string()));
        }
        // Pieces of a file that Borg left at a checkpoint are not the file.
        let path = item
            .path
            .as_str()
            .filter(|path| ours(path) && item.is_file() && !item.is_part())
            .filter(|path| !items.contains_key(*path));
        match path.map(str::to_owned) {
            Some(path) => drop(items.insert(path, item)),
            None if strange.len() < MOST_STRANGE => strange.push(item.path.to_string()),
            None => {}
        }
    }
    Ok((archive, items, strange))
}

/// How a repository lists an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its name.
    pub name: Name,
    /// Its time, in the list and in its own object.
    pub times: [Timestamp; 2],
}

impl Listed {
    pub fn of(archive: &Archive) -> Self {
        Self {
            name: archive.info.name.clone(),
            times: [archive.info.time, archive.time],
        }
    }
}

/// Whether an archive is the one that its manifest says; if not, what differs.
pub(crate) fn place(listed: &Listed, manifest: &Manifest, repository: &str) -> Result<(), String> {
    let (Some(archive), Some(started), Some(home)) =
        (&manifest.archive, manifest.started, &manifest.repository)
    else {
        return Err("its manifest does not say which archive it belongs to".into());
    };
    placed(listed, archive, started, home, repository)
}

/// Whether an archive has the name and the time that are signed, and is in the repository that is signed; if not, what
/// differs.
pub(crate) fn placed(
    listed: &Listed,
    name: &str,
    started: Timestamp,
    home: &str,
    repository: &str,
) -> Result<(), String> {
    if listed.name != name {
        return Err(format!("its manifest belongs to archive {name}"));
    }
    // Borg's times have microseconds.
    let differs = |time: &&Timestamp| time.as_microsecond() != started.as_microsecond();
    if let Some(time) = listed.times.iter().find(differs) {
        return Err(format!("its time is {time}, its manifest says {started}"));
    }
    if home != repository {
        return Err(format!("its manifest belongs to repository {home}"));
    }
    Ok(())
}

/// Whether an item of this path can be one that we wrote.
fn is_ours(path: &str) -> bool {
    path == manifest::MANIFEST_PATH
        || path == manifest::SIGNATURE_PATH
        || path == manifest::DOMAIN_PATH
        || firmware::limit(path).is_some()
        || manifest::disk_of(path).is_some()
}

pub(crate) fn read_item(
    repository: &mut Repository,
    archive: &str,
    item: &Item,
    limit: u64,
) -> Result<Vec<u8>, HistoryError> {
    let chunks = item.chunks.clone().unwrap_or_default();
    let size: u64 = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    if size > limit {
        let (archive, path) = (archive.to_owned(), item.path.to_string());
        return Err(HistoryError::TooLarge {
            archive,
            path,
            size,
            limit,
        });
    }
    let mut bytes = Vec::new();
    repository.read_chunks(chunks, |_, data| {
        bytes.extend_from_slice(data);
        Ok(())
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// K3: a name, both times and the repository, each has to be the signed one.
    #[test]
    fn an_archive_is_the_one_that_is_signed_or_is_not_believed() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let listed = |name: &str, times: [i64; 2]| Listed {
            name: name.into(),
            times: times.map(at),
        };
        let placed = |listed: &Listed, home| placed(listed, "web-1", at(5), home, "r");
        assert_eq!(placed(&listed("web-1", [5, 5]), "r"), Ok(()));
        for (other, says) in [
            (placed(&listed("web-2", [5, 5]), "r"), "belongs to archive web-1"),
            (placed(&listed("web-1", [6, 5]), "r"), "its time is"),
            (placed(&listed("web-1", [5, 6]), "r"), "its time is"),
            (placed(&listed("web-1", [5, 5]), "s"), "belongs to repository s"),
        ] {
            assert!(other.clone().unwrap_err().contains(says), "{other:?}");
        }
    }
}
