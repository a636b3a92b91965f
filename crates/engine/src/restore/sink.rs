//! What content is written to: a raw file directly, an image of another format through an NBD server that knows it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use strongroom_nbd::{Client, Sparse, WriteOptions};
use strongroom_points::store::Spare;

use super::error::WriteError;
use crate::run::context::Context;

/// Writes in flight.
const DEPTH: usize = 4;

/// The parts of a range that are written, a buffer, and where in it the bytes of the range begin.
pub type Write = (Sparse, Vec<u8>, usize);

/// Takes the content of a disk.
pub trait Sink: Send {
    /// Writes what comes, in any order, and gives the buffers to `spare`. The path is for errors.
    fn take(
        &mut self,
        context: &Context<'_>,
        path: &Path,
        writes: impl Iterator<Item = Write>,
        spare: &Spare,
    ) -> Result<(), WriteError>;
}

impl Sink for Client {
    fn take(
        &mut self,
        context: &Context<'_>,
        path: &Path,
        writes: impl Iterator<Item = Write>,
        spare: &Spare,
    ) -> Result<(), WriteError> {
        let options = WriteOptions {
            depth: DEPTH,
            cancel: Some(context.cancel.flag()),
            ..WriteOptions::default()
        };
        self.write_sparse(writes, &options, |buffer| spare.give(buffer))
            .map_err(|source| WriteError::Image {
                path: path.to_owned(),
                source,
            })
    }
}

impl Sink for File {
    fn take(
        &mut self,
        context: &Context<'_>,
        path: &Path,
        writes: impl Iterator<Item = Write>,
        spare: &Spare,
    ) -> Result<(), WriteError> {
        for (whole, buffer, start) in writes {
            context.cancel.check()?;
            for part in &whole.parts {
                let at = start + (part.offset() - whole.extent.offset()) as usize;
                let bytes = &buffer[at..at + part.length() as usize];
                self.write_all_at(bytes, part.offset())
                    .map_err(|error| WriteError::File {
                        path: path.to_owned(),
                        source: at_offset(&error, part.offset()),
                    })?;
            }
            spare.give(buffer);
        }
        Ok(())
    }
}

/// The system's reason, and where.
fn at_offset(error: &io::Error, offset: u64) -> io::Error {
    io::Error::new(error.kind(), format!("at offset {offset}: {error}"))
}
