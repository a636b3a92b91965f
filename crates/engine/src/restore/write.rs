//! Writing one disk: fetch, verify, write, beside the place where it will be.

use std::collections::{HashMap, HashSet};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use strongroom_base::workers::{Batches, join, workers_wanted};
use strongroom_disk::Extent;
use strongroom_nbd::{Client, Format, Options, QemuNbd, Serve, Sparse};
use strongroom_points::digest;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::{ChunkId, ChunkRef, Content, Object, Opener, Repository, Spare};

pub use super::error::WriteError;
use super::header::{Found, Placed};
use super::sink::Sink;
use super::staging::Staging;
use super::{DiskContent, DiskTarget, ImageFormat, RestoredDisk};
use crate::files::staged::StagedFile;
use crate::run::context::Context;
use crate::run::event::Kind;

/// Chunks that wait for a worker, and for the disk.
const QUEUE: usize = 4;

/// What a qcow2 image allocates at least, in bytes.
const CLUSTER: usize = 64 << 10;

/// Writes a disk.
pub fn disk(
    context: &Context<'_>,
    repository: &mut Repository,
    point: &RestorePoint,
    disk: &DiskTarget,
    headers: &[Found],
    staging: &Staging<'_>,
) -> Result<StagedFile, WriteError> {
    let file_error = |source| WriteError::File {
        path: disk.path.clone(),
        source,
    };
    let mut staged = staging.stage(&disk.path).map_err(file_error)?;
    let bytes_written = match disk.format {
        ImageFormat::Raw => {
            let mut file = staged.file().try_clone().map_err(file_error)?;
            file.set_len(disk.size).map_err(file_error)?;
            let written = fill(context, repository, point, disk, headers, &mut file)?;
            file.sync_all().map_err(file_error)?;
            written
        }
        ImageFormat::Qcow2 => {
            let image_error = |source| WriteError::Image {
                path: disk.path.clone(),
                source,
            };
            // QEMU's tools get the file itself, whatever has its name by now.
            strongroom_nbd::format_qcow2(staged.file(), &disk.path, disk.size)?;
            let serve = Serve {
                opened: Some(strongroom_nbd::through(staged.file())),
                ..Serve::writable(Format::Qcow2)
            };
            let server = QemuNbd::start(&disk.path, &serve)?;
            let mut image = Client::connect(&server.target(), &Options::default()).map_err(image_error)?;
            let written = fill(context, repository, point, disk, headers, &mut image)?;
            image.flush().map_err(image_error)?;
            drop(image);
            server.stop()?;
            staged.file().sync_all().map_err(file_error)?;
            written
        }
    };
    staged.disk = Some(RestoredDisk {
        target: disk.target.clone(),
        path: disk.path.clone(),
        size: disk.size,
        bytes_written,
        fresh: matches!(disk.content, DiskContent::Swap(_)),
    });
    Ok(staged)
}

/// Writes all that belongs onto a new, empty image. Returns the bytes written.
fn fill(
    context: &Context<'_>,
    repository: &mut Repository,
    point: &RestorePoint,
    disk: &DiskTarget,
    headers: &[Found],
    image: &mut impl Sink,
) -> Result<u64, WriteError> {
    match &disk.content {
        DiskContent::Archived => {
            let written = archived(context, repository, point, disk, image)?;
            let headers: Vec<Placed> = headers.iter().flat_map(Found::placed).collect();
            Ok(written + transfer(context, repository, &headers, image, disk)?)
        }
        DiskContent::Swap(layout) => {
            let mut writes = Vec::new();
            for write in layout.write(disk.size)? {
                let extent =
                    Extent::new(write.offset, write.bytes.len() as u64).map_err(|_| WriteError::List)?;
                writes.push((extent.into(), write.bytes, 0));
            }
            let written = writes.iter().map(|(_, bytes, _)| bytes.len() as u64).sum();
            image.take(context, &disk.path, writes.into_iter(), &repository.spare())?;
            Ok(written)
        }
    }
}

/// The chunks of a disk, which have to be those that the manifest describes, and where they lie.
pub(super) fn placed(point: &RestorePoint, disk: &DiskTarget) -> Result<Vec<Placed>, WriteError> {
    let chunks = point.chunks(&disk.target).ok_or(WriteError::List)?;
    let record = point.manifest.disk(&disk.target).ok_or(WriteError::List)?;
    laid_out(chunks, disk.size, &record.digest)
}

