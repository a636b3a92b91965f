//! Files on another machine ([`Files`]): as volumes of a storage pool that holds their directory.
//!
//! libvirt gives and takes files only as volumes. The directory with the UEFI variables is in no pool unless you make
//! one; the error says how. A volume that takes a file is a raw one as long as the file: what the file is, is not looked at. All
//! its space is allocated when it is made: libvirtd (11.3) does not survive storage that is full in the middle of an upload.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use strongroom_hypervisor::{Files, HypervisorError};
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;

use crate::connection::{Libvirt, words};
use crate::hypervisor::is;
use crate::tree::Element;
use crate::xml::{child, parse};

/// How much is asked for, or sent, at once, in bytes.
const PIECE: usize = 64 << 10;

impl Files for Libvirt {
    fn fetch(&self, path: &Path, limit: u64) -> Result<Vec<u8>, HypervisorError> {
        let fetched = fetch(&self.connection()?, path, limit);
        fetched.map_err(|message| self.refused("fetch", path, message))
    }

    fn is_there(&self, path: &Path) -> Result<bool, HypervisorError> {
        let found = VolumeName::of(&self.connection()?, path).and_then(|name| name.volume());
        Ok(found
            .map_err(|message| self.refused("look for", path, message))?
            .is_some())
    }

    fn store(
        &self,
        file: &Path,
        to: &Path,
        moved: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), HypervisorError> {
        let connection = self.connection()?;
        let stored = match make(&connection, file, to) {
            Err(message) => Err(message),
            Ok(mut new) => new.fill(&connection, moved).map_err(|message| {
                // Its beginning is of no use. The connection may have been lost, and is opened again.
                match self.discard(to) {
                    Ok(()) => message,
                    Err(error) => format!("{message}; failed to {error}"),
                }
            }),
        };
        stored.map_err(|message| self.refused("write", to, message))
    }

    fn discard(&self, path: &Path) -> Result<(), HypervisorError> {
        let discarded = VolumeName::of(&self.connection()?, path).and_then(|name| match name.volume()? {
            None => Ok(()),
            Some(volume) => volume.delete(0).map_err(|error| words(&error)),
        });
        discarded.map_err(|message| self.refused("remove", path, message))
    }
}

impl Libvirt {
    fn refused(&self, what: &str, path: &Path, message: String) -> HypervisorError {
        HypervisorError::Failed {
            what: format!("{what} {} on {}", path.display(), self.uri),
            message,
        }
    }
}

/// A name in a storage pool.
struct VolumeName<'a> {
    pool: StoragePool,
    name: &'a str,
}

impl<'a> VolumeName<'a> {
    /// The pool is looked through: it knows the files that were there when that was last done.
    fn of(connection: &Connect, path: &'a Path) -> Result<Self, String> {
        let name = path.file_name().and_then(|name| name.to_str());
        let directory = path.parent().and_then(Path::to_str);
        let (Some(name), Some(directory)) = (name, directory) else {
            return Err("the path is no file's, or not in UTF-8".into());
        };
        let pool = connection
            .lookup_storage_pool_by_target_path(directory)
            .map_err(|error| no_pool(&error, path))?;
        pool.refresh(0).map_err(|error| words(&error))?;
        Ok(Self { pool, name })
    }

    fn volume(&self) -> Result<Option<StorageVol>, String> {
        match self.pool.lookup_storage_vol_by_name(self.name) {
            Err(error) if is(&error, ErrorNumber::NoStorageVolume) => Ok(None),
            found => found.map(Some).map_err(|error| words(&error)),
        }
    }
}

fn no_pool(error: &Error, path: &Path) -> String {
    let directory = path.parent().unwrap_or(path).display();
    format!(
        "{}; its directory has to be a storage pool there: `virsh pool-create-as strongroom-files dir --target {directory}`",
        words(error)
    )
}

/// A volume that is there, and the file that it is to hold.
struct New<'a> {
    file: File,
    length: u64,
    name: VolumeName<'a>,
    volume: StorageVol,
}

