//! The book hangs together: links lead somewhere, each page is in the contents, and no line is too long to read.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap()
}

/// All Markdown pages at the root of the repository and below `docs`.
pub fn pages() -> Vec<PathBuf> {
    let mut pages = files(&root().join("docs"));
    pages.extend(fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()));
    pages.retain(|page| page.extension().is_some_and(|end| end == "md"));
    pages.sort();
    pages
}

/// A page without its blocks of code; lines keep their numbers.
pub fn prose(page: &str) -> String {
    let mut code = false;
    let mut prose = String::new();
    for line in page.lines() {
        let fence = line.trim_start().starts_with("```");
        if !code && !fence {
            prose.push_str(line);
        }
        code ^= fence;
        prose.push('\n');
    }
    prose
}

/// What the links of a page name.
fn links(page: &str) -> Vec<String> {
    let prose = prose(page);
    let after = prose.split("](").skip(1);
    let targets = after.filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> HashSet<String> {
    let headings = prose(page);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_to_files_and_anchors_that_exist() {
    let mut broken = Vec::new();
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            if link.starts_with("http") {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let file = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let there = match fs::read_to_string(&file) {
                Ok(target) => anchor.is_empty() || anchors(&target).contains(anchor),
                Err(_) => anchor.is_empty() && file.is_dir(),
            };
            if !there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(count > 50, "{count} links");
}

#[test]
fn each_page_is_in_the_contents() {
    let docs = root().join("docs");
    let contents = fs::read_to_string(docs.join("README.md")).unwrap();
    let named: HashSet<PathBuf> = links(&contents)
        .iter()
        .filter_map(|link| fs::canonicalize(docs.join(link)).ok())
        .collect();
    let own = docs.join("README.md");
    let missing: Vec<_> = pages()
        .into_iter()
        .filter(|page| page.starts_with(&docs) && *page != own && !named.contains(page))
        .collect();
    assert!(missing.is_empty(), "name these in docs/README.md: {missing:?}");
}

#[test]
fn no_line_of_prose_is_longer_than_130_columns() {
    let mut long = Vec::new();
    for page in pages() {
        let text = prose(&fs::read_to_string(&page).unwrap());
        for (number, line) in text.lines().enumerate() {
            // A row of a table is one line, however long it is.
            if !line.trim_start().starts_with('|') && line.chars().count() > 130 {
                long.push(format!("{}:{}", page.display(), number + 1));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn paths_of_pages_named_in_the_program_exist() {
    let mut missing = Vec::new();
    let directories = ["crates", "scripts", "dist"].map(|directory| root().join(directory));
    for path in directories.iter().flat_map(|directory| files(directory)) {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for (at, _) in text.match_indices("docs/") {
            let ends = |c: char| !(c.is_ascii_alphanumeric() || "/-_.".contains(c));
            let name = text[at..].split(ends).next().unwrap().trim_end_matches('.');
            let is_page = Path::new(name).extension().is_some_and(|end| end == "md");
            // Not of another project's, which a comment may name.
            let other = text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.');
            if is_page && !other && !root().join(name).is_file() {
                missing.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn source_files_named_in_the_book_exist() {
    let mut sources = files(&root().join("crates"));
    sources.extend(files(&root().join("fuzz/src")));
    let mut missing = Vec::new();
    for page in pages() {
        let text = prose(&fs::read_to_string(&page).unwrap());
        for name in text.split('`').skip(1).step_by(2) {
            let is_source = Path::new(name).extension().is_some_and(|end| end == "rs");
            let there = match name.strip_suffix("/*.rs") {
                Some(directory) => root().join(directory).is_dir(),
                // Another pattern, or a line of a command.
                None => name.contains(['*', ' ']) || sources.iter().any(|source| source.ends_with(name)),
            };
            if is_source && !there {
                missing.push(format!("{}: {name}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
