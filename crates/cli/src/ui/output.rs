//! Standard output: results go here, through one place that knows whether they arrived.
//!
//! A result that could not be written is a failure (exit code 1). A pipe that its reader has closed is the reader's choice:
//! what follows is dropped in silence.

use std::io::{self, ErrorKind, Write as _};
use std::sync::Mutex;

use crate::failure::Failure;

/// The first error; nothing is written after it.
static ERROR: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes part of the result.
pub fn write(bytes: &[u8]) {
    attempt(|| io::stdout().lock().write_all(bytes));
}

/// Writes what is still buffered, and says whether everything has arrived.
pub fn finish() -> Result<(), Failure> {
    attempt(|| io::stdout().lock().flush());
    match ERROR.lock().ok().and_then(|mut error| error.take()) {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(failure(&error)),
        _ => Ok(()),
    }
}

/// What a result that was not written means.
pub fn failure(error: &io::Error) -> Failure {
    Failure::failed(format!("write the result to standard output: {error}"))
}

fn attempt(work: impl FnOnce() -> io::Result<()>) {
    let Ok(mut first) = ERROR.lock() else { return };
    if first.is_none() {
        *first = work().err();
    }
}
