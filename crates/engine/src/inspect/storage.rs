//! How full the storage of images is, and how full it can become: sparse images promise more than they take.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use strongroom_hypervisor::{DiskSource, Domain};

/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK: u64 = 512;

/// A file system that holds images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Where it is mounted.
    pub place: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that are free, as a user without privileges sees it.
    pub free: u64,
    /// Number of images in it.
    pub images: u64,
    /// What their guests see, in bytes.
    #[serde(rename = "virtual")]
    pub virtual_size: u64,
    /// What they take, in bytes.
    pub actual: u64,
    /// What their guests may yet write, in bytes.
    pub promised: u64,
}

impl Pool {
    /// By how many bytes it is promised more than it has. When it is full, QEMU pauses the guests that write.
    pub fn overcommitted(&self) -> Option<u64> {
        self.promised.checked_sub(self.free).filter(|lack| *lack > 0)
    }
}

/// An image in a pool.
struct Image {
    device: u64,
    virtual_size: u64,
    actual: u64,
}

/// The pools that hold images of these domains, ordered by place. An image that several domains have counts once;
/// images on block devices and elsewhere do not count. Only for a hypervisor on this machine.
pub fn pools(domains: &[Domain]) -> io::Result<Vec<Pool>> {
    let mut seen = BTreeSet::new();
    let mut pools: BTreeMap<u64, Pool> = BTreeMap::new();
    for disk in domains.iter().flat_map(|domain| &domain.disks) {
        let (DiskSource::File(path), Some(size), false) = (&disk.source, disk.size, disk.read_only) else {
            continue;
        };
        // An image that is not there takes nothing, and can be given nothing.
        let Ok(metadata) = std::fs::metadata(path) else {
            continue;
        };
        if !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        let image = Image {
            device: metadata.dev(),
            virtual_size: size,
            actual: metadata.blocks() * STAT_BLOCK,
        };
        let pool = match pools.entry(image.device) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(empty(path)?),
        };
        add(pool, &image);
    }
    let mut pools: Vec<Pool> = pools.into_values().collect();
    pools.sort_by(|one, other| one.place.cmp(&other.place));
    Ok(pools)
}

fn add(pool: &mut Pool, image: &Image) {
    pool.images += 1;
    pool.virtual_size = pool.virtual_size.saturating_add(image.virtual_size);
    pool.actual = pool.actual.saturating_add(image.actual);
    let promised = image.virtual_size.saturating_sub(image.actual);
    pool.promised = pool.promised.saturating_add(promised);
}

/// The file system of a file, before anything in it is counted.
fn empty(file: &Path) -> io::Result<Pool> {
    let place = mount_point(file)?;
    let room = rustix::fs::statvfs(&place)?;
    Ok(Pool {
        place,
        size: room.f_blocks.saturating_mul(room.f_frsize),
        free: room.f_bavail.saturating_mul(room.f_frsize),
        images: 0,
        virtual_size: 0,
        actual: 0,
        promised: 0,
    })
}

/// The topmost directory above a file that is on the same device.
fn mount_point(file: &Path) -> io::Result<PathBuf> {
    let mut place = file.canonicalize()?;
    let device = place.metadata()?.dev();
    while let Some(parent) = place.parent() {
        if parent.metadata()?.dev() != device {
            break;
        }
        place = parent.to_owned();
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(free: u64) -> Pool {
        Pool {
            place: "/".into(),
            size: 1000,
            free,
            images: 0,
            virtual_size: 0,
            actual: 0,
            promised: 0,
        }
    }

    #[test]
    fn promises_add_up() {
        let image = |virtual_size, actual| Image {
            device: 1,
            virtual_size,
            actual,
        };
        let mut full = pool(100);
        add(&mut full, &image(100, 40));
        assert_eq!((full.promised, full.overcommitted()), (60, None));
        // A full image with its metadata takes more than its guest sees.
        add(&mut full, &image(100, 101));
        add(&mut full, &image(40, 0));
        assert_eq!((full.promised, full.overcommitted()), (100, None));
        add(&mut full, &image(1, 0));
        assert_eq!(full.overcommitted(), Some(1));
        assert_eq!((full.images, full.virtual_size, full.actual), (4, 241, 141));
    }

    #[test]
    fn a_file_system_begins_where_the_device_changes() {
        assert_eq!(
            mount_point(Path::new("/proc/self/status")).unwrap(),
            Path::new("/proc")
        );
        assert!(mount_point(Path::new("/no/such/file")).is_err());
    }
}
