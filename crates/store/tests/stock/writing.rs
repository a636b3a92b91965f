//! The same calls to stock Borg and to ours leave the same files.

use std::path::{Path, PathBuf};

use serde_json::json;
use strongroom_store::{Error, Id, MAX_OBJECT, Options, Repository, Store as _};
use tempfile::TempDir;

use crate::common::{Dice, configure, copy, empty, everything, files, get, reader, writer};
use crate::program::{Driver, Stock};

/// Two copies of one repository: one for each.
struct Pair {
    stock: Stock,
    _dir: TempDir,
    ours: PathBuf,
    theirs: PathBuf,
}

impl Pair {
    fn new(options: &[(&str, &str)]) -> Self {
        let stock = Stock::new();
        let (dir, theirs) = empty(&stock);
        for (option, value) in options {
            configure(&theirs, option, value);
        }
        let ours = dir.path().join("ours");
        copy(&theirs, &ours);
        Self {
            stock,
            _dir: dir,
            ours,
            theirs,
        }
    }

    fn open(&self) -> (Repository, Driver) {
        (writer(&self.ours), self.stock.writer(&self.theirs))
    }

    #[track_caller]
    fn same_files(&self) {
        let (ours, mut theirs) = (files(&self.ours), files(&self.theirs));
        // Borg before 1.2.7 keeps no shadows of what was overwritten.
        let mut comparable = ours.hints.clone();
        if self.old_shadows() {
            comparable.shadow.clear();
            theirs.hints.shadow.clear();
        }
        assert_eq!(ours.transaction, theirs.transaction);
        assert_eq!(ours.names, theirs.names);
        for (segment, content) in &theirs.segments {
            assert_eq!(ours.segments.get(segment), Some(content), "segment {segment}");
        }
        assert_eq!(comparable, theirs.hints);
        assert_eq!(ours.segments.len(), theirs.segments.len());
        assert_eq!(ours.index, theirs.index);
        assert_eq!(ours.buckets, theirs.buckets);
        assert_eq!(ours.integrity, theirs.integrity);
    }

    fn old_shadows(&self) -> bool {
        let version = self.stock.run(&["--version"], Path::new("/"));
        version.starts_with("borg 1.2.") && version.trim_end().ends_with(['0', '1', '2', '3', '4', '5', '6'])
    }
}

/// Random calls to both, compared answer by answer, and file by file after each round.
fn compare(seed: u64, rounds: usize) {
    let pair = Pair::new(&[]);
    let mut dice = Dice::new(seed);
    let mut known = vec![Id::MANIFEST];
    for _ in 0..rounds {
        let (ours, mut theirs) = pair.open();
        let mut ids = known.clone();
        for _ in 0..=dice.below(40) {
            let id = ids[dice.below(ids.len())];
            match dice.below(100) {
                0..55 => {
                    let id = if dice.below(30) == 0 {
                        Id::MANIFEST
                    } else {
                        dice.id()
                    };
                    let len = [0, 1, 100, 5000, 70_000][dice.below(5)];
                    let object = dice.bytes(len);
                    theirs.put(&id, &object).unwrap();
                    ours.put(&id, &object).unwrap();
                    ids.push(id);
                }
                55..65 => {
                    let len = dice.below(2000);
                    let object = dice.bytes(len);
                    theirs.put(&id, &object).unwrap();
                    ours.put(&id, &object).unwrap();
                }
                // The last object stays: stock Borg takes an empty index for one that is not loaded, and reads it again.
                65..80 if id != Id::MANIFEST => {
                    let (ours, theirs) = (ours.delete(&id), theirs.delete(&id));
                    assert_eq!(ours.is_ok(), theirs.is_ok());
                    assert!(matches!(ours, Ok(()) | Err(Error::NotFound(_))));
                }
                _ => {
                    let mut object = Vec::new();
                    let found = ours.get(&id, &mut object);
                    assert_eq!(found.ok().map(|()| object), theirs.get(&id).ok());
                }
            }
        }
        match dice.below(10) {
            // Without a change there is nothing to commit, which Borg takes for a mistake.
            0..7 => {
                theirs.put(&Id::MANIFEST, &[seed as u8; 77]).unwrap();
                ours.put(&Id::MANIFEST, &[seed as u8; 77]).unwrap();
                theirs.commit(false).unwrap();
                ours.commit().unwrap();
                ids.sort();
                ids.dedup();
                known = ids;
            }
            7 => {
                theirs.call("rollback", json!({})).unwrap();
                ours.rollback().unwrap();
            }
            _ => {}
        }
        drop(ours);
        theirs.close();
        drop(theirs);
        pair.same_files();
    }
    let mut theirs = pair.stock.writer(&pair.ours);
    assert!(theirs.check());
    theirs.close();
}

