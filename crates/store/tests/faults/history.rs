//! A repository in memory, and what is done with it.

use std::collections::HashMap;
use std::sync::Arc;

use strongroom_store::{Id, Options, Repository, Store as _};

use crate::common::Dice;
use crate::memory::{Memory, Node, Step, Tree};

/// What a repository holds.
pub type Objects = HashMap<Id, Vec<u8>>;

const CONFIG: &str = "[repository]\nversion = 1\nsegments_per_dir = 7\nmax_segment_size = 60000\nappend_only = 0\n\
    id = 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n\n";

/// A repository with a few objects, as it is at rest.
pub fn start() -> (Tree, Objects) {
    let mut tree = Tree::default();
    tree.nodes.insert("data".to_owned(), Node::Dir);
    for (name, content) in [
        ("config", CONFIG),
        ("README", "This is a Borg Backup repository.\n"),
    ] {
        tree.nodes.insert(name.to_owned(), Node::File(tree.files.len()));
        tree.files.push(content.as_bytes().to_vec());
    }
    let memory = Memory::of(tree);
    let repository = open(&memory, &Options::write());
    let mut dice = Dice::new(7);
    let mut objects = HashMap::from([(Id::MANIFEST, b"the first".to_vec())]);
    for _ in 0..6 {
        let id = dice.id();
        objects.insert(id, dice.bytes(20_000));
    }
    let mut ids: Vec<&Id> = objects.keys().collect();
    ids.sort();
    for id in ids {
        repository.put(id, &objects[id]).unwrap();
    }
    repository.commit().unwrap();
    drop(repository);
    let tree = memory.world().tree.clone();
    (tree, objects)
}

pub fn open(memory: &Memory, options: &Options) -> Repository {
    Repository::open_in(Arc::new(memory.clone()), options).unwrap()
}

pub fn everything(repository: &Repository) -> Objects {
    let ids = repository.list(None, usize::MAX).unwrap();
    let get = |id: Id| {
        let mut object = Vec::new();
        repository.get(&id, &mut object).unwrap();
        (id, object)
    };
    ids.into_iter().map(get).collect()
}

/// Some transactions, one of which is not committed. Returns what there is after each commit, which is marked.
pub fn history(memory: &Memory, first: &Objects, seed: u64) -> Vec<Objects> {
    let mut dice = Dice::new(seed);
    let mut states = Vec::new();
    let mut committed = first.clone();
    for round in 0..5 {
        let repository = open(memory, &Options::write());
        let mut objects = committed.clone();
        for _ in 0..4 {
            let id = dice.id();
            let len = [0, 100, 30_000, 70_000][dice.below(4)];
            objects.insert(id, dice.bytes(len));
            repository.put(&id, &objects[&id]).unwrap();
        }
        let mut ids: Vec<Id> = committed
            .keys()
            .copied()
            .filter(|id| *id != Id::MANIFEST)
            .collect();
        ids.sort();
        repository.delete(&ids[0]).unwrap();
        objects.remove(&ids[0]);
        repository.put(&ids[1], b"replaced").unwrap();
        objects.insert(ids[1], b"replaced".to_vec());
        repository.put(&Id::MANIFEST, &[round; 50]).unwrap();
        objects.insert(Id::MANIFEST, vec![round; 50]);
        if round != 2 {
            repository.commit().unwrap();
            committed = objects;
            states.push(committed.clone());
            memory.world().steps.push(Step::Mark(states.len()));
        }
    }
    states
}
