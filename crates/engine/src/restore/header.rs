//! Which headers a restored disk gets: for each of its LUKS volumes the newest one that opens its data, from an archive
//! that is trusted and whose pieces are whole. So a passphrase that was revoked before the newest header was stored opens
//! nothing that is restored.

use std::collections::BTreeMap;

use strongroom_borg::{ArchiveInfo, ChunkRef, Repository};

use super::write::Placed;
use super::{Request, RestoreError};
use crate::context::Context;
use crate::headers::{self, Headers};
use crate::history::Point;
use crate::manifest::LuksRecord;

/// A header area that goes onto a disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it goes, in bytes.
    pub offset: u64,
    /// Its pieces, in order; each has been read once and is whole.
    pub chunks: Vec<ChunkRef>,
}

impl Found {
    /// Its pieces at their places.
    pub fn placed(&self) -> impl Iterator<Item = Placed> {
        let mut offset = self.offset;
        self.chunks.iter().map(move |chunk| {
            let here = (offset, *chunk);
            offset += u64::from(chunk.size);
            here
        })
    }
}

/// The search for headers. Archives of headers are read as they are needed, the newest first.
pub struct Search<'a> {
    context: &'a Context<'a>,
    request: &'a Request,
    point: &'a Point,
    unread: Vec<ArchiveInfo>,
    read: Vec<Headers>,
    found: BTreeMap<String, Vec<Found>>,
    missing: Vec<String>,
}

impl<'a> Search<'a> {
    /// For the disks of a restore point.
    pub fn new(
        context: &'a Context<'a>,
        repository: &mut Repository,
        request: &'a Request,
        point: &'a Point,
    ) -> Result<Self, RestoreError> {
        let mut unread = headers::archives(repository);
        if request.own_headers {
            let own = point.manifest.headers.as_ref().map(|own| own.archive.clone());
            unread.retain(|info| info.name.as_str() == own.as_deref());
        }
        // The newest comes last, to be taken off first.
        unread.reverse();
        Ok(Self {
            context,
            request,
            point,
            unread,
            read: Vec::new(),
            found: BTreeMap::new(),
            missing: Vec::new(),
        })
    }

    /// What has been found for a disk.
    pub fn of(&self, disk: &str) -> &[Found] {
        self.found.get(disk).map_or(&[], Vec::as_slice)
    }

    /// What has not been found, with `keep_going`.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Finds the headers of a disk. One that is not there is an error: the data could never be opened.
    pub fn find(&mut self, repository: &mut Repository, disk: &str) -> Result<(), RestoreError> {
        let point = self.point;
        let volumes = point.manifest.disk(disk).into_iter().flat_map(|disk| &disk.luks);
        for luks in volumes.filter(|luks| luks.header.is_some()) {
            if let Some(found) = self.newest(repository, luks)? {
                self.found.entry(disk.to_owned()).or_default().push(found);
                continue;
            }
            let error = RestoreError::NoHeader {
                disk: disk.to_owned(),
                uuid: luks.uuid.clone(),
                reason: format!(
                    "none of the {} archives of headers that are trusted has a whole one that fits",
                    self.read.len()
                ),
            };
            if !self.request.keep_going {
                return Err(error);
            }
            self.missing.push(error.to_string());
        }
        Ok(())
    }

    fn newest(
        &mut self,
        repository: &mut Repository,
        luks: &LuksRecord,
    ) -> Result<Option<Found>, RestoreError> {
        let mut at = 0;
        loop {
            while self.read.get(at).is_none() {
                let Some(info) = self.unread.pop() else {
                    return Ok(None);
                };
                self.context.cancel.check()?;
                self.read.extend(self.trusted(repository, &info)?);
            }
            if let Some(headers) = self.read.get(at)
                && let Some(found) = self.whole(repository, headers, luks)?
            {
                return Ok(Some(found));
            }
            at += 1;
        }
    }

    /// The area in an archive, if it fits and can be read. What cannot is passed over, with a warning.
    fn whole(
        &self,
        repository: &mut Repository,
        headers: &Headers,
        luks: &LuksRecord,
    ) -> Result<Option<Found>, RestoreError> {
        let Some(area) = headers.fitting(luks) else {
            return Ok(None);
        };
        let passed_over = |why: &str| {
            self.context.warn(format!(
                "{} is passed over: {}: {why}",
                headers.name(),
                area.path()
            ));
        };
        let Some(chunks) = headers.chunks(area) else {
            passed_over("it is not what its statement describes");
            return Ok(None);
        };
        match repository.read_chunks(chunks.iter().copied(), |_, _| Ok(())) {
            Ok(()) => {}
            Err(error) if error.is_connection_lost() => return Err(error.into()),
            Err(error) => {
                passed_over(&error.to_string());
                return Ok(None);
            }
        }
        self.context.note(format!(
            "LUKS volume {}: its header is the one of {} ({})",
            luks.uuid,
            headers.statement.captured,
            headers.name()
        ));
        Ok(Some(Found {
            offset: luks.offset,
            chunks: chunks.to_vec(),
        }))
    }

    /// An archive of headers, if it is what it says and somebody trusted has signed it, by the same rules as the restore
    /// point. One that is not cannot be in the way of an older one, and is never used.
    fn trusted(
        &self,
        repository: &mut Repository,
        info: &ArchiveInfo,
    ) -> Result<Option<Headers>, RestoreError> {
        let read = Headers::read(repository, info);
        let checked = match read {
            Ok(headers) => {
                let signing = self.context.config.signing.as_ref();
                let signing = signing.filter(|_| !self.request.unsigned);
                let (home, vm) = (repository.id().to_string(), &self.point.manifest.vm.name);
                let trusted = headers.trusted(signing, &home, vm, self.context.cancel);
                self.context.cancel.check()?;
                trusted.map(|()| headers)
            }
            Err(error) if error.concerns_one_archive() => Err(format!("failed to {error}")),
            Err(error) => return Err(error.into()),
        };
        match checked {
            Ok(headers) => Ok(Some(headers)),
            Err(why) => {
                self.context.warn(format!("{} is passed over: {why}", info.name));
                Ok(None)
            }
        }
    }
}
