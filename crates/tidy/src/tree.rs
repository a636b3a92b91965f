//! A crate's files as modules, and the arrows between them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as File;

use crate::source::{self, PREFIX, Path};

/// A module: its path below the crate, empty for the root.
pub type Module = Vec<String>;

/// How often a name may be passed on from file to file.
const MOST_STEPS: usize = 8;

/// The files of one crate.
#[derive(Debug, Default)]
pub struct Tree {
    /// The code of each module that has a file of its own.
    files: BTreeMap<Module, String>,
}

impl Tree {
    /// Reads what is below `src`, but for tests.
    pub fn read(src: &File) -> std::io::Result<Self> {
        let mut tree = Self::default();
        tree.add(src, &Vec::new())?;
        Ok(tree)
    }

    fn add(&mut self, directory: &File, at: &Module) -> std::io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let mut module = at.clone();
            if path.is_dir() {
                if !is_for_tests(&stem) {
                    module.push(stem);
                    self.add(&path, &module)?;
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_for_tests(&stem) {
                if !matches!(stem.as_str(), "lib" | "main" | "mod") {
                    module.push(stem);
                }
                self.insert(module, &std::fs::read_to_string(&path)?);
            }
        }
        Ok(())
    }

    /// Adds a file. The root of a library and that of a program beside it count as one.
    pub fn insert(&mut self, module: Module, source: &str) {
        self.files
            .entry(module)
            .or_default()
            .push_str(&source::code(source));
    }

    /// The names of the modules that the root declares.
    pub fn top(&self) -> BTreeSet<&str> {
        let modules = self.files.keys();
        modules
            .filter_map(|module| module.first().map(String::as_str))
            .collect()
    }

    /// The other crates of the workspace that this one names.
    pub fn crates(&self) -> BTreeSet<String> {
        let paths = self.files.values().flat_map(|code| source::paths(code));
        paths
            .filter_map(|path| path[0].strip_prefix(PREFIX).map(str::to_owned))
            .collect()
    }

    /// The files that name another crate of the workspace.
    pub fn files_that_name<'a>(&'a self, other: &'a str) -> impl Iterator<Item = &'a Module> {
        let names = move |code: &String| {
            let mut paths = source::paths(code).into_iter();
            paths.any(|path| path[0].strip_prefix(PREFIX) == Some(other))
        };
        self.files
            .iter()
            .filter(move |(_, code)| names(code))
            .map(|(module, _)| module)
    }

    /// Which file names which.
    pub fn arrows(&self) -> BTreeSet<(Module, Module)> {
        let mut arrows = BTreeSet::new();
        for (from, code) in &self.files {
            for path in source::paths(code) {
                if let Some(to) = self.resolve(from, &path, MOST_STEPS)
                    && to != *from
                {
                    arrows.insert((from.clone(), to));
                }
            }
        }
        arrows
    }

    /// The file that has what a path means; nothing for another crate's.
    fn resolve(&self, from: &Module, path: &Path, steps: usize) -> Option<Module> {
        let mut module = from.clone();
        let mut pieces = path.iter().map(String::as_str).peekable();
        let first = *pieces.peek()?;
        if first.starts_with(PREFIX) {
            return None;
        }
        if first == "crate" {
            module.clear();
        }
        while let Some(root) = pieces.next_if(|piece| matches!(*piece, "crate" | "self" | "super")) {
            if root == "super" {
                module.pop();
            }
        }
        // A module inside a file is the file's.
        while !self.files.contains_key(&module) && module.pop().is_some() {}
        while let Some(piece) = pieces.peek() {
            let mut below = module.clone();
            below.push((*piece).to_owned());
            if !self.files.contains_key(&below) {
                break;
            }
            module = below;
            pieces.next();
        }
        let Some(name) = pieces.next().filter(|_| steps > 0) else {
            return Some(module);
        };
        // Where the name is only passed on, it is another file's.
        let passed_on = source::passed_on(self.files.get(&module)?);
        let origin = passed_on.iter().find(|(_, passed)| passed == name);
        match origin.and_then(|(path, _)| self.resolve(&module, path, steps - 1)) {
            Some(origin) => Some(origin),
            None => Some(module),
        }
    }
}

/// Whether a module is compiled for tests alone, by its name.
fn is_for_tests(module: &str) -> bool {
    matches!(module, "tests" | "testing")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str) -> Module {
        name.split("::")
            .filter(|piece| !piece.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn an_arrow_leads_to_the_file_that_defines_the_name() {
        let mut tree = Tree::default();
        tree.insert(module(""), "mod a;\nmod b;\npub use a::x::Thing;\n");
        tree.insert(
            module("a"),
            "pub mod x;\npub use self::x::Other;\npub struct Own;\n",
        );
        tree.insert(
            module("a::x"),
            "pub struct Thing;\npub struct Other;\nfn f() { super::Own }\n",
        );
        tree.insert(
            module("b"),
            "use crate::Thing;\nuse crate::a::{Other, Own};\nuse strongroom_disk::Extent;\n",
        );
        let arrows: Vec<_> = tree
            .arrows()
            .into_iter()
            .filter(|(from, _)| *from == module("b"))
            .collect();
        assert_eq!(
            arrows,
            [(module("b"), module("a")), (module("b"), module("a::x"))]
        );
        assert!(tree.arrows().contains(&(module("a::x"), module("a"))));
        assert_eq!(tree.crates().into_iter().collect::<Vec<_>>(), ["disk"]);
        assert_eq!(tree.top().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