/// libvirt makes it only if neither the pool nor the directory has that name.
fn make<'a>(connection: &Connect, file: &Path, to: &'a Path) -> Result<New<'a>, String> {
    let file = File::open(file).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let name = VolumeName::of(connection, to)?;
    let volume = StorageVol::create_xml(&name.pool, &describe(name.name, length)?, 0)
        .map_err(|error| words(&error))?;
    Ok(New {
        file,
        length,
        name,
        volume,
    })
}

impl New<'_> {
    /// Copies the file, and makes sure that what came of it is as long.
    fn fill(&mut self, connection: &Connect, moved: &mut dyn FnMut(u64) -> bool) -> Result<(), String> {
        let stream = Stream::new(connection, 0).map_err(|error| words(&error))?;
        self.volume
            .upload(&stream, 0, self.length, 0)
            .map_err(|error| words(&error))?;
        match send(&stream, &mut self.file, moved) {
            // Only this tells of what could not be written.
            Ok(()) => stream.finish().map_err(|error| words(&error))?,
            Err(message) => {
                let _ = stream.abort();
                return Err(message);
            }
        }
        self.name.pool.refresh(0).map_err(|error| words(&error))?;
        let volume = self.name.volume()?.ok_or("it is gone")?;
        let xml = volume.xml_desc(0).map_err(|error| words(&error))?;
        let document = parse(&xml, "volume")?;
        let physical = child(document.root_element(), "physical").and_then(|physical| physical.text());
        match physical.and_then(|text| text.parse::<u64>().ok()) {
            Some(there) if there == self.length => Ok(()),
            there => Err(format!("{} bytes were sent, {there:?} are there", self.length)),
        }
    }
}

fn describe(name: &str, length: u64) -> Result<String, String> {
    let bytes = |element: &'static str, count: u64| {
        Element::new(element)
            .with("unit", "bytes")
            .with_text(&count.to_string())
    };
    let target = Element::new("target")
        .with_child(Element::new("format").with("type", "raw"))
        .with_child(Element::new("permissions").with_child(Element::new("mode").with_text("0600")));
    Element::new("volume")
        .with_child(Element::new("name").with_text(name))
        .with_child(bytes("capacity", length))
        .with_child(bytes("allocation", length))
        .with_child(target)
        .to_xml()
}

fn send(stream: &Stream, file: &mut File, moved: &mut dyn FnMut(u64) -> bool) -> Result<(), String> {
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read(&mut piece).map_err(|error| error.to_string())?;
        let mut rest = piece.get(..count).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        if !moved(count as u64) {
            return Err("it was interrupted".into());
        }
        while !rest.is_empty() {
            let sent = stream.send(rest).map_err(|error| words(&error))?;
            let sent = usize::try_from(sent).map_err(|_| "the stream would block")?;
            rest = rest.get(sent..).unwrap_or_default();
        }
    }
}

/// Reads a file. It is an error if it has more than `limit` bytes.
fn fetch(connection: &Connect, path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let name = path.to_str().ok_or("the path is not in UTF-8")?;
    let volume = match connection.lookup_storage_vol_by_path(name) {
        Err(error) if is(&error, ErrorNumber::NoStorageVolume) => {
            refresh(connection, path);
            connection.lookup_storage_vol_by_path(name)
        }
        found => found,
    };
    let volume = volume.map_err(|error| no_pool(&error, path))?;
    let failed = |error| words(&error);
    let stream = Stream::new(connection, 0).map_err(failed)?;
    volume.download(&stream, 0, 0, 0).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = match stream.recv(&mut piece) {
            Ok(count) => usize::try_from(count).map_err(|_| "the stream would block".to_owned())?,
            Err(error) => return Err(words(&error)),
        };
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
        if bytes.len() as u64 > limit {
            // Dropping a stream that is not at its end ends it.
            let _ = stream.abort();
            return Err(format!("it is larger than such a file can be ({limit} bytes)"));
        }
    }
    stream.finish().map_err(failed)?;
    Ok(bytes)
}

/// A pool knows the files that were there when it was last looked through. Best effort: it may not be ours to ask for.
fn refresh(connection: &Connect, path: &Path) {
    let Some(directory) = path.parent().and_then(Path::to_str) else {
        return;
    };
    if let Ok(pool) = connection.lookup_storage_pool_by_target_path(directory) {
        let _ = pool.refresh(0);
    }
}
