//! A directory with a host in it. Nothing stays behind.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::SimHost;

/// A directory that is removed when this is dropped, with all processes of the host in it.
pub struct Lab {
    directory: TempDir,
}

impl Lab {
    /// A new, empty one.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        // Short, for the sockets in it.
        let directory = tempfile::Builder::new().prefix("sr-sim-").tempdir();
        Self {
            directory: directory.expect("make a directory"),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The host in it, over another connection each time.
    pub fn host(&self) -> SimHost {
        SimHost::open(self.directory())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.host().end();
    }
}
