//! The restore points of a repository, in their order: that of the numbers in their manifests. Times are shown, and found by,
//! but order nothing: a clock that was wrong once would be believed for ever.

mod cache;

use std::path::Path;

use uuid::Uuid;

use self::cache::Cache;
use crate::archive::{self, Listed, PointError};
use crate::manifest::{MANIFEST_PATH, MAX_BYTES, Manifest, SIGNATURE_PATH};
use crate::selector::{PointName, Selector};
use crate::store::{Archive, ArchiveInfo, Item, Repository};
use crate::trust::signature;

/// One restore point: what is signed of it.
#[derive(Debug)]
pub struct Entry {
    /// Its archive as the repository lists it.
    pub info: ArchiveInfo,
    /// Its manifest.
    pub manifest: Manifest,
    /// The manifest's bytes: what is signed.
    pub bytes: Vec<u8>,
    /// SHA-256 of those: what the next one names.
    pub link: String,
    /// The signature in the archive.
    pub signature: Option<Vec<u8>>,
    listed: Listed,
}

impl Entry {
    /// Reads what is signed. It comes first, so the lists of chunks behind it are not fetched.
    pub fn read(repository: &mut Repository, info: &ArchiveInfo) -> Result<Self, PointError> {
        let name = info.name.to_string();
        let archive = repository.archive_by_info(info)?;
        let mut first = first_items(repository, &archive)?.into_iter();
        let mut next = |path: &str| first.next().filter(|item| item.path.as_str() == Some(path));
        let Some(item) = next(MANIFEST_PATH) else {
            return Err(PointError::Foreign(name));
        };
        let second = next(SIGNATURE_PATH);
        let bytes = archive::read_item(repository, &name, &item, MAX_BYTES)?;
        let manifest = Manifest::parse(&bytes).map_err(|source| PointError::Manifest {
            archive: name.clone(),
            source,
        })?;
        let signature = second
            .map(|item| archive::read_item(repository, &name, &item, signature::MAX_BYTES))
            .transpose()?;
        Ok(Self {
            info: info.clone(),
            link: Manifest::link(&bytes),
            manifest,
            bytes,
            signature,
            listed: Listed::of(&archive),
        })
    }

    /// The archive's name.
    pub fn name(&self) -> String {
        self.info.name.to_string()
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.manifest.sequence
    }

    /// Whether the archive is where its manifest says, under its name and with its time; if not, what differs.
    pub fn place(&self, repository: &str) -> Result<(), String> {
        archive::place(&self.listed, &self.manifest, repository)
    }
}

/// The first two items of an archive. They are in the first piece of its metadata, unless others have cut it.
fn first_items(repository: &mut Repository, archive: &Archive) -> Result<Vec<Item>, PointError> {
    let mut pieces = 1;
    loop {
        let mut head = archive.clone();
        head.item_ids.truncate(pieces);
        let found: Result<Vec<Item>, _> = repository.items(&head).take(2).collect();
        match found {
            Ok(items) if items.len() == 2 => return Ok(items),
            found if pieces >= archive.item_ids.len() => return Ok(found?),
            Err(error) if error.is_connection_lost() => return Err(error.into()),
            _ => pieces *= 8,
        }
    }
}

/// All restore points of a repository, whichever VM they are of.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Those that can be read, by number; those of one number by time.
    pub entries: Vec<Entry>,
    /// Archives that may be restore points and cannot be read, and why.
    pub unreadable: Vec<(ArchiveInfo, String)>,
    /// Names of archives that others have made.
    pub foreign: Vec<String>,
}

impl Catalog {
    /// Reads what is signed of each. An error means that the repository cannot be used: what concerns one archive is
    /// among the unreadable ones.
    pub fn read(repository: &mut Repository) -> Result<Self, PointError> {
        Self::read_with(repository, None)
    }

    /// The same, reading only what was not read before: that is kept in the state directory.
    pub fn look(repository: &mut Repository, state: &Path) -> Result<Self, PointError> {
        let mut cache = Cache::open(state, repository);
        let catalog = Self::read_with(repository, Some(&mut cache))?;
        cache.keep();
        Ok(catalog)
    }

