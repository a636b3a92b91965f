//! What can go wrong between us and an NBD server.

use std::time::Duration;

use strongroom_disk::{RangeError, ReadError};

use crate::sys::Failure;

/// A failed exchange with an NBD server. The fragments fit behind "failed to ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection came about.
    #[error("connect to {target}: {reason}")]
    Connect {
        /// The server and export.
        target: String,
        /// What the library or the server says.
        reason: String,
    },
    /// A name holds a NUL byte or a path is not fit for a socket.
    #[error("connect: unusable {what} {value:?}")]
    Unusable {
        /// What the value was meant to be.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// The server does not know a metadata context, so that nothing can be said about it.
    #[error("use context {context}: the server does not offer it")]
    NoContext {
        /// The name, `base:allocation` or `qemu:dirty-bitmap:…`.
        context: String,
    },
    /// The range is not on the disk.
    #[error("{what} {length} bytes at {offset}: the disk ends at {size}")]
    OutOfBounds {
        /// What was to be done.
        what: &'static str,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
        /// The size of the disk.
        size: u64,
    },
    /// The range does not consist of whole blocks of the server.
    #[error("{what} {length} bytes at {offset}: not in blocks of {block} bytes, the server's smallest")]
    Unaligned {
        /// What was to be done.
        what: &'static str,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
        /// The smallest block of the server.
        block: u64,
    },
    /// The server refused a command or failed in it; the connection may be good still.
    #[error("{what} {length} bytes at {offset}: {reason}")]
    Command {
        /// What was to be done.
        what: &'static str,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
        /// The system's error number, 0 if there is none.
        errno: i32,
        /// What the library or the server says.
        reason: String,
    },
    /// The connection broke; the client is of no use any more.
    #[error("{what} {length} bytes at {offset}: the connection is lost: {reason}")]
    Lost {
        /// What was being done.
        what: &'static str,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
        /// What the library says.
        reason: String,
    },
    /// The server did not answer.
    #[error("{what} {length} bytes at {offset}: no answer within {after:?}")]
    Timeout {
        /// What was being done.
        what: &'static str,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
        /// How long was waited.
        after: Duration,
    },
    /// The caller's flag said to stop.
    #[error("go on: cancelled")]
    Cancelled,
    /// The server's answer contradicts the protocol.
    #[error("understand the server's {what} at {offset}: {reason}")]
    Hostile {
        /// The answer.
        what: &'static str,
        /// The position on the disk.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What a command is about, for errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) what: &'static str,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Subject {
    pub(crate) fn command(self, failure: Failure) -> Error {
        let Self { what, offset, length } = self;
        Error::Command {
            what,
            offset,
            length,
            errno: failure.errno,
            reason: failure.reason,
        }
    }

    pub(crate) fn lost(self, failure: Failure) -> Error {
        let Self { what, offset, length } = self;
        Error::Lost {
            what,
            offset,
            length,
            reason: failure.reason,
        }
    }

    pub(crate) fn timeout(self, after: Duration) -> Error {
        let Self { what, offset, length } = self;
        Error::Timeout {
            what,
            offset,
            length,
            after,
        }
    }

    pub(crate) fn out_of_bounds(self, size: u64) -> Error {
        let Self { what, offset, length } = self;
        Error::OutOfBounds {
            what,
            offset,
            length,
            size,
        }
    }

    pub(crate) fn unaligned(self, block: u64) -> Error {
        let Self { what, offset, length } = self;
        Error::Unaligned {
            what,
            offset,
            length,
            block,
        }
    }

    pub(crate) fn hostile(self, reason: &'static str) -> Error {
        Error::Hostile {
            what: self.what,
            offset: self.offset,
            reason,
        }
    }

    pub(crate) fn range(self, _: RangeError) -> Error {
        self.hostile("lengths overflow")
    }

    pub(crate) fn read_error(self, error: Error) -> ReadError {
        let Self { offset, length, .. } = self;
        match error {
            Error::OutOfBounds { size, .. } => ReadError::OutOfBounds { offset, length, size },
            other => ReadError::Failed {
                offset,
                length,
                source: Box::new(other),
            },
        }
    }
}
