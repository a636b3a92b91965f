//! Dependencies point one way: between crates, between the folders of the engine, and between files.

use std::path::{Path, PathBuf};

use strongroom_tidy::graph::circles;
use strongroom_tidy::layers::Layers;
use strongroom_tidy::tree::Tree;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Each crate of the workspace by its folder's name.
fn crates() -> Vec<(String, Tree)> {
    let folders = std::fs::read_dir(root().join("crates")).expect("the crates");
    let mut crates: Vec<_> = folders
        .map(|folder| folder.expect("a crate").path())
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, Tree::read(&path.join("src")).expect("its sources"))
        })
        .collect();
    crates.sort_by(|one, other| one.0.cmp(&other.0));
    assert!(crates.len() > 5, "the workspace was not found");
    crates
}

fn layers(name: &str) -> Layers {
    let document = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    Layers::parse(&document, name).unwrap_or_else(|| panic!("ARCHITECTURE.md has no layers of {name}"))
}

/// The names of the document and those of the tree are the same.
fn assert_complete<'a>(layers: &Layers, there: impl Iterator<Item = &'a str>) {
    let mut named: Vec<_> = layers.names().collect();
    let mut there: Vec<_> = there.collect();
    named.sort_unstable();
    there.sort_unstable();
    assert_eq!(
        named, there,
        "ARCHITECTURE.md (left) names other layers than there are (right)"
    );
}

#[test]
fn no_crate_names_one_of_its_own_layer_or_above() {
    let (layers, crates) = (layers("crates"), crates());
    assert_complete(&layers, crates.iter().map(|(name, _)| name.as_str()));
    for (name, tree) in &crates {
        for other in tree.crates().iter().filter(|other| *other != name) {
            assert!(
                layers.allows(name, other),
                "{name} names {other}, which is not below it"
            );
        }
    }
}

#[test]
fn no_folder_of_the_engine_names_one_of_its_own_layer_or_above() {
    let layers = layers("engine");
    let tree = Tree::read(&root().join("crates/engine/src")).expect("the engine's sources");
    assert_complete(&layers, tree.top().into_iter());
    let mut against = Vec::new();
    for (from, to) in tree.arrows() {
        let (Some(upper), Some(lower)) = (from.first(), to.first()) else {
            continue;
        };
        if upper != lower && !layers.allows(upper, lower) {
            against.push(format!("{} -> {}", from.join("::"), to.join("::")));
        }
    }
    assert!(
        against.is_empty(),
        "against the layers of ARCHITECTURE.md:\n{}",
        against.join("\n")
    );
}

/// The driver is the one place that knows Borg.
#[test]
fn nothing_but_the_driver_names_the_borg_client() {
    let mut found = Vec::new();
    for (name, tree) in crates() {
        let driver = ["store".to_owned(), "borg".to_owned()];
        let named = tree.files_that_name("borg");
        let strange = named.filter(|module| name != "points" || !module.starts_with(&driver));
        found.extend(strange.map(|module| format!("{name}: {}", module.join("::"))));
    }
    assert!(
        found.is_empty(),
        "Borg's client is named by:\n{}",
        found.join("\n")
    );
}

#[test]
fn no_files_need_each_other_but_a_parent_and_its_children() {
    let mut found = Vec::new();
    for (name, tree) in crates() {
        for circle in circles(&tree.arrows()) {
            let files: Vec<_> = circle.iter().map(|module| module.join("::")).collect();
            found.push(format!("{name}: {}", files.join(" ")));
        }
    }
    assert!(found.is_empty(), "circles of files:\n{}", found.join("\n"));
}
