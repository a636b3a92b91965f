//! The header areas of LUKS volumes, in an archive of their own beside each restore point.
//!
//! A LUKS header holds the volume key, once for each passphrase. Where old headers are kept as long as old data, a
//! passphrase opens old backups for ever, though it was revoked. So the areas are not in the restore point, where they
//! read as zeroes, but in `POINT.headers`, written by the same commit; that can be pruned much earlier. A restore takes
//! the newest header that fits: one with the same [binding](strongroom_disk::HeaderArea::binding), whose key slots are
//! the newest there are.
//!
//! Such an archive is no restore point. It has a signed statement of its own, [`Statement`] (`docs/reference/formats/headers.md`).

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use strongroom_base::cancel::Cancel;
use strongroom_disk::Extent;
use strongroom_disk::luks::LARGEST_AREA;
use strongroom_hypervisor::names::is_target;

use crate::archive::{self, Listed, PointError, archive_name, is_headers};
use crate::digest;
use crate::manifest::{LuksRecord, VmIdentity};
use crate::store::{Archive, ArchiveInfo, ChunkId, ChunkRef, Item, Repository};
use crate::trust::order::Order;
use crate::trust::settings::Signing;
use crate::trust::signature::{self, Signer, Untrusted};

/// Path of the statement in the archive.
pub const STATEMENT_PATH: &str = "headers.json";
/// Path of the statement's signature in the archive.
pub const SIGNATURE_PATH: &str = "headers.json.sig";
/// What a statement's signature is made for.
pub const NAMESPACE: &str = "strongroom-headers@v1";
/// The format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// The largest statement that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// The most areas in one archive.
const MAX_AREAS: usize = 4096;

/// Length of the pieces that an area is stored in, in bytes. No chunk of a disk has it (they consist of whole blocks of
/// 4096 bytes, but for the last one), so no restore point comes to refer to a piece of a header.
pub const PIECE: usize = (1 << 20) - 512;

/// The time of that archive, for a restore point begun at `started`: just before, so that the restore point is the newer
/// of the two.
pub fn archive_time(started: Timestamp) -> Timestamp {
    started
        .checked_sub(SignedDuration::from_millis(1))
        .unwrap_or(started)
}

/// Path of an area in the archive.
pub fn area_path(disk: &str, offset: u64) -> String {
    format!("headers/{disk}-{offset}.luks")
}

/// The disk and the offset of an area, by its path in the archive; nothing for other paths.
pub fn area_of(path: &str) -> Option<(&str, u64)> {
    let name = path.strip_prefix("headers/")?.strip_suffix(".luks")?;
    let (disk, text) = name.rsplit_once('-')?;
    let offset: u64 = text.parse().ok()?;
    // One path an area.
    (is_target(disk) && offset.to_string() == text).then_some((disk, offset))
}

/// What is signed about the header areas of one instant: `headers.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Version of this format.
    pub format: u32,
    /// Which VM this is.
    pub vm: VmIdentity,
    /// The name of the archive that this is in.
    pub archive: String,
    /// That archive's time.
    pub started: Timestamp,
    /// The repository's id, in hexadecimal.
    pub repository: String,
    /// The restore point's archive.
    pub point: String,
    /// The restore point's number.
    pub sequence: u64,
    /// The instant.
    pub captured: Timestamp,
    /// The areas.
    pub areas: Vec<AreaRecord>,
    /// The program that wrote this.
    pub producer: String,
}

/// One header area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaRecord {
    /// The disk that it is from: target device name.
    pub disk: String,
    /// Where it starts there, in bytes.
    pub offset: u64,
    /// Bytes in it.
    pub length: u64,
    /// The volume's UUID.
    pub uuid: String,
    /// What it opens, see [`strongroom_disk::HeaderArea::binding`].
    pub binding: String,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// Digest over its list of chunks, as of a disk's: [`digest::of_chunks`].
    pub digest: String,
}

impl AreaRecord {
    /// Its path in the archive.
    pub fn path(&self) -> String {
        area_path(&self.disk, self.offset)
    }
}

impl Statement {
    /// The bytes that are signed: compact JSON, one line.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let mut bytes = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        bytes.push(b'\n');
        // What is written can be read.
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads a statement. Everything in it that is later used as a name or a place is checked here.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let statement: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if statement.format != FORMAT {
            return Err(format!(
                "its format is {}, this version knows {FORMAT}",
                statement.format
            ));
        }
        if statement.areas.len() > MAX_AREAS {
            return Err(format!("it lists {} areas", statement.areas.len()));
        }
        let mut seen = BTreeSet::new();
        for area in &statement.areas {
            let fits = is_target(&area.disk)
                && (1..=LARGEST_AREA).contains(&area.length)
                && Extent::new(area.offset, area.length).is_ok();
            if !fits || !seen.insert((&area.disk, area.offset)) {
                return Err("an area in it is invalid".into());
            }
        }
        Ok(statement)
    }
}

