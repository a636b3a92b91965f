//! Whole archives: stock Borg's command line over repositories that ours wrote to.

use std::collections::HashMap;
use std::path::Path;

use strongroom_store::{Id, Store as _};

use crate::common::{configure, copy, everything, get, reader, writer};
use crate::program::Stock;

/// Puts into one repository, with our engine, what another of the same id and key has got since.
fn take_over(from: &Path, to: &Path) {
    let wanted: HashMap<Id, Vec<u8>> = everything(&reader(from));
    let repository = writer(to);
    let there = repository.list(None, usize::MAX).unwrap();
    for id in there.iter().filter(|id| !wanted.contains_key(id)) {
        repository.delete(id).unwrap();
    }
    for (id, object) in &wanted {
        if *id != Id::MANIFEST && !there.contains(id) {
            repository.put(id, object).unwrap();
        }
    }
    repository.put(&Id::MANIFEST, &wanted[&Id::MANIFEST]).unwrap();
    let nonce = |path: &Path| reader(path).free_nonce().unwrap();
    let next = nonce(from).unwrap();
    repository
        .reserve_nonce(repository.free_nonce().unwrap(), next)
        .unwrap();
    repository.commit().unwrap();
    drop(repository);
    assert_eq!(nonce(to), Some(next));
    assert_eq!(everything(&reader(to)), wanted);
}

fn sources(dir: &Path, seed: u64) {
    let mut dice = crate::common::Dice::new(seed);
    std::fs::create_dir_all(dir.join("source")).unwrap();
    for n in 0..4 {
        std::fs::write(dir.join(format!("source/{n}")), dice.bytes(150_000)).unwrap();
    }
}

#[test]
fn archives_go_through_ours_and_stock_borg_goes_on_with_them() {
    let stock = Stock::new();
    let dir = tempfile::tempdir().unwrap();
    let cwd = dir.path();
    let run = |args: &[&str]| stock.run(args, cwd);
    // It has much to say about keys.
    let made = stock.output(&["init", "--encryption", "repokey-blake2", "repository"], cwd);
    assert!(made.status.success());
    let (path, ours) = (cwd.join("repository"), cwd.join("ours"));
    configure(&path, "max_segment_size", "200000");
    copy(&path, &ours);
    for (n, archive) in ["one", "two", "three"].iter().enumerate() {
        sources(cwd, n as u64 + 1);
        run(&[
            "create",
            "--chunker-params",
            "fixed,65536",
            &format!("repository::{archive}"),
            "source",
        ]);
        take_over(&path, &ours);
    }
    let before = everything(&reader(&path)).len();
    // Borg asks when a repository is elsewhere, so ours takes the place.
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::rename(&ours, &path).unwrap();
    run(&["check", "--verify-data", "repository"]);
    std::fs::rename(cwd.join("source"), cwd.join("original")).unwrap();
    run(&["extract", "repository::three"]);
    for n in 0..4 {
        let read = |dir: &str| std::fs::read(cwd.join(dir).join(n.to_string())).unwrap();
        assert!(read("source") == read("original"));
    }
    run(&["delete", "repository::two"]);
    run(&["prune", "--keep-last", "1", "repository"]);
    run(&["compact", "--threshold", "0", "repository"]);
    assert!(everything(&reader(&path)).len() < before);
    sources(cwd, 9);
    run(&["create", "repository::four", "source"]);
    // What stock Borg compacted, ours changes once more.
    let repository = writer(&path);
    repository
        .put(&Id::MANIFEST, &get(&repository, &Id::MANIFEST))
        .unwrap();
    repository.commit().unwrap();
    drop(repository);
    run(&["compact", "--threshold", "0", "repository"]);
    run(&["check", "--verify-data", "repository"]);
    assert_eq!(run(&["list", "--short", "repository"]), "three\nfour\n");
}
