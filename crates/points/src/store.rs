//! Where restore points are kept, as all the rest sees it.
//!
//! A [`Repository`] is open, and has the right to be read, or written to. It lists archives and gives their items and chunks. An
//! [`ArchiveWriter`] is one transaction: nothing of it is to be seen before the commit, and then all of it is. Both are handles
//! of what a driver implements ([`Store`], [`Transaction`]); work for other threads is behind [`Sealer`] and [`Opener`].
//!
//! [`borg`] is the driver for repositories of Borg 1.x, and the one place that knows them.

mod archive;
pub mod borg;
mod chunk;
mod error;
mod name;
mod work;

use std::collections::HashSet;

use jiff::Timestamp;

pub use self::archive::{Archive, ArchiveInfo, ArchiveOptions, Item, StoreId, Summary};
pub use self::borg::{Compression, Encryption, Location, Passphrase, Question, Repositories};
pub use self::chunk::{ChunkId, ChunkRef};
pub use self::error::{Kind, Result, StoreError};
pub use self::name::Name;
pub use self::work::{Canceller, Cancels, Content, Object, Open, Opener, Seal, Sealed, Sealer, Spare};

/// What a repository is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading; others may read too.
    Read,
    /// Reading without a lock, for storage that cannot be written to. A write meanwhile makes reads fail.
    ReadWithoutLock,
    /// Writing, which excludes all others.
    Write,
}

/// Something that a server or a driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A line of a log.
    Log {
        /// How grave it is.
        level: Level,
        /// The text; control characters are escaped.
        message: String,
    },
    /// Progress of a long operation of the server's own.
    Progress {
        /// The text; control characters are escaped.
        message: String,
    },
}

/// How grave a line of a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For developers.
    Debug,
    /// Good to know.
    Info,
    /// Possibly harmful.
    Warning,
    /// Something failed.
    Error,
}

/// Chunks as they arrive: in the order in which they were asked for.
pub type Fetch<'a> = Box<dyn Iterator<Item = (ChunkRef, Result<Object>)> + 'a>;
/// Items as they are read. After an error it ends.
pub type Items<'a> = Box<dyn Iterator<Item = Result<Item>> + 'a>;
/// Ids as they are listed. After an error it ends.
pub type Ids<'a> = Box<dyn Iterator<Item = Result<ChunkId>> + 'a>;

/// An open repository, as a driver makes it. The methods are those of [`Repository`].
#[allow(missing_docs, reason = "they are documented where they are called")]
pub trait Store: Send {
    fn id(&self) -> StoreId;
    fn timestamp(&self) -> Timestamp;
    fn replayed(&self) -> Option<&str>;
    fn accept_state(&mut self) -> Result<()>;
    fn free_counter(&self) -> Option<u64>;
    fn start_above(&self, counter: u64);
    fn object_count(&mut self) -> Result<u64>;
    fn encryption(&self) -> Encryption;
    fn archives(&self) -> &[ArchiveInfo];
    fn archive(&mut self, info: &ArchiveInfo) -> Result<Archive>;
    fn items(&mut self, archive: &Archive) -> Items<'_>;
    fn fetch<'a>(&'a mut self, chunks: Box<dyn Iterator<Item = ChunkRef> + 'a>) -> Fetch<'a>;
    fn opener(&self) -> Opener;
    fn requests(&self) -> u64;
    fn spare(&self) -> Spare;
    fn list_ids(&mut self) -> Ids<'_>;
    fn canceller(&self) -> Canceller;
    fn begin(self: Box<Self>, options: ArchiveOptions) -> Result<Box<dyn Transaction>>;
    fn probe_append_only(self: Box<Self>) -> Result<bool>;
    fn close(self: Box<Self>) -> Result<()>;
}

