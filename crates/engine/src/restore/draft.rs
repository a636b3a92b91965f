//! Files that take their places all together, or not at all.
//!
//! A [`Draft`] is a finished file under a temporary name, beside its place, or in a directory here if its place is on another
//! machine. [`Draft::publish`] moves it there ([`Draft::publish_there`] copies it) and gives a [`Published`] file, which goes
//! back to how it was unless it is kept: the domain is defined in between.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::RestoredDisk;
use crate::vm::{Hypervisor, HypervisorError};

/// A finished file under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    temporary: PathBuf,
    path: PathBuf,
    /// Directories that were made for it, innermost first.
    made: Vec<PathBuf>,
    /// What it is, if it is a disk.
    pub disk: Option<RestoredDisk>,
}

/// A file that has taken its place. Dropped, it goes, and what was there before comes back.
pub struct Published<'a> {
    path: PathBuf,
    undo: Undo<'a>,
    disk: Option<RestoredDisk>,
}

/// How a file gives its place back.
enum Undo<'a> {
    /// It stays.
    Kept,
    /// It is on this machine.
    Here {
        /// Directories that were made for it, innermost first.
        made: Vec<PathBuf>,
        /// Where what was there before is now.
        before: Option<PathBuf>,
    },
    /// It is on another machine, where nothing was before.
    There(&'a dyn Hypervisor),
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".strongroom-");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.{what}", std::process::id()));
    path.with_file_name(name)
}

impl Draft {
    /// Nothing yet, but the directory that it will be in.
    pub fn new(path: &Path) -> io::Result<Self> {
        let missing = path
            .ancestors()
            .skip(1)
            .take_while(|directory| !directory.exists());
        let made: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        if let Some(directory) = made.first() {
            // QEMU and swtpm run as other users: they have to get through to the files that libvirt gives them.
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(directory)?;
        }
        Ok(Self {
            temporary: beside(path, "new"),
            path: path.to_owned(),
            made,
            disk: None,
        })
    }

    /// Nothing yet, in a directory of this machine: its place will be on another one.
    pub fn aside(directory: &Path, path: &Path) -> Self {
        Self {
            temporary: directory.join(path.file_name().unwrap_or_default()),
            path: path.to_owned(),
            made: Vec::new(),
            disk: None,
        }
    }

    /// A small file, readable by its owner alone.
    pub fn of_bytes(path: &Path, bytes: &[u8]) -> io::Result<Self> {
        Self::new(path)?.with(bytes)
    }

    /// Makes the file, with this content.
    pub fn with(self, bytes: &[u8]) -> io::Result<Self> {
        let mut file = self.create()?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(self)
    }

    /// Makes the file, readable by its owner alone.
    pub fn create(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.temporary)
    }

    /// The file as long as it is not published.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Where it will be.
    pub fn place(&self) -> &Path {
        &self.path
    }

    /// Moves the file to its place: only if that is free, unless `overwrite`.
    pub fn publish<'a>(mut self, overwrite: bool) -> io::Result<Published<'a>> {
        let before = beside(&self.path, "old");
        let replaced = overwrite && self.path.symlink_metadata().is_ok();
        if replaced {
            std::fs::rename(&self.path, &before)?;
        }
        // From here on a drop puts everything back.
        let published = Published {
            path: self.path.clone(),
            undo: Undo::Here {
                made: std::mem::take(&mut self.made),
                before: replaced.then_some(before),
            },
            disk: self.disk.take(),
        };
        // Unlike a rename, a link never replaces what came to be there meanwhile.
        if let Err(error) = std::fs::hard_link(&self.temporary, &self.path) {
            published.put_back();
            return Err(error);
        }
        Ok(published)
    }

    /// Copies the file to its place on another machine, if that is free. `moved` is told of bytes as they go; false ends it.
    pub fn publish_there<'a>(
        mut self,
        hypervisor: &'a dyn Hypervisor,
        moved: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Published<'a>, HypervisorError> {
        hypervisor.store(&self.temporary, &self.path, moved)?;
        Ok(Published {
            path: self.path.clone(),
            undo: Undo::There(hypervisor),
            disk: self.disk.take(),
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary);
        for directory in &self.made {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

impl Published<'_> {
    /// The file stays; what was there before is removed.
    pub fn keep(mut self) -> io::Result<Option<RestoredDisk>> {
        if let Undo::Here { before, .. } = std::mem::replace(&mut self.undo, Undo::Kept) {
            if let Some(directory) = self.path.parent() {
                File::open(directory)?.sync_all()?;
            }
            if let Some(before) = before {
                std::fs::remove_file(before)?;
            }
        }
        Ok(self.disk.take())
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        &self.path
    }

    /// The file stays, and so does what was there before, under its other name.
    pub fn leave(mut self) {
        self.undo = Undo::Kept;
    }

    /// Gives the place back without touching what came to be there.
    fn put_back(mut self) {
        if let Undo::Here {
            before: Some(before), ..
        } = std::mem::replace(&mut self.undo, Undo::Kept)
        {
            let _ = std::fs::hard_link(&before, &self.path).and_then(|()| std::fs::remove_file(&before));
        }
    }
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        match &self.undo {
            Undo::Kept => {}
            Undo::There(hypervisor) => {
                let _ = hypervisor.discard(&self.path);
            }
            Undo::Here { made, before } => {
                let _ = match before {
                    Some(before) => std::fs::rename(before, &self.path),
                    None => std::fs::remove_file(&self.path),
                };
                for directory in made {
                    let _ = std::fs::remove_dir(directory);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_draft_takes_a_free_place_only_and_leaves_nothing_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nvram.fd");
        drop(Draft::of_bytes(&path, b"never").unwrap());
        assert!(names(directory.path()).is_empty());

        Draft::of_bytes(&path, b"first")
            .unwrap()
            .publish(false)
            .unwrap()
            .keep()
            .unwrap();
        assert!(Draft::of_bytes(&path, b"second").unwrap().publish(false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(names(directory.path()), ["nvram.fd"]);
    }

    #[test]
    fn what_was_there_comes_back_unless_the_new_file_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vda.qcow2");
        std::fs::write(&path, b"old").unwrap();
        let published = Draft::of_bytes(&path, b"new").unwrap().publish(true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        drop(published);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        Draft::of_bytes(&path, b"new")
            .unwrap()
            .publish(true)
            .unwrap()
            .keep()
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["vda.qcow2"]);
    }

    #[test]
    fn directories_are_made_for_a_file_and_go_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/state");
        drop(Draft::of_bytes(&path, b"never").unwrap());
        drop(Draft::of_bytes(&path, b"never").unwrap().publish(false).unwrap());
        assert!(names(directory.path()).is_empty());
        Draft::of_bytes(&path, b"kept")
            .unwrap()
            .publish(false)
            .unwrap()
            .keep()
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
    }
}
