//! Locations mean what they mean to stock Borg: its own parser is the judge.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use strongroom_borg::Location;

use crate::common::{borg, which};

/// What Borg's parser makes of each line: the location under which it remembers the repository, and nothing for what it
/// refuses or for an archive.
const JUDGE: &str = r"
import sys
from borg.helpers import Location
for text in sys.stdin.read().split('\0'):
    try:
        place = Location(text)
        if place.archive:
            print('-')
        elif place.proto == 'ssh':
            print(place.canonical_path())
        else:
            import os
            print(os.path.abspath(place.path))
    except ValueError:
        print('-')
";

/// Asks the Python that runs Borg.
fn judged(texts: &[String]) -> Vec<Option<String>> {
    let program = fs::read_to_string(which(&borg())).unwrap();
    let interpreter = program.lines().next().unwrap().trim_start_matches("#!");
    let mut child = Command::new(interpreter.split(' ').next().unwrap())
        .args(["-c", JUDGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let asked = texts.join("\0");
    let writer = std::thread::spawn(move || input.write_all(asked.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    let said: Vec<Option<String>> = said
        .lines()
        .map(|line| (line != "-").then(|| line.to_owned()))
        .collect();
    assert_eq!(said.len(), texts.len());
    said
}

/// A11: IPv6 in both forms, home directories, slashes, and whatever else can be put together of their parts.
#[test]
fn a_location_is_read_as_borg_reads_it() {
    let part = prop::sample::select(vec![
        "ssh://",
        "file://",
        "backup@",
        "[2001:db8::17]",
        "[::1]",
        "host",
        "192.0.2.1",
        ":2222",
        ":",
        "/",
        "//",
        "/./",
        "/~/",
        "~",
        "~/",
        "..",
        ".",
        "srv",
        "a b",
        "::",
        "x/",
        "@",
        "]",
        ":0",
        "a:b",
    ]);
    let mut texts: Vec<String> = [
        "ssh://backup@[2001:db8::17]:2222/srv/repo",
        "ssh://backup@[2001:db8::17]/./repo/",
        "ssh://[2001:db8::17]:2222/~/repo",
        "ssh://[2001:db8::17]/srv",
        "[2001:db8::17]:repo",
        "backup@[2001:db8::17]:/srv/repo//x/",
        "backup@host:~/repo",
        "backup@host:/./repo",
        "ssh://host//srv",
        "ssh://host/srv/../repo/.",
        "file:///srv/repo/",
        "/srv/a:b",
        "./a:b",
        "host:a:b",
    ]
    .map(str::to_owned)
    .into();
    let made = prop::collection::vec(part, 1..7).prop_map(|parts| parts.concat());
    let mut runner = TestRunner::deterministic();
    for _ in 0..20_000 {
        texts.push(made.new_tree(&mut runner).unwrap().current());
    }
    let (mut agreed, mut differ) = (0, Vec::new());
    for (text, theirs) in texts.iter().zip(judged(&texts)) {
        let ours = text.parse::<Location>();
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) if ours.canonical() == theirs => agreed += 1,
            // Refusing more is no harm, but for what is remote and has neither spaces nor an empty user or host.
            (Err(_), Some(theirs))
                if !theirs.starts_with("ssh://")
                    || theirs.contains(' ')
                    || theirs.contains("/@")
                    || theirs.contains("@/") => {}
            (Err(_), None) => {}
            (ours, theirs) => differ.push(format!("{text:?}: {ours:?}, to Borg {theirs:?}")),
        }
    }
    assert!(
        differ.is_empty(),
        "{} differ: {:#?}",
        differ.len(),
        differ.get(..20.min(differ.len()))
    );
    assert!(agreed > 1000, "{agreed}");
}
