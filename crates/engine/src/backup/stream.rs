//! One disk's way into the repository: read, hash, seal, put.
//!
//! ```text
//!  reader thread ──pieces─► workers (one a core) ──sealed chunks──► this thread ──► RPC
//!  few NBD requests         zero test, id, known?, compress,         puts in any order,
//!  in flight                encrypt in place                         fills the list
//!        ▲                                                                  │
//!        └───────────────────────────── buffers, to be used again ──────────┘
//! ```
//!
//! Both queues are short, so memory does not grow with the disk; only the list of chunks does. A piece stays in the buffer
//! that libnbd fills until the repository has it. A part that fails closes its end of a queue, and the others stop.

use std::ops::ControlFlow;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use strongroom_base::workers::{Batches, join, workers_wanted};
use strongroom_disk::Extent;
use strongroom_nbd::{Client, Sparse};
use strongroom_points::digest;
use strongroom_points::store::{ArchiveWriter, ChunkRef, Sealed, Sealer, Spare};

use super::BackupError;
use super::chunking::{self, Piece};
use super::throttle::Throttler;
use crate::run::context::Context;
use crate::run::event::Kind;

/// Pieces that wait for a worker, and sealed chunks that wait for the repository.
const QUEUE: usize = 4;

/// A disk's chunks, and what they cost.
#[derive(Debug)]
pub struct Streamed {
    /// The whole disk, in order.
    pub chunks: Vec<ChunkRef>,
    /// Bytes read from the hypervisor.
    pub read: u64,
    /// Bytes that the repository had to store.
    pub stored: u64,
}

/// A piece that has been read: its place in the list, and its bytes behind the room for the envelope.
type Filled = (usize, Vec<u8>);

/// What a worker found a piece to be.
enum Outcome {
    Zero(u32),
    Known(ChunkRef),
    New(Sealed),
}

/// Brings a disk's pieces into the repository.
pub fn stream(
    context: &Context<'_>,
    target: &str,
    source: &mut Client,
    pieces: &[Piece],
    writer: &mut ArchiveWriter,
    throttler: &Throttler,
) -> Result<Streamed, BackupError> {
    let read = chunking::bytes_to_read(pieces);
    context.report(Kind::DiskStarted { target, bytes: read });
    // What is sealed are whole pieces, holes inside them included.
    let (sealed, count) = chunking::bytes_to_seal(pieces);
    writer.reserve(sealed, count)?;

    let mut chunks: Vec<Option<ChunkRef>> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        chunks.push(match piece {
            Piece::Reuse(chunk) => Some(*chunk),
            Piece::Read { extent, data } if data.is_empty() => {
                Some(writer.zero_chunk(chunk_length(*extent))?)
            }
            Piece::Read { .. } => None,
        });
    }
    let spare = Spare::default();
    let stored = thread::scope(|scope| {
        let spare = &spare;
        let (to_workers, filled) = bounded::<Filled>(QUEUE);
        let (to_writer, outcomes) = bounded::<(usize, Outcome)>(QUEUE);
        let reader =
            scope.spawn(move || read_pieces(context, target, source, pieces, &to_workers, spare, throttler));
        let filled = Batches::of(filled);
        let mut workers = Vec::new();
        for _ in 0..workers_wanted() {
            let (sealer, filled, to_writer) = (writer.sealer(), filled.clone(), to_writer.clone());
            workers.push(scope.spawn(move || seal_pieces(&sealer, filled, &to_writer, spare)));
        }
        drop((filled, to_writer));

        let stored = store(context, target, pieces, writer, &mut chunks, outcomes, spare);
        // The first cause counts: a reader that failed, then a worker, then what followed from those.
        join(reader)?;
        workers.into_iter().try_for_each(join)?;
        stored
    })?;
    let chunks: Option<Vec<ChunkRef>> = chunks.into_iter().collect();
    let Some(chunks) = chunks else {
        return Err(BackupError::Incomplete {
            disk: target.to_owned(),
        });
    };
    context.report(Kind::DiskRead { target, read, stored });
    Ok(Streamed { chunks, read, stored })
}

