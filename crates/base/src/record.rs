//! Records: files of JSON that are replaced as a whole.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest file of records that is read, in bytes: three million damaged chunks of a VM.
const MAX_BYTES: u64 = 256 << 20;

/// Why a record cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The operating system's reason.
    #[error("keep records in {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("read the records in {path}: {message}; move it away to go on without what it says")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// Whether records can be kept in a directory, seen by writing as much as a small one has, down to the storage. Nothing stays.
pub fn check(directory: &Path) -> Result<(), RecordError> {
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&[0; 4096])?;
        file.as_file().sync_all()
    };
    write().map_err(|source| RecordError::Io {
        path: directory.to_owned(),
        source,
    })
}

/// Replaces a file in one step: whatever happens, it is the old one or the new one. Only its owner may read it.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Reads what [`replace_json`] has written; nothing if there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let failed = |source| RecordError::Io {
        path: path.to_owned(),
        source,
    };
    let damaged = |message| RecordError::Damaged {
        path: path.to_owned(),
        message,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let length = file.metadata().map_err(failed)?.len();
    if length > MAX_BYTES {
        return Err(damaged(format!(
            "it has {length} bytes, at most {MAX_BYTES} are expected"
        )));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let content = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(content))
}

/// The same with JSON that a person can read.
pub fn replace_json(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(content)?;
    bytes.push(b'\n');
    replace(path, &bytes)
}
