//! Files that are made, moved and replaced in a directory that others may write to.
//!
//! A [`Directory`] is opened once; what is done in it is done relative to its descriptor, by names without a slash. A file is
//! made once (`O_EXCL`, `O_NOFOLLOW`) and from then on reached through its descriptor ([`strongroom_nbd::through`], for QEMU's
//! tools too): exchanging a name leads nowhere. Whether a name still is the file that was written is asked by device and inode.
//!
//! Not every file system can do everything: a place is taken by `renameat2(RENAME_NOREPLACE)`, by a link, or (exFAT over FUSE,
//! some shares) by an empty file that claims it; a file is replaced by an exchange, by a link and a rename, or by two renames.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Others have to get through to the files that libvirt gives QEMU and swtpm, and see no names on the way.
const DIRECTORY_MODE: u32 = 0o711;
/// A new file is its owner's alone; libvirt gives it to QEMU when the domain starts.
const FILE_MODE: u32 = 0o600;

/// Which file a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl Identity {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// How a free place is taken, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taking {
    /// A rename that replaces nothing.
    Rename,
    /// A second name, and the first one goes.
    Link,
    /// An empty file holds the place until the rename.
    Claim,
}

/// How a file is replaced, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replacing {
    /// The two change places in one step.
    Exchange,
    /// The old one gets a second name, then the new one takes its place in one step.
    Link,
    /// The old one steps aside, then the new one comes: for a moment the place is empty.
    Renames,
}

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    handle: File,
    path: PathBuf,
}

/// A directory that was made. [`Made::remove`] takes it away if it is empty.
#[derive(Debug)]
pub struct Made {
    parent: Directory,
    name: OsString,
}

impl Made {
    /// Best effort: another file may be in it by now.
    pub fn remove(&self) {
        let _ = rustix::fs::unlinkat(&self.parent.handle, &self.name, AtFlags::REMOVEDIR);
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.parent.path.join(&self.name)
    }
}

