//! What is read of an archive before it is known which kind it is: its items, small files in it, and whether it is where its
//! signed statement says.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::manifest::{Manifest, ManifestError};
use crate::store::{Archive, ArchiveInfo, Item, Kind, Name, Repository, StoreError};

/// What the name of an archive of headers ends with; before it is the restore point's.
const SUFFIX: &str = ".headers";
/// How many strange items are named.
const MOST_STRANGE: usize = 20;

/// Why a restore point cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// The repository's reason.
    #[error("use the repository: {0}")]
    Repository(#[from] StoreError),
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

/// The archive that belongs to a restore point's.
pub fn archive_name(point: &str) -> String {
    format!("{point}{SUFFIX}")
}

/// Whether an archive holds headers, by its name.
pub fn is_headers(info: &ArchiveInfo) -> bool {
    info.name.as_str().is_some_and(|name| name.ends_with(SUFFIX))
}

impl PointError {
    /// Whether it is this archive that cannot be used, and not the repository.
    pub fn concerns_one_archive(&self) -> bool {
        match self {
            Self::Repository(error) => matches!(
                error.kind(),
                Kind::Damaged | Kind::Missing | Kind::TooLarge | Kind::Unsupported
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
) -> Result<Content, PointError> {
    let archive = repository.archive_by_info(info)?;
    let mut items = BTreeMap::new();
    let mut strange = Vec::new();
    for item in repository.items(&archive) {
        let item = item?;
        if items.is_empty() && item.path.as_str() != Some(first) {
            return Err(PointError::Foreign(info.name.to_string()));
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

pub(crate) fn read_item(
    repository: &mut Repository,
    archive: &str,
    item: &Item,
    limit: u64,
) -> Result<Vec<u8>, PointError> {
    let chunks = item.chunks.clone().unwrap_or_default();
    let size: u64 = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    if size > limit {
        let (archive, path) = (archive.to_owned(), item.path.to_string());
        return Err(PointError::TooLarge {
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
