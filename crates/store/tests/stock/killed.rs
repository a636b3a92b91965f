//! A process of ours that is killed while it writes, at a moment that nothing chose.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use strongroom_store::{Id, Store as _};

use crate::common::{Dice, empty, files, get, reader, writer};
use crate::program::Stock;

/// Objects that all say the same number.
const OBJECTS: u8 = 6;

fn said(path: &Path) -> Vec<Vec<u8>> {
    let repository = reader(path);
    let ids = (1..=OBJECTS).map(|n| Id([n; 32])).chain([Id::MANIFEST]);
    let there = ids.filter(|id| repository.contains(id).unwrap());
    there.map(|id| get(&repository, &id)[..8].to_vec()).collect()
}

#[test]
fn a_writer_killed_at_any_moment_leaves_one_whole_transaction() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    let mut dice = Dice::new(std::process::id().into());
    let mut last = files(&path).transaction;
    for _ in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::writer_without_end", "--ignored"])
            .env("STORE_TEST_WRITE", &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let since = Instant::now();
        while !path.join("lock.roster").exists() {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "the other process does not take the lock"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_micros(dice.next() % 400_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = said(&path);
        assert!(said.iter().all(|number| *number == said[0]), "{said:?}");
        // Stock Borg goes on from there, and its own commit is the next one.
        let mut driver = stock.driver();
        driver.open(&path, true).unwrap();
        driver.put(&Id([0xdd; 32]), b"stock").unwrap();
        driver.commit(false).unwrap();
        assert!(driver.check());
        driver.close();
        driver.warnings.clear();
        let now = files(&path).transaction;
        assert!(now > last);
        last = now;
    }
}

#[test]
#[ignore = "started by another test"]
fn writer_without_end() {
    let Some(path) = std::env::var_os("STORE_TEST_WRITE") else {
        return;
    };
    let repository = writer(Path::new(&path));
    for round in 0_u64.. {
        for id in (1..=OBJECTS).map(|n| Id([n; 32])).chain([Id::MANIFEST]) {
            let object: Vec<u8> = round.to_le_bytes().repeat(1 + usize::from(id.0[0]) * 1000);
            repository.put(&id, &object).unwrap();
        }
        repository.commit().unwrap();
    }
}
