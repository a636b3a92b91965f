//! The power fails: what a disk may hold afterwards, and what has to be in it.
//!
//! Content is certain once its file was synced, a name once its directory was. Everything else is there or not as
//! the dice say: names in any combination, content whole, cut short, as zeroes or not at all.

use std::collections::HashSet;

use strongroom_store::{Id, Options, Repository, Store as _};

use crate::common::Dice;
use crate::history::{Objects, everything, history, open, start};
use crate::memory::{Memory, Node, Step, Tree, write};

/// What a disk may hold when the power fails behind these steps.
fn cut(before: &Tree, steps: &[Step], dice: &mut Dice) -> Tree {
    let (mut files, mut dirs) = (HashSet::new(), HashSet::new());
    let mut certain = vec![false; steps.len()];
    for (at, step) in steps.iter().enumerate().rev() {
        let parent = |path: &str| {
            path.rsplit_once('/')
                .map_or(String::new(), |(dir, _)| dir.to_owned())
        };
        match step {
            Step::Sync { file } => {
                files.insert(*file);
            }
            Step::SyncDir { path } => {
                dirs.insert(path.clone());
            }
            Step::Write { file, .. } | Step::Truncate { file } => certain[at] = files.contains(file),
            Step::Create { path, .. } | Step::MakeDir { path } | Step::Remove { path } => {
                certain[at] = dirs.contains(&parent(path));
            }
            Step::Rename { to, .. } => certain[at] = dirs.contains(&parent(to)),
            Step::Mark(_) => {}
        }
    }
    // In some trials all names survive, in some none, and the same for content.
    let (names, content) = (dice.below(3) * 50, dice.below(3) * 50);
    let mut tree = before.clone();
    for (step, certain) in steps.iter().zip(certain) {
        if let Step::Create { file, .. } = step {
            assert_eq!(*file, tree.files.len());
            tree.files.push(Vec::new());
        }
        match step {
            Step::Write { file, offset, bytes } => {
                let len = if certain || dice.below(100) < content {
                    bytes.len()
                } else {
                    [0, dice.below(bytes.len() + 1)][dice.below(2)]
                };
                write(&mut tree.files[*file], *offset, &bytes[..len]);
                if len < bytes.len() && dice.below(2) == 0 {
                    write(&mut tree.files[*file], *offset + len, &vec![0; bytes.len() - len]);
                }
            }
            Step::Truncate { file } if certain || dice.below(100) < content => tree.files[*file].clear(),
            name if certain || dice.below(100) < names => apply_name(&mut tree, name),
            _ => {}
        }
    }
    tree
}

fn apply_name(tree: &mut Tree, step: &Step) {
    let parent_is_there = |tree: &Tree, path: &str| {
        path.rsplit_once('/')
            .is_none_or(|(dir, _)| tree.nodes.get(dir) == Some(&Node::Dir))
    };
    match step {
        Step::Create { path, file } if parent_is_there(tree, path) => {
            tree.nodes.insert(path.clone(), Node::File(*file));
        }
        Step::MakeDir { path } if parent_is_there(tree, path) => {
            tree.nodes.insert(path.clone(), Node::Dir);
        }
        Step::Remove { path } if !tree.has_children(path) => {
            tree.nodes.remove(path);
        }
        Step::Rename { from, to } if tree.nodes.contains_key(from) && !tree.has_children(to) => {
            tree.rename(from, to);
        }
        _ => {}
    }
}

/// Opens what is left, demands one of two states, and goes on from there.
fn survives(tree: &Tree, old: &Objects, new: Option<&Objects>, what: &str) {
    let memory = Memory::of(tree.clone());
    let found = opened(&memory, what);
    assert!(found == *old || Some(&found) == new, "{what}: neither state");
    let write = open(&memory, &Options::write());
    let mut after = found.clone();
    for (id, object) in [(Id([0xee; 32]), vec![1; 70_000]), (Id::MANIFEST, vec![2; 30])] {
        write.put(&id, &object).unwrap();
        after.insert(id, object);
    }
    write.commit().unwrap();
    drop(write);
    assert!(opened(&memory, what) == after, "{what}: a later commit is lost");
    // The power fails once more while that was made up for.
    let steps = memory.world().steps.clone();
    let mut dice = Dice::new(what.bytes().map(u64::from).sum());
    let end = dice.below(steps.len() + 1);
    let what = format!("{what}, then step {end} of {}", steps.len());
    let left = opened(&Memory::of(cut(tree, &steps[..end], &mut dice)), &what);
    assert!(left == found || left == after, "{what}: neither state");
}

