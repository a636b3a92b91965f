//! A bit of a file changes by itself: it is found or healed, and no object is ever another one.

use std::sync::Arc;

use strongroom_store::{Error, Options, Repository, Store as _};

use crate::common::Dice;
use crate::history::{Objects, history, open, start};
use crate::memory::{Memory, Node, Tree};

fn settled() -> (Tree, Objects) {
    let (tree, first) = start();
    let memory = Memory::of(tree);
    let objects = history(&memory, &first, 5).pop().unwrap();
    // What the last, committed transaction left is all there is.
    drop(open(&memory, &Options::write()));
    let tree = memory.world().tree.clone();
    (tree, objects)
}

/// Every object is there as it was, or an error says that it is not. Returns how many are.
fn read(tree: Tree, objects: &Objects, what: &str) -> Option<usize> {
    let memory = Memory::of(tree);
    let repository = match Repository::open_in(Arc::new(memory), &Options::read()) {
        Ok(repository) => repository,
        Err(Error::Damaged { .. } | Error::CheckNeeded(_)) => return None,
        Err(other) => panic!("{what}: {other}"),
    };
    let mut good = 0;
    for (id, wanted) in objects {
        let mut object = Vec::new();
        match repository.get(id, &mut object) {
            Ok(()) => {
                assert!(object == *wanted, "{what}: wrong data");
                good += 1;
            }
            Err(Error::Damaged { .. }) => assert!(object.is_empty()),
            Err(other) => panic!("{what}: {other}"),
        }
    }
    Some(good)
}

#[test]
fn a_flipped_bit_is_found_or_healed_and_never_wrong_data() {
    let (tree, objects) = settled();
    let mut dice = Dice::new(1);
    let files: Vec<(String, usize)> = tree
        .nodes
        .iter()
        .filter_map(|(name, node)| match node {
            Node::File(file) if name != "config" && name != "README" => Some((name.clone(), *file)),
            _ => None,
        })
        .collect();
    assert!(files.len() > 15);
    for (name, file) in files {
        let len = tree.files[file].len();
        let trials = if name.starts_with("data/") { 60 } else { 150 };
        for trial in 0..trials {
            // The ends, where the structure is, more often than the middle.
            let at = if trial < 50 {
                dice.below(len.min(60))
            } else {
                dice.below(len)
            };
            let mut flipped = tree.clone();
            flipped.files[file][at] ^= 1 << dice.below(8);
            let what = format!("byte {at} of {name}");
            let good = read(flipped, &objects, &what);
            if !name.starts_with("data/") {
                assert_eq!(good, Some(objects.len()), "{what} is not healed");
            }
        }
    }
}

#[test]
fn a_segment_that_is_missing_or_short_is_found() {
    let (tree, objects) = settled();
    let segments: Vec<(String, usize)> = tree
        .nodes
        .iter()
        .filter_map(|(name, node)| match node {
            Node::File(file) if name.starts_with("data/") => Some((name.clone(), *file)),
            _ => None,
        })
        .collect();
    for (name, file) in segments {
        let mut short = tree.clone();
        let len = short.files[file].len();
        short.files[file].truncate(len - 1);
        read(short, &objects, &format!("{name} is short"));
        let mut missing = tree.clone();
        missing.nodes.remove(&name);
        read(missing, &objects, &format!("{name} is missing"));
    }
}

#[test]
fn what_is_committed_is_not_given_up_because_its_end_is_damaged() {
    let (tree, objects) = settled();
    let (last, file) = tree
        .nodes
        .iter()
        .filter_map(|(name, node)| match node {
            Node::File(file) => Some((name.rsplit('/').next()?.parse::<u32>().ok()?, *file)),
            Node::Dir => None,
        })
        .max()
        .unwrap();
    let mut damaged = tree.clone();
    damaged.files[file][10] ^= 1;
    assert_eq!(read(damaged.clone(), &objects, "the last commit"), None);
    let memory = Memory::of(damaged);
    let opened = Repository::open_in(Arc::new(memory.clone()), &Options::write());
    assert!(matches!(opened.err(), Some(Error::CheckNeeded(_))));
    let names = memory.world().tree.nodes.clone();
    assert!(
        names.keys().any(|name| name.ends_with(&format!("/{last}"))),
        "nothing is removed"
    );
}
