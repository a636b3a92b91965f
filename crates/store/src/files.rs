//! The few calls to the file system that an engine needs, so that tests can break them.
//!
//! Paths are relative to the repository, with `/` between their parts; the repository itself is the empty path.
//! [`Disk`] is a directory of the file system.

mod disk;

use std::io::{self, IoSlice};
use std::sync::Arc;

pub use disk::Disk;

/// How a file is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// It must not be there yet.
    New,
    /// What is there is cut to nothing.
    Replace,
    /// Everything is written behind what is there.
    Append,
}

/// A directory with all that is below it.
pub trait Directory: Send + Sync {
    /// Opens a file for reading.
    fn open(&self, path: &str) -> io::Result<Arc<dyn File>>;
    /// Makes a file, for reading and writing.
    fn create(&self, path: &str, how: Create) -> io::Result<Arc<dyn File>>;
    /// The names in a directory, in no order, without `.` and `..`.
    fn names(&self, path: &str) -> io::Result<Vec<String>>;
    /// Makes a directory.
    fn make_dir(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// Removes a file's name.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Gives a file or directory another name. A file, or an empty directory, of that name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Waits until the names in a directory are durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Bytes that may still be written.
    fn free_space(&self) -> io::Result<u64>;
    /// Device and inode, which tell two directories apart.
    fn identity(&self) -> io::Result<(u64, u64)>;
}

/// An open file.
#[allow(clippy::len_without_is_empty)]
pub trait File: Send + Sync {
    /// How long it is.
    fn len(&self) -> io::Result<u64>;
    /// Reads at most a buffer full; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at least one byte of the parts, one behind the other.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Waits until the content is durable.
    fn sync(&self) -> io::Result<()>;
    /// Hints that a part of the file could be written out now.
    fn begin_writeback(&self, offset: u64, len: u64);
    /// Hints that the content will not be read again soon.
    fn forget(&self);
}

/// Reads exactly a buffer full.
pub(crate) fn read_exact_at(file: &dyn File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of the parts.
pub(crate) fn write_all_at(
    file: &dyn File,
    mut parts: &mut [IoSlice<'_>],
    mut offset: u64,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match file.write_at(parts, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                IoSlice::advance_slices(&mut parts, n);
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a whole file that is not longer than `limit`.
pub(crate) fn read_all(directory: &dyn Directory, path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = directory.open(path)?;
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than it can be",
        ));
    }
    let mut bytes = vec![0; len as usize];
    read_exact_at(&*file, &mut bytes, 0)?;
    Ok(bytes)
}

/// Writes a whole file and waits until it is durable; its name is not yet.
pub(crate) fn write_all(
    directory: &dyn Directory,
    path: &str,
    how: Create,
    parts: &mut [IoSlice<'_>],
) -> io::Result<()> {
    let file = directory.create(path, how)?;
    write_all_at(&*file, parts, 0)?;
    file.sync()
}

/// Replaces a file in one step, by way of a temporary one beside it, as Borg does: whole or not at all.
pub(crate) fn replace(directory: &dyn Directory, path: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path, '-');
    let written = write_all(directory, &temporary, Create::New, &mut [IoSlice::new(bytes)])
        .and_then(|()| directory.rename(&temporary, path));
    if let Err(error) = written {
        // It is of no use to anything, and a later one does not get its name.
        let _ = directory.unlink(&temporary);
        return Err(error);
    }
    directory.sync_dir("")
}

/// A name that nothing else has, in the form that Borg gives to temporary files: `nonce-1b2c3d4e.tmp`.
pub(crate) fn temporary(path: &str, separator: char) -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::hash::RandomState::new().build_hasher().finish() as u32;
    format!("{path}{separator}{random:08x}.tmp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        replace(&disk, "nonce", b"first").unwrap();
        replace(&disk, "nonce", b"second one").unwrap();
        assert_eq!(read_all(&disk, "nonce", 100).unwrap(), b"second one");
        assert_eq!(disk.names("").unwrap(), ["nonce"]);
    }

    #[test]
    fn a_file_longer_than_the_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        replace(&disk, "config", &[0; 11]).unwrap();
        let error = read_all(&disk, "config", 10).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
