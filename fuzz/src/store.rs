//! The files of a Borg repository on disk.

use strongroom_store::fuzzing;

pub use fuzzing::{config, hints, index, integrity, lock, segment};
