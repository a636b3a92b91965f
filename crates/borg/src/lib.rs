//! A native client of [Borg](https://www.borgbackup.org/) 1.x backup repositories.
//!
//! It speaks to the stock `borg serve`, locally through a pipe or over ssh, and reads and writes archives that Borg 1.2
//! and 1.4 accept in full: they can list, check, extract, mount, diff, prune and compact them. Storage, locks and
//! transactions stay in the hands of stock Borg's server; keys, encryption, archives and items are handled here.
//!
//! What stock Borg's own client cannot do is its reason to be: an archive's file may be put together from *chunks that the
//! repository already holds* and new ones, without reading the old content again.
//!
//! ```no_run
//! use strongroom_borg::{Access, ArchiveOptions, Item, Location, PassphraseSource, Repository, Result, Settings};
//!
//! # fn main() -> Result<()> {
//! # let changed: Vec<(usize, Vec<u8>)> = Vec::new();
//! let location: Location = "ssh://backup@host/srv/repo".parse()?;
//! let settings = Settings::from_env().with_events(|event| println!("{event:?}"));
//! let mut repository = Repository::open(&location, Access::Write, &settings, &PassphraseSource::from_env())?;
//!
//! // What the archive before knows about the file …
//! let previous = repository.archive(&"monday".into())?;
//! let file = repository.items(&previous).find(|item| item.as_ref().is_ok_and(|item| item.path == "disk"));
//! let mut chunks = file.transpose()?.and_then(|item| item.chunks).unwrap_or_default();
//!
//! // … and what has changed since.
//! let mut writer = repository.begin(ArchiveOptions::new("tuesday"))?;
//! writer.adopt(chunks.iter().copied());
//! writer.adopt_metadata(&previous);
//! for (index, data) in changed {
//!     chunks[index] = writer.put_data(&data)?;
//! }
//! writer.add_item(&Item::regular("disk", chunks))?;
//! let (mut repository, summary) = writer.commit()?;
//! println!("{} bytes written", summary.data_stored + summary.metadata_stored);
//!
//! // Reading back: requests run ahead, every byte is verified.
//! let archive = repository.archive(&"tuesday".into())?;
//! let item = repository.items(&archive).next().transpose()?;
//! repository.read_chunks(item.and_then(|item| item.chunks).unwrap_or_default(), |chunk, data| {
//!     assert_eq!(data.len(), chunk.size as usize);
//!     Ok(())
//! })?;
//! repository.close()
//! # }
//! ```
//!
//! # Throughput
//!
//! Hashing, compressing and encrypting belong into worker threads: [`Sealer`] and [`Opener`] are cheap to clone for that.
//! With BLAKE2b keys, [`Sealer::ids`] and [`Sealer::seal_all`] work on four chunks at once in SIMD lanes, which doubles
//! their speed. One thread writes with [`ArchiveWriter::put`] or reads with [`Repository::fetch`]; bytes in flight are
//! bounded, so memory does not grow with the size of a file, except for its list of chunks.
//!
//! # Guarantees
//!
//! - Everything read is verified before it is returned: authentication codes, ids, sizes, the manifest's authentication,
//!   and that the repository is not an older or another one than last time, by the same records that stock Borg keeps.
//! - Lengths, nesting and decompressed sizes are bounded; no content of a repository or server makes this crate panic.
//! - Encryption counters are reserved durably, in the repository and in Borg's local security directory, before they are
//!   used. A crash loses counters and never repeats one.
//! - An archive is visible as a whole after [`ArchiveWriter::commit`] returned, or not at all. Each single reply of the
//!   server is awaited before the commit. If the connection breaks, or the process is killed, the server forgets what
//!   was not committed and releases its lock.
//! - Passphrases appear in no argument list, no log, no child's environment, and are wiped from memory. This crate never
//!   touches the terminal itself: [`PassphraseSource::with_prompt`] leaves asking to the caller, [`Event`]s leave
//!   showing to the caller.
//!
//! # Interrupts
//!
//! Child processes ignore the terminal's interrupt signal, as stock Borg arranges it, so that the caller alone decides
//! how a session ends; ssh stays in the foreground process group and may ask for its own passwords. To end a call that
//! waits for the server, use [`Canceller`]; while a repository opens, and perhaps waits for its lock, that of the
//! [`Transport`]. A network that is silently gone is noticed after three minutes where `BORG_RSH` is an `ssh`; with
//! another program, see to it yourself.
//!
//! # Limits
//!
//! Borg 2 and Attic repositories are refused. Archives are neither deleted nor are repositories compacted here: stock
//! `borg prune` and `borg compact` do that. Borg's placeholders are not expanded.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod archive;
mod chunk;
mod compress;
mod crypto;
mod cutter;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod id;
mod init;
mod item;
mod item_stream;
mod keyfile;
mod location;
mod manifest;
pub mod msgpack;
mod name;
mod nonce;
mod opener;
mod parse;
mod passphrase;
mod repository;
mod rpc;
mod sealer;
mod security;
mod settings;
mod spare;
mod time;
mod words;

pub use archive::{Archive, ArchiveInfo, ChunkerParams, Stats};
pub use chunk::{ChunkId, ChunkRef, MAX_DATA_SIZE};
pub use compress::Compression;
pub use crypto::Encryption;
pub use error::{Error, Result};
pub use id::RepositoryId;
pub use item::Item;
pub use location::Location;
pub use msgpack::Value;
pub use name::Name;
pub use opener::{Content, Opener};
pub use passphrase::{Passphrase, PassphraseRequest, PassphraseSource};
pub use repository::fetch::{Fetch, Ids, Items};
pub use repository::writer::{ArchiveOptions, ArchiveWriter, Summary};
pub use repository::{Access, Repository};
pub use rpc::{Canceller, Object, Transport};
pub use sealer::{Sealed, Sealer};
pub use settings::{Event, EventCallback, Level, Settings};
pub use spare::Spare;
