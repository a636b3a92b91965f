//! A native engine for Borg 1.x repositories on disk.
//!
//! It knows files, objects and transactions; it knows no network, no keys and no archives. What it writes is what
//! stock Borg 1.2.7 to 1.4 writes, to the byte in the log, and stock Borg goes on with it as if nothing had happened.
//! Compaction, repair and the making of repositories stay stock Borg's.
//!
//! * [`Store`] is a repository of objects with a transaction over them; [`Repository`] is one in a directory.
//! * [`Config`], [`Index`], [`Hints`] and [`Integrity`] are the formats of a repository's own files.
//! * [`files`] is the seam to the file system, through which tests break it.
//!
//! A repository may come from anywhere: nothing is allocated because a file claims a length, and nothing panics on
//! what was read.

pub mod files;
pub mod fuzzing;

mod cache;
mod config;
mod error;
mod hints;
mod id;
mod index;
mod integrity;
mod layout;
mod lock;
mod log;
mod msgpack;
mod nonce;
mod options;
mod recover;
mod repository;
mod segment;
mod state;
mod store;
mod sys;
mod time;

pub use config::Config;
pub use error::{Error, Result};
pub use hints::Hints;
pub use id::Id;
pub use index::{Index, Place};
pub use integrity::Integrity;
pub use lock::{Patience, host_id};
pub use options::{Access, Options};
pub use recover::How;
pub use repository::Repository;
pub use segment::MAX_OBJECT;
pub use store::{Info, Store};