fn opened(memory: &Memory, what: &str) -> Objects {
    let read = Repository::open_in(std::sync::Arc::new(memory.clone()), &Options::read());
    everything(&read.unwrap_or_else(|error| panic!("{what}: {error}")))
}

/// Is given what is left, the old state, the new one if there is one to come, and what was done.
type Judge<'j> = &'j mut dyn FnMut(&Tree, &Objects, Option<&Objects>, &str);

/// Cuts the power behind each step of a history, `trials` times. Returns how often.
fn cut_everywhere(seed: u64, trials: usize, each: Judge<'_>) -> usize {
    let (tree, first) = start();
    let memory = Memory::of(tree.clone());
    let mut states = vec![first];
    states.extend(history(&memory, &states[0], seed));
    let steps = memory.world().steps.clone();
    let mut dice = Dice::new(seed);
    let mut done = 0;
    for end in 0..=steps.len() {
        if let Some(Step::Mark(number)) = end.checked_sub(1).map(|at| &steps[at]) {
            done = *number;
        }
        for trial in 0..trials {
            let tree = cut(&tree, &steps[..end], &mut dice);
            let what = format!("seed {seed}, step {end} of {}, trial {trial}", steps.len());
            each(&tree, &states[done], states.get(done + 1), &what);
        }
    }
    assert_eq!(done, states.len() - 1);
    (steps.len() + 1) * trials
}

#[test]
fn a_power_cut_anywhere_leaves_the_last_commit_whole() {
    assert!(cut_everywhere(1, 6, &mut survives) > 1000);
}

#[test]
fn stock_borg_accepts_what_a_power_cut_leaves() {
    let stock = crate::program::Stock::new();
    let mut driver = stock.driver();
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    cut_everywhere(2, 1, &mut |tree, old, new, what| {
        count += 1;
        if count % 7 != 0 {
            return;
        }
        let path = dir.path().join(count.to_string());
        Memory::of(tree.clone()).store(&path);
        driver.open(&path, true).unwrap();
        let ids = driver.list();
        let found: Objects = ids.into_iter().map(|id| (id, driver.get(&id).unwrap())).collect();
        assert!(
            found == *old || Some(&found) == new,
            "{what}: stock Borg sees neither state"
        );
        driver.put(&Id::MANIFEST, b"goes on").unwrap();
        driver.commit(true).unwrap();
        assert!(driver.check(), "{what}");
        driver.close();
        driver.warnings.clear();
        std::fs::remove_dir_all(path).unwrap();
    });
}

#[test]
#[ignore = "takes as many trials as STRONGROOM_LONG_TRIALS says"]
fn very_many_power_cuts_leave_the_last_commit_whole() {
    let trials = std::env::var("STRONGROOM_LONG_TRIALS")
        .ok()
        .and_then(|text| text.parse().ok());
    let seeds = 100..100 + trials.unwrap_or(100_u64).div_ceil(10);
    let cuts: usize = seeds.map(|seed| cut_everywhere(seed, 10, &mut survives)).sum();
    println!("{cuts} power cuts, and as many again while they were made up for");
}

#[test]
fn a_disk_that_does_not_sync_loses_commits() {
    // The control: without its syncs, the same history does not survive, so these tests can fail.
    let (tree, first) = start();
    let memory = Memory::of(tree.clone());
    let states = history(&memory, &first, 3);
    let steps: Vec<Step> = memory.world().steps.clone();
    let unsynced: Vec<Step> = steps
        .into_iter()
        .filter(|step| !matches!(step, Step::Sync { .. } | Step::SyncDir { .. }))
        .collect();
    let mut dice = Dice::new(3);
    let lost = (0..40).filter(|_| {
        let left = Memory::of(cut(&tree, &unsynced, &mut dice));
        let read = Repository::open_in(std::sync::Arc::new(left), &Options::read());
        read.map_or(true, |read| {
            read.list(None, usize::MAX).unwrap().len() != states.last().unwrap().len()
        })
    });
    assert!(lost.count() > 10);
}
