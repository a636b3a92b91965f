//! Bringing an existing image to the state of a restore point by writing only what differs.
//!
//! 1. **Compare.** The image is read where it lies, and each chunk's id compared with the archive's list. Where LUKS headers
//!    belong, the archive has holes: these parts count as zeroes, and are compared with the headers by themselves.
//! 2. **Collect.** Chunks that differ are fetched, verified, and written to an overlay beside the image, `.strongroom-NAME.diff`.
//!    Whatever fails up to here, a damaged chunk or a lost connection, the image has not been touched.
//! 3. **Merge.** The image steps aside, to `.strongroom-NAME.merging`, so that no VM can be started on it; the overlay is merged
//!    into it; it comes back.
//!
//! Killed in step 3, the image is missing from its place, and nothing of what it needs is lost: the same command goes on with
//! the merge, which can be done again as often as wanted, and then starts over with the comparison.
//!
//! A VM that runs on the image is refused; so is one that was started, or an image that was written to, between steps 1 and 3.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use crossbeam_channel::bounded;
use strongroom_base::workers::{Batches, join, workers_wanted};
use strongroom_disk::{Extent, ExtentMap, Kind, RangeSet};
use strongroom_nbd::{Client, Format, Options, QemuNbd, Serve, Sparse, Zeroing, through};
use strongroom_points::manifest::DiskRecord;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::{ChunkId, Opener, Repository, Spare};
use uuid::Uuid;

use super::error::WriteError;
use super::header::{Found, Placed};
use super::plan::PlanError;
use super::write;
use super::{DiskContent, DiskTarget, ImageFormat, Request, RestoreError, RestoredDisk};
use crate::files::directory::{Directory, Identity};
use crate::files::room::{self, Need};
use crate::files::stamp::stamp;
use crate::files::{Inventory, Own};
use crate::run::context::Context;
use crate::run::event;
use crate::run::reading::unhindered;

/// Chunks that wait for a worker.
const QUEUE: usize = 4;

/// The image, and what is beside it meanwhile. Names are of one directory, which was opened once; files are reached by their
/// descriptors.
struct Files {
    path: PathBuf,
    directory: Directory,
    image: OsString,
    /// Where the image is while it is merged into.
    aside: OsString,
    /// The overlay.
    difference: OsString,
}

impl Files {
    fn of(image: &Path) -> io::Result<Self> {
        let name = image.file_name().unwrap_or_default();
        let beside = |what: &str| {
            let mut beside = OsString::from(".strongroom-");
            beside.push(name);
            beside.push(what);
            beside
        };
        Ok(Self {
            path: image.to_owned(),
            directory: Directory::open(image.parent().unwrap_or(Path::new("/")))?,
            image: name.to_owned(),
            aside: beside(".merging"),
            difference: beside(".diff"),
        })
    }