#[test]
fn random_calls_leave_the_same_log_hints_and_index() {
    compare(1, 5);
}

#[test]
fn other_random_calls_leave_the_same_files_too() {
    compare(2, 5);
}

#[test]
#[ignore = "takes as many rounds as STRONGROOM_LONG_ROUNDS says"]
fn long_random_calls_leave_the_same_files() {
    let rounds = std::env::var("STRONGROOM_LONG_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    for seed in 100..100 + rounds.unwrap_or(40) / 20 {
        compare(seed, 20);
    }
}

#[test]
fn an_append_only_repository_logs_its_transactions() {
    let pair = Pair::new(&[("append_only", "1")]);
    let (ours, mut theirs) = pair.open();
    assert!(ours.info().append_only);
    for n in 0..3 {
        theirs.put(&Id([7; 32]), &[n; 10]).unwrap();
        ours.put(&Id([7; 32]), &[n; 10]).unwrap();
        theirs.commit(false).unwrap();
        ours.commit().unwrap();
    }
    drop(ours);
    theirs.close();
    pair.same_files();
    let log = |path: &Path| std::fs::read_to_string(path.join("transactions")).unwrap();
    // The same but for the time, whose form is the same.
    let form = |text: String| -> Vec<String> {
        let without_time = |line: &str| {
            let (transaction, time) = line.split_once(',').unwrap();
            format!(
                "{transaction},{}",
                time.replace(|c: char| c.is_ascii_digit(), "0")
            )
        };
        text.lines().map(without_time).collect()
    };
    assert_eq!(form(log(&pair.ours)), form(log(&pair.theirs)));
}

#[test]
fn a_quota_ends_both_transactions_in_the_same_way() {
    let pair = Pair::new(&[("storage_quota", "50000")]);
    let (ours, mut theirs) = pair.open();
    assert_eq!(ours.info().storage_quota, Some(50_000));
    let mut dice = Dice::new(3);
    for n in 0..3 {
        let (id, object) = (dice.id(), dice.bytes(20_000));
        let (ours, theirs) = (ours.put(&id, &object), theirs.put(&id, &object));
        assert_eq!(ours.is_ok(), n < 2, "{ours:?}");
        assert_eq!(
            theirs.err().as_deref(),
            (n == 2).then_some("StorageQuotaExceeded")
        );
    }
    assert!(matches!(
        ours.settle(),
        Err(Error::QuotaExceeded {
            quota: 50_000,
            used: 60_182
        })
    ));
    assert!(matches!(ours.commit(), Err(Error::QuotaExceeded { .. })));
    assert_eq!(theirs.commit(false), Err("StorageQuotaExceeded".to_owned()));
    // Both are at the last commit again, and go on.
    assert_eq!(ours.count().unwrap(), 1);
    theirs.put(&Id([1; 32]), b"small").unwrap();
    ours.put(&Id([1; 32]), b"small").unwrap();
    theirs.commit(false).unwrap();
    ours.commit().unwrap();
    drop(ours);
    theirs.close();
    pair.same_files();
}

