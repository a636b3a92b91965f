//! Room for what is restored or made. The storage may be that of running guests, which stop when it is full.
//!
//! How much a disk takes at most is known from its list of chunks, before anything is fetched. Others fill the storage, too: while
//! files are written, a thread looks at it, and the work gives way before less is free than has to stay free (`free_mib`).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::run::context::Context;

/// Between two looks. Who writes 1 GB/s meanwhile fills a quarter of the default floor.
const PERIOD: Duration = Duration::from_millis(250);
const MIB: u64 = 1 << 20;
/// What an image's own tables take beside the data: the fixed part, and one byte in so many.
const TABLES: (u64, u64) = (MIB, 4096);

/// What has to fit where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The file.
    pub path: PathBuf,
    /// What it takes at most, in bytes.
    pub bytes: u64,
}

/// Too little of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write to {}: up to {} MiB are to be written, {} MiB are free, and {} MiB have to stay free (free_mib)",
    .directory.display(), .needed.div_ceil(MIB), .free / MIB, .floor / MIB)]
pub struct Shortage {
    /// A directory on the storage.
    pub directory: PathBuf,
    /// What all files on it take at most, in bytes.
    pub needed: u64,
    /// What is free, in bytes.
    pub free: u64,
    /// What has to stay free, in bytes.
    pub floor: u64,
}

/// What an image of this size takes that has so much data: with its own tables.
pub fn with_tables(data: u64, size: u64) -> u64 {
    data.saturating_add(TABLES.0).saturating_add(size / TABLES.1)
}

/// Whether all of it fits, storage by storage.
pub fn check(needs: &[Need], floor: u64) -> Result<(), Shortage> {
    let mut storages: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for need in needs {
        let Some((directory, device)) = storage(&need.path) else {
            continue;
        };
        let (_, bytes) = storages.entry(device).or_insert((directory, 0));
        *bytes = bytes.saturating_add(need.bytes);
    }
    for (directory, needed) in storages.into_values() {
        if let Some(shortage) = shortage(&directory, needed, floor) {
            return Err(shortage);
        }
    }
    Ok(())
}

/// The directory that a file will be in, or the one above it that is there, and its device.
fn storage(path: &Path) -> Option<(PathBuf, u64)> {
    path.ancestors().skip(1).find_map(|directory| {
        let device = directory.metadata().ok()?.dev();
        Some((directory.to_owned(), device))
    })
}

/// Storage that cannot be asked is no reason to give up.
fn shortage(directory: &Path, needed: u64, floor: u64) -> Option<Shortage> {
    let found = rustix::fs::statvfs(directory).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    (free < needed.saturating_add(floor)).then(|| Shortage {
        directory: directory.to_owned(),
        needed,
        free,
        floor,
    })
}

/// Does the work, which is cancelled as soon as one of these files' storages has less free than has to stay free. `let_go` ends
/// what the work may be waiting for. Returns what there was too little of, if that was it.
pub fn watched<T>(
    context: &Context<'_>,
    files: &[Need],
    floor: u64,
    let_go: impl Fn() + Send + Sync,
    work: impl FnOnce(&Context<'_>) -> T,
) -> (T, Option<Shortage>) {
    let directories: BTreeMap<u64, PathBuf> = files
        .iter()
        .filter_map(|need| storage(&need.path))
        .map(|(directory, device)| (device, directory))
        .collect();
    let part = context.cancel.within(None);
    let cancel = part.cancel.clone();
    thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let watch = scope.spawn(move || {
            while is_done.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let found = directories
                    .values()
                    .find_map(|directory| shortage(directory, 0, floor));
                if found.is_some() {
                    cancel.cancel();
                    let_go();
                    return found;
                }
            }
            None
        });
        let result = work(&Context {
            cancel: &part.cancel,
            ..context.clone()
        });
        drop(done);
        (result, watch.join().ok().flatten())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(path: PathBuf, bytes: u64) -> Need {
        Need { path, bytes }
    }

    /// Row A16: what several disks take of one storage adds up, and the floor stays.
    #[test]
    fn what_goes_to_one_storage_adds_up() {
        let place = tempfile::tempdir().unwrap();
        let found = rustix::fs::statvfs(place.path()).unwrap();
        let free = found.f_bavail * found.f_frsize;
        let half = |name: &str| need(place.path().join("not/yet").join(name), free / 2 - 64 * MIB);
        check(&[half("a"), half("b")], 0).unwrap();
        let short = check(&[half("a"), half("b")], 1024 * MIB).unwrap_err();
        assert_eq!(short.needed, free / 2 * 2 - 128 * MIB);
        assert!(
            short.to_string().contains("1024 MiB have to stay free"),
            "{short}"
        );
        assert!(check(&[half("a"), half("b"), half("c")], 0).is_err());
        assert!(check(&[need("/proc/none".into(), 0)], 0).is_ok());
    }
}