    fn error(&self) -> impl Fn(io::Error) -> WriteError + '_ {
        |source| WriteError::File {
            path: self.path.clone(),
            source,
        }
    }

    fn unmerged(&self, reason: &dyn std::fmt::Display) -> WriteError {
        WriteError::Merge {
            path: self.path.clone(),
            aside: self.path.with_file_name(&self.aside),
            reason: reason.to_string(),
        }
    }

    /// Opens the image and keeps a second restore away, until the file is closed or its process has ended.
    fn open(&self, name: &OsStr) -> io::Result<File> {
        let file = self.directory.open_file(name, true)?;
        file.try_lock()
            .map_err(|error| io::Error::other(format!("another restore works on it: {error}")))?;
        Ok(file)
    }

    /// Brings what an interrupted merge left to its end. True if there was something.
    fn finish(&self, format: Format) -> Result<bool, WriteError> {
        let Some(aside) = self.directory.find(&self.aside).map_err(self.error())? else {
            return Ok(false);
        };
        if let Some(image) = self.directory.find(&self.image).map_err(self.error())? {
            // Two names of one file are what a death between taking the one and giving up the other leaves; a merge that is
            // not over has the image under the other name alone.
            if image != aside {
                return Err(self.unmerged(&"another file has taken its place"));
            }
            self.directory.remove(&self.image).map_err(self.error())?;
        }
        let image = self.open(&self.aside).map_err(|error| self.unmerged(&error))?;
        self.merge(&image, format).map(|()| true)
    }

    /// Merges the overlay into the image, which stands aside, and brings the image back.
    fn merge(&self, image: &File, format: Format) -> Result<(), WriteError> {
        let merged = || -> Result<(), String> {
            let text = |error: io::Error| error.to_string();
            if self.directory.find(&self.difference).map_err(text)?.is_some() {
                let difference = self.directory.open_file(&self.difference, true).map_err(text)?;
                let found = difference.metadata().map_err(text)?;
                // What is merged into your image comes from us: in a directory of others it could be anything.
                if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
                    let name = self.path.with_file_name(&self.difference);
                    return Err(format!("{} can be written by others", name.display()));
                }
                strongroom_nbd::apply_overlay(&through(&difference), &through(image), format)
                    .map_err(|error| error.to_string())?;
                image.sync_all().map_err(text)?;
            }
            self.directory.take(&self.aside, &self.image).map_err(text)?;
            self.directory.sync().map_err(text)
        };
        merged().map_err(|reason| self.unmerged(&reason))?;
        self.drop_difference().map_err(self.error())
    }

    fn drop_difference(&self) -> io::Result<()> {
        self.directory.remove(&self.difference)?;
        self.directory.sync()
    }
}

/// The domain whose disk an image is: name and UUID.
pub type Owner = (String, Uuid);

/// Where the content goes, and whose disk it is.
pub fn target(
    context: &Context<'_>,
    request: &Request,
    point: &RestorePoint,
    image: &Path,
) -> Result<(DiskTarget, Option<Owner>), RestoreError> {
    let [target] = request.disks.as_slice() else {
        return Err(PlanError::OneDisk.into());
    };
    if !context.hypervisor.is_local() {
        return Err(PlanError::Remote(context.hypervisor.uri().to_owned()).into());
    }
    let record = point.manifest.disk(target).ok_or_else(|| PlanError::NoSuchDisk {
        target: target.clone(),
        archive: point.name(),
        has: point
            .manifest
            .disks
            .iter()
            .map(|disk| disk.target.clone())
            .collect(),
    })?;
    let path = std::path::absolute(image).map_err(|source| PlanError::Path {
        path: image.to_owned(),
        source,
    })?;
    let inventory = Inventory::take(context.hypervisor)?;
    let owner = inventory
        .owner(&path, &request.point.vm)
        .map_err(PlanError::InUse)?;
    // As defined, never probed.
    let defined = owner.and_then(|held| held.format.as_deref());
    let format = match defined {
        Some("qcow2") => ImageFormat::Qcow2,
        Some("raw") => ImageFormat::Raw,
        Some(_) => return Err(PlanError::NotAFile(path).into()),
        None => request.format,
    };
    let disk = DiskTarget {
        target: target.clone(),
        path,
        format,
        size: record.size,
        content: DiskContent::Archived,
    };
    Ok((disk, owner.map(|held| (held.domain.clone(), held.uuid))))
}

