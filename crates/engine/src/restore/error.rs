//! Why a disk is not restored.

use std::io;
use std::path::PathBuf;

use strongroom_base::cancel::Cancelled;

/// Why a disk could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A chunk is missing or not what was written: the offset on the disk tells where.
    #[error("damaged at offset {offset} ({length} bytes): {source}")]
    Damaged {
        /// First byte concerned.
        offset: u64,
        /// Bytes concerned.
        length: u64,
        /// What is wrong with the chunk.
        source: strongroom_points::store::StoreError,
    },
    /// The archive's list of chunks is not the one that the manifest describes.
    #[error("its list of chunks is not the one that the manifest describes")]
    List,
    /// Asked to stop. What has been written so far is not the disk.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The repository.
    #[error("use the repository: {0}")]
    Repository(#[from] strongroom_points::store::StoreError),
    /// A swap disk's layout.
    #[error("lay out the swap space: {0}")]
    Layout(#[from] strongroom_disk::LayoutError),
    /// The image could not be made.
    #[error(transparent)]
    Create(#[from] strongroom_nbd::ImageError),
    /// The image could not be opened for writing, or not be closed.
    #[error(transparent)]
    Serve(#[from] strongroom_nbd::ServeError),
    /// The image could not be written to.
    #[error("write {path}: {source}")]
    Image {
        /// The image.
        path: PathBuf,
        /// The reason, with the offset.
        source: strongroom_nbd::Error,
    },
    /// The image to restore onto has another size than the disk.
    #[error("restore onto {path}: it has {has} bytes, the disk {wanted}")]
    Size {
        /// The image.
        path: PathBuf,
        /// Its guest-visible size.
        has: u64,
        /// The disk's.
        wanted: u64,
    },
    /// The image was written to by another program.
    #[error("restore onto {0}: it was written to meanwhile; it is as it was then")]
    Changed(PathBuf),
    /// A merge that is not over.
    #[error(
        "merge the difference into {path}: {reason}; the image is {aside} meanwhile, and the same command goes on with it"
    )]
    Merge {
        /// Where the image belongs.
        path: PathBuf,
        /// Where it is.
        aside: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// A file could not be made or moved.
    #[error("write {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}
