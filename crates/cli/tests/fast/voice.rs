//! The book, the help and the messages say who does something: the program, the guest, the host, or you.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::{Path, PathBuf};

use crate::book::{pages, prose, root};

/// Subjects that hide who it is.
const VAGUE: [&str; 4] = ["whoever", "nobody", "somebody", "anybody"];

/// The vague subject in a text, if there is one. What is quoted in backticks is a name or an example.
fn vague(text: &str) -> Option<&'static str> {
    let unquoted: String = text.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let lower = unquoted.to_lowercase();
    let mut words = lower.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.find_map(|word| VAGUE.into_iter().find(|vague| *vague == word))
}

/// What a source file says in its string literals, with the number of the line; without its tests.
fn literals(source: &str) -> Vec<(usize, String)> {
    let source = source.split("\nmod tests {").next().unwrap();
    let chars: Vec<char> = source.chars().collect();
    let starts = |at: usize, with: &str| {
        with.chars()
            .enumerate()
            .all(|(i, c)| chars.get(at + i) == Some(&c))
    };
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let begin = line;
        // A comment.
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
            continue;
        }
        // A character, which may be a quotation mark; anything else behind an apostrophe is a lifetime.
        if chars[at] == '\'' && (starts(at + 1, "\\") || chars.get(at + 2) == Some(&'\'')) {
            at += if starts(at + 1, "\\") { 3 } else { 2 };
            while at < chars.len() && chars[at] != '\'' {
                at += 1;
            }
            at += 1;
            continue;
        }
        let hashes = chars[at..].iter().skip(1).take_while(|c| **c == '#').count();
        let word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        let raw = chars[at] == 'r' && !word && chars.get(at + 1 + hashes) == Some(&'"');
        if !raw && chars[at] != '"' {
            line += usize::from(chars[at] == '\n');
            at += 1;
            continue;
        }
        let end = if raw {
            format!("\"{}", "#".repeat(hashes))
        } else {
            "\"".to_owned()
        };
        at += if raw { hashes + 2 } else { 1 };
        let mut text = String::new();
        while at < chars.len() && !starts(at, &end) {
            // An escaped character, or the end of a line that is none of the text.
            if !raw && chars[at] == '\\' {
                at += 1;
            } else {
                text.push(chars[at]);
            }
            line += usize::from(chars.get(at) == Some(&'\n'));
            at += 1;
        }
        at += end.len();
        found.push((begin, text));
    }
    found
}

/// All source files below a directory but those of tests.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let is_test = path.file_stem().is_some_and(|name| name == "tests");
        if path.is_dir() && !is_test {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") && !is_test {
            found.push(path);
        }
    }
    found
}

/// The directories of all crates.
fn crates() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("crates")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_book_says_who() {
    let mut said = Vec::new();
    for page in pages() {
        let mut text = prose(&fs::read_to_string(&page).unwrap());
        if page.ends_with("CHANGELOG.md") {
            // What older versions said of themselves stays.
            let newest = text.match_indices("\n## ").nth(1).map(|(at, _)| at);
            text.truncate(newest.unwrap_or(text.len()));
        }
        for paragraph in text.split("\n\n") {
            for cell in paragraph.split('|') {
                if let Some(word) = vague(cell) {
                    said.push(format!("{}: {word}: {cell}", page.display()));
                }
            }
        }
    }
    assert!(said.is_empty(), "{}", said.join("\n"));
}

#[test]
fn the_man_pages_say_who() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("docs/man")).unwrap() {
        let path = entry.unwrap().path();
        let page = fs::read_to_string(&path).unwrap();
        assert_eq!(vague(&page), None, "{}", path.display());
        count += 1;
    }
    assert!(count > 20, "{count} pages");
}

#[test]
fn messages_say_who() {
    let (mut said, mut count) = (Vec::new(), 0);
    for file in crates().iter().flat_map(|of| sources(&of.join("src"))) {
        for (line, text) in literals(&fs::read_to_string(&file).unwrap()) {
            count += 1;
            // The user called so, whose name is all that is said.
            if let Some(word) = vague(&text).filter(|word| text != *word) {
                said.push(format!("{}:{line}: {word}: {text}", file.display()));
            }
        }
    }
    assert!(said.is_empty(), "{}", said.join("\n"));
    assert!(count > 5000, "{count} texts");
}

#[test]
fn comments_say_who() {
    let mut said = Vec::new();
    for of in crates() {
        for file in sources(&of.join("src")) {
            let source = fs::read_to_string(&file).unwrap();
            for (number, line) in source.lines().enumerate() {
                let comment = line.split_once("//").map_or("", |(_, comment)| comment);
                if let Some(word) = vague(comment) {
                    said.push(format!("{}:{}: {word}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(said.is_empty(), "{}", said.join("\n"));
}

#[test]
fn vague_subjects_are_seen_in_all_kinds_of_literals() {
    let source = "let a = '\"'; // nobody\nfn f<'a>() { g(\"one \\\"two\\\" \\\n  Nobody\", r#\"three \"four\" whoever\"#); }\n";
    let found = literals(source);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].0, vague(&found[0].1)), (2, Some("nobody")));
    assert_eq!((found[1].0, vague(&found[1].1)), (3, Some("whoever")));
    assert_eq!(vague("the user `nobody` and a somebody_else"), None);
}
