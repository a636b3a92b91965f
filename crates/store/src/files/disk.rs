//! A directory of the file system, held by its descriptor.
//!
//! Files get the modes that Borg's default umask of 077 gives them. A program that runs as root leaves what it
//! makes to the owner of the repository, who could not use it otherwise.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, AtFlags, CWD, Dir, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::{Create, Directory, File};
use crate::sys;

/// A directory of the file system.
#[derive(Debug)]
pub struct Disk {
    root: OwnedFd,
    /// To whom new files are given, if they are not theirs already.
    owner: Option<(Uid, Gid)>,
}

impl Disk {
    /// Opens a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let stat = rustix::fs::fstat(&root)?;
        let root_made_it = stat.st_uid == 0 || !rustix::process::geteuid().is_root();
        let owner = (!root_made_it).then(|| (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)));
        Ok(Self { root, owner })
    }

    fn open_at(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        Ok(rustix::fs::openat(
            &self.root,
            path,
            flags | OFlags::CLOEXEC,
            mode,
        )?)
    }
}

impl Directory for Disk {
    fn open(&self, path: &str) -> io::Result<Arc<dyn File>> {
        let file = self.open_at(path, OFlags::RDONLY, Mode::empty())?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn create(&self, path: &str, how: Create) -> io::Result<Arc<dyn File>> {
        let how = match how {
            Create::New => OFlags::EXCL,
            Create::Replace => OFlags::TRUNC,
            Create::Append => OFlags::APPEND,
        };
        let flags = OFlags::RDWR | OFlags::CREATE | how;
        let file = self.open_at(path, flags, Mode::RUSR | Mode::WUSR)?;
        if let Some((user, group)) = self.owner {
            // Where root may not, on some network file systems, the file is as good as Borg's own would be.
            let _ = rustix::fs::fchown(&file, Some(user), Some(group));
        }
        Ok(Arc::new(DiskFile(file)))
    }

    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let dir = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir)? {
            // What is not UTF-8 is nothing of Borg's.
            if let Ok(name) = entry?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        rustix::fs::mkdirat(&self.root, path, Mode::RWXU)?;
        if let Some((user, group)) = self.owner {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let _ = rustix::fs::chownat(&self.root, path, Some(user), Some(group), flags);
        }
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR)?)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.root, from, &self.root, to)?)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let dir = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        match rustix::fs::fsync(&dir) {
            // Some network file systems cannot; Borg goes on there, too.
            Err(Errno::INVAL) => Ok(()),
            other => Ok(other?),
        }
    }

    fn free_space(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.root)?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

struct DiskFile(OwnedFd);

impl File for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.0)?.st_size as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.0, buffer, offset)?)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(&self.0, parts, offset)?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn begin_writeback(&self, offset: u64, len: u64) {
        sys::begin_writeback(self.0.as_fd(), offset, len);
    }

    fn forget(&self) {
        let _ = rustix::fs::fadvise(&self.0, 0, None, Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::files::{read_all, write_all_at};

    fn disk() -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        (dir, disk)
    }

    #[test]
    fn what_is_made_is_the_owners_alone() {
        let (dir, disk) = disk();
        disk.make_dir("data").unwrap();
        disk.create("data/0", Create::New).unwrap();
        let mode = |path| dir.path().join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("data"), 0o700);
        assert_eq!(mode("data/0"), 0o600);
    }

    #[test]
    fn a_new_file_never_takes_the_place_of_another() {
        let (_dir, disk) = disk();
        disk.create("1", Create::New).unwrap();
        let error = disk.create("1", Create::New).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn an_appended_file_keeps_what_it_holds() {
        let (_dir, disk) = disk();
        for text in [b"one\n", b"two\n"] {
            let file = disk.create("transactions", Create::Append).unwrap();
            write_all_at(&*file, &mut [IoSlice::new(text)], 0).unwrap();
        }
        assert_eq!(read_all(&disk, "transactions", 100).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn names_of_the_root_and_below_are_listed() {
        let (_dir, disk) = disk();
        disk.make_dir("data").unwrap();
        disk.create("data/7", Create::New).unwrap();
        assert_eq!(disk.names("").unwrap(), ["data"]);
        assert_eq!(disk.names("data").unwrap(), ["7"]);
        disk.unlink("data/7").unwrap();
        disk.remove_dir("data").unwrap();
        assert!(disk.names("").unwrap().is_empty());
    }

    #[test]
    fn a_file_that_root_makes_belongs_to_the_repositorys_owner() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        if !rustix::process::geteuid().is_root() {
            return;
        }
        std::os::unix::fs::chown(dir.path(), Some(12_345), Some(12_346)).unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        disk.create("nonce", Create::New).unwrap();
        disk.make_dir("data").unwrap();
        for name in ["nonce", "data"] {
            let made = dir.path().join(name).metadata().unwrap();
            assert_eq!((made.uid(), made.gid()), (12_345, 12_346));
        }
    }
}
