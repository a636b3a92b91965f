//! Locks between stock Borg and ours, each in a process of its own.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use strongroom_store::{Access, Error, Id, Options, Patience, Repository, Store as _, host_id};

use crate::common::{empty, reader, writer};
use crate::program::Stock;

fn open(path: &Path, options: Options) -> Result<Repository, Error> {
    let patience = Patience {
        wait: Duration::from_millis(300),
        cancel: None,
    };
    Repository::open(path, &Options { patience, ..options })
}

#[test]
fn this_host_has_the_name_that_stock_borg_gives_it() {
    let mut driver = Stock::new().driver();
    assert_eq!(driver.call("host", serde_json::json!({})).unwrap(), host_id());
}

#[test]
fn stock_borg_waits_for_our_lock() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    let mut driver = stock.driver();
    let repository = writer(&path);
    assert_eq!(driver.open(&path, false), Err("LockTimeout".to_owned()));
    assert_eq!(driver.open(&path, true), Err("LockTimeout".to_owned()));
    drop(repository);
    let repository = reader(&path);
    assert_eq!(driver.open(&path, true), Err("LockTimeout".to_owned()));
    driver.open(&path, false).unwrap();
    driver.close();
    drop(repository);
    driver.open(&path, true).unwrap();
    driver.close();
}

#[test]
fn we_wait_for_stock_borgs_lock() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    let mut driver = stock.writer(&path);
    for options in [Options::read(), Options::write()] {
        let Err(Error::Locked { holders }) = open(&path, options) else {
            panic!("the lock was not respected");
        };
        assert!(holders[0].starts_with(&host_id()), "{holders:?}");
    }
    driver.close();
    driver.open(&path, false).unwrap();
    assert!(matches!(open(&path, Options::write()), Err(Error::Locked { .. })));
    open(&path, Options::read()).unwrap();
    driver.close();
    open(&path, Options::write()).unwrap();
}

#[test]
fn reading_without_a_lock_leaves_no_trace() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    let mut driver = stock.writer(&path);
    let names = || {
        let entries = std::fs::read_dir(&path).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let options = Options {
        access: Access::Unlocked,
        ..Options::default()
    };
    let repository = open(&path, options).unwrap();
    assert_eq!(repository.count().unwrap(), 1);
    assert!(matches!(repository.put(&Id([1; 32]), b""), Err(Error::ReadOnly)));
    assert!(matches!(repository.reserve_nonce(None, 1), Err(Error::ReadOnly)));
    drop(repository);
    assert_eq!(names(), before);
    driver.close();
}

#[test]
fn a_lock_of_stock_borg_that_was_killed_does_not_last() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    for exclusive in [true, false] {
        let mut driver = stock.driver();
        driver.open(&path, exclusive).unwrap();
        driver.die();
        open(&path, Options::write()).unwrap();
    }
}

#[test]
fn a_lock_of_ours_that_was_killed_does_not_last() {
    let stock = Stock::new();
    let (_dir, path) = empty(&stock);
    for access in ["write", "read"] {
        let mut child = holder(&path, access);
        let mut driver = stock.driver();
        assert_eq!(driver.open(&path, true), Err("LockTimeout".to_owned()));
        child.kill().unwrap();
        child.wait().unwrap();
        driver.open(&path, true).unwrap();
        assert!(
            driver.warnings.iter().any(|warning| warning.contains("stale")),
            "{:?}",
            driver.warnings
        );
        driver.warnings.clear();
        driver.close();
    }
}

/// Another process of this program that holds a repository's lock.
fn holder(path: &Path, access: &str) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "locks::holder_of_a_lock", "--ignored"])
        .env("STORE_TEST_HOLD", path)
        .env("STORE_TEST_ACCESS", access)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while !path.join("lock.roster").exists() || path.join("lock.exclusive").exists() != (access == "write") {
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "the other process does not take the lock"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

#[test]
#[ignore = "started by other tests"]
fn holder_of_a_lock() {
    let Some(path) = std::env::var_os("STORE_TEST_HOLD") else {
        return;
    };
    let write = std::env::var("STORE_TEST_ACCESS").unwrap() == "write";
    let options = if write { Options::write() } else { Options::read() };
    let repository = Repository::open(Path::new(&path), &options).unwrap();
    if write {
        repository.put(&Id([1; 32]), &vec![1; 200_000]).unwrap();
    }
    std::thread::sleep(Duration::from_secs(20));
}
