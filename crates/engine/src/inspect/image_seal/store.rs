//! Where a seal is kept: `NAME.json` and `NAME.json.sig` in one directory, and `NAME.used.json` once it is used up.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use strongroom_base::record;
use strongroom_points::trust::signature;

use super::{MAX_BYTES, SealError, Signed};
use crate::run::state::StateDirectory;

/// The path of one seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealPath {
    directory: PathBuf,
    name: String,
}

impl SealPath {
    /// In any directory; `name` is a file's name.
    pub fn new(directory: &Path, name: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            // A name from a hook's command line or from a definition makes no path.
            name: name.replace('/', "_"),
        }
    }

    /// That of a VM: among our own records, not beside its images.
    pub fn of_vm(state: &StateDirectory, vm: &str) -> Self {
        Self::new(&state.path().join("seals"), vm)
    }

    /// The statement's file; the signature's has `.sig` in addition.
    pub fn statement(&self) -> PathBuf {
        self.directory.join(format!("{}.json", self.name))
    }

    fn signature(&self) -> PathBuf {
        self.directory.join(format!("{}.json.sig", self.name))
    }

    /// Keeps a seal, in place of an older one.
    pub fn write(&self, signed: &Signed) -> Result<(), SealError> {
        let failed = |source| self.failed(source);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(failed)?;
        // If it ends between the two, they do not fit, and nothing is trusted.
        for (path, bytes) in [
            (self.signature(), &signed.signature),
            (self.statement(), &signed.bytes),
        ] {
            record::replace(&path, bytes).map_err(failed)?;
        }
        Ok(())
    }

    /// The seal, if there is one.
    pub fn read(&self) -> Result<Option<Signed>, SealError> {
        let Some(bytes) = self.read_file(&self.statement(), MAX_BYTES)? else {
            return Ok(None);
        };
        // A statement without a signature is no better than one with a bad signature.
        let signature = self.read_file(&self.signature(), signature::MAX_BYTES)?;
        Ok(Some(Signed {
            bytes,
            signature: signature.unwrap_or_default(),
        }))
    }

    /// Puts the seal aside as used up: what it is about changes from now on. Returns whether there was one.
    pub fn use_up(&self) -> Result<bool, SealError> {
        let used = |suffix: &str| self.directory.join(format!("{}.used.{suffix}", self.name));
        // The statement goes first: without it there is no seal.
        let there = match fs::rename(self.statement(), used("json")) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(self.failed(error)),
        };
        match fs::rename(self.signature(), used("json.sig")) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.failed(error)),
        }
        if there {
            self.sync()?;
        }
        Ok(there)
    }

    fn sync(&self) -> Result<(), SealError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| self.failed(source))
    }

    fn read_file(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, SealError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|source| self.failed(source))?;
        if bytes.len() as u64 > limit {
            return Err(SealError::Invalid(format!(
                "{} has more than {limit} bytes",
                path.display()
            )));
        }
        Ok(Some(bytes))
    }

    fn failed(&self, source: io::Error) -> SealError {
        SealError::Store {
            path: self.statement(),
            source,
        }
    }
}
