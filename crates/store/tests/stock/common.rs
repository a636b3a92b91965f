//! Repositories that stock Borg made, and what is in their files.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use strongroom_store::{Hints, Id, Index, Options, Place, Repository, Store as _};
use tempfile::TempDir;

use crate::program::Stock;

/// Random numbers that are the same each time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .collect();
        bytes.truncate(len);
        bytes
    }

    pub fn id(&mut self) -> Id {
        Id(self.bytes(32).try_into().unwrap())
    }
}

/// An empty repository, with small segments and few of them in a directory.
pub fn empty(stock: &Stock) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repository");
    let mut driver = stock.driver();
    driver.create(&path);
    driver.put(&Id::MANIFEST, b"the first manifest").unwrap();
    driver.commit(false).unwrap();
    driver.close();
    configure(&path, "max_segment_size", "100000");
    configure(&path, "segments_per_dir", "7");
    (dir, path)
}

pub fn configure(repository: &Path, option: &str, value: &str) {
    let path = repository.join("config");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            if line.starts_with(option) {
                format!("{option} = {value}")
            } else {
                line.to_owned()
            }
        })
        .collect();
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub fn reader(repository: &Path) -> Repository {
    Repository::open(repository, &Options::read()).unwrap()
}

pub fn writer(repository: &Path) -> Repository {
    Repository::open(repository, &Options::write()).unwrap()
}

pub fn get(repository: &Repository, id: &Id) -> Vec<u8> {
    let mut object = Vec::new();
    repository.get(id, &mut object).unwrap();
    object
}

pub fn everything(repository: &Repository) -> HashMap<Id, Vec<u8>> {
    let ids = repository.list(None, usize::MAX).unwrap();
    ids.into_iter().map(|id| (id, get(repository, &id))).collect()
}

/// All that a repository's files say, in a form that does not depend on who wrote them.
#[derive(Debug, PartialEq)]
pub struct Files {
    pub transaction: u32,
    pub names: Vec<String>,
    pub segments: BTreeMap<u32, Vec<u8>>,
    pub index: BTreeMap<Id, Place>,
    pub buckets: u64,
    pub hints: Hints,
    pub integrity: Vec<String>,
}

/// Reads the files of a repository as they are, without any of its logic.
pub fn files(repository: &Path) -> Files {
    let mut names: Vec<String> = std::fs::read_dir(repository)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("lock"))
        .collect();
    names.sort();
    let transaction = names
        .iter()
        .find_map(|name| name.strip_prefix("index.")?.parse().ok())
        .unwrap();
    let read = |kind: &str| std::fs::read(repository.join(format!("{kind}.{transaction}"))).unwrap();
    let index = Index::from_bytes(read("index")).unwrap();
    let mut segments = BTreeMap::new();
    for dir in std::fs::read_dir(repository.join("data")).unwrap() {
        for file in std::fs::read_dir(dir.unwrap().path()).unwrap() {
            let file = file.unwrap();
            let number: u32 = file.file_name().to_str().unwrap().parse().unwrap();
            // What is behind the last commit is not seen.
            if number <= transaction {
                segments.insert(number, std::fs::read(file.path()).unwrap());
            }
        }
    }
    let mut hints = Hints::from_bytes(&read("hints"), transaction).unwrap();
    hints.shadow.retain(|_, segments| !segments.is_empty());
    // The digests differ with the order of entries in their files; what they are of does not.
    let integrity = String::from_utf8_lossy(&read("integrity")).into_owned();
    let integrity = integrity
        .split('"')
        .filter(|part| part.len() != 16)
        .map(str::to_owned)
        .collect();
    Files {
        transaction,
        names,
        segments,
        buckets: index.file_len(),
        index: index.iter().collect(),
        hints,
        integrity,
    }
}
