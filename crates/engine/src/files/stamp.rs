//! Whether an image, or one below it, was written to while it was read.
//!
//! A file has times and a length, whatever writes to it. A block device has neither: QEMU writes through a device node of its own.
//! The kernel counts what is written to the device itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use strongroom_hypervisor::device;
use strongroom_nbd::{Format, image_info};

/// Deeper chains are not followed.
const MAX_DEPTH: usize = 64;

/// What changes when an image is written to, or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Device and inode number.
    place: (u64, u64),
    /// Of a file, its length, and when its content and its inode changed last: seconds and nanoseconds.
    file: Option<[i64; 5]>,
    /// Of a block device, what was written to it.
    device: Option<[u64; 2]>,
}

/// The stamp of one image; `None` where it cannot be had.
pub fn stamp(image: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(image).ok()?;
    let device = if metadata.is_file() {
        None
    } else {
        Some(device::writes(image, &metadata).ok()?)
    };
    let file = metadata.is_file().then(|| {
        [
            metadata.size().cast_signed(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ]
    });
    Some(Stamp {
        place: match device {
            // The node in `/dev` may be made anew; the device stays.
            Some(_) => (metadata.rdev(), 0),
            None => (metadata.dev(), metadata.ino()),
        },
        file,
        device,
    })
}

/// An image and those below it, as their headers name them, with their stamps.
#[derive(Debug)]
pub struct Stamps(Vec<(PathBuf, Option<Stamp>)>);

impl Stamps {
    /// As they are now. What a header names that is no file or block device (`nbd://…`) is left out.
    pub fn take(image: &Path, format: Format) -> Self {
        let mut files = vec![image.to_owned()];
        let (mut at, mut qcow2) = (image.to_owned(), format == Format::Qcow2);
        for _ in 0..MAX_DEPTH {
            let info = qcow2.then(|| image_info(&at, Format::Qcow2, true).ok()).flatten();
            let Some(info) = info else { break };
            let beside = |named: String| at.parent().unwrap_or(Path::new("/")).join(named);
            files.extend(info.data_file.map(beside).filter(|path| path.exists()));
            let below = info.backing_file.map(beside).filter(|path| path.exists());
            let Some(below) = below else { break };
            files.push(below.clone());
            qcow2 = info.backing_format.as_deref() == Some("qcow2");
            at = below;
        }
        Self(
            files
                .into_iter()
                .map(|path| (path.clone(), stamp(&path)))
                .collect(),
        )
    }

    /// The first of them that is not as it was, or of which that cannot be said.
    pub fn changed(&self) -> Option<&Path> {
        let changed = |(path, before): &&(PathBuf, Option<Stamp>)| before.is_none() || stamp(path) != *before;
        self.0.iter().find(changed).map(|(path, _)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run;
    use std::process::Command;

    /// R8 and "(read) backing images": whichever file of a chain is written to, however its times are set back.
    #[test]
    fn a_write_to_any_file_of_a_chain_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let image = |arguments: &str| {
            run(Command::new("qemu-img")
                .args(arguments.split(' '))
                .current_dir(dir.path()));
        };
        std::fs::write(path("base.raw"), vec![1; 1 << 20]).unwrap();
        image("create -q -f qcow2 -b base.raw -F raw middle.qcow2");
        image("create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2");
        image("create -q -f qcow2 -o data_file=data.raw apart.qcow2 1M");
        let take = |name: &str| Stamps::take(&path(name), Format::Qcow2);
        let stamps = take("top.qcow2");
        assert_eq!(stamps.0.len(), 3);
        assert_eq!(stamps.changed(), None);
        for name in ["top.qcow2", "middle.qcow2", "base.raw"] {
            let stamps = take("top.qcow2");
            let before = std::fs::metadata(path(name)).unwrap().modified().unwrap();
            let file = std::fs::OpenOptions::new().append(true).open(path(name)).unwrap();
            file.set_times(std::fs::FileTimes::new().set_modified(before))
                .unwrap();
            assert_eq!(stamps.changed(), Some(path(name).as_path()));
        }
        let stamps = take("apart.qcow2");
        std::fs::write(path("data.raw"), [1; 512]).unwrap();
        assert_eq!(stamps.changed(), Some(path("data.raw").as_path()));
        let stamps = take("middle.qcow2");
        std::fs::rename(path("base.raw"), path("old")).unwrap();
        std::fs::copy(path("old"), path("base.raw")).unwrap();
        assert!(stamps.changed().is_some(), "replaced by a copy");
        assert!(Stamps::take(&path("absent"), Format::Raw).changed().is_some());
    }
}
