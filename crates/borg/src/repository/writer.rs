//! Writing an archive.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use crate::archive::{Archive, ArchiveInfo, ChunkerParams, Stats};
use crate::chunk::MAX_DATA_SIZE;
use crate::compress::Compression;
use crate::cutter::Cutter;
use crate::msgpack::Value;
use crate::repository::Access;
use crate::sealer::{Known, Sealed, Sealer};
use crate::{ChunkId, ChunkRef, Error, Event, Item, Level, Name, Repository, Result};

/// Bytes of requests that may wait for their replies. An error is noticed after this many at the latest.
const MAX_IN_FLIGHT: usize = 64 << 20;

/// Pieces of metadata and the archive and manifest objects compress well or not at all; lz4 costs nothing.
const METADATA_COMPRESSION: Compression = Compression::Lz4;

/// What a new archive says about itself.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    /// Its name, new in the repository.
    pub name: String,
    /// A comment.
    pub comment: String,
    /// The command that makes it.
    pub command_line: Vec<String>,
    /// Where it is made.
    pub hostname: String,
    /// Who makes it.
    pub username: String,
    /// When it was begun; the time that prune rules go by.
    pub started: Timestamp,
    /// How files are cut, for those who look at the archive.
    pub chunker_params: ChunkerParams,
    /// How new chunks are compressed.
    pub compression: Compression,
}

impl ArchiveOptions {
    /// An archive of this machine and user, begun now, in blocks of 4 MiB, compressed with lz4.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            comment: String::new(),
            command_line: std::env::args_os()
                .map(|arg| arg.to_string_lossy().into_owned())
                .collect(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            username: std::env::var("USER")
                .or_else(|_| std::env::var("LOGNAME"))
                .unwrap_or_else(|_| "root".to_owned()),
            started: Timestamp::now(),
            chunker_params: ChunkerParams::Fixed {
                block_size: 4 << 20,
                header_size: 0,
            },
            compression: Compression::default(),
        }
    }
}

/// What a commit wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The new archive as the manifest lists it.
    pub archive: ArchiveInfo,
    /// Its statistics.
    pub stats: Stats,
    /// Chunks of content that were written.
    pub data_chunks: u64,
    /// Bytes of content in them, before compression.
    pub data_size: u64,
    /// Bytes they take in the repository.
    pub data_stored: u64,
    /// Pieces of metadata that were written.
    pub metadata_pieces: u64,
    /// Bytes they and the archive's object take in the repository.
    pub metadata_stored: u64,
}

/// An archive being written. Nothing of it is visible before [`ArchiveWriter::commit`].
///
/// Dropping it closes the connection without a commit and waits for the server, which forgets what was written.
/// After an error the writer is doomed: all further calls fail.
pub struct ArchiveWriter {
    repository: Repository,
    options: ArchiveOptions,
    sealer: Sealer,
    known_pieces: HashSet<ChunkId>,
    zeros: HashMap<u32, ChunkRef>,
    cutter: Cutter,
    item_ids: Vec<ChunkId>,
    /// Archives that are complete, and become visible with this one.
    beside: Vec<ArchiveInfo>,
    summary: Summary,
    doomed: bool,
}

impl ArchiveWriter {
    pub(crate) fn new(repository: Repository, options: ArchiveOptions) -> Result<Self> {
        if repository.access() != Access::Write {
            return Err(Error::NotWritable);
        }
        let name = new_name(&repository, &options)?;
        let sealer = Sealer {
            keys: std::sync::Arc::clone(&repository.keys),
            ledger: repository.reserver.ledger().clone(),
            known: Known::default(),
            compression: options.compression,
        };
        let archive = ArchiveInfo {
            name,
            id: ChunkId::MANIFEST,
            time: options.started,
        };
        Ok(Self {
            repository,
            options,
            sealer,
            known_pieces: HashSet::new(),
            zeros: HashMap::new(),
            cutter: Cutter::default(),
            item_ids: Vec::new(),
            beside: Vec::new(),
            summary: Summary {
                archive,
                stats: Stats::default(),
                data_chunks: 0,
                data_size: 0,
                data_stored: 0,
                metadata_pieces: 0,
                metadata_stored: 0,
            },
            doomed: false,
        })
    }

    /// Makes objects in worker threads.
    pub fn sealer(&self) -> Sealer {
        self.sealer.clone()
    }

    /// A handle that ends the connection from any thread.
    pub fn canceller(&self) -> crate::Canceller {
        self.repository.canceller()
    }