impl Directory {
    /// Opens a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            handle: rustix::fs::open(path, flags, Mode::empty())?.into(),
            path: path.to_owned(),
        })
    }

    /// Opens a directory, and makes it and those above it where they are missing, with modes that no umask changes. Gives
    /// those that were made, innermost first.
    pub fn make(path: &Path) -> io::Result<(Self, Vec<Made>)> {
        match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened.map(|directory| (directory, Vec::new())),
        }
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::NOENT.into());
        };
        let (parent, mut made) = Self::make(above)?;
        match rustix::fs::mkdirat(&parent.handle, name, Mode::RWXU) {
            // Another program was faster.
            Err(Errno::EXIST) => return Ok((Self::open(path)?, made)),
            result => result?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = File::from(rustix::fs::openat(&parent.handle, name, flags, Mode::empty())?);
        set_mode(&handle, DIRECTORY_MODE)?;
        let name = name.to_owned();
        made.insert(0, Made { parent, name });
        let path = path.to_owned();
        Ok((Self { handle, path }, made))
    }

    /// Where it was when it was opened; for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a file that its owner alone can read. Fails if the name is taken, by whatever.
    pub fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(&self.handle, name, flags, mode)?);
        set_mode(&file, FILE_MODE)?;
        Ok(file)
    }

    /// Opens a regular file, for reading and perhaps writing. No link is followed, no pipe waited for.
    pub fn open_file(&self, name: &OsStr, writable: bool) -> io::Result<File> {
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.handle, name, flags, Mode::empty())?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::other("it is not a regular file"))
        }
    }

    /// What has this name, if it is a regular file; nothing if the name is free.
    pub fn find(&self, name: &OsStr) -> io::Result<Option<Identity>> {
        match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {
                Ok(Some(Identity {
                    device: found.st_dev,
                    inode: found.st_ino,
                }))
            }
            Ok(_) => Err(io::Error::other("it is not a regular file")),
        }
    }

    /// Removes a name. Succeeds if it is free.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Removes a name if it still stands for this file. Returns whether it did.
    pub fn remove_if(&self, name: &OsStr, identity: Identity) -> io::Result<bool> {
        if self.find(name)? != Some(identity) {
            return Ok(false);
        }
        self.remove(name).map(|()| true)
    }

    /// Makes what was done in it last.
    pub fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    /// Moves a file to a name that has to be free.
    pub fn take(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.take_by(&[Taking::Rename, Taking::Link, Taking::Claim], from, to)
    }

    /// The first way that the file system knows.
    fn take_by(&self, ways: &[Taking], from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut last = Errno::NOSYS;
        for way in ways {
            let result = match way {
                Taking::Rename => self.rename(from, to, RenameFlags::NOREPLACE),
                Taking::Link => self
                    .link(from, to)
                    .and_then(|()| rustix::fs::unlinkat(&self.handle, from, AtFlags::empty())),
                Taking::Claim => self.claim(from, to),
            };
            match result {
                Err(error) if is_unknown(error) => last = error,
                result => return Ok(result?),
            }
        }
        Err(last.into())
    }

    /// The name is made first, which fails if it is there, and then replaced.
    fn claim(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.handle, to, flags, Mode::RUSR | Mode::WUSR)?;
        let moved = self.rename(from, to, RenameFlags::empty());
        if moved.is_err() {
            let _ = rustix::fs::unlinkat(&self.handle, to, AtFlags::empty());
        }
        moved
    }

    /// Puts a file in the place of another one, which is known and kept. Returns the name that the other one has then:
    /// `from`, or `aside`.
    pub fn replace(&self, from: &OsStr, to: &OsStr, aside: &OsStr, known: Identity) -> io::Result<OsString> {
        let ways = [Replacing::Exchange, Replacing::Link, Replacing::Renames];
        self.replace_by(&ways, from, to, aside, known)
    }

    fn replace_by(
        &self,
        ways: &[Replacing],
        from: &OsStr,
        to: &OsStr,
        aside: &OsStr,
        known: Identity,
    ) -> io::Result<OsString> {
        let changed = || io::Error::other("another file has taken its place meanwhile");
        let mut last = Errno::NOSYS;
        for way in ways {
            let result = match way {
                Replacing::Exchange => self.rename(from, to, RenameFlags::EXCHANGE),
                Replacing::Link => self.link(to, aside),
                Replacing::Renames => self.rename(to, aside, RenameFlags::empty()),
            };
            match result {
                Err(error) if is_unknown(error) => {
                    last = error;
                    continue;
                }
                result => result?,
            }
            if *way == Replacing::Exchange {
                if self.find(from)? == Some(known) {
                    return Ok(from.to_owned());
                }
                self.rename(from, to, RenameFlags::EXCHANGE)?;
                return Err(changed());
            }
            if self.find(aside)? != Some(known) {
                if *way == Replacing::Link {
                    self.remove(aside)?;
                } else {
                    self.take(aside, to)?;
                }
                return Err(changed());
            }
            let moved = match way {
                Replacing::Renames => self.take(from, to),
                _ => Ok(self.rename(from, to, RenameFlags::empty())?),
            };
            if let Err(error) = moved {
                match way {
                    Replacing::Renames => self.take(aside, to)?,
                    _ => self.remove(aside)?,
                }
                return Err(error);
            }
            return Ok(aside.to_owned());
        }
        Err(last.into())
    }

    /// Undoes [`Self::replace`]: what was there before is there again, and the file that came is gone.
    pub fn put_back(&self, to: &OsStr, before: &OsStr) -> io::Result<()> {
        Ok(self.rename(before, to, RenameFlags::empty())?)
    }

    fn rename(&self, from: &OsStr, to: &OsStr, flags: RenameFlags) -> Result<(), Errno> {
        if flags.is_empty() {
            return rustix::fs::renameat(&self.handle, from, &self.handle, to);
        }
        rustix::fs::renameat_with(&self.handle, from, &self.handle, to, flags)
    }

    fn link(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        rustix::fs::linkat(&self.handle, from, &self.handle, to, AtFlags::empty())
    }
}

/// What a file system, or a kernel, answers that does not know the call.
fn is_unknown(error: Errno) -> bool {
    [
        Errno::INVAL,
        Errno::NOSYS,
        Errno::OPNOTSUPP,
        Errno::PERM,
        Errno::MLINK,
    ]
    .contains(&error)
}

