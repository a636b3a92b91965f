//! Key files: a line `BORG_KEY <repository id>`, then the key blob.

use std::path::{Path, PathBuf};

use crate::security::read_bounded;
use crate::{Error, RepositoryId, Result, Settings};

/// Key files are about 800 bytes long.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// Finds the repository's key file and returns its blob.
pub(crate) fn find(settings: &Settings, id: RepositoryId) -> Result<(Vec<u8>, PathBuf)> {
    let missing = |place: &Path| Error::NoKeyFile {
        repository: id.to_string(),
        place: place.to_owned(),
    };
    if let Some(path) = &settings.key_file {
        let bytes = read_bounded(path, MAX_KEY_FILE).map_err(|error| Error::file("read", path, error))?;
        let blob = blob_of(&bytes, id).ok_or_else(|| Error::Key {
            place: path.display().to_string(),
            reason: format!("it is no key file of repository {id}"),
        })?;
        return Ok((blob, path.clone()));
    }
    let entries = std::fs::read_dir(&settings.keys_dir).map_err(|_| missing(&settings.keys_dir))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    paths.sort();
    for path in paths {
        if let Some(blob) = read_bounded(&path, MAX_KEY_FILE)
            .ok()
            .and_then(|bytes| blob_of(&bytes, id))
        {
            return Ok((blob, path));
        }
    }
    Err(missing(&settings.keys_dir))
}

fn blob_of(bytes: &[u8], id: RepositoryId) -> Option<Vec<u8>> {
    let rest = bytes
        .strip_prefix(b"BORG_KEY ")?
        .strip_prefix(id.to_string().as_bytes())?;
    let line_end = rest.iter().position(|byte| *byte == b'\n')?;
    rest.get(line_end..).map(<[u8]>::to_vec)
}
