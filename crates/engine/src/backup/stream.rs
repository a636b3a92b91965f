//! One disk's way into the repository: read, hash, seal, put.
//!
//! ```text
//!  reader thread ──cells──► workers (one a core) ──sealed chunks──► this thread ──► RPC
//!  few NBD requests         zero test, id, known?, compress,         puts in any order,
//!  in flight                encrypt                                  fills the list
//! ```
//!
//! Both queues are short, so memory does not grow with the disk; only the list of chunks does. Whoever fails closes
//! its end of a queue, and the others stop.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use strongroom_borg::{ArchiveWriter, ChunkId, ChunkRef, Sealed, Sealer};
use strongroom_disk::Extent;
use strongroom_nbd::{Client, ReadOptions};

use super::BackupError;
use super::cells::{self, Cell};
use crate::cancel::Cancelled;
use crate::context::Context;
use crate::digest;
use crate::event::Event;

/// Cells that wait for a worker, and sealed chunks that wait for the repository.
const QUEUE: usize = 4;
/// How many cells a worker takes at once: BLAKE2b hashes four at the cost of two.
const BATCH: usize = 4;

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

/// A cell that has been read: its place in the list, and its bytes.
type Filled = (usize, Vec<u8>);

/// What a worker found a cell to be.
enum Outcome {
    Zero(u32),
    Known(ChunkRef),
    New(Sealed),
}

