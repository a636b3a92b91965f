//! Where files are made before they take their places, and how they get there.

use std::io;
use std::path::Path;

use tempfile::TempDir;

use super::RestoreError;
use super::draft::{Draft, Published};
use super::write::WriteError;
use crate::context::Context;
use crate::event::Event;
use crate::vm::Hypervisor;

/// Where large files that do not stay go, unless `TMPDIR` says otherwise (`file-hierarchy(7)`).
const TEMPORARY: &str = "/var/tmp";

/// Where files are made.
pub enum Stage<'a> {
    /// Beside their places, under other names.
    Beside,
    /// In a directory here, for another machine.
    Aside(TempDir, &'a dyn Hypervisor),
}

impl<'a> Stage<'a> {
    /// For a whole VM on the context's hypervisor, or for single disks on this machine.
    pub fn new(context: &Context<'a>, whole: bool) -> Result<Self, RestoreError> {
        if !whole || context.hypervisor.is_local() {
            return Ok(Self::Beside);
        }
        let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| TEMPORARY.into());
        let directory = tempfile::Builder::new()
            .prefix("strongroom-restore-")
            .tempdir_in(&parent)
            .map_err(|source| failed(Path::new(&parent), source))?;
        Ok(Self::Aside(directory, context.hypervisor))
    }

    /// Nothing yet; for a file that will have this place.
    pub fn draft(&self, path: &Path) -> io::Result<Draft> {
        match self {
            Self::Beside => Draft::new(path),
            Self::Aside(directory, _) => Ok(Draft::aside(directory.path(), path)),
        }
    }

    /// Takes a file to its place.
    pub fn publish(
        &self,
        context: &Context<'_>,
        draft: Draft,
        overwrite: bool,
    ) -> Result<Published<'a>, RestoreError> {
        let path = draft.place().to_owned();
        let Self::Aside(_, hypervisor) = self else {
            return draft.publish(overwrite).map_err(|source| failed(&path, source));
        };
        let bytes = draft.temporary().metadata();
        let bytes = bytes.map_err(|source| failed(&path, source))?.len();
        let target = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        context.report(&Event::Stage(format!(
            "take {} to {}",
            path.display(),
            hypervisor.uri()
        )));
        context.report(&Event::DiskStarted {
            target: &target,
            bytes,
        });
        let mut moved = |bytes| {
            context.report(&Event::DiskProgress {
                target: &target,
                bytes,
            });
            !context.cancel.is_cancelled()
        };
        let published = draft.publish_there(*hypervisor, &mut moved)?;
        context.report(&Event::DiskDone {
            target: &target,
            read: bytes,
            stored: bytes,
        });
        Ok(published)
    }
}

fn failed(path: &Path, source: io::Error) -> RestoreError {
    let path = path.to_owned();
    RestoreError::File {
        path: path.display().to_string(),
        source: WriteError::File { path, source },
    }
}
