//! The threat model names a test for each promise, and the list of cases those of each case. They are there.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The files where a test may be that is called so, without its function.
fn files(place: &[&str]) -> Vec<PathBuf> {
    let crates = root().join("crates");
    let mut files = Vec::new();
    // Of the program.
    files.push(
        crates
            .join("cli/tests")
            .join(place.join("/"))
            .with_extension("rs"),
    );
    if let [of, module @ ..] = place {
        for directory in ["src", "tests"] {
            let file = crates.join(of).join(directory).join(module.join("/"));
            files.push(file.join("tests.rs"));
            files.push(file.with_extension("rs"));
        }
    }
    files
}

/// Whether a file has a function of this name that is a test, or that a macro makes one.
fn has_test(file: &Path, function: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else {
        return false;
    };
    let made = format!("fn {function}(");
    text.find(&made).is_some_and(|at| {
        let before: Vec<&str> = text[..at].lines().rev().take(3).collect();
        before.iter().any(|line| line.trim() == "#[test]")
    })
}

#[test]
fn the_tests_that_the_threat_model_names_are_there() {
    let page = fs::read_to_string(root().join("docs/security/threat-model.md")).expect("the threat model");
    let (_, promises) = page.split_once("## What is promised").expect("promises");
    let (promises, _) = promises.split_once("\n## ").expect("limits");
    let rows = promises.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut count = 0;
    for row in rows {
        assert!(named_tests(row) > 0, "nothing shows this: {row}");
        count += 1;
    }
    assert!(count > 20, "{count} promises");
}

/// How many tests the last cell of a row names. All of them have to be there.
fn named_tests(row: &str) -> usize {
    let shown = row.trim_end_matches(" |").rsplit(" | ").next().expect("a cell");
    let named: Vec<&str> = shown
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains("::"))
        .collect();
    for name in &named {
        let path: Vec<&str> = name.split("::").collect();
        let (function, place) = path.split_last().expect("a path");
        assert!(
            files(place).iter().any(|file| has_test(file, function)),
            "the test {name} is not there"
        );
    }
    named.len()
}

#[test]
fn the_tests_that_the_list_of_cases_names_are_there() {
    let page = fs::read_to_string(root().join("docs/security/tests-by-case.md")).expect("the list");
    let rows = page.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut count = 0;
    for row in rows {
        assert_eq!(row.contains("| open |"), named_tests(row) == 0, "{row}");
        count += 1;
    }
    assert!(count > 30, "{count} cases");
}
