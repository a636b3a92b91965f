//! The digest of a file, made by all cores, without reading its holes.
//!
//! The file is cut into blocks of [`BLOCK`] bytes. A leaf is SHA-256 over a zero byte and the block; the digest is SHA-256
//! over a one byte, the size as a little-endian 64-bit number, and all leaves in order. A hole is a block of zeroes, so
//! it does not matter whether a copy is sparse.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use strongroom_base::cancel::Cancel;
use strongroom_base::workers::join;
use strongroom_disk::{Extent, RangeSet};
use strongroom_points::digest;

use super::{NamedFile, SealError, SealedFile};
use crate::run::event::{Kind, Observer};

/// Bytes under one leaf.
pub const BLOCK: u64 = 4 << 20;

/// What begins the input of a leaf, and that of the root.
const LEAF: [u8; 1] = [0];
const ROOT: [u8; 1] = [1];

type Leaf = [u8; 32];

/// Size and digest of a regular file or a block device that is not written to meanwhile.
pub fn measure(file: &NamedFile, observer: &dyn Observer, cancel: &Cancel) -> Result<SealedFile, SealError> {
    let failed = |source| SealError::Read {
        name: file.name.clone(),
        path: file.path.clone(),
        source,
    };
    let open = open(&file.path).map_err(failed)?;
    let before = state(&open).map_err(failed)?;
    let size = seek(&open, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
    let data = data(&open, size).map_err(failed)?;
    let target = &file.name;
    observer.report(Kind::DiskStarted {
        target,
        bytes: data.total_len(),
    });
    let digest = of(&open, size, &data, cancel, &|bytes| {
        observer.report(Kind::DiskProgress { target, bytes });
    });
    let digest = digest.map_err(failed)?;
    cancel.check()?;
    observer.report(Kind::DiskRead {
        target,
        read: data.total_len(),
        stored: 0,
    });
    if state(&open).map_err(failed)? != before {
        return Err(SealError::Disturbed {
            name: file.name.clone(),
            path: file.path.clone(),
        });
    }
    Ok(SealedFile {
        name: file.name.clone(),
        size,
        digest,
    })
}

fn open(path: &Path) -> io::Result<File> {
    // A pipe in the place of an image is refused, and does not keep us waiting.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(file)
    } else {
        Err(io::Error::other("it is neither a file nor a block device"))
    }
}

/// What changes when a file is written to.
fn state(file: &File) -> io::Result<[i64; 4]> {
    let found = file.metadata()?;
    Ok([
        found.size().cast_signed(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime_nsec(),
    ])
}

/// What is not a hole.
fn data(file: &File, size: u64) -> io::Result<RangeSet> {
    let mut data = RangeSet::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole to the end.
            Err(Errno::NXIO) => break,
            // A file system or a device that tells no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(RangeSet::all(size)),
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            return Ok(RangeSet::all(size));
        }
        data.insert(Extent::new(start, end - start).map_err(io::Error::other)?);
        at = end;
    }
    Ok(data)
}

/// The digest, in hexadecimal. All cores take the next block each; `progress` hears of bytes that were read.
fn of(
    file: &File,
    size: u64,
    data: &RangeSet,
    cancel: &Cancel,
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<String> {
    let blocks: Vec<Extent> = match Extent::new(0, size) {
        Ok(whole) if size > 0 => whole.pieces(BLOCK).collect(),
        _ => Vec::new(),
    };
    let leaves: Mutex<Vec<Leaf>> = Mutex::new(vec![[0; 32]; blocks.len()]);
    let next = AtomicUsize::new(0);
    let zero = leaf(&vec![0; BLOCK as usize]);
    let work = || -> io::Result<()> {
        let mut buffer = vec![0; BLOCK as usize];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = blocks.get(number).filter(|_| !cancel.is_cancelled()) else {
                return Ok(());
            };
            let bytes = buffer.get_mut(..block.length() as usize).unwrap_or_default();
            let hash = if data.overlaps(*block) {
                file.read_exact_at(bytes, block.offset())?;
                progress(data.within(*block).map(Extent::length).sum());
                if block.length() == BLOCK && digest::is_zero(bytes) {
                    zero
                } else {
                    leaf(bytes)
                }
            } else if block.length() == BLOCK {
                zero
            } else {
                bytes.fill(0);
                leaf(bytes)
            };
            let mut leaves = leaves.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(slot) = leaves.get_mut(number) {
                *slot = hash;
            }
        }
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(2, usize::from).min(8);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(join)
    })?;
    let mut root = Sha256::new();
    root.update(ROOT);
    root.update(size.to_le_bytes());
    for leaf in leaves
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        root.update(leaf);
    }
    Ok(digest::hex(&root.finalize()))
}

fn leaf(bytes: &[u8]) -> Leaf {
    let mut hash = Sha256::new();
    hash.update(LEAF);
    hash.update(bytes);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest_of(path: &Path) -> (u64, String) {
        let file = NamedFile {
            name: "disk".into(),
            path: path.to_owned(),
        };
        let found = measure(&file, &(), &Cancel::new()).unwrap();
        (found.size, found.digest)
    }

    /// The digest as the module's head describes it, in one line each.
    fn simple(bytes: &[u8]) -> String {
        let leaves = bytes.chunks(BLOCK as usize).flat_map(|block| {
            let input = [&[0], block].concat();
            <[u8; 32]>::from(Sha256::digest(input))
        });
        let input: Vec<u8> = [1]
            .into_iter()
            .chain((bytes.len() as u64).to_le_bytes())
            .chain(leaves)
            .collect();
        digest::sha256(&input)
    }

    #[test]
    fn holes_and_written_zeroes_are_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let [dense, sparse] = ["dense", "sparse"].map(|name| directory.path().join(name));
        let size = 5 * BLOCK + 77;
        let mut bytes = vec![0; size as usize];
        bytes[BLOCK as usize + 5..][..3].copy_from_slice(b"abc");
        std::fs::write(&dense, &bytes).unwrap();
        let file = File::create(&sparse).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(b"abc", BLOCK + 5).unwrap();
        let read = data(&File::open(&sparse).unwrap(), size).unwrap();
        assert!(read.total_len() < BLOCK, "the file system keeps holes: {read:?}");
        assert_eq!(digest_of(&dense), (size, simple(&bytes)));
        assert_eq!(digest_of(&sparse), digest_of(&dense));
        // One byte, or one byte more: another digest.
        file.write_all_at(b"x", size - 1).unwrap();
        assert_ne!(digest_of(&sparse), digest_of(&dense));
        file.write_all_at(&[0], size - 1).unwrap();
        assert_eq!(digest_of(&sparse), digest_of(&dense));
        file.set_len(size + 1).unwrap();
        assert_ne!(digest_of(&sparse).1, digest_of(&dense).1);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for path in [pipe, directory.path().to_owned(), directory.path().join("absent")] {
            let file = NamedFile {
                name: "disk".into(),
                path,
            };
            assert!(matches!(
                measure(&file, &(), &Cancel::new()),
                Err(SealError::Read { .. })
            ));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn small_files_have_the_digest_that_is_described(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            prop_assert_eq!(digest_of(file.path()), (bytes.len() as u64, simple(&bytes)));
        }
    }
}
