//! The paths that a Rust source names. As text: no macro is expanded, and a path has to begin at `crate`, `self`, `super` or a
//! crate of this workspace. Formatted source is expected.

/// How the crates of this workspace are called in paths.
pub const PREFIX: &str = "strongroom_";

/// A path, piece by piece: `crate::a::B` is `["crate", "a", "B"]`.
pub type Path = Vec<String>;

/// The source without comments, strings' contents and what is compiled only for tests.
pub fn code(source: &str) -> String {
    let mut code = String::new();
    let mut lines = source.lines();
    let mut for_tests = false;
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        if line == "#[cfg(test)]" {
            for_tests = true;
            continue;
        }
        if std::mem::take(&mut for_tests) {
            // An item of the file's own level ends at a line without indentation.
            if line.ends_with('{') {
                lines.by_ref().find(|line| *line == "}");
            }
            continue;
        }
        code.push_str(&without_strings(line));
        code.push('\n');
    }
    code
}

/// A line without its strings' contents and the comment at its end.
fn without_strings(line: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    let mut escaped = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        if escaped {
            escaped = false;
            continue;
        }
        match character {
            '\\' => escaped = true,
            '"' => inside = !inside,
            '/' if !inside && characters.peek() == Some(&'/') => break,
            _ if inside => {}
            other => kept.push(other),
        }
    }
    kept
}

/// All paths in the code, those of `use` and those in bodies; a group in braces is as many paths.
pub fn paths(code: &str) -> Vec<Path> {
    let mut found = Vec::new();
    let mut rest = code;
    let mut before = None;
    while let Some(first) = rest.chars().next() {
        let word = word(rest);
        if word.is_empty() {
            before = Some(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let root = matches!(word, "crate" | "self" | "super") || word.starts_with(PREFIX);
        if root && before != Some(':') && rest[word.len()..].starts_with("::") {
            let (mut paths, after) = path(rest);
            found.append(&mut paths);
            rest = after;
        } else {
            rest = &rest[word.len()..];
        }
        before = None;
    }
    found
}

/// The paths that begin here, and what comes after them.
fn path(text: &str) -> (Vec<Path>, &str) {
    let first = word(text);
    let rest = &text[first.len()..];
    let Some(next) = rest.strip_prefix("::") else {
        return (vec![vec![first.to_owned()]], rest);
    };
    let (tails, rest) = if let Some(group) = next.strip_prefix('{') {
        self::group(group)
    } else if word(next).is_empty() {
        // `*`, or `::<`: what is before it is meant.
        (vec![Vec::new()], next)
    } else {
        path(next)
    };
    let with_first = |tail: Path| std::iter::once(first.to_owned()).chain(tail).collect();
    (tails.into_iter().map(with_first).collect(), rest)
}

/// The paths of a group, after its opening brace.
fn group(mut text: &str) -> (Vec<Path>, &str) {
    let mut paths = Vec::new();
    loop {
        text = text.trim_start_matches([' ', '\n', ',']);
        if let Some(rest) = text.strip_prefix('}') {
            return (paths, rest);
        }
        if word(text).is_empty() {
            let Some(first) = text.chars().next() else {
                return (paths, text);
            };
            text = &text[first.len_utf8()..];
            continue;
        }
        let (mut found, rest) = path(text);
        // `{self, X}`: the path before the brace. `X as Y`: the first name is meant.
        for path in &mut found {
            path.retain(|piece| piece != "self");
        }
        paths.append(&mut found);
        let rest = rest
            .strip_prefix(" as ")
            .map_or(rest, |renamed| &renamed[word(renamed).len()..]);
        text = rest;
    }
}

/// The word at the beginning of a text; empty if there is none.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// What a file passes on under its own name: `pub use path::Name`, as the path and that name.
pub fn passed_on(code: &str) -> Vec<(Path, String)> {
    let mut found = Vec::new();
    for (at, start) in code
        .match_indices("pub use ")
        .chain(code.match_indices("pub(crate) use "))
    {
        let statement = &code[at + start.len()..];
        let statement = &statement[..statement.find(';').unwrap_or(statement.len())];
        for path in path(statement).0 {
            if let Some(name) = path.last().cloned() {
                found.push((path, name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let code = code(text);
        paths(&code).into_iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn paths_are_found_in_use_and_in_bodies() {
        let text = "use crate::a::{self, b::{C, D as E}, f};\n\
                    use strongroom_disk::Extent;\n\
                    fn f() -> super::G { super::super::h::i::<u8>(); self::j::*; std::crate_like::x() }\n";
        let expected = [
            "crate::a",
            "crate::a::b::C",
            "crate::a::b::D",
            "crate::a::f",
            "strongroom_disk::Extent",
            "super::G",
            "super::super::h::i",
            "self::j",
        ];
        assert_eq!(found(text), expected);
    }

    #[test]
    fn what_is_no_code_of_the_program_is_passed_over() {
        let text = "//! [`crate::a`]\nfn f() {} // crate::b\nconst X: &str = \"crate::c\";\n\
                    #[cfg(test)]\nmod tests {\n    use crate::d;\n}\n#[cfg(test)]\nmod e;\nuse crate::f;\n";
        assert_eq!(found(text), ["crate::f"]);
    }

    #[test]
    fn names_that_are_passed_on_are_known() {
        let found = passed_on("mod a;\npub use self::a::{B, C};\nuse self::a::D;\n");
        let names: Vec<_> = found.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["B", "C"]);
    }
}