/// An archive of headers, with everything but the areas' bytes.
#[derive(Debug)]
pub struct Headers {
    /// The archive.
    pub archive: Archive,
    /// What it says of itself.
    pub statement: Statement,
    /// The statement's bytes: what is signed.
    pub bytes: Vec<u8>,
    /// The signature in the archive.
    pub signature: Option<Vec<u8>>,
    /// Its items by path. Only paths that can be ours are kept.
    pub items: BTreeMap<String, Item>,
    /// Items that are not ours, or there twice: the first of them.
    pub strange: Vec<String>,
}

impl Headers {
    /// Reads an archive's items and statement.
    pub fn read(repository: &mut Repository, info: &ArchiveInfo) -> Result<Self, PointError> {
        let name = info.name.to_string();
        let (archive, items, strange) = archive::read_items(repository, info, STATEMENT_PATH, is_ours)?;
        let mut file = |path: &str, limit| {
            items
                .get(path)
                .map(|item| archive::read_item(repository, &name, item, limit))
                .transpose()
        };
        let bytes = file(STATEMENT_PATH, MAX_BYTES)?.unwrap_or_default();
        let signature = file(SIGNATURE_PATH, signature::MAX_BYTES)?;
        let statement = Statement::parse(&bytes).map_err(|reason| PointError::Headers {
            archive: name.clone(),
            reason,
        })?;
        Ok(Self {
            archive,
            statement,
            bytes,
            signature,
            items,
            strange,
        })
    }

    /// The archive's name.
    pub fn name(&self) -> String {
        self.archive.info.name.to_string()
    }

    /// SHA-256 of the statement, by which the restore point names it.
    pub fn link(&self) -> String {
        digest::sha256(&self.bytes)
    }

    /// Who has signed the statement, if that is a trusted key; as of the time that counts for its number.
    pub fn signer(&self, signing: &Signing, order: &Order, cancel: &Cancel) -> Result<Signer, Untrusted> {
        let signature = self.signature.as_deref();
        let Statement {
            sequence, captured, ..
        } = self.statement;
        let at = order.at(sequence, captured, Timestamp::now());
        signature::check(signing, NAMESPACE, signature, &self.bytes, at, cancel)
    }

    /// Whether the archive is where its statement says, under its name and with its time, and of this VM; if not, what
    /// differs.
    pub fn place(&self, repository: &str, vm: &str) -> Result<(), String> {
        let Statement {
            archive,
            started,
            repository: home,
            point,
            vm: identity,
            ..
        } = &self.statement;
        archive::placed(&Listed::of(&self.archive), archive, *started, home, repository)?;
        if *archive != archive_name(point) {
            return Err(format!("it is not the one of restore point {point}"));
        }
        if identity.name != vm {
            return Err(format!("it is of VM {:?}", identity.name));
        }
        Ok(())
    }

    /// Whether it is in its place and, where the configuration says who is trusted, signed by one of them; if not, why.
    pub fn trusted(
        &self,
        signing: Option<&Signing>,
        order: &Order,
        repository: &str,
        vm: &str,
        cancel: &Cancel,
    ) -> Result<(), String> {
        let signing = signing.filter(|signing| signing.allowed_signers.is_some());
        let signed = || match signing {
            Some(signing) => self
                .signer(signing, order, cancel)
                .map(drop)
                .map_err(|error| error.to_string()),
            None => Ok(()),
        };
        self.place(repository, vm).and_then(|()| signed())
    }

    /// The chunks of an area, if they are the ones that the statement describes.
    pub fn chunks(&self, area: &AreaRecord) -> Option<&[ChunkRef]> {
        let item = self.items.get(&area.path()).filter(|item| item.is_intact())?;
        let chunks = item.chunks.as_deref()?;
        let length: u64 = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
        (length == area.length && digest::of_chunks(chunks) == area.digest).then_some(chunks)
    }

    /// The chunks that new headers can refer to: all but the damaged ones.
    pub fn sound_chunks<'a>(&'a self, damaged: &'a BTreeSet<ChunkId>) -> impl Iterator<Item = ChunkRef> + 'a {
        let areas = self.statement.areas.iter();
        let chunks = areas.flat_map(|area| self.chunks(area).unwrap_or_default());
        chunks.filter(|chunk| !damaged.contains(&chunk.id)).copied()
    }