/// A transaction, as a driver makes it. The methods are those of [`ArchiveWriter`].
#[allow(missing_docs, reason = "they are documented where they are called")]
pub trait Transaction: Send {
    fn repository_id(&self) -> StoreId;
    fn sealer(&self) -> Sealer;
    fn canceller(&self) -> Canceller;
    fn data_stored(&self) -> u64;
    fn reserve(&mut self, bytes: u64, chunks: u64) -> Result<()>;
    fn adopt(&mut self, chunks: &mut dyn Iterator<Item = ChunkRef>);
    fn adopt_metadata(&mut self, archive: &Archive);
    fn lacks(&mut self, ids: &HashSet<ChunkId>);
    fn put(&mut self, sealed: Sealed) -> Result<(ChunkRef, Vec<u8>)>;
    fn put_data(&mut self, data: &[u8]) -> Result<ChunkRef>;
    fn zero_chunk(&mut self, length: u32) -> Result<ChunkRef>;
    fn add_item(&mut self, item: &Item) -> Result<()>;
    fn add_archive(&mut self, options: ArchiveOptions, items: &[Item]) -> Result<()>;
    fn commit(self: Box<Self>) -> Result<(Box<dyn Store>, Summary)>;
}

/// An open repository. Dropping it lets go of it.
pub struct Repository(Box<dyn Store>);

impl Repository {
    /// The handle of what a driver has opened.
    pub fn new(store: Box<dyn Store>) -> Self {
        Self(store)
    }

    /// The repository's id, which never changes.
    pub fn id(&self) -> StoreId {
        self.0.id()
    }

    /// The time of its state: each commit makes it later.
    pub fn timestamp(&self) -> Timestamp {
        self.0.timestamp()
    }

    /// The time of the newest state that was seen, if that is newer than this one: an old copy was put back.
    pub fn replayed(&self) -> Option<&str> {
        self.0.replayed()
    }

    /// Remembers that the present state is the newest one after all: it was meant to be put back.
    pub fn accept_state(&mut self) -> Result<()> {
        self.0.accept_state()
    }

    /// The first encryption counter that is certainly not used, once some were reserved; nothing where there are none.
    pub fn free_counter(&self) -> Option<u64> {
        self.0.free_counter()
    }

    /// Encryption counters below this are used, whatever the repository and its server say.
    pub fn start_above(&self, counter: u64) {
        self.0.start_above(counter);
    }

    /// How many objects there are, those of metadata included. Whatever is removed changes it.
    pub fn object_count(&mut self) -> Result<u64> {
        self.0.object_count()
    }

    /// Which of these objects the repository does not have: one pass over the list of all.
    pub fn lacking(&mut self, mut wanted: HashSet<ChunkId>) -> Result<HashSet<ChunkId>> {
        for id in self.list_ids() {
            wanted.remove(&id?);
            if wanted.is_empty() {
                break;
            }
        }
        Ok(wanted)
    }

    /// How its content is protected.
    pub fn encryption(&self) -> Encryption {
        self.0.encryption()
    }

