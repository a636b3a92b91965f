//! Reading.

mod transaction;

use jiff::Timestamp;
use strongroom_borg as client;

use self::transaction::Writing;
use super::convert::{self, archive, archive_back, chunk, chunk_back, id, info, item};
use super::settings::Encryption;
use crate::store::work::{Buffers, Cancels, Open};
use crate::store::{
    Archive, ArchiveInfo, ArchiveOptions, Canceller, ChunkId, ChunkRef, Content, Fetch, Ids, Items, Object,
    Opener, Result, Spare, Store, StoreId, Transaction,
};

/// An open repository.
pub struct Opened {
    repository: client::Repository,
    archives: Vec<ArchiveInfo>,
}

impl Opened {
    /// What the client has opened.
    pub fn new(repository: client::Repository) -> Self {
        Self {
            archives: repository.archives().map(info).collect(),
            repository,
        }
    }
}

impl Store for Opened {
    fn id(&self) -> StoreId {
        StoreId(self.repository.id().0)
    }

    fn timestamp(&self) -> Timestamp {
        self.repository.timestamp()
    }

    fn replayed(&self) -> Option<&str> {
        self.repository.replayed()
    }

    fn accept_state(&mut self) -> Result<()> {
        Ok(self.repository.accept_state()?)
    }

    fn free_counter(&self) -> Option<u64> {
        self.repository.free_counter()
    }

    fn start_above(&self, counter: u64) {
        self.repository.start_above(counter);
    }

    fn object_count(&mut self) -> Result<u64> {
        Ok(self.repository.object_count()?)
    }

    fn encryption(&self) -> Encryption {
        Encryption(self.repository.encryption())
    }

    fn archives(&self) -> &[ArchiveInfo] {
        &self.archives
    }

    fn archive(&mut self, wanted: &ArchiveInfo) -> Result<Archive> {
        let found = self.repository.archive_by_info(&convert::info_back(wanted))?;
        Ok(archive(&found))
    }

    fn items(&mut self, of: &Archive) -> Items<'_> {
        let items = self.repository.items(&archive_back(of));
        Box::new(items.map(|found| Ok(item(found?))))
    }

    fn fetch<'a>(&'a mut self, chunks: Box<dyn Iterator<Item = ChunkRef> + 'a>) -> Fetch<'a> {
        let objects = self.repository.fetch(chunks.map(chunk_back));
        Box::new(objects.map(|(of, object)| (chunk(of), object.map(Object::new).map_err(Into::into))))
    }

    fn opener(&self) -> Opener {
        Opener::new(self.repository.opener())
    }

    fn requests(&self) -> u64 {
        self.repository.requests()
    }

    fn spare(&self) -> Spare {
        Spare::new(self.repository.spare())
    }

    fn list_ids(&mut self) -> Ids<'_> {
        Box::new(self.repository.list_ids().map(|found| Ok(id(found?))))
    }

    fn canceller(&self) -> Canceller {
        Canceller::new(self.repository.canceller())
    }

    fn begin(self: Box<Self>, options: ArchiveOptions) -> Result<Box<dyn Transaction>> {
        let writer = self.repository.begin(convert::options(&options))?;
        Ok(Box::new(Writing(writer)))
    }

    fn probe_append_only(self: Box<Self>) -> Result<bool> {
        Ok(self.repository.probe_append_only()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.repository.close()?)
    }
}

impl Open for client::Opener {
    fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId> {
        client::Opener::ids(self, data).into_iter().map(id).collect()
    }

    fn zero_id(&self, length: usize) -> ChunkId {
        id(client::Opener::zero_id(self, length))
    }

    fn open(&self, objects: Vec<(ChunkRef, Object)>) -> Vec<Result<Content>> {
        let mut results = Vec::with_capacity(objects.len());
        let mut ours = Vec::with_capacity(objects.len());
        for (of, object) in objects {
            match object.into_inner::<client::Object>() {
                Ok(object) => {
                    results.push(None);
                    ours.push((chunk_back(of), object));
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        let mut opened = self.open_all(ours).into_iter();
        let mut next = || match opened.next() {
            Some(Ok(content)) => {
                let (bytes, range) = content.into_parts();
                Ok(Content::new(bytes, range))
            }
            Some(Err(error)) => Err(error.into()),
            None => Err(client::Error::Doomed.into()),
        };
        results
            .into_iter()
            .map(|refused| refused.unwrap_or_else(&mut next))
            .collect()
    }
}

impl Buffers for client::Spare {
    fn take(&self, length: usize) -> Vec<u8> {
        client::Spare::take(self, length)
    }

    fn give(&self, buffer: Vec<u8>) {
        client::Spare::give(self, buffer);
    }
}

impl Cancels for client::Canceller {
    fn cancel(&self) {
        client::Canceller::cancel(self);
    }

    fn is_over(&self) -> bool {
        client::Canceller::is_over(self)
    }
}