    /// The id of the repository that the archive goes to.
    pub fn repository_id(&self) -> crate::RepositoryId {
        self.repository.id()
    }

    /// Bytes that the chunks of content written so far take in the repository.
    pub fn data_stored(&self) -> u64 {
        self.summary.data_stored
    }

    /// Runs a step, whose failure ends the writer.
    fn guard<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.doomed {
            return Err(Error::Doomed);
        }
        let result = step(self);
        self.doomed = result.is_err();
        result
    }

    /// Promises that `bytes` more in `chunks` more chunks can be sealed.
    ///
    /// Promises add up: call it for each lot of work before it goes to the workers. Mostly it costs nothing; every
    /// 4 GiB it asks the server, which waits for all writes in flight.
    pub fn reserve(&mut self, bytes: u64, chunks: u64) -> Result<()> {
        self.guard(|writer| {
            if !writer.repository.encryption().is_encrypted() {
                return Ok(());
            }
            // Each chunk has two bytes of compression header and ends with a partial block.
            let blocks = chunks
                .checked_mul(2)
                .and_then(|more| (bytes / 16).checked_add(more));
            let blocks = blocks.ok_or_else(|| Error::NonceState("too much is asked for".to_owned()))?;
            if writer.repository.reserver.promise(blocks) {
                return Ok(());
            }
            writer.drain()?;
            writer
                .repository
                .reserver
                .reserve(&mut writer.repository.rpc, blocks)
        })
    }

    /// Declares chunks to be in the repository already.
    ///
    /// They must come from an archive that this repository lists while its exclusive lock is held, which is so for
    /// archives read through [`Repository::archive`] before [`Repository::begin`].
    pub fn adopt(&mut self, chunks: impl IntoIterator<Item = ChunkRef>) {
        self.sealer.known.extend(chunks);
    }

    /// Declares an archive's pieces of metadata to be in the repository already; the same condition holds.
    pub fn adopt_metadata(&mut self, archive: &Archive) {
        self.known_pieces.extend(&archive.item_ids);
    }

    /// Declares objects, adopted before, not to be in the repository: see [`Repository::lacking`].
    pub fn lacks(&mut self, ids: &HashSet<ChunkId>) {
        self.sealer.known.forget(ids);
        self.known_pieces.retain(|id| !ids.contains(id));
    }

    /// Writes a chunk, unless one with its id is known already.
    ///
    /// Does not wait for the server's reply; a failure of an earlier write may be reported here.
    pub fn put(&mut self, sealed: &Sealed) -> Result<ChunkRef> {
        self.guard(|writer| {
            let Sealed { chunk, object, .. } = sealed;
            let chunk = *chunk;
            if let Some(known) = writer.sealer.known.get(&chunk.id) {
                return if known.size == chunk.size {
                    Ok(known)
                } else {
                    Err(Error::damaged(
                        chunk.id,
                        format!("it is known with {} bytes, not {}", known.size, chunk.size),
                    ))
                };
            }
            writer.send(&chunk.id, object)?;
            writer.sealer.known.extend([chunk]);
            writer.summary.data_chunks += 1;
            writer.summary.data_size += u64::from(chunk.size);
            writer.summary.data_stored += object.len() as u64;
            Ok(chunk)
        })
    }

    /// Hashes, seals and writes content, reserving what that takes.
    pub fn put_data(&mut self, data: &[u8]) -> Result<ChunkRef> {
        self.put_compressed(self.options.compression, data)
    }

    fn put_compressed(&mut self, compression: Compression, data: &[u8]) -> Result<ChunkRef> {
        let id = self.sealer.id(data);
        if let Some(known) = self.sealer.known(&id) {
            return if self.doomed {
                Err(Error::Doomed)
            } else {
                Ok(known)
            };
        }
        let sealed = self.seal(compression, id, data)?;
        self.put(&sealed)
    }

    /// A chunk of `len` zero bytes. It is compressed even if other chunks are not: it costs nothing to store, and every
    /// hole is read as one.
    pub fn zero_chunk(&mut self, len: u32) -> Result<ChunkRef> {
        if let Some(chunk) = self.zeros.get(&len) {
            return if self.doomed {
                Err(Error::Doomed)
            } else {
                Ok(*chunk)
            };
        }
        if len as usize > MAX_DATA_SIZE {
            return Err(Error::TooLarge {
                what: "a chunk",
                size: len.into(),
                limit: MAX_DATA_SIZE as u64,
            });
        }
        let compression = match self.options.compression {
            Compression::None => Compression::Lz4,
            other => other,
        };
        let chunk = self.put_compressed(compression, &vec![0; len as usize])?;
        self.zeros.insert(len, chunk);
        Ok(chunk)
    }

    /// Adds an item. Its chunks must be known, that is written or adopted.
    pub fn add_item(&mut self, item: &Item) -> Result<()> {
        self.guard(|writer| {
            for chunk in item.chunks.iter().flatten() {
                let known = writer
                    .sealer
                    .known
                    .get(&chunk.id)
                    .filter(|known| known.size == chunk.size);
                if known.is_none() {
                    return Err(Error::UnknownChunk {
                        item: item.path.clone(),
                        chunk: chunk.id,
                    });
                }
                writer.summary.stats.size += u64::from(chunk.size);
                writer.summary.stats.csize += u64::from(chunk.csize);
            }
            writer.summary.stats.files += u64::from(item.is_file());
            let mut pieces = Vec::new();
            let Ok(()) = writer.cutter.add(item, |piece| {
                pieces.push(piece);
                Ok::<_, std::convert::Infallible>(())
            });
            pieces.iter().try_for_each(|piece| writer.put_piece(piece))
        })
    }

    /// Writes another archive, with these items, beside this one: both become visible by the same commit, or neither
    /// does.
    pub fn add_archive(&mut self, options: ArchiveOptions, items: &[Item]) -> Result<()> {
        self.guard(|writer| {
            let name = new_name(&writer.repository, &options)?;
            let taken = writer.beside.iter().map(|info| &info.name);
            if taken
                .chain([&writer.summary.archive.name])
                .any(|other| *other == name)
            {
                return Err(Error::ArchiveExists(name));
            }
            let info = ArchiveInfo {
                name,
                id: ChunkId::MANIFEST,
                time: options.started,
            };
            let own = (
                std::mem::replace(&mut writer.options, options),
                std::mem::replace(&mut writer.summary.archive, info),
                std::mem::take(&mut writer.summary.stats),
                std::mem::take(&mut writer.cutter),
                std::mem::take(&mut writer.item_ids),
            );
            for item in items {
                writer.add_item(item)?;
            }
            let info = writer.complete()?;
            writer.beside.push(info);
            (
                writer.options,
                writer.summary.archive,
                writer.summary.stats,
                writer.cutter,
                writer.item_ids,
            ) = own;
            Ok(())
        })
    }

    /// Writes a piece of metadata, unless it is known.
    fn put_piece(&mut self, piece: &[u8]) -> Result<()> {
        let id = self.sealer.id(piece);
        self.item_ids.push(id);
        if self.known_pieces.insert(id) {
            self.put_metadata(id, piece).map(drop)
        } else {
            Ok(())
        }
    }

    fn put_metadata(&mut self, id: ChunkId, data: &[u8]) -> Result<()> {
        let sealed = self.seal(METADATA_COMPRESSION, id, data)?;
        self.summary.metadata_pieces += 1;
        self.summary.metadata_stored += sealed.object.len() as u64;
        self.send(&id, &sealed.object)
    }

    fn seal(&mut self, compression: Compression, id: ChunkId, data: &[u8]) -> Result<Sealed> {
        self.reserve(data.len() as u64, 1)?;
        let mut sealed = self.sealer.seal_with(compression, &[(id, data)])?;
        sealed.pop().ok_or(Error::NonceReservation)
    }

    fn send(&mut self, id: &ChunkId, object: &[u8]) -> Result<()> {
        self.repository.rpc.send_put(id, object)?;
        self.collect_replies()?;
        while self.repository.rpc.pending_bytes() > MAX_IN_FLIGHT {
            self.repository.rpc.receive()?;
        }
        Ok(())
    }

    fn collect_replies(&mut self) -> Result<()> {
        while self.repository.rpc.receive_if(false)?.is_some() {}
        Ok(())
    }

    /// Waits for all replies. Every one has to be good before a commit: the server itself would not mind.
    fn drain(&mut self) -> Result<()> {
        while self.repository.rpc.pending() > 0 {
            self.repository.rpc.receive()?;
        }
        Ok(())
    }

    /// Takes in the replies that are there, without waiting, to notice failures early.
    pub fn poll(&mut self) -> Result<()> {
        self.guard(Self::collect_replies)
    }

    /// Completes the archive and commits it. It is complete and durable if this succeeds; if it fails in the very last
    /// step because the connection is lost, the archive may or may not be there.
    pub fn commit(mut self) -> Result<(Repository, Summary)> {
        self.guard(Self::finish)?;
        Ok((self.repository, self.summary))
    }

    /// Writes what is left of an archive, and the archive's own object. Nothing refers to that yet.
    fn complete(&mut self) -> Result<ArchiveInfo> {
        let mut rest = Vec::new();
        let Ok(()) = std::mem::take(&mut self.cutter).flush(|piece| {
            rest.push(piece);
            Ok::<_, std::convert::Infallible>(())
        });
        rest.iter().try_for_each(|piece| self.put_piece(piece))?;

        let keys = std::sync::Arc::clone(&self.repository.keys);
        let mut archive = Archive {
            info: self.summary.archive.clone(),
            comment: self.options.comment.as_str().into(),
            hostname: self.options.hostname.as_str().into(),
            username: self.options.username.as_str().into(),
            command_line: self
                .options
                .command_line
                .iter()
                .map(|arg| arg.as_str().into())
                .collect(),
            time: self.options.started,
            time_end: Some(Timestamp::now()),
            chunker_params: Some(self.options.chunker_params.clone()),
            stats: Some(self.summary.stats),
            authenticated: true,
            item_ids: std::mem::take(&mut self.item_ids),
        };
        let data = archive.pack(&keys, &salt()?)?;
        archive.info.id = keys.id(&data);
        self.put_metadata(archive.info.id, &data)?;
        self.summary.metadata_pieces -= 1;
        Ok(archive.info)
    }

    fn finish(&mut self) -> Result<()> {
        let info = self.complete()?;
        self.drain()?;

        let keys = std::sync::Arc::clone(&self.repository.keys);
        let archives: Vec<ArchiveInfo> = std::mem::take(&mut self.beside)
            .into_iter()
            .chain([info.clone()])
            .collect();
        let tam_required = keys.tam_required() == Some(true) || self.repository.manifest.tam_required();
        let (manifest, data) = self.repository.manifest.with_archives(
            &keys,
            &archives,
            tam_required,
            Timestamp::now(),
            &salt()?,
        )?;
        let sealed = self.seal(METADATA_COMPRESSION, ChunkId::MANIFEST, &data)?;
        self.send(&ChunkId::MANIFEST, &sealed.object)?;
        self.drain()?;
        let rpc = &mut self.repository.rpc;
        rpc.call(
            "commit",
            &[
                ("save_space", false.into()),
                ("compact", false.into()),
                ("threshold", Value::Float(0.1)),
                ("cleanup_commits", false.into()),
            ],
        )?;
        self.repository.manifest = manifest;
        self.summary.archive = info;
        self.remember();
        Ok(())
    }

    /// Records the new state against replays. The archive is committed: a failure here must not look like a failed
    /// backup, and the older record stays true.
    fn remember(&self) {
        let Repository {
            security,
            manifest,
            keys,
            events,
            ..
        } = &self.repository;
        let result = security.save(keys.encryption(), manifest.timestamp());
        if let (Err(error), Some(events)) = (result, events) {
            events(Event::Log {
                level: Level::Warning,
                message: format!("the archive is committed, but: {error}"),
            });
        }
    }

    /// Gives the archive up: closes the connection without a commit and waits for the server.
    pub fn abort(self) {
        drop(self);
    }
}