#[test]
fn a_commit_needs_the_free_space_that_borg_wants() {
    let pair = Pair::new(&[("additional_free_space", "900T")]);
    let (ours, mut theirs) = pair.open();
    theirs.put(&Id([1; 32]), b"one").unwrap();
    ours.put(&Id([1; 32]), b"one").unwrap();
    assert_eq!(theirs.commit(false), Err("InsufficientFreeSpaceError".to_owned()));
    assert!(matches!(ours.commit(), Err(Error::NoSpace { .. })));
    let entries = |path: &Path| std::fs::read_dir(path.join("data/0")).unwrap().count();
    assert_eq!(entries(&pair.ours), entries(&pair.theirs));
    assert_eq!(ours.count().unwrap(), 1);
    drop(ours);
    theirs.close();
    pair.same_files();
}

#[test]
fn an_object_may_be_as_long_as_borg_allows_and_no_longer() {
    let pair = Pair::new(&[]);
    let ours = writer(&pair.ours);
    let object = vec![7; MAX_OBJECT + 1];
    assert!(matches!(ours.put(&Id([1; 32]), &object), Err(Error::TooBig(_))));
    ours.put(&Id([1; 32]), &object[1..]).unwrap();
    ours.commit().unwrap();
    drop(ours);
    let mut theirs = pair.stock.writer(&pair.ours);
    assert!(theirs.check());
    assert_eq!(theirs.get(&Id([1; 32])).unwrap().len(), MAX_OBJECT);
    theirs.close();
}

#[test]
fn threads_that_put_at_once_leave_a_log_without_a_flaw() {
    let pair = Pair::new(&[]);
    let ours = writer(&pair.ours);
    for round in 0..3_u8 {
        std::thread::scope(|scope| {
            for thread in 1..9_u8 {
                let ours = &ours;
                scope.spawn(move || {
                    for n in 0..30 {
                        let mut id = [thread; 32];
                        id[0] = n;
                        ours.put(&Id(id), &vec![round; 1000 + usize::from(n) * 100])
                            .unwrap();
                        assert_eq!(get(ours, &Id(id))[0], round);
                    }
                });
            }
        });
        ours.commit().unwrap();
    }
    let objects = everything(&ours);
    assert_eq!(objects.len(), 8 * 30 + 1);
    drop(ours);
    let mut theirs = pair.stock.writer(&pair.ours);
    assert!(theirs.check());
    theirs.put(&Id([99; 32]), b"x").unwrap();
    theirs.commit(true).unwrap();
    theirs.close();
    let after = reader(&pair.ours);
    assert_eq!(after.count().unwrap(), 242);
    assert!(objects.iter().all(|(id, object)| get(&after, id) == *object));
}

#[test]
fn what_was_not_committed_is_gone_and_its_space_is_used_again() {
    let pair = Pair::new(&[]);
    let before = everything(&reader(&pair.ours));
    let ours = writer(&pair.ours);
    for n in 0..5 {
        ours.put(&Id([n; 32]), &vec![n; 90_000]).unwrap();
    }
    drop(ours);
    assert_eq!(everything(&reader(&pair.ours)), before);
    let ours = writer(&pair.ours);
    ours.put(&Id([1; 32]), b"again").unwrap();
    ours.rollback().unwrap();
    assert!(matches!(
        ours.get(&Id([1; 32]), &mut Vec::new()),
        Err(Error::NotFound(_))
    ));
    ours.put(&Id([2; 32]), b"committed").unwrap();
    ours.commit().unwrap();
    ours.commit().unwrap();
    assert_eq!(get(&ours, &Id([2; 32])), b"committed");
    drop(ours);
    let mut theirs = pair.stock.writer(&pair.theirs);
    theirs.put(&Id([2; 32]), b"committed").unwrap();
    theirs.commit(false).unwrap();
    theirs.close();
    pair.same_files();
}

#[test]
fn options_may_be_stricter_than_the_repository() {
    let pair = Pair::new(&[]);
    let options = Options {
        append_only: true,
        storage_quota: Some(10),
        ..Options::write()
    };
    let ours = Repository::open(&pair.ours, &options).unwrap();
    assert!(ours.info().append_only);
    assert!(matches!(
        ours.put(&Id([1; 32]), b""),
        Err(Error::QuotaExceeded { quota: 10, .. })
    ));
}