/// Sets a mode, whatever the umask. Some file systems have none to set.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.mode() & 0o7777 == mode {
        return Ok(());
    }
    match file.set_permissions(Permissions::from_mode(mode)) {
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|code| is_unknown(Errno::from_raw_os_error(code))) =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAYS: [Taking; 3] = [Taking::Rename, Taking::Link, Taking::Claim];

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn here() -> (tempfile::TempDir, Directory) {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path()).unwrap();
        (place, directory)
    }

    /// Row A9: whatever the file system can do, only a free place is taken.
    #[test]
    fn each_way_takes_a_free_place_and_no_other() {
        for way in WAYS {
            let (place, directory) = here();
            let path = |name: &str| place.path().join(name);
            std::fs::write(path("new"), "new").unwrap();
            directory
                .take_by(&[way], "new".as_ref(), "place".as_ref())
                .unwrap();
            assert_eq!(names(place.path()), ["place"], "{way:?}");
            std::fs::write(path("new"), "newer").unwrap();
            let error = directory
                .take_by(&[way], "new".as_ref(), "place".as_ref())
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{way:?}");
            assert_eq!(std::fs::read_to_string(path("place")).unwrap(), "new");
            assert_eq!(names(place.path()), ["new", "place"], "{way:?}");
            std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
            assert!(
                directory
                    .take_by(&[way], "new".as_ref(), "link".as_ref())
                    .is_err()
            );
            assert!(path("link").symlink_metadata().unwrap().is_symlink());
        }
    }

    #[test]
    fn each_way_replaces_the_file_that_is_known_and_no_other() {
        for way in [Replacing::Exchange, Replacing::Link, Replacing::Renames] {
            let (place, directory) = here();
            let path = |name: &str| place.path().join(name);
            std::fs::write(path("new"), "new").unwrap();
            std::fs::write(path("place"), "old").unwrap();
            let known = directory.find("place".as_ref()).unwrap().unwrap();
            let replace = |known| {
                directory.replace_by(&[way], "new".as_ref(), "place".as_ref(), "aside".as_ref(), known)
            };
            let before = replace(known).unwrap();
            assert_eq!(std::fs::read_to_string(path("place")).unwrap(), "new", "{way:?}");
            directory.put_back("place".as_ref(), &before).unwrap();
            assert_eq!(names(place.path()), ["place"], "{way:?}");
            assert_eq!(std::fs::read_to_string(path("place")).unwrap(), "old");
            // Another file has come to be there.
            std::fs::write(path("new"), "new").unwrap();
            let other = Identity {
                inode: known.inode + 1000,
                ..known
            };
            assert!(replace(other).is_err(), "{way:?}");
            assert_eq!(names(place.path()), ["new", "place"], "{way:?}");
            assert_eq!(std::fs::read_to_string(path("place")).unwrap(), "old");
        }
    }

    /// Row R6: the name of a new file leads nowhere.
    #[test]
    fn a_new_file_is_never_one_that_is_there() {
        let (place, directory) = here();
        let victim = place.path().join("victim");
        std::fs::write(&victim, "kept").unwrap();
        std::os::unix::fs::symlink(&victim, place.path().join("new")).unwrap();
        assert!(directory.create("new".as_ref()).is_err());
        assert!(directory.open_file("new".as_ref(), true).is_err());
        assert_eq!(std::fs::read_to_string(victim).unwrap(), "kept");
    }

    /// Row A8: modes are what they are to be, not what a umask leaves of them.
    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let (place, _) = here();
        // Of the whole process: other tests' files become their owner's alone meanwhile, which harms none of them.
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let made = Directory::make(&place.path().join("a/b"));
        rustix::process::umask(before);
        let (directory, made) = made.unwrap();
        directory.create("file".as_ref()).unwrap();
        let mode = |path: &str| place.path().join(path).metadata().unwrap().mode() & 0o777;
        assert_eq!((mode("a"), mode("a/b"), mode("a/b/file")), (0o711, 0o711, 0o600));
        directory.remove("file".as_ref()).unwrap();
        made.iter().for_each(Made::remove);
        assert_eq!(names(place.path()), Vec::<String>::new());
    }
}
