//! For tests: a repository that knows no more than what it lists, and a log that is kept.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use strongroom_base::cancel::Cancel;

use crate::store::{
    Archive, ArchiveInfo, ArchiveOptions, Canceller, ChunkRef, Encryption, Fetch, Ids, Item, Items, Opener,
    Repository, Result, Spare, Store, StoreId, Transaction,
};
use crate::trust::grounds::{Doubt, Grounds, Log};

/// What a repository says of itself. It has no content.
#[derive(Clone)]
pub struct Listing {
    pub id: StoreId,
    pub time: Timestamp,
    pub replayed: Option<String>,
    pub counter: Option<u64>,
    pub archives: Vec<ArchiveInfo>,
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
        }
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
    fn archive(&mut self, _: &ArchiveInfo) -> Result<Archive> {
        unimplemented!()
    }
    fn items(&mut self, _: &Archive) -> Items<'_> {
        Box::new(std::iter::empty::<Result<Item>>())
    }
    fn fetch<'a>(&'a mut self, _: Box<dyn Iterator<Item = ChunkRef> + 'a>) -> Fetch<'a> {
        Box::new(std::iter::empty())
    }
    fn opener(&self) -> Opener {
        unimplemented!()
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