    fn read_with(repository: &mut Repository, mut cache: Option<&mut Cache>) -> Result<Self, PointError> {
        let mut catalog = Self::default();
        let archives = repository.archives().filter(|info| !archive::is_headers(info));
        for info in archives.cloned().collect::<Vec<_>>() {
            if let Some(entry) = cache.as_mut().and_then(|cache| cache.get(&info)) {
                catalog.entries.push(entry);
                continue;
            }
            match Entry::read(repository, &info) {
                Ok(entry) => {
                    if let Some(cache) = &mut cache {
                        cache.add(&entry);
                    }
                    catalog.entries.push(entry);
                }
                Err(PointError::Foreign(name)) => catalog.foreign.push(name),
                Err(error) if error.concerns_one_archive() => {
                    catalog.unreadable.push((info, error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        catalog
            .entries
            .sort_by_key(|entry| (entry.number(), entry.info.time));
        Ok(catalog)
    }

    /// A VM's restore points, by number.
    pub fn of(&self, vm: &str) -> Vec<&Entry> {
        let of_vm = |entry: &&Entry| entry.manifest.vm.name == vm;
        self.entries.iter().filter(of_vm).collect()
    }

    /// What the newest restore point of this UUID calls its VM.
    pub fn name_of(&self, uuid: Uuid) -> Option<&str> {
        let mut newest = self.entries.iter().rev();
        let entry = newest.find(|entry| entry.manifest.vm.uuid == uuid)?;
        Some(&entry.manifest.vm.name)
    }

    /// The restore points that may be of a VM's chain, by number: those of its UUID, and those of its name, which an earlier
    /// VM of that name may have left.
    pub fn chain(&self, vm: &str, uuid: Uuid) -> Vec<&Entry> {
        let ours = |entry: &&Entry| entry.manifest.vm.uuid == uuid || entry.manifest.vm.name == vm;
        self.entries.iter().filter(ours).collect()
    }

    /// The restore point that is meant: the newest of this VM that fits. Archives of others in the same repository are
    /// passed over.
    pub fn find(&self, point: &PointName) -> Result<&Entry, PointError> {
        let fitting = self.entries.iter().filter(|entry| point.fits(&entry.info));
        let best = fitting
            .filter(|entry| entry.manifest.vm.name == point.vm)
            .max_by_key(|entry| (point.names(&entry.info), entry.number(), entry.info.time));
        // One that cannot be read has no number: by its time it may be the one.
        let rank = |info: &ArchiveInfo| (point.names(info), info.time);
        let doubtful = self
            .unreadable
            .iter()
            .filter(|(info, _)| point.fits(info) && best.is_none_or(|best| rank(&best.info) < rank(info)));
        if let Some((info, reason)) = doubtful.max_by_key(|(info, _)| rank(info)) {
            return Err(PointError::Unreadable {
                archive: info.name.to_string(),
                reason: reason.clone(),
            });
        }
        best.ok_or_else(|| self.nothing(point))
    }

    /// Why nothing is found.
    fn nothing(&self, point: &PointName) -> PointError {
        let other = self.entries.iter().rev().find(|entry| point.fits(&entry.info));
        let foreign = self.foreign.iter().find(|name| match &point.when {
            Selector::Latest => true,
            Selector::Text(text) => *name == text,
        });
        match (other, foreign) {
            (Some(entry), _) => PointError::OtherVm {
                archive: entry.name(),
                vm: entry.manifest.vm.name.clone(),
            },
            (None, Some(name)) => PointError::Foreign(name.clone()),
            (None, None) => PointError::None(point.to_string()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::{ChunkId, Kind};
    use crate::testing::Listing;

    /// A restore point of a VM with this number, made at this second.
    pub fn entry(vm: &str, number: u64, second: i64) -> Entry {
        let name = format!("{vm}-{number}");
        let time = jiff::Timestamp::from_second(second).unwrap();
        let text = format!(
            r#"{{"format":1,"vm":{{"name":"{vm}","uuid":"{}"}},"run":"r","archive":"{name}","started":"{time}",
            "repository":"{}","sequence":{number},"previous":null,"captured":"{time}","method":"offline",
            "consistency":"clean","stall_us":0,"checkpoint":null,"disks":[],"excluded":[],"files":[],"inventory":[],
            "producer":"test"}}"#,
            Uuid::from_u128(u128::from(vm.len() as u64)),
            "00".repeat(32)
        );
        Entry {
            info: ArchiveInfo {
                name: name.as_str().into(),
                id: ChunkId([number as u8; 32]),
                time,
            },
            manifest: Manifest::parse(text.as_bytes()).unwrap(),
            link: Manifest::link(text.as_bytes()),
            bytes: text.into_bytes(),
            signature: None,
            listed: Listed {
                name: name.as_str().into(),
                times: [time, time],
            },
        }
    }

    impl Entry {
        /// The repository lists it with the name and the time that it has here.
        pub fn list_as_said(&mut self) {
            self.listed = Listed {
                name: self.info.name.clone(),
                times: [self.info.time; 2],
            };
        }
    }

    fn found(catalog: &Catalog, point: &str) -> Result<String, String> {
        let point = point.parse().unwrap();
        let found = catalog.find(&point).map(Entry::name);
        found.map_err(|error| error.to_string())
    }

    /// A6: number 2 was made under a clock that was two years ahead. It is found by its time, and is not the newest.
    #[test]
    fn the_number_is_the_order_and_the_time_is_a_way_to_find_one() {
        let (day, later) = (86400, 800 * 86400);
        let entries = vec![
            entry("web", 1, day),
            entry("web", 2, later),
            entry("web", 3, day + 60),
            entry("web", 4, 2 * day),
        ];
        let catalog = Catalog {
            entries,
            ..Catalog::default()
        };
        let is = |point: &str, name: &str| assert_eq!(found(&catalog, point).as_deref(), Ok(name), "{point}");
        is("web", "web-4");
        is("web@latest", "web-4");
        is("web@1970-01-02", "web-3");
        is("web@1972", "web-2");
        is("web@web-2", "web-2");
        is("web@1970", "web-4");
        assert!(found(&catalog, "web@1999").is_err());
        assert!(found(&catalog, "db").unwrap_err().contains("it is of VM \"web\""));
    }

    /// One that cannot be read has no number: where it may be the one that is meant, nothing else is taken for it.
    #[test]
    fn what_cannot_be_read_may_be_what_is_meant() {
        let unreadable = |second| {
            let info = ArchiveInfo {
                time: jiff::Timestamp::from_second(second).unwrap(),
                ..entry("web", 9, 0).info
            };
            (info, "it is damaged".to_owned())
        };
        let catalog = |second| Catalog {
            entries: vec![entry("web", 1, 100)],
            unreadable: vec![unreadable(second)],
            ..Catalog::default()
        };
        assert_eq!(found(&catalog(200), "web"), Err("it is damaged".into()));
        assert_eq!(
            found(&catalog(100), "web"),
            Ok("web-1".into()),
            "of the same time"
        );
        assert_eq!(found(&catalog(50), "web"), Ok("web-1".into()));
        assert_eq!(found(&catalog(50), "web@web-9"), Err("it is damaged".into()));
        assert_eq!(found(&catalog(200), "web@web-1"), Ok("web-1".into()));
    }

    #[test]
    fn a_chain_is_of_one_uuid_or_of_one_name() {
        let catalog = Catalog {
            entries: vec![entry("web", 1, 1), entry("other", 2, 2), entry("web", 3, 3)],
            ..Catalog::default()
        };
        let chain = |name: &str, uuid: u64| -> Vec<u64> {
            let chain = catalog.chain(name, Uuid::from_u128(u128::from(uuid)));
            chain.iter().map(|entry| entry.number()).collect()
        };
        assert_eq!(chain("web", 3), [1, 3]);
        assert_eq!(chain("renamed", 3), [1, 3]);
        assert_eq!(chain("web", 99), [1, 3]);
        assert_eq!(chain("none", 99), [0; 0]);
        let of = |name: &str| {
            catalog
                .of(name)
                .iter()
                .map(|entry| entry.number())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (of("web"), of("other"), of("none")),
            (vec![1, 3], vec![2], vec![])
        );
        let named = |uuid: u64| catalog.name_of(Uuid::from_u128(u128::from(uuid)));
        assert_eq!(
            [named(5), named(3), named(99)],
            [Some("other"), Some("web"), None]
        );
    }

    #[test]
    fn an_archive_of_others_is_told_from_one_that_is_not_there() {
        let catalog = Catalog {
            foreign: vec!["home".into()],
            ..Catalog::default()
        };
        let why = |point: &str| catalog.find(&point.parse().unwrap()).unwrap_err();
        assert!(matches!(why("web@home"), PointError::Foreign(name) if name == "home"));
        assert!(matches!(why("web@other"), PointError::None(_)));
        assert!(matches!(why("web"), PointError::Foreign(_)));
    }

    #[test]
    fn a_restore_point_is_in_its_place_or_says_why_not() {
        let entry = entry("web", 1, 100);
        assert_eq!(entry.place(&"00".repeat(32)), Ok(()));
        entry.place("11").unwrap_err();
    }

    /// Lists an archive of this name with these items, in pieces.
    fn store(listing: &mut Listing, name: &str, items: Result<Vec<Vec<Item>>, Kind>) {
        let id = ChunkId([100 + listing.archives.len() as u8; 32]);
        listing.archives.push(ArchiveInfo {
            name: name.into(),
            id,
            time: jiff::Timestamp::UNIX_EPOCH,
        });
        listing.items.insert(id, items);
    }

    /// A repository with restore points in one piece and in several, what others have made, and what is damaged.
    fn repository() -> Listing {
        let mut listing = Listing::of(9);
        let mut manifest = |number| {
            let entry = entry("web", number, 0);
            listing.file(MANIFEST_PATH, &entry.bytes)
        };
        let (first, second, third) = (manifest(1), manifest(2), manifest(3));
        let signature = listing.file(SIGNATURE_PATH, b"signature");
        let disk = listing.file("disks/vda.raw", b"");
        let whole = vec![vec![second, signature.clone(), disk.clone()]];
        store(&mut listing, "web-2", Ok(whole));
        store(&mut listing, "web-1", Ok(vec![vec![first], vec![disk.clone()]]));
        store(
            &mut listing,
            "web-3",
            Ok(vec![vec![], vec![third], vec![], vec![signature]]),
        );
        store(&mut listing, "home", Ok(vec![vec![disk]]));
        store(&mut listing, "web-1.headers", Err(Kind::Damaged));
        store(&mut listing, "web-9", Err(Kind::Damaged));
        listing
    }

    #[test]
    fn what_is_signed_is_read_wherever_it_was_cut() {
        let catalog = Catalog::read(&mut repository().open()).unwrap();
        let read = |entry: &Entry| (entry.name(), entry.number(), entry.signature.is_some());
        let entries: Vec<_> = catalog.entries.iter().map(read).collect();
        let expected = [("web-1", 1, false), ("web-2", 2, true), ("web-3", 3, true)];
        assert_eq!(
            entries,
            expected.map(|(name, number, signed)| (name.to_owned(), number, signed))
        );
        assert_eq!(catalog.entries[1].bytes, entry("web", 2, 0).bytes);
        assert_eq!(catalog.foreign, ["home"]);
        let unreadable: Vec<_> = catalog
            .unreadable
            .iter()
            .map(|(info, _)| info.name.to_string())
            .collect();
        assert_eq!(unreadable, ["web-9"]);
        // One archive that cannot be read is not the repository that cannot be used.
        for (kind, one) in [(Kind::Missing, true), (Kind::Lost, false), (Kind::Other, false)] {
            let mut listing = repository();
            store(&mut listing, "web-10", Err(kind));
            assert_eq!(Catalog::read(&mut listing.open()).is_ok(), one, "{kind:?}");
        }
    }

    #[test]
    fn what_was_read_before_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut listing = repository();
        let look = |listing: &Listing| {
            let catalog = Catalog::look(&mut listing.open(), directory.path()).unwrap();
            let entries = catalog.entries.iter();
            entries
                .map(|entry| (entry.name(), entry.bytes.clone(), entry.signature.clone()))
                .collect::<Vec<_>>()
        };
        let first = look(&listing);
        assert_eq!(first.len(), 3);
        let content = std::mem::take(&mut listing.data);
        let items = listing.items.clone();
        for info in &listing.archives {
            listing.items.insert(info.id, Err(Kind::Damaged));
        }
        assert_eq!(look(&listing), first);
        // Of another version, it is as if there were none.
        let name = format!("catalog/{}.json", listing.id);
        let path = directory.path().join(name);
        let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        kept["version"] = 2.into();
        std::fs::write(&path, kept.to_string()).unwrap();
        assert_eq!(look(&listing), []);
        (listing.data, listing.items) = (content, items);
        assert_eq!(look(&listing), first);
    }
}
