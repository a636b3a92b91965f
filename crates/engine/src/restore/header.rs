//! Which headers a restored disk gets: for each of its LUKS volumes the newest one that opens its data, from an archive
//! that is trusted and whose pieces are whole. So a passphrase that was revoked before the newest header was stored opens
//! nothing that is restored. For the same reason the newest archive of headers has to be there, and none is taken that is
//! older than the restore point, unless it is asked for by name.

use std::collections::BTreeMap;

use strongroom_points::headers::{self, Headers};
use strongroom_points::manifest::{HeadersRecord, LuksRecord};
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::{ChunkRef, Repository};
use strongroom_points::trust::order::Order;

use super::{Request, RestoreError};
use crate::run::context::Context;
use crate::run::event::Code;

/// One chunk at its place.
pub type Placed = (u64, ChunkRef);

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

/// The search for headers: by their numbers, the newest first.
pub struct Search<'a> {
    context: &'a Context<'a>,
    request: &'a Request,
    point: &'a RestorePoint,
    chain: &'a Chain<'a>,
    /// Those that may be taken, and have not been looked at: the newest last.
    unread: Vec<Headers>,
    read: Vec<Headers>,
    /// Those that are older than the restore point.
    older: Vec<String>,
    /// Why none may be taken.
    hidden: Option<String>,
    found: BTreeMap<String, Vec<Found>>,
    missing: Vec<String>,
}

/// What the repository has of the VM.
pub struct Chain<'a> {
    /// The newest restore point that is believed and has headers in an archive of their own: its archive, and the digest of
    /// their statement.
    pub newest: Option<HeadersRecord>,
    /// The times of all.
    pub order: &'a Order,
}

/// Which archives of headers a restore may take, by their numbers: those of the restore point and newer ones. An older one
/// may be opened by a passphrase that was revoked before the restore point was made.
fn is_recent(sequence: u64, point: u64) -> bool {
    sequence >= point
}

impl<'a> Search<'a> {
    /// For the disks of a restore point.
    pub fn new(
        context: &'a Context<'a>,
        repository: &mut Repository,
        request: &'a Request,
        point: &'a RestorePoint,
        chain: &'a Chain<'a>,
    ) -> Result<Self, RestoreError> {
        let mut search = Self {
            context,
            request,
            point,
            chain,
            unread: Vec::new(),
            read: Vec::new(),
            older: Vec::new(),
            hidden: None,
            found: BTreeMap::new(),
            missing: Vec::new(),
        };
        if point.manifest.headers.is_some() {
            search.list(repository)?;
        }
        Ok(search)
    }

    /// Finds out which archives may be taken.
    fn list(&mut self, repository: &mut Repository) -> Result<(), RestoreError> {
        let own = self.point.manifest.headers.as_ref();
        let named = match &self.request.headers {
            Some(name) => Some(name.as_str()),
            None if self.request.own_headers => own.map(|own| own.archive.as_str()),
            None => None,
        };
        let archives = headers::archives(repository);
        if let Some(newest) = self.chain.newest.as_ref().filter(|_| named.is_none())
            && !archives.iter().any(|info| info.name == *newest.archive)
        {
            self.hidden = Some(format!(
                "{}, the newest archive of headers, is gone: an older one may be opened by a passphrase that was revoked; \
                 --headers ARCHIVE takes one by name, --own-headers that of the restore point's own instant",
                newest.archive
            ));
            return Ok(());
        }
        for info in archives {
            self.context.cancel.check()?;
            if named.is_some_and(|named| info.name != named) {
                continue;
            }
            let headers = match Headers::read(repository, &info) {
                Ok(headers) => headers,
                Err(error) if error.concerns_one_archive() => {
                    self.pass_over(&info.name.to_string(), &format!("failed to {error}"));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if named.is_none() && !is_recent(headers.statement.sequence, self.point.manifest.sequence) {
                self.older.push(headers.name());
            } else {
                self.unread.push(headers);
            }
        }
        // The newest comes last, to be taken off first.
        self.unread.sort_by_key(|headers| headers.statement.sequence);
        Ok(())
    }

    fn pass_over(&self, archive: &str, why: &str) {
        self.context.warn(
            Code::ArchivePassedOver,
            format!("{archive} is passed over: {why}"),
        );
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
                reason: self.why_none(),
            };
            if !self.request.keep_going {
                return Err(error);
            }
            self.missing.push(error.to_string());
        }
        Ok(())
    }

    fn why_none(&self) -> String {
        if let Some(hidden) = &self.hidden {
            return hidden.clone();
        }
        let older = match self.older.first() {
            Some(newest) => format!(
                "; {} that are older than the restore point were not tried, the newest is {newest}: they may be opened by a \
                 passphrase that was revoked since, --headers ARCHIVE takes one by name",
                self.older.len()
            ),
            None => String::new(),
        };
        format!(
            "none of the {} archives of headers that are trusted has a whole one that fits{older}",
            self.read.len()
        )
    }

    fn newest(
        &mut self,
        repository: &mut Repository,
        luks: &LuksRecord,
    ) -> Result<Option<Found>, RestoreError> {
        let mut at = 0;
        loop {
            while self.read.get(at).is_none() {
                let Some(headers) = self.unread.pop() else {
                    return Ok(None);
                };
                self.context.cancel.check()?;
                self.read.extend(self.trusted(repository, headers)?);
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
            self.context.warn(
                Code::ArchivePassedOver,
                format!("{} is passed over: {}: {why}", headers.name(), area.path()),
            );
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

    /// An archive of headers, if it is what it says and a trusted key has signed it, by the same rules as the restore
    /// point. One that is not cannot be in the way of an older one, and is never used.
    fn trusted(&self, repository: &Repository, headers: Headers) -> Result<Option<Headers>, RestoreError> {
        let records = [&self.point.manifest.headers, &self.chain.newest];
        let named = records.into_iter().flatten();
        let other = named
            .filter(|record| headers.archive.info.name == *record.archive)
            .any(|record| headers.link() != record.sha256);
        let checked = if other {
            Err("it is not the archive of headers that was made with its restore point".to_owned())
        } else {
            let signing = self.context.settings.signing.as_ref();
            let signing = signing.filter(|_| !self.request.unsigned);
            let (home, vm) = (repository.id().to_string(), &self.point.manifest.vm.name);
            headers.trusted(signing, self.chain.order, &home, vm, self.context.cancel)
        };
        self.context.cancel.check()?;
        match checked {
            Ok(()) => Ok(Some(headers)),
            Err(why) => {
                self.pass_over(&headers.name(), &why);
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R7: never an older header than the restore point's own.
    #[test]
    fn headers_are_not_older_than_what_they_open() {
        assert!(is_recent(5, 5) && is_recent(6, 5));
        assert!(!is_recent(4, 5));
    }
}
