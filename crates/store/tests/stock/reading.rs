//! Repositories as stock Borg leaves them.

use std::collections::HashMap;

use strongroom_store::{Error, How, Id, Store as _};

use crate::common::{Dice, copy, empty, everything, files, get, reader, writer};
use crate::program::Stock;

/// A history of stock Borg's with overwritten and deleted objects, and what it should hold.
fn history(stock: &Stock, path: &std::path::Path, seed: u64) -> HashMap<Id, Vec<u8>> {
    let mut dice = Dice::new(seed);
    let mut driver = stock.writer(path);
    let mut objects = HashMap::from([(Id::MANIFEST, b"the first manifest".to_vec())]);
    for round in 0..4 {
        for _ in 0..20 {
            let (id, len) = (dice.id(), dice.below(30_000));
            let object = dice.bytes(len);
            driver.put(&id, &object).unwrap();
            objects.insert(id, object);
        }
        let ids: Vec<Id> = objects.keys().copied().filter(|id| *id != Id::MANIFEST).collect();
        for (n, id) in ids.iter().take(8).enumerate() {
            if n < 4 {
                driver.delete(id).unwrap();
                objects.remove(id);
            } else {
                driver.put(id, &[n as u8; 100]).unwrap();
                objects.insert(*id, vec![n as u8; 100]);
            }
        }
        let manifest = format!("manifest {round}").into_bytes();
        driver.put(&Id::MANIFEST, &manifest).unwrap();
        objects.insert(Id::MANIFEST, manifest);
        driver.commit(round == 2).unwrap();
    }
    driver.close();
    objects
}

#[test]
fn every_object_of_stock_borgs_is_read() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    let objects = history(&stock, &path, 1);
    let repository = reader(&path);
    assert_eq!(repository.how(), &How::AsFound);
    assert_eq!(repository.count().unwrap(), objects.len() as u64);
    assert_eq!(everything(&repository), objects);
    assert!(repository.contains(&Id::MANIFEST).unwrap());
    let absent = Dice::new(99).id();
    assert!(!repository.contains(&absent).unwrap());
    assert!(matches!(repository.get(&absent, &mut Vec::new()), Err(Error::NotFound(id)) if id == absent));
    assert!(matches!(repository.put(&absent, b""), Err(Error::ReadOnly)));
}

#[test]
fn ids_are_listed_in_stock_borgs_order() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    history(&stock, &path, 2);
    let mut driver = stock.writer(&path);
    let theirs = driver.list();
    driver.close();
    let repository = reader(&path);
    assert_eq!(repository.list(None, usize::MAX).unwrap(), theirs);
    assert_eq!(repository.list(Some(&theirs[4]), 3).unwrap(), theirs[5..8]);
    assert!(repository.list(theirs.last(), 3).unwrap().is_empty());
}

#[test]
fn objects_are_read_by_many_threads_at_once() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    let objects = history(&stock, &path, 3);
    let repository = reader(&path);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for (id, object) in &objects {
                    assert_eq!(&get(&repository, id), object);
                }
            });
        }
    });
}

#[test]
fn a_lost_index_is_made_anew_as_stock_borg_makes_it() {
    let stock = Stock::new();
    let (dir, path) = empty(&stock);
    let objects = history(&stock, &path, 4);
    let transaction = files(&path).transaction;
    for lost in [&["index"][..], &["hints"], &["index", "hints", "integrity"]] {
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        for copied in [&ours, &theirs] {
            copy(&path, copied);
            for kind in lost {
                std::fs::remove_file(copied.join(format!("{kind}.{transaction}"))).unwrap();
            }
        }
        // Nothing is written by a reader; it needs no hints.
        let repository = reader(&ours);
        assert_eq!(
            repository.how() == &How::AsFound,
            lost == ["hints"],
            "{:?}",
            repository.how()
        );
        assert_eq!(everything(&repository), objects);
        drop(repository);
        drop(writer(&ours));
        let mut driver = stock.writer(&theirs);
        let _ = driver.put(&Id([9; 32]), b"");
        driver.call("rollback", serde_json::json!({})).unwrap();
        driver.close();
        driver.warnings.clear();
        let (mut ours_now, mut theirs_now) = (files(&ours), files(&theirs));
        // Before 1.4.1, shadows are not made anew.
        if theirs_now.hints.shadow.is_empty() {
            ours_now.hints.shadow.clear();
        }
        theirs_now.segments.retain(|segment, _| *segment <= transaction);
        assert_eq!(ours_now, theirs_now, "{lost:?}");
        std::fs::remove_dir_all(ours).unwrap();
        std::fs::remove_dir_all(theirs).unwrap();
    }
}

#[test]
fn a_commit_whose_index_is_missing_is_replayed() {
    let stock = Stock::new();
    let (dir, path) = empty(&stock);
    let before = dir.path().join("before");
    copy(&path, &before);
    let objects = history(&stock, &path, 5);
    let after = files(&path);
    // What a death between the COMMIT and the index leaves: the old index, and all segments.
    let ours = dir.path().join("ours");
    copy(&before, &ours);
    std::fs::remove_dir_all(ours.join("data")).unwrap();
    copy(&path.join("data"), &ours.join("data"));
    assert_eq!(everything(&reader(&ours)), objects);
    let repository = writer(&ours);
    assert!(matches!(repository.how(), How::Replayed { from: Some(_) }));
    drop(repository);
    assert_eq!(files(&ours).index, after.index);
    assert_eq!(files(&ours).transaction, after.transaction);
    let mut driver = stock.writer(&ours);
    assert!(driver.check());
    driver.close();
}

#[test]
fn what_is_no_repository_is_told_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        strongroom_store::Repository::open(path, &strongroom_store::Options::write()).err()
    };
    assert!(matches!(open(dir.path()), Some(Error::NotARepository)));
    assert!(matches!(
        open(&dir.path().join("absent")),
        Some(Error::NotARepository)
    ));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_nonce_and_a_key_are_stock_borgs() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    let key = serde_json::json!({"keydata": crate::program::hex(b"c29tZSBrZXkgYmxvYg==\nb2YgdHdvIGxpbmVz")});
    let mut driver = stock.driver();
    driver.open(&path, true).unwrap();
    driver
        .call(
            "commit_nonce_reservation",
            serde_json::json!({"next_unreserved": 4660, "start_nonce": null}),
        )
        .unwrap();
    driver.call("save_key", key).unwrap();
    driver.close();
    let repository = writer(&path);
    assert_eq!(repository.free_nonce().unwrap(), Some(4660));
    assert_eq!(
        repository.load_key().unwrap(),
        b"c29tZSBrZXkgYmxvYg==\nb2YgdHdvIGxpbmVz"
    );
    repository.reserve_nonce(Some(4660), 1 << 40).unwrap();
    drop(repository);
    driver.open(&path, true).unwrap();
    assert_eq!(
        driver.call("get_free_nonce", serde_json::json!({})).unwrap(),
        1_u64 << 40
    );
    driver.close();
}
