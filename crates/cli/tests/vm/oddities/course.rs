//! What is done with each domain: every command, in the order in which an operator meets them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use strongroom_testkit::{output_of, run, virsh};

use super::Kind;
use super::place::{Place, content_of, element, writable};
use crate::common::running::Said;

/// What is right for a command.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// It is done, and what it gives is right.
    Good,
    /// It is done, with a warning that says this.
    Warned(&'static str),
    /// It does nothing, and says all of these: what is wrong, and what to do.
    Refused(i32, &'static [&'static str]),
    /// The domain cannot be in that state.
    Never,
}

use Outcome::{Good, Never, Refused, Warned};

/// What is right for a kind of domain.
#[derive(Clone, Copy)]
pub struct Expected {
    /// `init`: what is refused there is not looked at further.
    pub init: Outcome,
    /// A backup while it is shut off.
    pub off: Outcome,
    /// A backup while it runs, and the next one.
    pub running: Outcome,
    /// The next one reads no more than what has changed, of these disks.
    pub incremental: &'static [&'static str],
    /// Disks that are left out, and named in the restore point.
    pub left_out: &'static [&'static str],
    /// `restore --as`, and the start of the copy.
    pub copy: Outcome,
    /// `restore` after the loss of the VM.
    pub restore: Outcome,
    /// `audit`: a finding is no failure.
    pub audit: Outcome,
    /// A word that its findings have to hold.
    pub finding: &'static str,
}

/// All is well.
pub const WELL: Expected = Expected {
    init: Good,
    off: Good,
    running: Good,
    incremental: &[],
    left_out: &[],
    copy: Good,
    restore: Good,
    audit: Good,
    finding: "",
};

impl Outcome {
    /// Whether it was done.
    #[track_caller]
    fn check(self, said: &Said, what: &str) -> bool {
        let (code, words): (_, &[&str]) = match self {
            Good => (0, &[]),
            Warned(word) => (3, &[word]),
            Refused(code, words) => (code, words),
            Never => unreachable!(),
        };
        assert_eq!(said.code, Some(code), "{what}: {}{}", said.out, said.err);
        said.expect(code, words);
        matches!(self, Good | Warned(_))
    }
}

