//! When two names are of one file.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use strongroom_hypervisor::Store;

/// What tells a store from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A file: its device and inode. Symbolic links, hard links and bind mounts lead to the same.
    File(u64, u64),
    /// A block device, by its number: all nodes and links that lead to it.
    Device(u64),
    /// Nothing is there, or it cannot be looked at: what it is called, with its directory's links resolved where there are any.
    Named(Store),
}

impl Identity {
    /// Of a store; what lies on another machine is known by its name alone.
    pub fn of(store: &Store, local: bool) -> Self {
        let Some(path) = store.path().filter(|_| local) else {
            return Self::Named(store.clone());
        };
        match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => Self::Device(found.rdev()),
            Ok(found) => Self::File(found.dev(), found.ino()),
            Err(_) => Self::Named(Store::Path(resolved(path))),
        }
    }
}

/// A path to nothing: its nearest directory that is there with its links resolved, and the rest.
fn resolved(path: &Path) -> PathBuf {
    for above in path.ancestors().skip(1) {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

/// The file behind a loop device.
pub fn behind(identity: &Identity) -> Option<PathBuf> {
    let Identity::Device(number) = identity else {
        return None;
    };
    let (major, minor) = (rustix::fs::major(*number), rustix::fs::minor(*number));
    let file = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let text = std::fs::read_to_string(file).ok()?;
    Some(PathBuf::from(text.trim_end_matches('\n')))
}
