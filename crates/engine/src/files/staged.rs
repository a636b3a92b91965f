//! Files that take their places only when all of them are whole.
//!
//! A [`StagedFile`] is a file under a temporary name, beside its place, or in a directory here if its place is on another machine.
//! [`StagedFile::install`] moves it there ([`StagedFile::install_remote`] copies it) and returns an [`InstalledFile`], which goes back to
//! how it was unless it is kept: the domain is defined in between. What a death leaves of either, the journal names
//! ([`super::journal`]).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use strongroom_hypervisor::{Hypervisor, HypervisorError};

use super::directory::{Directory, Identity, Made};
use serde::Serialize;
use strongroom_points::digest;

/// The longest name of a file, in bytes (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// One restored disk.
#[derive(Debug, Clone, Serialize)]
pub struct RestoredDisk {
    /// Target device name.
    pub target: String,
    /// Where it is.
    pub path: PathBuf,
    /// Guest-visible size in bytes.
    pub size: u64,
    /// Bytes that were not zero, and so were written.
    pub bytes_written: u64,
    /// True for a swap disk, which is made anew.
    pub fresh: bool,
}

/// A file under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub struct StagedFile {
    directory: Rc<Directory>,
    file: File,
    temporary: OsString,
    aside: OsString,
    path: PathBuf,
    /// Directories that were made for it, innermost first.
    made: Vec<Made>,
    /// What it is, if it is a disk.
    pub disk: Option<RestoredDisk>,
}

/// A file that has taken its place. Dropped, it goes, and what was there before comes back.
pub struct InstalledFile<'a> {
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
        directory: Rc<Directory>,
        /// Directories that were made for it, innermost first.
        made: Vec<Made>,
        /// The file.
        new: Identity,
        /// What was there before, and its name now.
        before: Option<(Identity, OsString)>,
    },
    /// It is on another machine, where nothing was before.
    There(&'a dyn Hypervisor),
}

/// The names beside a place that a staged file with this token uses: its own, and that of what it replaces.
pub fn names_beside(name: &OsStr, token: &str) -> (OsString, OsString) {
    let beside = |what: &str| {
        let end = format!(".{token}.{what}");
        let mut beside = OsString::from(".strongroom-");
        if beside.len() + name.len() + end.len() <= LONGEST_NAME {
            beside.push(name);
        } else {
            beside.push(digest::sha256(name.as_encoded_bytes()));
        }
        beside.push(end);
        beside
    };
    (beside("new"), beside("old"))
}

/// A word that no other staged file has.
pub fn token() -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("r{}", id.get(..12).unwrap_or(&id))
}

impl StagedFile {
    /// An empty file beside its place, readable by its owner alone; missing directories are made.
    pub fn new(path: &Path, token: &str) -> io::Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("it is not a file's path"))?;
        let (directory, made) = Directory::make(path.parent().unwrap_or(Path::new("/")))?;
        let (temporary, aside) = names_beside(name, token);
        let file = match directory.create(&temporary) {
            Ok(file) => file,
            Err(error) => {
                made.iter().for_each(Made::remove);
                return Err(error);
            }
        };
        Ok(Self {
            directory: Rc::new(directory),
            file,
            temporary,
            aside,
            path: path.to_owned(),
            made,
            disk: None,
        })
    }

    /// An empty file in a directory of this machine: its place will be on another one.
    pub fn remote(directory: &Path, path: &Path) -> io::Result<Self> {
        let temporary = path.file_name().unwrap_or_default().to_owned();
        let directory = Directory::open(directory)?;
        Ok(Self {
            file: directory.create(&temporary)?,
            directory: Rc::new(directory),
            aside: OsString::new(),
            temporary,
            path: path.to_owned(),
            made: Vec::new(),
            disk: None,
        })
    }

    /// The file, with this content.
    pub fn with(self, bytes: &[u8]) -> io::Result<Self> {
        (&self.file).write_all(bytes)?;
        self.file.sync_all()?;
        Ok(self)
    }

    /// The file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Which file it is.
    pub fn identity(&self) -> io::Result<Identity> {
        Identity::of(&self.file)
    }

    /// What has its place now.
    pub fn before(&self) -> io::Result<Option<Identity>> {
        self.directory.find(self.name())
    }

    /// The file as long as it is not installed.
    pub fn temporary(&self) -> PathBuf {
        self.directory.path().join(&self.temporary)
    }

    /// Where it will be.
    pub fn destination(&self) -> &Path {
        &self.path
    }

    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Moves the file to its place: only if that is free, unless `overwrite`.
    pub fn install<'a>(mut self, overwrite: bool) -> io::Result<InstalledFile<'a>> {
        let new = self.identity()?;
        let before = match self.before()?.filter(|_| overwrite) {
            // Unlike a plain rename, this never replaces what came to be there meanwhile.
            None => {
                self.directory.take(&self.temporary, self.name())?;
                None
            }
            Some(known) => {
                let at = self
                    .directory
                    .replace(&self.temporary, self.name(), &self.aside, known)?;
                Some((known, at))
            }
        };
        let here = self.directory.find(self.name());
        // From here on a drop puts everything back.
        let installed = InstalledFile {
            path: self.path.clone(),
            undo: Undo::Here {
                directory: Rc::clone(&self.directory),
                made: std::mem::take(&mut self.made),
                new,
                before,
            },
            disk: self.disk.take(),
        };
        if here? == Some(new) {
            Ok(installed)
        } else {
            // The temporary name was given to another file.
            Err(io::Error::other(
                "another file has the name of the one that was written",
            ))
        }
    }

    /// Copies the file to its place on another machine, if that is free. `moved` is told of bytes as they go; false ends it.
    pub fn install_remote<'a>(
        mut self,
        hypervisor: &'a dyn Hypervisor,
        moved: &mut dyn FnMut(u64) -> bool,
    ) -> Result<InstalledFile<'a>, HypervisorError> {
        hypervisor.store(&self.temporary(), &self.path, moved)?;
        Ok(InstalledFile {
            path: self.path.clone(),
            undo: Undo::There(hypervisor),
            disk: self.disk.take(),
        })
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // Once it is installed, this name is free, or that of the file which was there before.
        if let Ok(identity) = self.identity() {
            let _ = self.directory.remove_if(&self.temporary, identity);
        }
        self.made.iter().for_each(Made::remove);
    }
}

