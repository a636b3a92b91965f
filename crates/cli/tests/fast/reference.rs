//! What is generated from the command line's definition and kept in the repository is current.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

fn pages(directory: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let page = |entry: std::fs::DirEntry| {
        (
            entry.file_name().into_string().unwrap(),
            std::fs::read_to_string(entry.path()).unwrap(),
        )
    };
    entries.map(page).collect()
}

#[test]
fn the_man_pages_are_current() {
    let fresh = tempfile::tempdir().unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .arg("man")
        .arg(fresh.path())
        .status()
        .unwrap();
    assert!(program.success());
    let kept = pages(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man"));
    assert!(kept.contains_key("strongroom.1") && kept.contains_key("strongroom-backup.1"));
    assert!(kept == pages(fresh.path()), "run `make man`");
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    let code = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(arguments)
            .output()
            .unwrap();
        output.status.code()
    };
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["backup", "--help"]), Some(0));
    assert_eq!(code(&["backup"]), Some(2));
    assert_eq!(code(&["frobnicate"]), Some(2));
    assert_eq!(code(&["--config", "/nonexistent.toml", "list"]), Some(2));
}
