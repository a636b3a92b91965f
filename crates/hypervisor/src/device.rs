//! What the kernel says of block devices, whatever device node they are reached by (`/sys/dev/block/MAJOR:MINOR`).
//!
//! QEMU opens a device through a node of its own, in its own `/dev`: the times of the node that the host sees say nothing of
//! what was written. The device's counters do.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

/// Files that hold an identifier, below a device's directory: of device-mapper, of SCSI and `NVMe`, of virtio.
const IDENTIFIERS: [&str; 5] = ["dm/uuid", "wwid", "device/wwid", "serial", "loop/backing_file"];

/// Places in `stat` of the sectors written and of those discarded (Linux, `Documentation/block/stat.rst`). The number of writes is
/// none of them: some devices count a flush as one.
const WRITES: [usize; 2] = [6, 13];

/// What the device says of itself, a partition with its number; nothing for a file, or a device that does not say.
pub fn identifier(metadata: &Metadata) -> Option<String> {
    let place = place(metadata)?;
    let of = |place: &Path| {
        IDENTIFIERS
            .iter()
            .filter_map(|name| std::fs::read_to_string(place.join(name)).ok())
            .map(|text| text.trim().to_owned())
            .find(|text| !text.is_empty())
    };
    match std::fs::read_to_string(place.join("partition")) {
        // The directory of a partition lies in that of the whole disk.
        Ok(number) => {
            let whole = std::fs::canonicalize(&place).ok()?;
            Some(format!("{} partition {}", of(whole.parent()?)?, number.trim()))
        }
        Err(_) => of(&place),
    }
}

/// How much the device was written to or discarded since the host started, after what waits in its cache has been
/// written. The error says why that cannot be known.
pub fn writes(path: &Path, metadata: &Metadata) -> std::io::Result<[u64; 2]> {
    let place = place(metadata).ok_or(std::io::ErrorKind::InvalidInput)?;
    File::open(path)?.sync_all()?;
    let text = std::fs::read_to_string(place.join("stat"))?;
    let numbers: Vec<u64> = text
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    Ok(WRITES.map(|at| numbers.get(at).copied().unwrap_or_default()))
}

fn place(metadata: &Metadata) -> Option<PathBuf> {
    if !metadata.file_type().is_block_device() {
        return None;
    }
    let device = metadata.rdev();
    Some(format!("/sys/dev/block/{}:{}", major(device), minor(device)).into())
}
