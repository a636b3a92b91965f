//! Every byte: each chunk is fetched once, decrypted, and its id computed again, by all cores while the next ones arrive.

use std::collections::BTreeMap;
use std::thread;

use crossbeam_channel::bounded;
use strongroom_base::workers::{Batches, join, workers_wanted};
use strongroom_points::store::{ChunkId, ChunkRef, Object, Opener, Repository, Spare};

use super::Surroundings;
use crate::run::event::Kind;

/// Objects that wait for a worker.
const QUEUE: usize = 4;

/// Returns the damaged chunks, each with the reason. An error means that the connection is lost.
pub fn read(
    here: &Surroundings<'_>,
    repository: &mut Repository,
    vm: &str,
    chunks: &[ChunkRef],
) -> Result<BTreeMap<ChunkId, String>, strongroom_points::store::StoreError> {
    let bytes = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    here.report(Kind::DiskStarted { target: vm, bytes });
    let (opener, spare) = (repository.opener(), &repository.spare());
    let mut damaged = BTreeMap::new();
    thread::scope(|scope| {
        let (to_workers, objects) = bounded::<(ChunkRef, Object)>(QUEUE);
        let objects = Batches::of(objects);
        let mut workers = Vec::new();
        for _ in 0..workers_wanted() {
            let (opener, objects) = (opener.clone(), objects.clone());
            workers.push(scope.spawn(move || open(here, vm, &opener, objects, spare)));
        }
        drop(objects);
        let mut lost = None;
        for (chunk, object) in repository.fetch(chunks.iter().copied()) {
            match object {
                Ok(object) => {
                    if to_workers.send((chunk, object)).is_err() {
                        break;
                    }
                }
                Err(error) if error.is_connection_lost() => lost = Some(error),
                Err(error) => {
                    damaged.insert(chunk.id, error.to_string());
                }
            }
            if here.cancel.is_cancelled() {
                break;
            }
        }
        drop(to_workers);
        for worker in workers {
            damaged.extend(join(worker));
        }
        lost.map_or(Ok(()), Err)
    })?;
    let verified = chunks
        .iter()
        .filter(|chunk| !damaged.contains_key(&chunk.id))
        .map(|chunk| u64::from(chunk.size))
        .sum();
    here.report(Kind::Verified {
        target: vm,
        bytes: verified,
    });
    Ok(damaged)
}

/// A worker thread.
fn open(
    here: &Surroundings<'_>,
    vm: &str,
    opener: &Opener,
    objects: Batches<(ChunkRef, Object)>,
    spare: &Spare,
) -> Vec<(ChunkId, String)> {
    let mut damaged = Vec::new();
    for batch in objects {
        let chunks: Vec<ChunkRef> = batch.iter().map(|(chunk, _)| *chunk).collect();
        for (chunk, opened) in chunks.into_iter().zip(opener.open_all(batch)) {
            match opened {
                Ok(content) => spare.give(content.into_parts().0),
                Err(error) => damaged.push((chunk.id, error.to_string())),
            }
            let bytes = u64::from(chunk.size);
            here.report(Kind::DiskProgress { target: vm, bytes });
        }
    }
    damaged
}
