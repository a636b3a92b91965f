//! Random histories in which stock Borg and ours take turns on one repository.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;
use strongroom_store::{Id, Store as _};

use crate::common::{Dice, empty, everything, files, reader, writer};
use crate::program::{Driver, Stock};

type Objects = HashMap<Id, Vec<u8>>;

/// One who writes to the repository.
trait Turn {
    fn put(&mut self, id: &Id, object: &[u8]);
    fn delete(&mut self, id: &Id);
    /// Ends the turn: committed, or as a death would.
    fn end(self, commit: bool, compact: bool);
}

impl Turn for strongroom_store::Repository {
    fn put(&mut self, id: &Id, object: &[u8]) {
        strongroom_store::Store::put(self, id, object).unwrap();
    }

    fn delete(&mut self, id: &Id) {
        strongroom_store::Store::delete(self, id).unwrap();
    }

    fn end(self, commit: bool, _: bool) {
        if commit {
            self.commit().unwrap();
        }
    }
}

impl Turn for Driver {
    fn put(&mut self, id: &Id, object: &[u8]) {
        Driver::put(self, id, object).unwrap();
    }

    fn delete(&mut self, id: &Id) {
        Driver::delete(self, id).unwrap();
    }

    fn end(mut self, commit: bool, compact: bool) {
        if commit {
            Driver::commit(&mut self, compact).unwrap();
            self.close();
        } else {
            self.die();
        }
    }
}

/// Changes a few objects; returns what the repository holds afterwards.
fn turn(mut who: impl Turn, objects: &Objects, dice: &mut Dice) -> Objects {
    let mut now = objects.clone();
    for _ in 0..=dice.below(12) {
        let mut known: Vec<Id> = now.keys().copied().filter(|id| *id != Id::MANIFEST).collect();
        known.sort();
        let id = if known.is_empty() || dice.below(2) == 0 {
            dice.id()
        } else {
            known[dice.below(known.len())]
        };
        if now.contains_key(&id) && dice.below(3) > 0 {
            who.delete(&id);
            now.remove(&id);
        } else {
            let len = dice.below(40_000);
            let object = dice.bytes(len);
            who.put(&id, &object);
            now.insert(id, object);
        }
    }
    let manifest = dice.bytes(60);
    who.put(&Id::MANIFEST, &manifest);
    now.insert(Id::MANIFEST, manifest);
    let commit = dice.below(6) > 0;
    who.end(commit, dice.below(2) == 0);
    if commit { now } else { objects.clone() }
}

/// Stock Borg finds nothing wrong, makes index and hints anew if that is wanted, and holds what it should.
fn check(stock: &Stock, path: &Path, objects: &Objects, repair: bool) {
    let mut driver = stock.driver();
    driver.open(path, true).unwrap();
    let stale = |warning: &String| warning.contains("stale");
    let good = driver.call("check", json!({"repair": repair})).unwrap();
    assert_eq!(good, true);
    // What a killed process left of its lock is the only thing that it may warn of.
    assert!(driver.warnings.iter().all(stale), "{:?}", driver.warnings);
    driver.warnings.clear();
    driver.close();
    let repository = reader(path);
    assert_eq!(&everything(&repository), objects);
}

fn interchange(seed: u64, turns: usize) {
    let stocks = [Stock::new(), Stock::packaged()];
    let (_dir, path) = empty(&stocks[0]);
    let mut dice = Dice::new(seed);
    let mut objects = everything(&reader(&path));
    for n in 0..turns {
        let stock = &stocks[dice.below(2)];
        objects = if dice.below(2) == 0 {
            turn(writer(&path), &objects, &mut dice)
        } else {
            let mut driver = stock.driver();
            driver.open(&path, true).unwrap();
            driver.warnings.clear();
            turn(driver, &objects, &mut dice)
        };
        if n % 3 == 2 || n + 1 == turns {
            check(stock, &path, &objects, dice.below(2) == 0);
        }
    }
    // Wrong hints show only when everything is compacted.
    let mut driver = stocks[0].driver();
    driver.open(&path, true).unwrap();
    driver.warnings.clear();
    driver.put(&Id::MANIFEST, &objects[&Id::MANIFEST]).unwrap();
    driver.commit(true).unwrap();
    assert!(driver.check());
    assert!(driver.warnings.is_empty(), "{:?}", driver.warnings);
    driver.call("rollback", json!({})).unwrap();
    driver.close();
    assert_eq!(everything(&reader(&path)), objects);
    let hints = files(&path).hints;
    let live: i64 = hints.segments.values().sum();
    assert_eq!(live, objects.len() as i64);
}

#[test]
fn stock_borg_and_ours_take_turns() {
    interchange(1, 12);
}

#[test]
fn stock_borg_and_ours_take_turns_again() {
    interchange(2, 12);
}

#[test]
#[ignore = "takes as many turns as STRONGROOM_LONG_TURNS says"]
fn stock_borg_and_ours_take_very_many_turns() {
    let turns = std::env::var("STRONGROOM_LONG_TURNS")
        .ok()
        .and_then(|text| text.parse().ok());
    for seed in 100..100 + turns.unwrap_or(200_u64).div_ceil(50) {
        interchange(seed, 50);
    }
}
