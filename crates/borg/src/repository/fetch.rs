//! Iterators that read from a repository, with requests running ahead.

use std::collections::VecDeque;

use crate::chunk::MAX_OBJECT_SIZE;
use crate::crypto::Keys;
use crate::item_stream::ItemParser;
use crate::msgpack::Value;
use crate::rpc::{Object, Rpc};
use crate::{ChunkId, ChunkRef, Error, Item, Repository, Result};

/// Requests in flight. Together they fit into a pipe, so that writing them never waits for the server.
const MAX_REQUESTS: usize = 256;

/// Bytes of objects in flight, as far as their sizes are known.
const MAX_BYTES: usize = 32 << 20;

/// Metadata pieces in flight.
const METADATA_REQUESTS: usize = 64;

/// What a piece of metadata is taken to weigh; most are of 128 KiB or less.
const METADATA_WEIGHT: usize = MAX_BYTES / METADATA_REQUESTS;

/// Objects in the order they were asked for, as stored.
///
/// An object that is missing or cannot be read is an error of that object, and the iterator goes on. After the loss of
/// the connection it ends. Open the objects with [`crate::Opener::open`], in other threads if there is much to do.
pub struct Fetch<'r, I> {
    rpc: &'r mut Rpc,
    chunks: I,
    requested: VecDeque<(ChunkRef, usize)>,
    bytes: usize,
    lost: Option<Error>,
    ended: bool,
}

impl<'r, I: Iterator<Item = ChunkRef>> Fetch<'r, I> {
    pub(crate) fn new(rpc: &'r mut Rpc, chunks: I) -> Self {
        Self {
            rpc,
            chunks,
            requested: VecDeque::new(),
            bytes: 0,
            lost: None,
            ended: false,
        }
    }

    fn request_ahead(&mut self) {
        while self.lost.is_none() && self.requested.len() < MAX_REQUESTS && self.bytes < MAX_BYTES {
            let Some(chunk) = self.chunks.next() else { return };
            let weight = (chunk.size.max(chunk.csize) as usize).clamp(1024, MAX_OBJECT_SIZE);
            self.requested.push_back((chunk, weight));
            self.bytes += weight;
            self.lost = self.rpc.send_get(&chunk.id).err();
        }
    }
}

impl<I: Iterator<Item = ChunkRef>> Iterator for Fetch<'_, I> {
    type Item = (ChunkRef, Result<Object>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        self.request_ahead();
        let (chunk, weight) = self.requested.pop_front()?;
        self.bytes -= weight;
        let result = match self.lost.take() {
            Some(error) => Err(error),
            None => self.rpc.receive_object(),
        };
        self.ended = result.as_ref().is_err_and(Error::is_connection_lost);
        Some((chunk, result))
    }
}

impl<I> Drop for Fetch<'_, I> {
    fn drop(&mut self) {
        self.rpc.discard_pending();
    }
}

/// The items of an archive. After an error it ends.
pub struct Items<'r> {
    fetch: Fetch<'r, std::vec::IntoIter<ChunkRef>>,
    keys: std::sync::Arc<Keys>,
    parser: ItemParser,
    ended: bool,
}

impl<'r> Items<'r> {
    pub(crate) fn new(repository: &'r mut Repository, ids: Vec<ChunkId>) -> Self {
        let weigh = |id| ChunkRef {
            id,
            size: METADATA_WEIGHT as u32,
            csize: 0,
        };
        let pieces: Vec<ChunkRef> = ids.into_iter().map(weigh).collect();
        let keys = std::sync::Arc::clone(&repository.keys);
        Self {
            fetch: repository.fetch(pieces),
            keys,
            parser: ItemParser::default(),
            ended: false,
        }
    }

    fn advance(&mut self) -> Result<Option<Item>> {
        loop {
            if let Some(item) = self.parser.next_item() {
                return Ok(Some(item));
            }
            let damaged = |reason| Error::damaged("archive", reason);
            match self.fetch.next() {
                Some((piece, object)) => {
                    let data = self.keys.open(&piece.id, &object?, 0)?;
                    self.parser
                        .feed(&data)
                        .map_err(|reason| Error::damaged(piece.id, reason))?;
                }
                None if self.ended => return Ok(None),
                None => {
                    self.ended = true;
                    self.parser.finish().map_err(damaged)?;
                }
            }
        }
    }
}

impl Iterator for Items<'_> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.fetch.ended {
            return None;
        }
        let result = self.advance().transpose();
        self.fetch.ended |= matches!(result, Some(Err(_)));
        result
    }
}

/// The ids of all objects of a repository. After an error it ends.
pub struct Ids<'r> {
    rpc: &'r mut Rpc,
    page: VecDeque<ChunkId>,
    last: Option<ChunkId>,
    ended: bool,
}

/// Ids asked for at once: a reply of 340 KB.
const PAGE: u64 = 10_000;

impl<'r> Ids<'r> {
    pub(crate) fn new(rpc: &'r mut Rpc) -> Self {
        Self {
            rpc,
            page: VecDeque::new(),
            last: None,
            ended: false,
        }
    }

    fn load(&mut self) -> Result<()> {
        let marker = self.last.map_or(Value::Nil, |id| Value::from(id.0.as_slice()));
        let reply = self
            .rpc
            .call("list", &[("limit", PAGE.into()), ("marker", marker)])?;
        let ids = reply
            .as_array()
            .unwrap_or_default()
            .iter()
            .map(|id| id.as_raw().and_then(ChunkId::from_slice));
        self.page = ids
            .collect::<Option<_>>()
            .ok_or_else(|| Error::Protocol("an id not of 32 bytes".to_owned()))?;
        let next = self.page.back().copied();
        if next.is_some() && next == self.last {
            return Err(Error::Protocol("a list that does not go on".to_owned()));
        }
        self.ended = next.is_none();
        self.last = next;
        Ok(())
    }
}

impl Iterator for Ids<'_> {
    type Item = Result<ChunkId>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty()
            && !self.ended
            && let Err(error) = self.load()
        {
            self.ended = true;
            return Some(Err(error));
        }
        self.page.pop_front().map(Ok)
    }
}