/// Brings the image to the state of the restore point.
pub fn disk(
    context: &Context<'_>,
    repository: &mut Repository,
    point: &RestorePoint,
    disk: &DiskTarget,
    headers: &[Found],
    owner: Option<&Owner>,
    floor: u64,
) -> Result<RestoredDisk, RestoreError> {
    // No backup of the same VM may begin meanwhile.
    let mut state = match owner {
        Some((name, uuid)) => Some(context.state.lock(name, *uuid).map_err(PlanError::State)?),
        None => None,
    };
    if let (Some(state), Some((name, _))) = (&state, owner)
        && state.records().run.is_some()
    {
        return Err(PlanError::Interrupted(name.clone()).into());
    }
    let failed = |source| RestoreError::Disk {
        disk: disk.target.clone(),
        source,
    };
    let files = Files::of(&disk.path).map_err(|source| {
        failed(WriteError::File {
            path: disk.path.clone(),
            source,
        })
    })?;
    let format = match disk.format {
        ImageFormat::Qcow2 => Format::Qcow2,
        ImageFormat::Raw => Format::Raw,
    };
    let own = owner.map_or_else(Own::none, |(name, uuid)| Own::of(name, *uuid));
    let free =
        || -> Result<(), PlanError> { Ok(Inventory::take(context.hypervisor)?.check(&disk.path, &own)?) };
    free()?;
    if files.finish(format).map_err(failed)? {
        context.note(format!(
            "{}: an interrupted merge has been brought to its end",
            disk.path.display()
        ));
    }
    let image = files
        .open(&files.image)
        .map_err(|error| failed(files.error()(error)))?;
    files
        .drop_difference()
        .map_err(|error| failed(files.error()(error)))?;

    let before = stamp(&through(&image));
    let differing = compare(context, repository, point, disk, headers, format, &image).map_err(failed)?;
    let bytes_written = differing.bytes();
    if bytes_written > 0 {
        // Once beside the image, and once in it.
        let needs = [Need {
            path: disk.path.clone(),
            bytes: room::with_tables(bytes_written.saturating_mul(2), disk.size),
        }];
        room::check(&needs, floor)?;
        let connection = repository.canceller();
        let (collected, shortage) = room::watched(
            context,
            &needs,
            floor,
            || connection.cancel(),
            |context| collect(context, repository, disk, &files, format, &differing, &image),
        );
        if let Some(shortage) = shortage {
            let _ = files.drop_difference();
            return Err(RestoreError::GaveWay(shortage));
        }
        if let Err(error) = collected {
            // The image is as it was; so is the directory.
            let _ = files.drop_difference();
            return Err(failed(error));
        }
        free()?;
        let here = files
            .directory
            .find(&files.image)
            .map_err(|error| failed(files.error()(error)))?;
        if stamp(&through(&image)) != before || here != Identity::of(&image).ok() {
            let _ = files.drop_difference();
            return Err(failed(WriteError::Changed(files.path)));
        }
        // What the checkpoints say is not about the disk as it will be: the next backup reads all of it.
        if let Some(state) = &mut state {
            state.retire().map_err(PlanError::State)?;
        }
        files
            .directory
            .take(&files.image, &files.aside)
            .and_then(|()| files.directory.sync())
            .map_err(|error| failed(files.error()(error)))?;
        files.merge(&image, format).map_err(failed)?;
    }
    Ok(RestoredDisk {
        target: disk.target.clone(),
        path: disk.path.clone(),
        size: disk.size,
        bytes_written,
        fresh: false,
    })
}

/// What the image does not hold at its place.
struct Differences {
    /// Of the archive's chunks.
    chunks: Vec<Placed>,
    /// Of the headers' pieces, together with those that the chunks overwrite.
    headers: Vec<Placed>,
}

impl Differences {
    fn bytes(&self) -> u64 {
        let both = self.chunks.iter().chain(&self.headers);
        both.map(|(_, chunk)| u64::from(chunk.size)).sum()
    }
}

