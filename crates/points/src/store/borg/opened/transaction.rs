//! Writing.

use std::collections::HashSet;

use strongroom_borg as client;

use super::Opened;
use crate::store::borg::convert::{archive_back, chunk, chunk_back, id, id_back, item_back, options};
use crate::store::work::Seal;
use crate::store::{
    Archive, ArchiveOptions, Canceller, ChunkId, ChunkRef, Item, Result, Sealed, Sealer, Store, StoreId,
    Summary, Transaction,
};

/// A transaction under way.
pub struct Writing(pub client::ArchiveWriter);

impl Transaction for Writing {
    fn repository_id(&self) -> StoreId {
        StoreId(self.0.repository_id().0)
    }

    fn sealer(&self) -> Sealer {
        Sealer::new(self.0.sealer())
    }

    fn canceller(&self) -> Canceller {
        Canceller::new(self.0.canceller())
    }

    fn data_stored(&self) -> u64 {
        self.0.data_stored()
    }

    fn reserve(&mut self, bytes: u64, chunks: u64) -> Result<()> {
        Ok(self.0.reserve(bytes, chunks)?)
    }

    fn adopt(&mut self, chunks: &mut dyn Iterator<Item = ChunkRef>) {
        self.0.adopt(chunks.map(chunk_back));
    }

    fn adopt_metadata(&mut self, archive: &Archive) {
        self.0.adopt_metadata(&archive_back(archive));
    }

    fn lacks(&mut self, ids: &HashSet<ChunkId>) {
        self.0.lacks(&ids.iter().copied().map(id_back).collect());
    }

    fn put(&mut self, sealed: Sealed) -> Result<(ChunkRef, Vec<u8>)> {
        let sealed = sealed.into_inner::<client::Sealed>()?;
        let stored = self.0.put(&sealed)?;
        Ok((chunk(stored), sealed.into_buffer()))
    }

    fn put_data(&mut self, data: &[u8]) -> Result<ChunkRef> {
        Ok(chunk(self.0.put_data(data)?))
    }

    fn zero_chunk(&mut self, length: u32) -> Result<ChunkRef> {
        Ok(chunk(self.0.zero_chunk(length)?))
    }

    fn add_item(&mut self, item: &Item) -> Result<()> {
        Ok(self.0.add_item(&item_back(item))?)
    }

    fn add_archive(&mut self, of: ArchiveOptions, items: &[Item]) -> Result<()> {
        let items: Vec<client::Item> = items.iter().map(item_back).collect();
        Ok(self.0.add_archive(options(&of), &items)?)
    }

    fn commit(self: Box<Self>) -> Result<(Box<dyn Store>, Summary)> {
        let (repository, summary) = self.0.commit()?;
        let summary = Summary {
            data_stored: summary.data_stored,
            metadata_stored: summary.metadata_stored,
        };
        Ok((Box::new(Opened::new(repository)), summary))
    }
}

impl Seal for client::Sealer {
    fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId> {
        client::Sealer::ids(self, data).into_iter().map(id).collect()
    }

    fn zero_id(&self, length: usize) -> ChunkId {
        id(client::Sealer::zero_id(self, length))
    }

    fn known(&self, wanted: &ChunkId) -> Option<ChunkRef> {
        client::Sealer::known(self, &id_back(*wanted)).map(chunk)
    }

    fn seal(&self, buffers: Vec<(ChunkId, Vec<u8>)>) -> Result<Vec<Sealed>> {
        let buffers = buffers
            .into_iter()
            .map(|(id, buffer)| (id_back(id), buffer))
            .collect();
        let sealed = self.seal_buffers(buffers)?;
        Ok(sealed.into_iter().map(Sealed::new).collect())
    }
}