    /// The area that opens a volume's data, if it is here.
    pub fn fitting(&self, luks: &LuksRecord) -> Option<&AreaRecord> {
        let header = luks.header.as_ref()?;
        let fits = |area: &&AreaRecord| {
            area.uuid == luks.uuid && area.binding == header.binding && area.length == header.length
        };
        let areas = || self.statement.areas.iter().filter(fits);
        // The same volume may have been copied to several disks: its own place goes first.
        areas()
            .find(|area| area.offset == luks.offset)
            .or_else(|| areas().next())
    }
}

/// Archives of headers, those with the newest time first: their order is that of the numbers in their statements.
pub fn archives(repository: &Repository) -> Vec<ArchiveInfo> {
    let mut archives: Vec<ArchiveInfo> = repository
        .archives()
        .filter(|info| is_headers(info))
        .cloned()
        .collect();
    archives.sort_by_key(|info| std::cmp::Reverse(info.time));
    archives
}

/// Whether an item of this path can be one that we wrote.
fn is_ours(path: &str) -> bool {
    path == STATEMENT_PATH || path == SIGNATURE_PATH || area_of(path).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::HeaderRecord;
    use uuid::Uuid;

    fn statement() -> Statement {
        let area = |disk: &str, offset| AreaRecord {
            disk: disk.into(),
            offset,
            length: 16 << 20,
            uuid: "u".into(),
            binding: "b".into(),
            sha256: "s".into(),
            digest: "d".into(),
        };
        Statement {
            format: FORMAT,
            vm: VmIdentity {
                name: "web".into(),
                uuid: Uuid::nil(),
            },
            archive: "web-1.headers".into(),
            started: Timestamp::UNIX_EPOCH,
            repository: "00".into(),
            point: "web-1".into(),
            sequence: 1,
            captured: Timestamp::UNIX_EPOCH,
            areas: vec![area("vda", 1 << 20), area("vdb", 0)],
            producer: "test".into(),
        }
    }

    #[test]
    fn a_statement_is_read_as_it_was_written_or_refused() {
        let good = statement();
        assert_eq!(Statement::parse(&good.to_bytes().unwrap()).as_ref(), Ok(&good));
        let refused = |change: fn(&mut Statement)| {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bad.to_bytes().is_err(), "{bad:?}");
        };
        refused(|bad| bad.format = 2);
        refused(|bad| bad.areas[0].disk = "../x".into());
        refused(|bad| bad.areas[0].length = 0);
        refused(|bad| bad.areas[0].length = LARGEST_AREA + 1);
        refused(|bad| bad.areas[0].offset = u64::MAX);
        refused(|bad| bad.areas[1] = bad.areas[0].clone());
        let many = |count: usize| {
            let mut many = good.clone();
            let area = many.areas[0].clone();
            let at = |number| AreaRecord {
                offset: number as u64 * 512,
                ..area.clone()
            };
            many.areas = (0..count).map(at).collect();
            many.to_bytes()
        };
        many(MAX_AREAS).unwrap();
        many(MAX_AREAS + 1).unwrap_err();
    }

    #[test]
    fn only_paths_of_ours_are_kept() {
        for good in [
            "headers.json",
            "headers.json.sig",
            "headers/vda-0.luks",
            &area_path("vdb", u64::MAX),
        ] {
            assert!(is_ours(good), "{good}");
        }
        for bad in [
            "headers/vda.luks",
            "headers/vda-+1.luks",
            "headers/vda-01.luks",
            "headers/../x-1.luks",
            "manifest.json",
        ] {
            assert!(!is_ours(bad), "{bad}");
        }
    }

    /// An archive of headers as a repository would list it.
    fn archived(statement: Statement) -> Headers {
        let info = ArchiveInfo {
            name: "web-1.headers".into(),
            id: ChunkId([0; 32]),
            time: statement.started,
        };
        Headers {
            archive: Archive {
                time: info.time,
                authenticated: true,
                item_ids: Vec::new(),
                info,
            },
            bytes: statement.to_bytes().unwrap(),
            statement,
            signature: None,
            items: BTreeMap::new(),
            strange: Vec::new(),
        }
    }

    /// The mutants of `trusted`: place and signature, each by itself.
    #[test]
    fn headers_are_trusted_in_their_place_and_signed() {
        let trusted = |headers: &Headers, signing: Option<&Signing>, repository: &str, vm: &str| {
            headers.trusted(signing, &Order::default(), repository, vm, &Cancel::new())
        };
        let good = archived(statement());
        assert_eq!(trusted(&good, None, "00", "web"), Ok(()));
        assert_eq!(trusted(&good, Some(&Signing::default()), "00", "web"), Ok(()));
        trusted(&good, None, "11", "web").unwrap_err();
        trusted(&good, None, "00", "db").unwrap_err();
        let mut other = statement();
        other.point = "web-2".into();
        trusted(&archived(other), None, "00", "web").unwrap_err();
        let mut renamed = archived(statement());
        renamed.archive.info.name = "web-9.headers".into();
        trusted(&renamed, None, "00", "web").unwrap_err();
        let signing = Signing {
            allowed_signers: Some("/nowhere".into()),
            ..Signing::default()
        };
        let why = trusted(&good, Some(&signing), "00", "web").unwrap_err();
        assert!(why.contains("not signed"), "{why}");
    }

    /// An area's list of chunks is the signed one, whole, or none.
    #[test]
    fn an_area_is_taken_as_it_was_signed_or_not_at_all() {
        let chunk = |byte, size| ChunkRef {
            id: ChunkId([byte; 32]),
            size,
            stored: 0,
        };
        let chunks = vec![chunk(1, 1 << 20), chunk(2, 15 << 20)];
        let mut said = statement();
        said.areas.truncate(1);
        said.areas[0].digest = digest::of_chunks(&chunks);
        let area = said.areas[0].clone();
        let mut headers = archived(said);
        assert_eq!(headers.chunks(&area), None, "it is not there");
        let item = Item::regular(&area.path(), chunks.clone());
        headers.items.insert(area.path(), item.clone());
        assert_eq!(headers.chunks(&area), Some(&chunks[..]));
        let sound = |damaged: &[u8]| -> Vec<ChunkRef> {
            let damaged = damaged.iter().map(|byte| ChunkId([*byte; 32])).collect();
            headers.sound_chunks(&damaged).collect()
        };
        assert_eq!(sound(&[]), chunks);
        assert_eq!(sound(&[1]), chunks[1..]);
        let longer = AreaRecord {
            length: area.length + 1,
            ..area.clone()
        };
        assert_eq!(headers.chunks(&longer), None, "another length");
        let other = AreaRecord {
            digest: "d".into(),
            ..area.clone()
        };
        assert_eq!(headers.chunks(&other), None, "another digest");
        let patched = Item {
            intact: false,
            ..item
        };
        headers.items.insert(area.path(), patched);
        assert_eq!(headers.chunks(&area), None, "patched");
    }

    /// A header of another volume, of another key or of another length opens nothing.
    #[test]
    fn the_header_that_opens_a_volume_is_found() {
        let mut said = statement();
        said.areas.push(AreaRecord {
            offset: 5 << 20,
            ..said.areas[0].clone()
        });
        let headers = archived(said);
        let volume = |offset, uuid: &str, binding: &str, length| LuksRecord {
            offset,
            version: 2,
            uuid: uuid.into(),
            digests: Vec::new(),
            tokens: Vec::new(),
            header: Some(HeaderRecord {
                length,
                binding: binding.into(),
                sha256: "s".into(),
            }),
        };
        let at = |luks: &LuksRecord| headers.fitting(luks).map(|area| area.offset);
        let whole = 16 << 20;
        assert_eq!(
            at(&volume(5 << 20, "u", "b", whole)),
            Some(5 << 20),
            "its own place"
        );
        assert_eq!(at(&volume(7 << 20, "u", "b", whole)), Some(1 << 20), "a copy");
        assert_eq!(at(&volume(1 << 20, "x", "b", whole)), None);
        assert_eq!(at(&volume(1 << 20, "u", "x", whole)), None);
        assert_eq!(at(&volume(1 << 20, "u", "b", whole + 1)), None);
        let mut inside = volume(1 << 20, "u", "b", whole);
        inside.header = None;
        assert_eq!(at(&inside), None);
    }

    #[test]
    fn the_archive_of_headers_is_older_and_linked() {
        let started = Timestamp::from_second(5).unwrap();
        assert_eq!(archive_time(started), Timestamp::from_millisecond(4999).unwrap());
        assert_eq!(archive_time(Timestamp::MIN), Timestamp::MIN);
        let headers = archived(statement());
        assert_eq!(headers.name(), "web-1.headers");
        assert_eq!(headers.link(), digest::sha256(&headers.bytes));
        assert_eq!(area_of("headers/vda-512.luks"), Some(("vda", 512)));
    }

    #[test]
    fn pieces_of_headers_have_a_length_of_their_own() {
        assert_ne!(PIECE % 4096, 0);
    }
}