    /// Its archives in the order of time, those included that others have left unfinished.
    pub fn archives(&self) -> std::slice::Iter<'_, ArchiveInfo> {
        self.0.archives().iter()
    }

    /// Reads what a listed archive says of itself, and verifies it.
    pub fn archive_by_info(&mut self, info: &ArchiveInfo) -> Result<Archive> {
        self.0.archive(info)
    }

    /// The items of an archive, read as the iterator goes on.
    pub fn items(&mut self, archive: &Archive) -> Items<'_> {
        self.0.items(archive)
    }

    /// Reads chunks in the given order, requesting some ahead.
    pub fn fetch<'a>(&'a mut self, chunks: impl IntoIterator<Item = ChunkRef, IntoIter: 'a>) -> Fetch<'a> {
        self.0.fetch(Box::new(chunks.into_iter()))
    }

    /// Verifies and decrypts what was fetched, in any thread.
    pub fn opener(&self) -> Opener {
        self.0.opener()
    }

    /// Requests sent so far.
    pub fn requests(&self) -> u64 {
        self.0.requests()
    }

    /// Takes back the memory of chunks that are done with: the next ones come in it.
    pub fn spare(&self) -> Spare {
        self.0.spare()
    }

    /// Reads, verifies and decrypts chunks one after the other.
    pub fn read_chunks(
        &mut self,
        chunks: impl IntoIterator<Item = ChunkRef>,
        mut consume: impl FnMut(&ChunkRef, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let opener = self.opener();
        for (chunk, object) in self.fetch(chunks.into_iter().collect::<Vec<_>>()) {
            consume(&chunk, &opener.open(&chunk, object?)?)?;
        }
        Ok(())
    }

    /// The ids of all objects, those of metadata included.
    pub fn list_ids(&mut self) -> Ids<'_> {
        self.0.list_ids()
    }

    /// Begins a new archive. The repository has to be open for writing.
    pub fn begin(self, options: ArchiveOptions) -> Result<ArchiveWriter> {
        self.0.begin(options).map(ArchiveWriter)
    }

    /// Whether the server keeps what its clients delete or overwrite. The repository has to be open for writing; nothing in it is
    /// changed.
    pub fn probe_append_only(self) -> Result<bool> {
        self.0.probe_append_only()
    }

    /// Ends calls from any thread.
    pub fn canceller(&self) -> Canceller {
        self.0.canceller()
    }

    /// Lets go of it, and says whether that worked.
    pub fn close(self) -> Result<()> {
        self.0.close()
    }
}

/// A new archive on its way. Dropped before the commit, it has never been.
pub struct ArchiveWriter(Box<dyn Transaction>);

impl ArchiveWriter {
    /// The repository's id.
    pub fn repository_id(&self) -> StoreId {
        self.0.repository_id()
    }

    /// Makes of content what can be put, in any thread.
    pub fn sealer(&self) -> Sealer {
        self.0.sealer()
    }

    /// Ends calls from any thread.
    pub fn canceller(&self) -> Canceller {
        self.0.canceller()
    }

    /// Bytes that the repository had to store so far.
    pub fn data_stored(&self) -> u64 {
        self.0.data_stored()
    }

    /// Announces so many bytes of content in so many chunks, before they are sealed.
    pub fn reserve(&mut self, bytes: u64, chunks: u64) -> Result<()> {
        self.0.reserve(bytes, chunks)
    }

    /// Chunks that are there, and need not be stored again.
    pub fn adopt(&mut self, chunks: impl IntoIterator<Item = ChunkRef>) {
        self.0.adopt(&mut chunks.into_iter());
    }

    /// The pieces of an earlier archive's metadata: what is the same is not stored again.
    pub fn adopt_metadata(&mut self, archive: &Archive) {
        self.0.adopt_metadata(archive);
    }

    /// Objects that are not there after all.
    pub fn lacks(&mut self, ids: &HashSet<ChunkId>) {
        self.0.lacks(ids);
    }

    /// Stores a chunk, unless it is there. Returns its memory, to be used again.
    pub fn put(&mut self, sealed: Sealed) -> Result<(ChunkRef, Vec<u8>)> {
        self.0.put(sealed)
    }

    /// Seals and stores a small chunk.
    pub fn put_data(&mut self, data: &[u8]) -> Result<ChunkRef> {
        self.0.put_data(data)
    }

    /// A chunk of zeroes, stored once.
    pub fn zero_chunk(&mut self, length: u32) -> Result<ChunkRef> {
        self.0.zero_chunk(length)
    }

    /// Adds a file to the archive.
    pub fn add_item(&mut self, item: &Item) -> Result<()> {
        self.0.add_item(item)
    }

    /// Adds a whole second archive to the same commit.
    pub fn add_archive(&mut self, options: ArchiveOptions, items: &[Item]) -> Result<()> {
        self.0.add_archive(options, items)
    }

    /// Makes all of it visible at once.
    pub fn commit(self) -> Result<(Repository, Summary)> {
        let (store, summary) = self.0.commit()?;
        Ok((Repository(store), summary))
    }
}