impl InstalledFile<'_> {
    /// The file stays; what was there before is removed.
    pub fn keep(mut self) -> io::Result<Option<RestoredDisk>> {
        if let Undo::Here {
            directory, before, ..
        } = std::mem::replace(&mut self.undo, Undo::Kept)
        {
            directory.sync()?;
            if let Some((known, name)) = before {
                directory.remove_if(&name, known)?;
                directory.sync()?;
            }
        }
        Ok(self.disk.take())
    }

    /// Where it is.
    pub fn destination(&self) -> &Path {
        &self.path
    }

    /// The file stays, and so does what was there before, under its other name.
    pub fn leave(mut self) {
        self.undo = Undo::Kept;
    }
}

impl Drop for InstalledFile<'_> {
    fn drop(&mut self) {
        match &self.undo {
            Undo::Kept => {}
            Undo::There(hypervisor) => {
                let _ = hypervisor.discard(&self.path);
            }
            Undo::Here {
                directory,
                made,
                new,
                before,
            } => {
                let name = self.path.file_name().unwrap_or_default();
                // What came to be there meanwhile is not ours to take away.
                let _ = match (directory.find(name), before) {
                    (Ok(Some(found)), Some((_, before))) if found == *new => directory.put_back(name, before),
                    (Ok(None), Some((_, before))) => directory.take(before, name),
                    (_, Some(_)) => Ok(()),
                    (_, None) => directory.remove_if(name, *new).map(drop),
                };
                let _ = directory.sync();
                made.iter().for_each(Made::remove);
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

    fn staged(path: &Path, bytes: &[u8]) -> StagedFile {
        StagedFile::new(path, &token()).unwrap().with(bytes).unwrap()
    }

    #[test]
    fn a_staged_file_takes_only_a_free_place_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nvram.fd");
        drop(staged(&path, b"never"));
        assert!(names(directory.path()).is_empty());

        staged(&path, b"first").install(false).unwrap().keep().unwrap();
        assert!(staged(&path, b"second").install(false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(names(directory.path()), ["nvram.fd"]);
    }

    #[test]
    fn what_was_there_comes_back_unless_the_new_file_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vda.qcow2");
        std::fs::write(&path, b"old").unwrap();
        let installed = staged(&path, b"new").install(true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        drop(installed);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        staged(&path, b"new").install(true).unwrap().keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["vda.qcow2"]);
    }

    #[test]
    fn directories_are_made_for_a_file_and_go_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/state");
        drop(staged(&path, b"never"));
        drop(staged(&path, b"never").install(false).unwrap());
        assert!(names(directory.path()).is_empty());
        staged(&path, b"kept").install(false).unwrap().keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
    }

    /// Row R6: a name that is exchanged between making and opening leads to no other file, and is not installed.
    #[test]
    fn a_name_that_is_exchanged_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, b"kept").unwrap();
        let path = directory.path().join("vda.qcow2");
        for link in [true, false] {
            let staged = StagedFile::new(&path, &token()).unwrap();
            std::fs::remove_file(staged.temporary()).unwrap();
            if link {
                std::os::unix::fs::symlink(&victim, staged.temporary()).unwrap();
            } else {
                std::fs::write(staged.temporary(), b"foreign").unwrap();
            }
            strongroom_nbd::format_qcow2(staged.file(), &path, 1 << 20).unwrap();
            let staged = staged.with(b"secret").unwrap();
            let temporary = staged.temporary();
            assert!(staged.install(false).is_err());
            let _ = std::fs::remove_file(temporary);
            let _ = std::fs::remove_file(&path);
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"kept");
    }

    #[test]
    fn names_beside_a_long_name_are_not_too_long() {
        let token = token();
        let short = names_beside("a.qcow2".as_ref(), &token);
        assert_eq!(
            short.0,
            OsString::from(format!(".strongroom-a.qcow2.{token}.new"))
        );
        for (one, other) in [("x", "x"), ("ü", "x")] {
            let name = one.repeat(LONGEST_NAME / one.len() - 2) + other;
            let (new, old) = names_beside(name.as_ref(), &token);
            assert!(new.len() <= LONGEST_NAME && old.len() <= LONGEST_NAME && new != old);
        }
    }
}