/// Brings a disk's cells into the repository. `gentle` is off for disks that no guest uses.
pub fn stream(
    context: &Context<'_>,
    target: &str,
    source: &mut Client,
    cells: &[Cell],
    writer: &mut ArchiveWriter,
    gentle: bool,
) -> Result<Streamed, BackupError> {
    let read = cells::bytes_to_read(cells);
    context.report(&Event::DiskStarted { target, bytes: read });
    // What is sealed are whole cells, holes inside them included.
    let (sealed, count) = cells::bytes_to_seal(cells);
    writer.reserve(sealed, count)?;

    let mut chunks: Vec<Option<ChunkRef>> = Vec::with_capacity(cells.len());
    for cell in cells {
        chunks.push(match cell {
            Cell::Keep(chunk) => Some(*chunk),
            Cell::Read { extent, data } if data.is_empty() => Some(writer.zero_chunk(chunk_length(*extent))?),
            Cell::Read { .. } => None,
        });
    }
    let stored = thread::scope(|scope| {
        let (to_workers, filled) = bounded::<Filled>(QUEUE);
        let (to_writer, outcomes) = bounded::<(usize, Outcome)>(QUEUE);
        let reader = scope.spawn(move || read_cells(context, target, source, cells, &to_workers, gentle));
        let mut workers = Vec::new();
        for _ in 0..thread::available_parallelism().map_or(2, usize::from).min(4) {
            let (sealer, filled, to_writer) = (writer.sealer(), filled.clone(), to_writer.clone());
            workers.push(scope.spawn(move || seal_cells(&sealer, &filled, &to_writer)));
        }
        drop((filled, to_writer));

        let stored = store(context, target, cells, writer, &mut chunks, outcomes);
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
    context.report(&Event::DiskDone { target, read, stored });
    Ok(Streamed { chunks, read, stored })
}

/// Puts what the workers deliver, and fills the list. Gives the bytes stored.
fn store(
    context: &Context<'_>,
    target: &str,
    cells: &[Cell],
    writer: &mut ArchiveWriter,
    chunks: &mut [Option<ChunkRef>],
    outcomes: Receiver<(usize, Outcome)>,
) -> Result<u64, BackupError> {
    let mut stored = 0;
    for (place, outcome) in outcomes {
        context.cancel.check()?;
        let chunk = match outcome {
            Outcome::Zero(length) => writer.zero_chunk(length)?,
            Outcome::Known(chunk) => chunk,
            Outcome::New(sealed) => {
                let chunk = writer.put(sealed)?;
                stored += u64::from(chunk.csize);
                chunk
            }
        };
        if let Some(slot) = chunks.get_mut(place) {
            *slot = Some(chunk);
        }
        if let Some(Cell::Read { data, .. }) = cells.get(place) {
            let bytes = data.iter().map(|part| part.length()).sum();
            context.report(&Event::DiskProgress { target, bytes });
        }
    }
    Ok(stored)
}

/// The reader thread: reads the allocated parts of cells, puts each cell together, hands it on.
fn read_cells(
    context: &Context<'_>,
    target: &str,
    source: &mut Client,
    cells: &[Cell],
    filled: &Sender<Filled>,
    gentle: bool,
) -> Result<(), BackupError> {
    let to_read = || {
        cells.iter().enumerate().filter_map(|(place, cell)| match cell {
            Cell::Read { extent, data } if !data.is_empty() => Some((place, *extent, data)),
            _ => None,
        })
    };
    // Requests complete in any order; a cell is handed on when its last part is there.
    let places: Vec<(u64, usize)> = to_read()
        .map(|(place, extent, _)| (extent.offset(), place))
        .collect();
    let mut open: HashMap<usize, (Vec<u8>, usize)> = HashMap::new();
    let parts = to_read().flat_map(|(_, _, data)| data.iter().copied());
    let options = read_options(context, gentle);
    let end = source.read_pipelined(parts, &options, |offset, bytes| {
        let at = places.partition_point(|(start, _)| *start <= offset);
        let Some(&(start, place)) = at.checked_sub(1).and_then(|at| places.get(at)) else {
            return ControlFlow::Break(());
        };
        let Some(Cell::Read { extent, data }) = cells.get(place) else {
            return ControlFlow::Break(());
        };
        let whole = if data.len() == 1 && bytes.len() as u64 == extent.length() {
            bytes
        } else {
            let (buffer, missing) = open
                .entry(place)
                .or_insert_with(|| (vec![0; extent.length() as usize], data.len()));
            let inside = (offset - start) as usize;
            let Some(part) = buffer.get_mut(inside..inside + bytes.len()) else {
                return ControlFlow::Break(());
            };
            part.copy_from_slice(&bytes);
            *missing -= 1;
            if *missing > 0 {
                return ControlFlow::Continue(());
            }
            open.remove(&place).map(|(buffer, _)| buffer).unwrap_or_default()
        };
        match filled.send((place, whole)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    match end {
        Ok(_) => Ok(()),
        Err(strongroom_nbd::Error::Cancelled) => Err(Cancelled.into()),
        Err(source) => Err(BackupError::Read {
            disk: target.to_owned(),
            source,
        }),
    }
}

/// How hard to read.
pub fn read_options<'a>(context: &'a Context<'_>, gentle: bool) -> ReadOptions<'a> {
    let reader = context.config.reader;
    ReadOptions {
        depth: if gentle {
            reader.depth
        } else {
            reader.depth.max(16)
        },
        bytes_per_second: if gentle {
            NonZeroU64::new(reader.limit_mib << 20)
        } else {
            None
        },
        cancel: Some(context.cancel.flag()),
        ..ReadOptions::default()
    }
}

/// A worker thread: says of each cell what it is, and seals what the repository does not have.
fn seal_cells(
    sealer: &Sealer,
    filled: &Receiver<Filled>,
    outcomes: &Sender<(usize, Outcome)>,
) -> Result<(), BackupError> {
    while let Ok(first) = filled.recv() {
        let mut batch = vec![first];
        batch.extend(filled.try_iter().take(BATCH - 1));
        let (zero, data): (Vec<_>, Vec<_>) = batch.into_iter().partition(|(_, bytes)| digest::is_zero(bytes));
        for (place, bytes) in zero {
            if outcomes.send((place, Outcome::Zero(bytes.len() as u32))).is_err() {
                return Ok(());
            }
        }
        let ids = sealer.ids(&data.iter().map(|(_, bytes)| bytes.as_slice()).collect::<Vec<_>>());
        let mut new: Vec<(usize, (ChunkId, &[u8]))> = Vec::new();
        for (&id, (place, bytes)) in ids.iter().zip(&data) {
            match sealer.known(&id) {
                Some(chunk) if outcomes.send((*place, Outcome::Known(chunk))).is_err() => return Ok(()),
                Some(_) => {}
                None => new.push((*place, (id, bytes))),
            }
        }
        let (places, contents): (Vec<usize>, Vec<(ChunkId, &[u8])>) = new.into_iter().unzip();
        for (place, sealed) in places.into_iter().zip(sealer.seal_all(&contents)?) {
            if outcomes.send((place, Outcome::New(sealed))).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn chunk_length(extent: Extent) -> u32 {
    // A cell is never longer than the grid.
    u32::try_from(extent.length()).unwrap_or(u32::MAX)
}

/// The thread's result; a panic goes on in this thread.
fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