/// Where chunks lie that together have to be a disk of this size, and to have this digest.
fn laid_out(chunks: &[ChunkRef], size: u64, digest: &str) -> Result<Vec<Placed>, WriteError> {
    let total: u64 = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    if total != size || digest::of_chunks(chunks) != digest {
        return Err(WriteError::List);
    }
    let mut offset = 0;
    let place = |chunk: &ChunkRef| {
        let here = (offset, *chunk);
        offset += u64::from(chunk.size);
        here
    };
    Ok(chunks.iter().map(place).collect())
}

/// Writes the archived content of a disk onto a new, empty image. Returns the bytes written.
fn archived(
    context: &Context<'_>,
    repository: &mut Repository,
    point: &RestorePoint,
    disk: &DiskTarget,
    image: &mut impl Sink,
) -> Result<u64, WriteError> {
    let placed = placed(point, disk)?;
    let zero = repeated_zeros(repository, &placed)?;
    let wanted: Vec<Placed> = placed
        .into_iter()
        .filter(|(_, chunk)| !zero.contains(&chunk.id))
        .collect();
    let bytes = wanted.iter().map(|(_, chunk)| u64::from(chunk.size)).sum();
    context.report(Kind::DiskStarted {
        target: &disk.target,
        bytes,
    });

    let written = transfer(context, repository, &wanted, image, disk)?;
    context.report(Kind::DiskWritten {
        target: &disk.target,
        read: bytes,
        written,
    });
    Ok(written)
}

/// Fetches chunks, opens them, and writes what is not zero of them. Returns the bytes written.
pub(super) fn transfer(
    context: &Context<'_>,
    repository: &mut Repository,
    wanted: &[Placed],
    image: &mut impl Sink,
    disk: &DiskTarget,
) -> Result<u64, WriteError> {
    let (opener, spare) = (repository.opener(), &repository.spare());
    thread::scope(|scope| {
        let (to_workers, objects) = bounded::<(Placed, Object)>(QUEUE);
        let (to_image, data) = bounded::<(u64, Content)>(QUEUE);
        let objects = Batches::of(objects);
        let mut workers = Vec::new();
        for _ in 0..workers_wanted() {
            let (opener, objects, to_image) = (opener.clone(), objects.clone(), to_image.clone());
            workers.push(scope.spawn(move || open_chunks(&opener, objects, &to_image)));
        }
        drop((objects, to_image));
        let writer = scope.spawn(move || write_chunks(context, disk, image, &data, spare));

        let fetched = fetch(context, repository, wanted, &to_workers);
        drop(to_workers);
        // The first cause counts: damage found by a worker, then the image, then what followed from those.
        workers.into_iter().try_for_each(join)?;
        let written = join(writer)?;
        fetched?;
        Ok(written)
    })
}

/// Ids that stand more than once in the list and turn out to be nothing but zeroes: holes, which are not fetched
/// again for each of their places.
fn repeated_zeros(repository: &mut Repository, placed: &[Placed]) -> Result<HashSet<ChunkId>, WriteError> {
    let mut count: HashMap<ChunkId, (usize, Placed)> = HashMap::new();
    for &(offset, chunk) in placed {
        count.entry(chunk.id).or_insert((0, (offset, chunk))).0 += 1;
    }
    let repeated: Vec<Placed> = count
        .into_values()
        .filter(|(times, _)| *times > 1)
        .map(|(_, first)| first)
        .collect();
    let opener = repository.opener();
    let mut zero = HashSet::new();
    let mut places = repeated.iter();
    for (chunk, object) in repository.fetch(repeated.iter().map(|(_, chunk)| *chunk)) {
        let offset = places.next().map_or(0, |(offset, _)| *offset);
        let damaged = |source| WriteError::Damaged {
            offset,
            length: u64::from(chunk.size),
            source,
        };
        let bytes = opener.open(&chunk, object.map_err(damaged)?).map_err(damaged)?;
        if digest::is_zero(&bytes) {
            zero.insert(chunk.id);
        }
    }
    Ok(zero)
}

