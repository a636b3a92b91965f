//! A directory in memory that fails when it is told to, and remembers what was done in which order.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use strongroom_store::files::{Create, Directory, File};

/// What is under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Dir,
    File(usize),
}

/// What a file system holds.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub nodes: BTreeMap<String, Node>,
    pub files: Vec<Vec<u8>>,
}

/// A change, or a wait for changes to be durable.
#[derive(Clone, Debug)]
pub enum Step {
    Create {
        path: String,
        file: usize,
    },
    Truncate {
        file: usize,
    },
    Write {
        file: usize,
        offset: usize,
        bytes: Vec<u8>,
    },
    Sync {
        file: usize,
    },
    MakeDir {
        path: String,
    },
    Remove {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    SyncDir {
        path: String,
    },
    /// Something that the test wants to find again.
    Mark(usize),
}

/// Which calls fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The first call that fails.
    pub at: Option<usize>,
    /// How many calls fail from there on.
    pub times: usize,
    /// With which error.
    pub errno: i32,
    /// No call reads or writes more bytes than this.
    pub most: Option<usize>,
}

#[derive(Default)]
pub struct World {
    pub tree: Tree,
    pub steps: Vec<Step>,
    pub faults: Faults,
    pub calls: usize,
}

impl World {
    /// Counts a call, which may be one that fails.
    fn call(&mut self) -> io::Result<()> {
        let call = self.calls;
        self.calls += 1;
        match self.faults.at {
            Some(at) if (at..at.saturating_add(self.faults.times)).contains(&call) => {
                Err(io::Error::from_raw_os_error(self.faults.errno))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, path: &str) -> io::Result<usize> {
        match self.tree.nodes.get(path) {
            Some(Node::File(file)) => Ok(*file),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn parent_is_there(&self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) if self.tree.nodes.get(parent) != Some(&Node::Dir) => {
                Err(io::ErrorKind::NotFound.into())
            }
            _ => Ok(()),
        }
    }
}

impl Tree {
    pub fn has_children(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        self.nodes.keys().any(|name| name.starts_with(&prefix))
    }

    /// Gives a file or a directory another name.
    pub fn rename(&mut self, from: &str, to: &str) {
        let prefix = format!("{from}/");
        let moved: Vec<String> = self
            .nodes
            .keys()
            .filter(|name| *name == from || name.starts_with(&prefix))
            .cloned()
            .collect();
        for name in moved {
            let node = self.nodes.remove(&name).unwrap();
            self.nodes.insert(to.to_owned() + &name[from.len()..], node);
        }
    }
}

/// A directory in memory.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<World>>);

impl Memory {
    pub fn of(tree: Tree) -> Self {
        let memory = Self::default();
        memory.world().tree = tree;
        memory
    }

    /// Writes all but locks to a directory of the file system.
    pub fn store(&self, path: &Path) {
        let world = self.world();
        std::fs::create_dir_all(path).unwrap();
        for (name, node) in world
            .tree
            .nodes
            .iter()
            .filter(|(name, _)| !name.starts_with("lock"))
        {
            match node {
                Node::Dir => std::fs::create_dir(path.join(name)).unwrap(),
                Node::File(file) => std::fs::write(path.join(name), &world.tree.files[*file]).unwrap(),
            }
        }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

impl Directory for Memory {
    fn open(&self, path: &str) -> io::Result<Arc<dyn File>> {
        let mut world = self.world();
        world.call()?;
        let file = world.file(path)?;
        Ok(Arc::new(MemoryFile(self.clone(), file)))
    }

    fn create(&self, path: &str, how: Create) -> io::Result<Arc<dyn File>> {
        let mut world = self.world();
        world.call()?;
        world.parent_is_there(path)?;
        let file = match world.file(path) {
            Ok(_) if how == Create::New => return Err(io::ErrorKind::AlreadyExists.into()),
            Ok(file) => {
                if how == Create::Replace {
                    world.tree.files[file].clear();
                    world.steps.push(Step::Truncate { file });
                }
                file
            }
            Err(_) => {
                let file = world.tree.files.len();
                world.tree.files.push(Vec::new());
                world.tree.nodes.insert(path.to_owned(), Node::File(file));
                world.steps.push(Step::Create {
                    path: path.to_owned(),
                    file,
                });
                file
            }
        };
        Ok(Arc::new(MemoryFile(self.clone(), file)))
    }

    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let mut world = self.world();
        world.call()?;
        let prefix = match world.tree.nodes.get(path) {
            _ if path.is_empty() => String::new(),
            Some(Node::Dir) => format!("{path}/"),
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let children = world
            .tree
            .nodes
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix));
        Ok(children
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect())
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        world.parent_is_there(path)?;
        if world.tree.nodes.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.tree.nodes.insert(path.to_owned(), Node::Dir);
        world.steps.push(Step::MakeDir {
            path: path.to_owned(),
        });
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        match world.tree.nodes.get(path) {
            Some(Node::Dir) if world.tree.has_children(path) => {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        world.tree.nodes.remove(path);
        world.steps.push(Step::Remove {
            path: path.to_owned(),
        });
        Ok(())
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        world.file(path)?;
        world.tree.nodes.remove(path);
        world.steps.push(Step::Remove {
            path: path.to_owned(),
        });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        if !world.tree.nodes.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if world.tree.has_children(to) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        world.tree.rename(from, to);
        let (from, to) = (from.to_owned(), to.to_owned());
        world.steps.push(Step::Rename { from, to });
        Ok(())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        world.steps.push(Step::SyncDir {
            path: path.to_owned(),
        });
        Ok(())
    }

    fn free_space(&self) -> io::Result<u64> {
        self.world().call()?;
        Ok(1 << 40)
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        Ok((u64::MAX, Arc::as_ptr(&self.0) as u64))
    }
}

struct MemoryFile(Memory, usize);

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        let mut world = self.0.world();
        world.call()?;
        Ok(world.tree.files[self.1].len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut world = self.0.world();
        world.call()?;
        let most = world.faults.most.unwrap_or(usize::MAX);
        let content = world.tree.files[self.1]
            .get(offset as usize..)
            .unwrap_or_default();
        let len = content.len().min(buffer.len()).min(most);
        buffer[..len].copy_from_slice(&content[..len]);
        Ok(len)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut world = self.0.world();
        world.call()?;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        bytes.truncate(world.faults.most.unwrap_or(usize::MAX));
        let (len, file, offset) = (bytes.len(), self.1, offset as usize);
        write(&mut world.tree.files[file], offset, &bytes);
        world.steps.push(Step::Write { file, offset, bytes });
        Ok(len)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.0.world();
        world.call()?;
        world.steps.push(Step::Sync { file: self.1 });
        Ok(())
    }

    fn begin_writeback(&self, _: u64, _: u64) {}

    fn forget(&self) {}
}

/// Writes into a file, which may become longer.
pub fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}
