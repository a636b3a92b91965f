//! The restore points in a repository, as far as a command needs to know them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use strongroom_borg::{Archive, ArchiveInfo, ChunkId, ChunkRef, Item, Repository};
use strongroom_disk::Extent;

use crate::cancel::Cancel;
use crate::config::Signing;
use crate::firmware;
use crate::headers;
use crate::manifest::{self, Manifest, ManifestError};
use crate::trust::signature::{self, NAMESPACE, Signer, Untrusted};
use crate::when::PointName;

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

/// The archives that can be restore points: all but those of headers, in the order of time.
pub fn points(repository: &Repository) -> Vec<ArchiveInfo> {
    let mut archives: Vec<ArchiveInfo> = repository
        .archives()
        .filter(|info| !headers::is_headers(info))
        .cloned()
        .collect();
    archives.sort_by_key(|info| info.time);
    archives
}

/// The restore point that is meant: the newest of this VM that fits. Archives of others in the same repository are
/// passed over.
pub fn find(repository: &mut Repository, point: &PointName) -> Result<ArchiveInfo, HistoryError> {
    let mut other = None;
    for info in point.candidates(points(repository)) {
        match manifest(repository, &info) {
            Ok(manifest) if manifest.vm.name == point.vm => return Ok(info),
            Ok(manifest) => {
                other = Some(HistoryError::OtherVm {
                    archive: info.name.to_string(),
                    vm: manifest.vm.name,
                });
            }
            Err(error @ HistoryError::Foreign(_)) => other = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(other.unwrap_or_else(|| HistoryError::None(point.to_string())))
}

/// Reads only the manifest of an archive. It comes first, so the lists of chunks behind it are not fetched.
pub fn manifest(repository: &mut Repository, info: &ArchiveInfo) -> Result<Manifest, HistoryError> {
    let name = info.name.to_string();
    let archive = repository.archive_by_info(info)?;
    let first = repository.items(&archive).next().transpose()?;
    let item = first
        .filter(is_manifest)
        .ok_or_else(|| HistoryError::Foreign(name.clone()))?;
    let bytes = read_item(repository, &name, &item, manifest::MAX_BYTES)?;
    Manifest::parse(&bytes).map_err(|source| HistoryError::Manifest {
        archive: name,
        source,
    })
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

    /// The newest archive of ours that can be read and is `accepted`, if there is one. `passed_over` hears of those that
    /// cannot be read: a damaged archive is no reason to make no new one.
    pub fn newest(
        repository: &mut Repository,
        mut accepted: impl FnMut(&Self) -> bool,
        mut passed_over: impl FnMut(&HistoryError),
    ) -> Result<Option<Self>, HistoryError> {
        for info in points(repository).iter().rev() {
            match Self::read(repository, info) {
                Ok(point) if accepted(&point) => return Ok(Some(point)),
                Ok(_) | Err(HistoryError::Foreign(_)) => {}
                Err(error) if error.concerns_one_archive() => passed_over(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The archive's name.
    pub fn name(&self) -> String {
        self.archive.info.name.to_string()
    }

    /// Who has signed the manifest, if that is somebody who is trusted; as of the time of the capture.
    pub fn signer(&self, signing: &Signing, cancel: &Cancel) -> Result<Signer, Untrusted> {
        let signature = self.signature.as_deref();
        let at = self.manifest.captured;
        signature::check(signing, NAMESPACE, signature, &self.bytes, at, cancel)
    }

    /// Whether the archive is where its manifest says, under its name and with its time; if not, what differs.
    pub fn place(&self, repository: &str) -> Result<(), String> {
        let manifest = &self.manifest;
        let (Some(archive), Some(started), Some(home)) =
            (&manifest.archive, manifest.started, &manifest.repository)
        else {
            return Err("its manifest does not say which archive it belongs to".into());
        };
        placed(&self.archive, archive, started, home, repository)
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

/// Whether an archive has the name and the time that are signed, and is in the repository that is signed; if not, what
/// differs.
pub(crate) fn placed(
    archive: &Archive,
    name: &str,
    started: Timestamp,
    home: &str,
    repository: &str,
) -> Result<(), String> {
    if archive.info.name != name {
        return Err(format!("its manifest belongs to archive {name}"));
    }
    // Borg's times have microseconds.
    let listed = [archive.info.time, archive.time];
    if listed
        .iter()
        .any(|time| time.as_microsecond() != started.as_microsecond())
    {
        return Err(format!(
            "its time is {}, its manifest says {started}",
            archive.info.time
        ));
    }
    if home != repository {
        return Err(format!("its manifest belongs to repository {home}"));
    }
    Ok(())
}

fn is_manifest(item: &Item) -> bool {
    item.path.as_str() == Some(manifest::MANIFEST_PATH)
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