/// Puts what the workers deliver, and fills the list. Returns the bytes stored.
fn store(
    context: &Context<'_>,
    target: &str,
    pieces: &[Piece],
    writer: &mut ArchiveWriter,
    chunks: &mut [Option<ChunkRef>],
    outcomes: Receiver<(usize, Outcome)>,
    spare: &Spare,
) -> Result<u64, BackupError> {
    let mut stored = 0;
    for (place, outcome) in outcomes {
        context.cancel.check()?;
        let chunk = match outcome {
            Outcome::Zero(length) => writer.zero_chunk(length)?,
            Outcome::Known(chunk) => chunk,
            Outcome::New(sealed) => {
                let (chunk, buffer) = writer.put(sealed)?;
                spare.give(buffer);
                stored += u64::from(chunk.stored);
                chunk
            }
        };
        if let Some(slot) = chunks.get_mut(place) {
            *slot = Some(chunk);
        }
        if let Some(Piece::Read { data, .. }) = pieces.get(place) {
            let bytes = data.iter().map(|part| part.length()).sum();
            context.report(Kind::DiskProgress { target, bytes });
        }
    }
    Ok(stored)
}

/// The reader thread: reads the allocated parts of pieces, puts each piece together, hands it on.
fn read_pieces(
    context: &Context<'_>,
    target: &str,
    source: &mut Client,
    pieces: &[Piece],
    filled: &Sender<Filled>,
    spare: &Spare,
    throttler: &Throttler,
) -> Result<(), BackupError> {
    // A piece without data is not read, and its place is not asked for.
    let mut places = Vec::new();
    let mut requests = Vec::new();
    for (place, piece) in pieces.iter().enumerate() {
        if let Piece::Read { extent, data } = piece
            && !data.is_empty()
        {
            places.push((extent.offset(), place));
            requests.push((extent, data));
        }
    }
    let requests = requests.into_iter().map(|(extent, data)| Sparse {
        extent: *extent,
        parts: data.clone(),
    });
    let options = throttler.options(context);
    // Pieces are complete in any order.
    let each = |offset, bytes| {
        let place = places.binary_search_by_key(&offset, |(start, _)| *start);
        let place = place.ok().and_then(|at| places.get(at));
        match place.map(|(_, place)| filled.send((*place, bytes))) {
            Some(Ok(())) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    };
    let end = source.read_sparse(
        requests,
        &options,
        |length| spare.take(length),
        Sealer::HEADROOM,
        each,
    );
    match end {
        Ok(_) => Ok(()),
        Err(strongroom_nbd::Error::Cancelled) => Err(context.cancel.why().into()),
        Err(source) => Err(BackupError::Read {
            disk: target.to_owned(),
            source,
        }),
    }
}

/// A worker thread: says of each piece what it is, and seals what the repository does not have.
fn seal_pieces(
    sealer: &Sealer,
    filled: Batches<Filled>,
    outcomes: &Sender<(usize, Outcome)>,
    spare: &Spare,
) -> Result<(), BackupError> {
    for batch in filled {
        let (zero, data): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|(_, buffer)| digest::is_zero(content(buffer)));
        for (place, buffer) in zero {
            let outcome = Outcome::Zero(content(&buffer).len() as u32);
            spare.give(buffer);
            if outcomes.send((place, outcome)).is_err() {
                return Ok(());
            }
        }
        let ids = sealer.ids(&data.iter().map(|(_, buffer)| content(buffer)).collect::<Vec<_>>());
        let (mut places, mut new) = (Vec::new(), Vec::new());
        for (id, (place, buffer)) in ids.into_iter().zip(data) {
            let Some(chunk) = sealer.known(&id) else {
                places.push(place);
                new.push((id, buffer));
                continue;
            };
            spare.give(buffer);
            if outcomes.send((place, Outcome::Known(chunk))).is_err() {
                return Ok(());
            }
        }
        for (place, sealed) in places.into_iter().zip(sealer.seal_buffers(new)?) {
            if outcomes.send((place, Outcome::New(sealed))).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A piece's bytes in its buffer.
fn content(buffer: &[u8]) -> &[u8] {
    buffer.get(Sealer::HEADROOM..).unwrap_or_default()
}

fn chunk_length(extent: Extent) -> u32 {
    // A piece is never longer than the grid.
    u32::try_from(extent.length()).unwrap_or(u32::MAX)
}