/// Asks the repository for all chunks, in order, and hands them to the workers.
fn fetch(
    context: &Context<'_>,
    repository: &mut Repository,
    wanted: &[Placed],
    to_workers: &Sender<(Placed, Object)>,
) -> Result<(), WriteError> {
    let mut places = wanted.iter();
    for (chunk, object) in repository.fetch(wanted.iter().map(|(_, chunk)| *chunk)) {
        let offset = places.next().map_or(0, |(offset, _)| *offset);
        let object = object.map_err(|source| WriteError::Damaged {
            offset,
            length: u64::from(chunk.size),
            source,
        })?;
        context.cancel.check()?;
        if to_workers.send(((offset, chunk), object)).is_err() {
            break;
        }
    }
    Ok(())
}

/// A worker thread: verifies and decrypts.
fn open_chunks(
    opener: &Opener,
    objects: Batches<(Placed, Object)>,
    to_image: &Sender<(u64, Content)>,
) -> Result<(), WriteError> {
    for batch in objects {
        let places: Vec<Placed> = batch.iter().map(|(place, _)| *place).collect();
        let objects = batch.into_iter().map(|((_, chunk), object)| (chunk, object));
        let opened = opener.open_all(objects.collect());
        for ((offset, chunk), content) in places.into_iter().zip(opened) {
            let content = content.map_err(|source| WriteError::Damaged {
                offset,
                length: u64::from(chunk.size),
                source,
            })?;
            if to_image.send((offset, content)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The image's thread: writes what is not zero, so that holes stay holes. Returns the bytes written.
fn write_chunks(
    context: &Context<'_>,
    disk: &DiskTarget,
    image: &mut impl Sink,
    data: &Receiver<(u64, Content)>,
    spare: &Spare,
) -> Result<u64, WriteError> {
    let mut written = 0;
    let writes = data.iter().filter_map(|(offset, content)| {
        context.report(Kind::DiskProgress {
            target: &disk.target,
            bytes: content.len() as u64,
        });
        // The list adds up to the disk's size: no offset in it overflows.
        let extent = Extent::new(offset, content.len() as u64).ok()?;
        let parts: Vec<Extent> = data_runs(&content)
            .into_iter()
            .filter_map(|run| Extent::new(offset + run.start as u64, run.len() as u64).ok())
            .collect();
        written += parts.iter().map(|part| part.length()).sum::<u64>();
        let (bytes, place) = content.into_parts();
        Some((Sparse { extent, parts }, bytes, place.start))
    });
    image.take(context, &disk.path, writes, spare)?;
    Ok(written)
}

/// The parts of a chunk that hold data, in whole clusters: runs of blocks that are not all zero.
fn data_runs(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (number, block) in bytes.chunks(CLUSTER).enumerate() {
        if digest::is_zero(block) {
            continue;
        }
        let start = number * CLUSTER;
        match runs.last_mut() {
            Some(run) if run.end == start => run.end = start + block.len(),
            _ => runs.push(start..start + block.len()),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list that is not the one that the manifest describes is not restored, whatever it differs in.
    #[test]
    fn a_list_is_the_one_that_the_manifest_describes() {
        let chunk = |id: u8, size: u32| ChunkRef {
            id: ChunkId([id; 32]),
            size,
            stored: 0,
        };
        let list = [chunk(1, 4096), chunk(2, 512), chunk(1, 4096)];
        let digest = digest::of_chunks(&list);
        let offsets = |list: &[ChunkRef], size| -> Option<Vec<u64>> {
            let placed = laid_out(list, size, &digest).ok()?;
            Some(placed.iter().map(|(offset, _)| *offset).collect())
        };
        assert_eq!(offsets(&list, 8704), Some(vec![0, 4096, 4608]));
        assert_eq!(offsets(&list, 8192), None, "the disk's size is another one");
        for other in [
            [chunk(1, 4096), chunk(3, 512), chunk(1, 4096)],
            [chunk(2, 512), chunk(1, 4096), chunk(1, 4096)],
            [chunk(1, 4096), chunk(2, 4096), chunk(1, 512)],
        ] {
            assert_eq!(offsets(&other, 8704), None);
        }
        assert_eq!(offsets(&list[..2], 4608), None);
    }

    #[test]
    fn only_clusters_with_data_are_written() {
        let mut bytes = vec![0; 5 * CLUSTER + 10];
        assert!(data_runs(&bytes).is_empty());
        bytes[CLUSTER] = 1;
        bytes[2 * CLUSTER + 5] = 1;
        bytes[5 * CLUSTER + 9] = 1;
        assert_eq!(
            data_runs(&bytes),
            [CLUSTER..3 * CLUSTER, 5 * CLUSTER..5 * CLUSTER + 10]
        );
    }
}
