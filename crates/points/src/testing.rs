//! For tests: a repository that is a list, and a log that is kept.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use strongroom_base::cancel::Cancel;

use crate::store::{
    Archive, ArchiveInfo, ArchiveOptions, Canceller, ChunkId, ChunkRef, Content, Encryption, Fetch, Ids,
    Item, Items, Kind, Object, Open, Opener, Repository, Result, Spare, Store, StoreError, StoreId,
    Transaction,
};
use crate::trust::grounds::{Doubt, Grounds, Log};

/// What a repository says of itself, and what it has of small files.
#[derive(Clone)]
pub struct Listing {
    pub id: StoreId,
    pub time: Timestamp,
    pub replayed: Option<String>,
    pub counter: Option<u64>,
    pub archives: Vec<ArchiveInfo>,
    /// The items of each archive, in the pieces in which they are stored; or why they cannot be read.
    pub items: BTreeMap<ChunkId, Result<Vec<Vec<Item>>, Kind>>,
    /// What is in chunks.
    pub data: BTreeMap<ChunkId, Vec<u8>>,
}

impl Listing {
    /// An empty one, of this second.
    pub fn of(second: i64) -> Self {
        Self {
            id: StoreId([0; 32]),
            time: Timestamp::from_second(second).unwrap(),
            replayed: None,
            counter: None,
            archives: Vec::new(),
            items: BTreeMap::new(),
            data: BTreeMap::new(),
        }
    }

    /// A file with this content, in a chunk of its own.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Item {
        let id = ChunkId([self.data.len() as u8; 32]);
        self.data.insert(id, content.to_vec());
        let chunk = ChunkRef {
            id,
            size: content.len() as u32,
            stored: 0,
        };
        Item::regular(path, vec![chunk])
    }

    pub fn open(&self) -> Repository {
        Repository::new(Box::new(self.clone()))
    }
}

impl Store for Listing {
    fn id(&self) -> StoreId {
        self.id
    }
    fn timestamp(&self) -> Timestamp {
        self.time
    }
    fn replayed(&self) -> Option<&str> {
        self.replayed.as_deref()
    }
    fn accept_state(&mut self) -> Result<()> {
        Ok(())
    }
    fn free_counter(&self) -> Option<u64> {
        self.counter
    }
    fn start_above(&self, _: u64) {}
    fn object_count(&mut self) -> Result<u64> {
        Ok(0)
    }
    fn encryption(&self) -> Encryption {
        Encryption::STANDARD
    }
    fn archives(&self) -> &[ArchiveInfo] {
        &self.archives
    }
    fn archive(&mut self, info: &ArchiveInfo) -> Result<Archive> {
        let pieces = self.items[&info.id].as_ref().map_or(1, Vec::len);
        Ok(Archive {
            info: info.clone(),
            time: info.time,
            authenticated: true,
            item_ids: (0..pieces).map(|piece| ChunkId([piece as u8; 32])).collect(),
        })
    }
    fn items(&mut self, archive: &Archive) -> Items<'_> {
        match &self.items[&archive.info.id] {
            Ok(pieces) => {
                let pieces = pieces.iter().take(archive.item_ids.len());
                Box::new(pieces.flatten().cloned().map(Ok))
            }
            Err(kind) => Box::new(std::iter::once(Err(StoreError::new(*kind, "it is damaged")))),
        }
    }
    fn fetch<'a>(&'a mut self, chunks: Box<dyn Iterator<Item = ChunkRef> + 'a>) -> Fetch<'a> {
        Box::new(chunks.map(|chunk| (chunk, Ok(Object::new(self.data[&chunk.id].clone())))))
    }
    fn opener(&self) -> Opener {
        Opener::new(Plain)
    }
    fn requests(&self) -> u64 {
        0
    }
    fn spare(&self) -> Spare {
        Spare::default()
    }
    fn list_ids(&mut self) -> Ids<'_> {
        Box::new(std::iter::empty())
    }
    fn canceller(&self) -> Canceller {
        unimplemented!()
    }
    fn begin(self: Box<Self>, _: ArchiveOptions) -> Result<Box<dyn Transaction>> {
        unimplemented!()
    }
    fn probe_append_only(self: Box<Self>) -> Result<bool> {
        unimplemented!()
    }
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Opens what is not encrypted.
struct Plain;

impl Open for Plain {
    fn ids(&self, _: &[&[u8]]) -> Vec<ChunkId> {
        unimplemented!()
    }
    fn zero_id(&self, _: usize) -> ChunkId {
        unimplemented!()
    }
    fn open(&self, objects: Vec<(ChunkRef, Object)>) -> Vec<Result<Content>> {
        let open = |(_, object): (ChunkRef, Object)| object.into_inner::<Vec<u8>>().map(Content::from);
        objects.into_iter().map(open).collect()
    }
}

/// What was said: notes have no doubt.
#[derive(Default)]
pub struct Heard {
    said: Mutex<Vec<(Option<Doubt>, String)>>,
    cancel: Cancel,
}

impl Heard {
    /// Grounds with no keys and no witness.
    pub fn grounds<'a>(&'a self, records: &'a Path) -> Grounds<'a> {
        Grounds {
            signing: None,
            witness: None,
            records,
            log: self,
            cancel: &self.cancel,
        }
    }

    /// What was said since the last call.
    pub fn take(&self) -> Vec<(Option<Doubt>, String)> {
        std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the warnings were about since the last call.
    pub fn doubts(&self) -> Vec<Doubt> {
        self.take().into_iter().filter_map(|(doubt, _)| doubt).collect()
    }
}

impl Log for Heard {
    fn warn(&self, doubt: Doubt, text: String) {
        self.said.lock().unwrap().push((Some(doubt), text));
    }
    fn note(&self, text: String) {
        self.said.lock().unwrap().push((None, text));
    }
}