fn salt() -> Result<[u8; 64]> {
    let mut salt = [0; 64];
    getrandom::fill(&mut salt).map_err(|error| Error::Setting {
        name: "random numbers",
        reason: error.to_string(),
    })?;
    Ok(salt)
}

/// The name of a new archive, which the repository does not have.
fn new_name(repository: &Repository, options: &ArchiveOptions) -> Result<Name> {
    check_name(&options.name)?;
    let name = Name::from(options.name.as_str());
    if repository.archives().any(|info| info.name == name) {
        return Err(Error::ArchiveExists(name));
    }
    Ok(name)
}

/// What stock Borg can list and address on its command line.
fn check_name(name: &str) -> Result<()> {
    let error = |reason| {
        Err(Error::ArchiveName {
            name: name.to_owned(),
            reason,
        })
    };
    if name.is_empty() || name.trim() != name {
        return error("it is empty or has blanks at an end");
    }
    if name.chars().count() > 200 || name.len() > 255 {
        return error("it is too long");
    }
    if name.contains(|c: char| c.is_control() || matches!(c, '/' | '{' | '}')) || name.contains("::") {
        return error("it contains `/`, `::`, braces or control characters");
    }
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    if name.ends_with(".checkpoint") || stem.ends_with(".checkpoint") {
        return error("names ending in .checkpoint mark unfinished archives");
    }
    Ok(())
}
