//! Where files are made before they take their places, and how they get there.

use std::io;
use std::path::Path;

use strongroom_hypervisor::Hypervisor;
use tempfile::TempDir;

use super::RestoreError;
use super::error::WriteError;
use crate::files::journal::{Journal, STAGE_PREFIX};
use crate::files::staged::{InstalledFile, StagedFile};
use crate::run::context::Context;
use crate::run::event::Kind;

/// Where large files that do not stay go, unless `TMPDIR` says otherwise (`file-hierarchy(7)`).
const TEMPORARY: &str = "/var/tmp";

/// Where files are made.
pub enum Staging<'a> {
    /// Beside their places, under other names, which are on record.
    Beside(Journal),
    /// In a directory here, for another machine.
    Remote(TempDir, &'a dyn Hypervisor, Journal),
}

impl<'a> Staging<'a> {
    /// For a whole VM on the context's hypervisor, or for single disks on this machine.
    pub fn new(context: &Context<'a>, vm: &str, whole: bool) -> Result<Self, RestoreError> {
        let journal = Journal::begin(context.state, vm)?;
        if !whole || context.hypervisor.is_local() {
            return Ok(Self::Beside(journal));
        }
        let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| TEMPORARY.into());
        let directory = tempfile::Builder::new()
            .prefix(STAGE_PREFIX)
            .tempdir_in(&parent)
            .map_err(|source| failed(Path::new(&parent), source))?;
        journal.stage_remote(directory.path())?;
        Ok(Self::Remote(directory, context.hypervisor, journal))
    }

    /// What is on record of it.
    pub fn journal(&self) -> &Journal {
        match self {
            Self::Beside(journal) | Self::Remote(_, _, journal) => journal,
        }
    }

    /// Where a file is made that will have this place: on which storage it needs room.
    pub fn path<'p>(&'p self, destination: &'p Path) -> std::path::PathBuf {
        match self {
            Self::Beside(_) => destination.to_owned(),
            Self::Remote(directory, ..) => directory.path().join(destination.file_name().unwrap_or_default()),
        }
    }

    /// Nothing yet; for a file that will have this place.
    pub fn stage(&self, path: &Path) -> io::Result<StagedFile> {
        match self {
            Self::Beside(journal) => journal.stage(path),
            Self::Remote(directory, ..) => StagedFile::remote(directory.path(), path),
        }
    }

    /// Takes a file to its place.
    pub fn install(
        &self,
        context: &Context<'_>,
        staged: StagedFile,
        overwrite: bool,
    ) -> Result<InstalledFile<'a>, RestoreError> {
        let path = staged.destination().to_owned();
        self.journal().step();
        let Self::Remote(_, hypervisor, _) = self else {
            return staged.install(overwrite).map_err(|source| failed(&path, source));
        };
        let bytes = staged.temporary().metadata();
        let bytes = bytes.map_err(|source| failed(&path, source))?.len();
        let target = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        context.report(Kind::stage(format!(
            "take {} to {}",
            path.display(),
            hypervisor.uri()
        )));
        context.report(Kind::DiskStarted {
            target: &target,
            bytes,
        });
        let mut moved = |bytes| {
            context.report(Kind::DiskProgress {
                target: &target,
                bytes,
            });
            !context.cancel.is_cancelled()
        };
        let installed = staged.install_remote(*hypervisor, &mut moved)?;
        context.report(Kind::DiskWritten {
            target: &target,
            read: bytes,
            written: bytes,
        });
        Ok(installed)
    }
}

fn failed(path: &Path, source: io::Error) -> RestoreError {
    let path = path.to_owned();
    RestoreError::File {
        path: path.display().to_string(),
        source: WriteError::File { path, source },
    }
}