/// What the guest saw on its disks at a restore point.
type Seen = Vec<(&'static str, Vec<u8>)>;

/// All of it.
pub fn follow(kind: &Kind) {
    let mut place = Place::new(kind.name);
    (kind.make)(&mut place);
    let definition = place.definition();
    let expected = &kind.expected;
    if place.transient {
        place.start();
    } else {
        run(virsh(["define"]).arg(&definition));
    }
    let vm = place.name.clone();
    let key = place.lab.path("signing").display().to_string();
    let init = [
        "init",
        "--unprotected-signing-key",
        "--signing-key",
        &key,
        "--",
        &vm,
    ];
    if !expected.init.check(&place.says(&init), "init") {
        return;
    }

    let backup = ["backup", "--", &vm];
    let mut points: Vec<Seen> = Vec::new();
    if !matches!(expected.off, Never) && expected.off.check(&place.says(&backup), "backup, off") {
        points.push(seen(&place));
    }
    if !matches!(expected.running, Never) {
        if !place.transient {
            place.start();
        }
        for (pattern, offset) in [(0x5a, 1 << 20), (0xa5, 5 << 20)] {
            place.write(pattern, offset);
            if expected.running.check(&place.says(&backup), "backup, running") {
                points.push(seen(&place));
            }
        }
    }
    let left = fs::read_dir(place.lab.path("images")).unwrap().count();
    assert_eq!(left, 0, "files are left in `images`");
    status_and_audit(&place, expected, points.len());
    if points.is_empty() {
        return;
    }
    let archives = restore_points(&place, expected, &points);
    copy(&place, expected, points.last().unwrap());
    restore(&place, expected, &archives[0], &points[0]);
}

fn seen(place: &Place) -> Seen {
    let disks = place.disks.iter();
    disks
        .filter_map(|disk| Some((disk.target, disk.content.clone()?)))
        .collect()
}

/// Both tell the truth, and look at a VM of this kind without a failure.
fn status_and_audit(place: &Place, expected: &Expected, points: usize) {
    let said = place.says(&["--json", "status", "--", &place.name]);
    let status = &said.json()["vms"][0];
    if points > 0 {
        assert_eq!(status["problem"], Value::Null, "{status}");
    }
    let said = place.says(&["--json", "audit", "--", &place.name]);
    if let Refused(code, words) = expected.audit {
        said.expect(code, words);
        return;
    }
    assert!(matches!(said.code, Some(0 | 3)), "audit: {}", said.err);
    let findings = said.json()["audit"]["vms"][0]["findings"].to_string();
    assert!(findings.contains(expected.finding), "{findings}");
}

/// They are listed and whole, and hold the disks that they should. Returns the archives, the oldest first.
fn restore_points(place: &Place, expected: &Expected, points: &[Seen]) -> Vec<String> {
    let listed = place.says(&["--json", "list", "--", &place.name]);
    let mut listed = listed.expect(0, &[]).json()["restore_points"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(listed.len(), points.len());
    listed.sort_by_key(|point| point["archive"].as_str().unwrap().to_owned());
    for (point, seen) in listed.iter().zip(points) {
        let manifest = &point["manifest"];
        let wanted: HashSet<_> = seen.iter().map(|(target, _)| *target).collect();
        assert_eq!(targets(&manifest["disks"]), wanted, "{manifest}");
        let left_out = targets(&manifest["excluded"]);
        for target in expected.left_out {
            assert!(left_out.contains(target), "{target} is not named: {manifest}");
        }
    }
    let newest = listed.last().unwrap()["manifest"]["disks"].as_array().unwrap();
    for disk in newest {
        let target = disk["target"].as_str().unwrap();
        if expected.incremental.contains(&target) {
            assert_eq!(disk["mode"], "incremental", "{disk}");
        }
    }
    place
        .says(&["verify", "--data", "--", &place.name])
        .expect(0, &[]);
    let archives = listed.iter();
    archives
        .map(|point| point["archive"].as_str().unwrap().to_owned())
        .collect()
}

fn targets(disks: &Value) -> HashSet<&str> {
    let disks = disks.as_array().map(Vec::as_slice).unwrap_or_default();
    disks
        .iter()
        .map(|disk| disk["target"].as_str().unwrap())
        .collect()
}

/// A copy beside the original shares nothing writable with it, and begins with what the newest restore point holds.
fn copy(place: &Place, expected: &Expected, seen: &Seen) {
    let name = place.lab.name("copy");
    let to = place.lab.path("copy");
    fs::create_dir(&to).unwrap();
    let said = place.says(&[
        "restore",
        "--as",
        &name,
        "--to",
        to.to_str().unwrap(),
        "--",
        &place.name,
    ]);
    if !expected.copy.check(&said, "restore --as") {
        return;
    }
    let xml = run(&mut virsh(["dumpxml", "--inactive", &name]));
    let original: HashSet<String> = [place.xml(&[]), place.xml(&["--inactive"])]
        .iter()
        .flat_map(|xml| writable(xml))
        .collect();
    for source in writable(&xml) {
        assert!(!original.contains(&source), "the copy writes into {source}");
    }
    holds(&xml, seen, "the copy");
    starts(&name, "the copy");
}

/// The VM is lost, and comes back from its first restore point.
fn restore(place: &Place, expected: &Expected, archive: &str, seen: &Seen) {
    place.undefine();
    let to = place.lab.path("restored");
    fs::create_dir(&to).unwrap();
    let point = format!("{}@{archive}", place.name);
    let said = place.says(&["restore", "--to", to.to_str().unwrap(), "--", &point]);
    if !expected.restore.check(&said, "restore") {
        return;
    }
    holds(&place.xml(&["--inactive"]), seen, "the restored VM");
    starts(&place.name, "the restored VM");
}

fn holds(xml: &str, seen: &Seen, what: &str) {
    for (target, content) in seen {
        let disk = element(xml, target).unwrap_or_else(|| panic!("{what} has no {target}: {xml}"));
        let (_, source) = disk
            .split_once("<source file='")
            .unwrap_or_else(|| panic!("{what}: {disk}"));
        let image = source.split('\'').next().unwrap();
        let found = content_of(Path::new(image));
        assert_eq!(found.len(), content.len(), "{what}: size of {target}");
        let differs = found
            .iter()
            .zip(content)
            .position(|(found, wanted)| found != wanted);
        assert_eq!(differs, None, "{what}: {target} differs there");
    }
}

fn starts(name: &str, what: &str) {
    let started = output_of(&mut virsh(["start", "--paused", "--domain", name]));
    assert!(started.is_ok(), "{what} does not start: {started:?}");
    run(&mut virsh(["destroy", "--domain", name]));
}