/// Finds out what differs.
fn compare(
    context: &Context<'_>,
    repository: &Repository,
    point: &RestorePoint,
    disk: &DiskTarget,
    headers: &[Found],
    format: Format,
    file: &File,
) -> Result<Differences, WriteError> {
    let image_error = |source| WriteError::Image {
        path: disk.path.clone(),
        source,
    };
    let chunks = write::placed(point, disk)?;
    let pieces: Vec<Placed> = headers.iter().flat_map(Found::placed).collect();
    let serve = Serve {
        opened: Some(through(file)),
        ..Serve::read_only(format)
    };
    let server = QemuNbd::start(&disk.path, &serve)?;
    let mut image = Client::connect(&server.target(), &Options::default()).map_err(image_error)?;
    if image.size() != disk.size {
        return Err(WriteError::Size {
            path: disk.path.clone(),
            has: image.size(),
            wanted: disk.size,
        });
    }
    let allocation = image.allocation().map_err(image_error)?;
    let opener = repository.opener();
    let record = point.manifest.disk(&disk.target);
    let excised: RangeSet = record.into_iter().flat_map(DiskRecord::areas).collect();
    let mut of_chunks = Look::at(&chunks, &allocation.with_holes(&excised), &opener)?;
    let mut of_pieces = Look::at(&pieces, &allocation, &opener)?;
    context.report(event::Kind::DiskStarted {
        target: &disk.target,
        bytes: of_chunks.bytes() + of_pieces.bytes(),
    });
    let mut read = |look: &mut Look, placed| {
        let requests = std::mem::take(&mut look.requests);
        let found = read_and_hash(context, &mut image, &opener, placed, requests, &disk.target);
        look.differing.extend(found.map_err(image_error)?);
        look.differing.sort_unstable();
        Ok::<(), WriteError>(())
    };
    read(&mut of_chunks, &chunks)?;
    read(&mut of_pieces, &pieces)?;

    let chunks = of_chunks.differing_of(&chunks);
    let mut wrong = RangeSet::new();
    for placed in chunks.iter().chain(&of_pieces.differing_of(&pieces)) {
        wrong.insert(extent(placed)?);
    }
    let mut headers = Vec::new();
    for piece in pieces {
        if wrong.overlaps(extent(&piece)?) {
            headers.push(piece);
        }
    }
    Ok(Differences { chunks, headers })
}

/// What can be told of chunks before anything is read, and what has to be read to tell the rest.
struct Look {
    /// Numbers of those that differ.
    differing: Vec<usize>,
    /// Those with data at their places, by number.
    requests: Vec<(usize, Sparse)>,
}

impl Look {
    fn at(placed: &[Placed], allocation: &ExtentMap, opener: &Opener) -> Result<Self, WriteError> {
        let mut zeroes = HashMap::new();
        let (mut differing, mut requests) = (Vec::new(), Vec::new());
        for (number, here) in placed.iter().enumerate() {
            let extent = extent(here)?;
            let data = allocation.within(extent).filter(|(_, kind)| *kind == Kind::Data);
            let parts: Vec<Extent> = data.map(|(part, _)| part).collect();
            let (_, chunk) = here;
            if !parts.is_empty() {
                requests.push((number, Sparse { extent, parts }));
            } else if chunk.id != zero_id(&mut zeroes, opener, chunk.size) {
                differing.push(number);
            }
        }
        Ok(Self { differing, requests })
    }

    /// How much there is to read.
    fn bytes(&self) -> u64 {
        self.requests.iter().map(|(_, whole)| whole.extent.length()).sum()
    }

    fn differing_of(&self, placed: &[Placed]) -> Vec<Placed> {
        let numbers = self.differing.iter();
        numbers
            .filter_map(|number| placed.get(*number).copied())
            .collect()
    }
}

fn extent((offset, chunk): &Placed) -> Result<Extent, WriteError> {
    Extent::new(*offset, chunk.size.into()).map_err(|_| WriteError::List)
}

fn zero_id(known: &mut HashMap<u32, ChunkId>, opener: &Opener, length: u32) -> ChunkId {
    *known
        .entry(length)
        .or_insert_with(|| opener.zero_id(length as usize))
}

