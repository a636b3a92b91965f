//! Index and hints as of a transaction: how they are loaded, and written so that the next Borg believes them.

use std::io::IoSlice;

use crate::error::Doing as _;
use crate::files::{Create, Directory, read_all, write_all, write_all_at};
use crate::{Error, Hints, Index, Integrity, Result, integrity, time};

/// More bytes than the largest table has.
const MAX_INDEX: u64 = 40 * (1 << 31);
/// More bytes than hints ever have: a few for each segment and each superseded object.
const MAX_HINTS: u64 = 1 << 34;

/// Loads `index.T`, if it is what was written. [`Error::Damaged`] if not.
pub(crate) fn load_index(directory: &dyn Directory, transaction: u32) -> Result<Index> {
    let name = format!("index.{transaction}");
    let bytes = read_all(directory, &name, MAX_INDEX).doing("read", &name)?;
    if let Some(integrity) = load_integrity(directory, transaction)? {
        integrity
            .check_index(transaction, &bytes)
            .map_err(|reason| Error::damaged(&name, reason))?;
    }
    Index::from_bytes(bytes).map_err(|reason| Error::damaged(name, reason))
}

/// Loads `hints.T`, if it is what was written. [`Error::Damaged`] if not.
pub(crate) fn load_hints(directory: &dyn Directory, transaction: u32) -> Result<Hints> {
    let name = format!("hints.{transaction}");
    let bytes = match read_all(directory, &name, MAX_HINTS).doing("read", &name) {
        Err(error) if error.is_absent() => return Err(Error::damaged(name, "it is missing")),
        other => other?,
    };
    if let Some(integrity) = load_integrity(directory, transaction)? {
        integrity
            .check_hints(transaction, &bytes)
            .map_err(|reason| Error::damaged(&name, reason))?;
    }
    Hints::from_bytes(&bytes, transaction).map_err(|reason| Error::damaged(name, reason))
}

/// `None` if there is no such file: nothing is checked then, as Borg does it.
fn load_integrity(directory: &dyn Directory, transaction: u32) -> Result<Option<Integrity>> {
    let name = format!("integrity.{transaction}");
    match read_all(directory, &name, integrity::MAX_LEN).doing("read", &name) {
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
        Ok(bytes) => Integrity::from_bytes(&bytes).map_err(|reason| Error::damaged(name, reason)),
    }
}

/// Writes index, hints and their checksums as of a transaction, then removes the older ones.
///
/// The order is Borg's: all contents are durable before the first name is, and the checksums have their name before
/// what they are about.
pub(crate) fn save(
    directory: &dyn Directory,
    transaction: u32,
    index: &mut Index,
    hints: &Hints,
    append_only: bool,
) -> Result<()> {
    if append_only {
        log_transaction(directory, transaction)?;
    }
    let name = |kind: &str| format!("{kind}.{transaction}");
    let hints = hints.to_bytes();
    let index = index.as_bytes();
    let integrity = Integrity::of(transaction, index, &hints).to_bytes();
    for (kind, bytes) in [("hints", &hints[..]), ("index", index), ("integrity", &integrity)] {
        let temporary = name(kind) + ".tmp";
        write_all(directory, &temporary, Create::Replace, &mut [IoSlice::new(bytes)])
            .doing("write", &temporary)?;
    }
    let publish = |kind: &str| {
        let name = name(kind);
        directory
            .rename(&format!("{name}.tmp"), &name)
            .doing("rename", &name)
    };
    publish("integrity")?;
    directory.sync_dir("").doing("sync", "the repository")?;
    publish("hints")?;
    publish("index")?;
    directory.sync_dir("").doing("sync", "the repository")?;
    remove_others(directory, transaction);
    Ok(())
}

/// Removes what is as of other transactions. What cannot be removed now is removed after a later commit.
fn remove_others(directory: &dyn Directory, transaction: u32) {
    let current = format!(".{transaction}");
    for name in directory.names("").unwrap_or_default() {
        let ours = ["index.", "hints.", "integrity."]
            .iter()
            .any(|kind| name.starts_with(kind));
        if ours && !name.ends_with(&current) {
            let _ = directory.unlink(&name);
        }
    }
}

/// `transactions` of an append-only repository: when each transaction was committed, for an owner who undoes some.
fn log_transaction(directory: &dyn Directory, transaction: u32) -> Result<()> {
    const NAME: &str = "transactions";
    let line = format!("transaction {transaction}, UTC time {}\n", time::utc_now());
    directory
        .create(NAME, Create::Append)
        .and_then(|file| write_all_at(&*file, &mut [IoSlice::new(line.as_bytes())], 0))
        .doing("write", NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Disk;
    use crate::{Id, Place};

    fn saved() -> (tempfile::TempDir, Disk, Index, Hints) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let (mut index, mut hints) = (Index::new(), Hints::default());
        index
            .insert(
                &Id([1; 32]),
                Place {
                    segment: 3,
                    offset: 8,
                },
            )
            .unwrap();
        hints.put(3, 100);
        for transaction in [3, 5] {
            save(&disk, transaction, &mut index, &hints, transaction == 5).unwrap();
        }
        (dir, disk, index, hints)
    }

    #[test]
    fn what_is_saved_is_loaded_and_replaces_what_was_there() {
        let (dir, disk, _, hints) = saved();
        let mut names = disk.names("").unwrap();
        names.sort();
        assert_eq!(names, ["hints.5", "index.5", "integrity.5", "transactions"]);
        assert_eq!(load_index(&disk, 5).unwrap().len(), 1);
        assert_eq!(load_hints(&disk, 5).unwrap(), hints);
        let log = std::fs::read_to_string(dir.path().join("transactions")).unwrap();
        assert!(log.starts_with("transaction 5, UTC time 20") && log.lines().count() == 1);
    }

    #[test]
    fn a_changed_bit_of_any_of_the_three_is_damage() {
        let (dir, disk, ..) = saved();
        for (name, index, hints) in [
            ("index.5", false, true),
            ("hints.5", true, false),
            ("integrity.5", false, false),
        ] {
            let path = dir.path().join(name);
            let good = std::fs::read(&path).unwrap();
            for at in [2, good.len() / 2, good.len() - 8] {
                let mut bad = good.clone();
                bad[at] ^= 1;
                std::fs::write(&path, &bad).unwrap();
                let damaged = |loaded: Option<Error>| matches!(loaded, Some(Error::Damaged { .. }));
                let (bad_index, bad_hints) = (load_index(&disk, 5).err(), load_hints(&disk, 5).err());
                assert!(damaged(bad_index) || index, "{name} {at}");
                assert!(
                    damaged(bad_hints) || hints || name == "integrity.5",
                    "{name} {at}"
                );
            }
            std::fs::write(&path, &good).unwrap();
        }
        assert!(load_index(&disk, 5).is_ok() && load_hints(&disk, 5).is_ok());
    }

    #[test]
    fn without_checksums_the_table_itself_is_still_checked() {
        let (dir, disk, ..) = saved();
        disk.unlink("integrity.5").unwrap();
        assert_eq!(load_index(&disk, 5).unwrap().len(), 1);
        let path = dir.path().join("index.5");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] = 2;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(load_index(&disk, 5), Err(Error::Damaged { .. })));
    }
}