/// Reads chunks of the image, and gives the numbers of those with another id than in the list.
fn read_and_hash(
    context: &Context<'_>,
    image: &mut Client,
    opener: &Opener,
    placed: &[Placed],
    requests: Vec<(usize, Sparse)>,
    target: &str,
) -> Result<Vec<usize>, strongroom_nbd::Error> {
    let spare = &Spare::default();
    thread::scope(|scope| {
        let (to_workers, read) = bounded::<(usize, Vec<u8>)>(QUEUE);
        let read = Batches::of(read);
        let mut workers = Vec::new();
        for _ in 0..workers_wanted() {
            let read = read.clone();
            workers.push(scope.spawn(move || {
                let mut differing = Vec::new();
                for batch in read {
                    let ids = opener.ids(
                        &batch
                            .iter()
                            .map(|(_, bytes)| bytes.as_slice())
                            .collect::<Vec<_>>(),
                    );
                    for (id, (number, bytes)) in ids.into_iter().zip(batch) {
                        if placed.get(number).is_none_or(|(_, chunk)| chunk.id != id) {
                            differing.push(number);
                        }
                        let length = bytes.len() as u64;
                        context.report(event::Kind::DiskProgress {
                            target,
                            bytes: length,
                        });
                        spare.give(bytes);
                    }
                }
                differing
            }));
        }
        drop(read);
        let numbers: Vec<(u64, usize)> = requests
            .iter()
            .map(|(number, whole)| (whole.extent.offset(), *number))
            .collect();
        let end = image.read_sparse(
            requests.into_iter().map(|(_, whole)| whole),
            &unhindered(context.cancel),
            |length| spare.take(length),
            0,
            |offset, bytes| {
                let found = numbers.binary_search_by_key(&offset, |(start, _)| *start);
                let number = found.ok().and_then(|at| numbers.get(at));
                match number.map(|(_, number)| to_workers.send((*number, bytes))) {
                    Some(Ok(())) => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            },
        );
        drop(to_workers);
        let differing = workers.into_iter().flat_map(join).collect();
        end.map(|_| differing)
    })
}

/// Fetches what differs into an overlay on the image, which is only read.
fn collect(
    context: &Context<'_>,
    repository: &mut Repository,
    disk: &DiskTarget,
    files: &Files,
    format: Format,
    differing: &Differences,
    image: &File,
) -> Result<(), WriteError> {
    let path = files.path.with_file_name(&files.difference);
    let image_error = |source| WriteError::Image {
        path: path.clone(),
        source,
    };
    let file = files.directory.create(&files.difference).map_err(files.error())?;
    strongroom_nbd::format_qcow2(&file, &path, disk.size)?;
    let serve = Serve {
        below: Some((through(image), format)),
        opened: Some(through(&file)),
        ..Serve::writable(Format::Qcow2)
    };
    let server = QemuNbd::start(&path, &serve)?;
    let mut overlay = Client::connect(&server.target(), &Options::default()).map_err(image_error)?;
    let target = disk.target.as_str();
    let bytes = differing.bytes();
    context.report(event::Kind::DiskStarted { target, bytes });
    let mut stored = 0;
    // The headers come last: where they belong, the chunks have zeroes.
    for list in [&differing.chunks, &differing.headers] {
        stored += replace(context, repository, disk, list, &mut overlay, image_error)?;
    }
    overlay.flush().map_err(image_error)?;
    drop(overlay);
    server.stop()?;
    file.sync_all()
        .and_then(|()| files.directory.sync())
        .map_err(files.error())?;
    context.report(event::Kind::DiskWritten {
        target,
        read: bytes,
        written: stored,
    });
    Ok(())
}

/// Puts chunks in the place of what is there. Returns the bytes written.
fn replace(
    context: &Context<'_>,
    repository: &mut Repository,
    disk: &DiskTarget,
    list: &[Placed],
    overlay: &mut Client,
    error: impl Fn(strongroom_nbd::Error) -> WriteError,
) -> Result<u64, WriteError> {
    let opener = repository.opener();
    let mut zeroes = HashMap::new();
    let mut wanted = Vec::new();
    for placed in list {
        context.cancel.check()?;
        // What is not written after this is zero.
        overlay.zero(extent(placed)?, Zeroing::MayTrim).map_err(&error)?;
        let (_, chunk) = placed;
        if chunk.id != zero_id(&mut zeroes, &opener, chunk.size) {
            wanted.push(*placed);
        }
    }
    write::transfer(context, repository, &wanted, overlay, disk)
}
