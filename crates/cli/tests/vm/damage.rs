//! The damage matrix: whatever happens to a repository, `verify` notices, or it does no harm.
//!
//! Two attackers. One has the repository's host: every file of it is altered, cut short, removed, and old copies are put
//! back. The other has the repository's key and stock Borg as well: archives are dropped, renamed, swapped, and written
//! anew with one thing changed. What is not noticed has to be harmless: all restore points are restored and compared.
//!
//! Then the machine that makes the backups verifies too, and makes another one: does that heal the damage? What comes of it
//! all is in `docs/security/damage-matrix.md`, row by row; a row that differs fails the test.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test fails by panicking; this one tells its table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use strongroom_points::store::{Access, ArchiveOptions, Item};

use crate::common::checks::request;
use crate::common::segments::{self, Entry, Role};
use crate::common::tiny::{MIB, Tiny, noise, trust, with_signing};
use crate::common::{Bench, Hook, luks};
use strongroom_engine::config::Witness;
use strongroom_engine::restore;
use strongroom_engine::verify::{self, Report, Request, Surroundings};
use strongroom_points::headers::PIECE;
use strongroom_testkit::{Lab, run, ssh_keygen};

/// Restore points.
const POINTS: u64 = 3;

/// What is in a restore point.
const ITEMS: [&str; 5] = [
    "manifest.json",
    "manifest.json.sig",
    "domain.xml",
    "disks/vda.raw",
    "disks/vdb.raw",
];

/// At which depth something is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Verify,
    Data,
    Harmless,
}

/// What has come of all damage of one class.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    found: BTreeSet<Found>,
    /// Whether the next backup has healed it; nothing if there was nothing to heal.
    healed: Option<bool>,
}

impl Row {
    /// As the documentation has it: where it is found, and whether it is healed.
    fn cells(&self) -> [String; 2] {
        let depths = self.found.iter().map(|found| match found {
            Found::Verify => "`verify`",
            Found::Data => "`verify --data`",
            Found::Harmless => "–",
        });
        let healed = match self.healed {
            None => "–",
            Some(true) => "yes",
            Some(false) => "no",
        };
        [depths.collect::<Vec<_>>().join(" or "), healed.to_owned()]
    }
}

/// The rows of a section of the documentation: what was done, where it is found, whether it is healed. What else is said in
/// a cell comes after a colon.
fn documented(section: &str) -> BTreeMap<String, [String; 2]> {
    let page = include_str!("../../../../docs/security/damage-matrix.md");
    let (_, rest) = page.split_once(&format!("## {section}\n")).expect("the section");
    let rest = rest.split("\n## ").next().unwrap();
    let rows = rest.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").map(str::trim).collect();
        let first = |cell: &str| cell.split(": ").next().unwrap().to_owned();
        (cells[0].to_owned(), [first(cells[1]), first(cells[2])])
    })
    .collect()
}

struct World {
    lab: Lab,
    tiny: Tiny,
    bench: Bench,
    /// The repository as it was, and as it was before the newest restore point.
    whole: PathBuf,
    older: PathBuf,
    archives: Vec<String>,
    /// What `vdb` holds: a LUKS volume, so that each restore point has an archive of headers beside it.
    volume: Vec<u8>,
    table: BTreeMap<String, Row>,
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").args([from, to]));
}

/// A LUKS volume with a small header, and noise as its data.
fn volume(lab: &Lab) -> Vec<u8> {
    let (file, key) = (lab.path("volume"), luks::key(lab.dir(), "volume"));
    fs::write(&file, noise(100, 2 * MIB)).unwrap();
    let small = [
        "--type",
        "luks2",
        "--luks2-metadata-size",
        "16k",
        "--luks2-keyslots-size",
        "256k",
    ];
    let rest = ["--key-size", "256", "--offset", "1024"];
    luks::format(&file, &key, &[&small[..], &rest].concat());
    fs::read(file).unwrap()
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let tiny = Tiny::define(&lab, "damaged");
        let mut bench = Bench::new(&lab, &[&tiny.name]);
        with_signing(&lab, &mut bench);
        let quick = ("BORG_SELFTEST".into(), "disabled".into());
        bench.repositories.settings.child_env.push(quick);
        bench.config.witness = Some(Witness {
            file: Some(lab.path("witness.jsonl")),
            ..Witness::default()
        });
        let repository = bench.repository(&tiny.name);
        let volume = volume(&lab);
        for point in 0..POINTS {
            if point == POINTS - 1 {
                copy(&repository, &lab.path("older"));
            }
            tiny.set("vda", &noise(point, 5 * MIB));
            tiny.set("vdb", &volume);
            bench.backup(&tiny.name, &()).unwrap();
        }
        copy(&repository, &lab.path("whole"));
        Self {
            archives: bench
                .archives(&tiny.name)
                .into_iter()
                .filter(|name| !name.ends_with(".headers"))
                .collect(),
            volume,
            whole: lab.path("whole"),
            older: lab.path("older"),
            lab,
            tiny,
            bench,
            table: BTreeMap::new(),
        }
    }

    fn repository(&self) -> PathBuf {
        self.bench.repository(&self.tiny.name)
    }

    fn reset(&self, from: &Path) {
        fs::remove_dir_all(self.repository()).unwrap();
        copy(from, &self.repository());
        self.bench.forget_replay();
    }

    /// As an auditor: nothing known but the public keys and the witness.
    fn verify(&self, data: bool) -> Report {
        let state = self.lab.path("auditor");
        let _ = fs::remove_dir_all(&state);
        Self::verify_on(&self.bench.elsewhere(&state), data)
    }

    fn verify_on(bench: &Bench, data: bool) -> Report {
        let here = Surroundings {
            vm: None,
            settings: bench.settings(),
            state: &bench.state,
            repositories: &bench.repositories,
            observer: &(),
            cancel: &bench.cancel,
        };
        let request = Request {
            what: Vec::new(),
            all: true,
            data,
            part: None,
            acknowledge: false,
        };
        verify::run(&here, &request).unwrap()
    }

    /// Whether all restore points come back as they were made.
    fn is_harmless(&self) -> Result<(), String> {
        let auditor = self.bench.elsewhere(&self.lab.path("auditor"));
        for (seed, archive) in self.archives.iter().enumerate() {
            let data = noise(seed as u64, 5 * MIB);
            for (disk, expected) in [("vda", &data), ("vdb", &self.volume)] {
                let file = self.lab.path("compared.raw");
                let _ = fs::remove_file(&file);
                let request = restore::Request {
                    disks: vec![disk.into()],
                    to: Some(file.clone()),
                    format: restore::ImageFormat::Raw,
                    ..request(&self.tiny.name, archive)
                };
                restore::run(&auditor.context(&()), &request).map_err(|error| error.to_string())?;
                let content = fs::read(&file).unwrap();
                let (start, rest) = content.split_at(expected.len());
                if start != expected || rest.iter().any(|byte| *byte != 0) {
                    return Err(format!("{disk} of {archive} has other content"));
                }
            }
        }
        Ok(())
    }
}

impl World {
    /// What is found after some damage has been done; files it under a class of damage. Nothing may stay undetected.
    #[track_caller]
    fn judge(&mut self, class: &str, what: &str) -> Found {
        let report = self.verify(false);
        let mut kinds: Vec<&str> = report
            .vms
            .iter()
            .flat_map(|vm| &vm.problems)
            .map(|found| found.kind)
            .collect();
        kinds.dedup();
        let found = if !report.ok {
            Found::Verify
        } else if !self.verify(true).ok {
            Found::Data
        } else {
            if let Err(error) = self.is_harmless() {
                panic!("UNDETECTED: {class}: {what}: {error}");
            }
            Found::Harmless
        };
        println!("{class}: {what}: {found:?} {kinds:?}");
        let row = self.table.entry(class.to_owned()).or_default();
        row.found.insert(found);
        // One of each class is enough.
        if found != Found::Harmless && row.healed.is_none() {
            let clock = Instant::now();
            let healed = self.heals();
            println!("{class}: {what}: healed: {healed} ({:?})", clock.elapsed());
            self.table.get_mut(class).unwrap().healed = Some(healed);
        }
        found
    }

    /// Whether all is well after another verification and another backup by the machine that makes them. The repository
    /// stays as it is then.
    fn heals(&self) -> bool {
        self.without_memory_of(|| {
            Self::verify_on(&self.bench, true);
            match self.bench.backup(&self.tiny.name, &()) {
                Ok(_) => self.verify(true).ok && self.is_harmless().is_ok(),
                Err(error) => {
                    println!("no backup: {error}");
                    false
                }
            }
        })
    }

    /// Does something; what the machine that makes the backups and the witness have learnt by it is forgotten.
    fn without_memory_of<T>(&self, act: impl FnOnce() -> T) -> T {
        let remembered = [("state", "kept-state"), ("witness.jsonl", "kept-witness")];
        let remembered = remembered.map(|(at, kept)| (self.lab.path(at), self.lab.path(kept)));
        for (at, kept) in &remembered {
            copy(at, kept);
        }
        let done = act();
        for (at, kept) in &remembered {
            run(Command::new("rm").arg("-rf").arg(at));
            fs::rename(kept, at).unwrap();
        }
        done
    }

    /// Compares everything that has come of it with the documentation.
    #[track_caller]
    fn compare(&self, section: &str) {
        let table: BTreeMap<String, [String; 2]> = self
            .table
            .iter()
            .map(|(class, row)| (class.clone(), row.cells()))
            .collect();
        for (class, [found, healed]) in &table {
            println!("| {class} | {found} | {healed} |");
        }
        assert_eq!(table, documented(section));
    }

    fn files(&self) -> Vec<String> {
        let list = run(Command::new("find")
            .arg(&self.whole)
            .args(["-type", "f", "-printf", "%P\n"]));
        let mut files: Vec<String> = list.lines().map(str::to_owned).collect();
        files.sort();
        files
    }

    fn borg(&self, arguments: &[&str]) {
        self.bench.borg.run(arguments);
    }

    fn at(&self, archive: &str) -> String {
        format!("{}::{archive}", self.repository().display())
    }

    /// Extracts an archive with stock Borg.
    fn extract(&self, archive: &str) -> PathBuf {
        let directory = self.lab.path("extracted");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        run(self
            .bench
            .borg
            .command()
            .args(["extract", &self.at(archive)])
            .current_dir(&directory));
        directory
    }

    /// Puts an archive from a directory in the place of one, with any time, cut as we cut: what a thief with the key can do.
    fn replace(&self, archive: &str, time: Timestamp, directory: &Path, items: &[&str]) {
        self.borg(&["delete", &self.at(archive)]);
        self.write(archive, time, directory, items);
    }

    /// Writes an archive from a directory, with any time.
    fn write(&self, archive: &str, time: Timestamp, directory: &Path, items: &[&str]) {
        let location = self.repository().display().to_string();
        let repository = self.bench.repositories.open(&location, Access::Write).unwrap();
        let mut options = ArchiveOptions::new(archive);
        options.started = time;
        let mut writer = repository.begin(options).unwrap();
        for item in items {
            let bytes = fs::read(directory.join(item)).unwrap();
            let cut = match item.split('/').next() {
                Some("disks") => 4 * MIB,
                Some("headers") => PIECE,
                _ => MIB,
            };
            let mut chunks = Vec::new();
            for part in bytes.chunks(cut) {
                chunks.push(if part.iter().all(|byte| *byte == 0) {
                    writer.zero_chunk(part.len() as u32).unwrap()
                } else {
                    writer.put_data(part).unwrap()
                });
            }
            writer.add_item(&Item::regular(item, chunks)).unwrap();
        }
        writer.commit().unwrap().0.close().unwrap();
    }

    /// Signs a file in the place of its signer, with a key that is not trusted: `thief` in the lab.
    fn sign_as_thief(&self, file: &Path, namespace: &str) {
        self.sign("thief", file, namespace);
    }

    /// Signs a file in the place of its signer, with a key in the lab, which is made if there is none.
    fn sign(&self, key: &str, file: &Path, namespace: &str) {
        let key = self.lab.path(key);
        if !key.exists() {
            ssh_keygen(&key, "thief");
        }
        fs::remove_file(file.with_extension("json.sig")).unwrap();
        run(Command::new("ssh-keygen")
            .args(["-Y", "sign", "-q", "-n", namespace, "-f"])
            .arg(key)
            .arg(file));
    }

    /// When an archive was begun.
    fn time(&self, archive: &str) -> Timestamp {
        let location = self.repository().display().to_string();
        let repository = self.bench.repositories.open(&location, Access::Read).unwrap();
        let mut archives = repository.archives();
        archives.find(|info| info.name == archive).unwrap().time
    }
}

/// The class of what one byte of a repository's file belongs to, as the documentation calls it.
fn class(entries: &[Entry], file: &str, at: u64) -> String {
    if file.starts_with("data/") {
        let has = |entry: &&Entry| {
            let range = entry.at..entry.at + entry.length;
            entry.file == file && range.contains(&(at as usize))
        };
        let entry = entries.iter().find(has);
        return entry
            .map_or("`data/…`: the magic at the start of a file", |entry| {
                entry.role.name()
            })
            .to_owned();
    }
    match file.split('.').next().unwrap() {
        name @ ("index" | "hints" | "integrity") => format!("`{name}.N`"),
        name => format!("`{name}`"),
    }
}

/// Where bits are flipped in a file: here and there, and in the middle of the first entry of each kind in use.
fn places(entries: &[Entry], file: &str, size: u64) -> BTreeSet<u64> {
    let mut places: BTreeSet<u64> = match size {
        0 => BTreeSet::new(),
        1..=0xf_ffff => [size / 3, size - 1].into(),
        _ => (1..6)
            .map(|part| size * part / 6)
            .chain([9, size - 200])
            .collect(),
    };
    // Of what is superseded there is enough everywhere.
    let mut roles = BTreeSet::from([Role::Superseded]);
    for entry in entries.iter().filter(|entry| entry.file == file) {
        if roles.insert(entry.role) {
            places.insert((entry.at + entry.length / 2) as u64);
        }
    }
    places
}

#[test]
fn no_damage_to_a_file_of_the_repository_goes_unnoticed() {
    let mut world = World::new();
    assert_eq!(world.judge("nothing", "at all"), Found::Harmless);
    let whole = world.whole.clone();
    world.reset(&whole);
    let entries = segments::entries(&world.bench, &world.tiny.name);
    for file in world.files() {
        let size = fs::metadata(world.whole.join(&file)).unwrap().len();
        for at in places(&entries, &file, size) {
            world.reset(&whole);
            let path = world.repository().join(&file);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at as usize] ^= 0x10;
            fs::write(&path, bytes).unwrap();
            let what = format!("{file}: a bit flipped at {at}");
            world.judge(&class(&entries, &file, at), &what);
        }
        for (what, keep) in [("cut short", Some(size / 2)), ("removed", None)] {
            world.reset(&whole);
            let path = world.repository().join(&file);
            match keep {
                Some(keep) => fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_len(keep))
                    .unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let class = if file.starts_with("data/") {
                format!("`data/…`: a file {what}")
            } else {
                class(&entries, &file, 0)
            };
            world.judge(&class, &format!("{file}: {what}"));
        }
    }
    let older = world.older.clone();
    world.reset(&older);
    assert_eq!(world.judge("an old copy of everything", ""), Found::Verify);
    for role in [
        Role::NewestData,
        Role::OlderData,
        Role::Metadata,
        Role::LastCommit,
    ] {
        assert!(world.table.contains_key(role.name()), "no byte of {role:?}");
    }
    world.compare("By an attacker with the repository's host");
}

#[test]
fn whoever_has_the_repository_key_cannot_pass_anything_off_as_ours() {
    let mut world = World::new();
    let names = world.archives.clone();
    let (first, middle, last) = (names[0].as_str(), names[1].as_str(), names[2].as_str());
    let time = world.time(last);
    let whole = world.whole.clone();
    let all = ITEMS;

    // Archives dropped, renamed, swapped.
    world.borg(&["delete", &world.at(last)]);
    assert_eq!(world.judge("newest archive dropped", last), Found::Verify);
    world.reset(&whole);
    world.borg(&["delete", &world.at(first), middle, last]);
    assert_eq!(world.judge("all archives dropped", ""), Found::Verify);
    world.reset(&whole);
    world.borg(&["delete", &world.at(middle)]);
    // As pruning does: no failure, but said.
    let report = world.verify(false);
    assert!(report.ok && report.vms[0].removed == [(2, 2)], "{report:?}");
    for archive in [first, middle, last] {
        world.reset(&whole);
        world.borg(&[
            "rename",
            &world.at(archive),
            &format!("{}-2031-01-01T00:00:00.000Z", world.tiny.name),
        ]);
        assert_eq!(world.judge("archive renamed", archive), Found::Verify);
    }
    world.reset(&whole);
    for (from, to) in [(first, "swap"), (last, first), ("swap", last)] {
        world.borg(&["rename", &world.at(from), to]);
    }
    assert_eq!(world.judge("two archives swapped", ""), Found::Verify);

    // One item left out.
    for item in all {
        world.reset(&whole);
        world.borg(&["recreate", "--exclude", &format!("fm:{item}"), &world.at(last)]);
        assert_eq!(world.judge("item left out", item), Found::Verify);
    }
    // Written anew, unchanged: that is no damage, and shows that what follows is noticed for what is changed.
    world.reset(&whole);
    let extracted = world.extract(last);
    world.replace(last, time, &extracted, &all);
    assert_eq!(
        world.judge("archive written anew, unchanged", last),
        Found::Harmless
    );
    // One item changed.
    for item in all {
        world.reset(&whole);
        let extracted = world.extract(last);
        let mut bytes = fs::read(extracted.join(item)).unwrap();
        let at = if item == "manifest.json" {
            30
        } else {
            bytes.len() / 2
        };
        bytes[at] ^= 1;
        fs::write(extracted.join(item), bytes).unwrap();
        world.replace(last, time, &extracted, &all);
        assert_eq!(world.judge("item altered", item), Found::Verify);
    }
    // Something added; another time; the content of another restore point under this name.
    world.reset(&whole);
    let extracted = world.extract(last);
    fs::write(extracted.join("disks/vdc.raw"), b"more").unwrap();
    fs::write(extracted.join("more"), b"more").unwrap();
    for extra in ["disks/vdc.raw", "more"] {
        world.reset(&whole);
        world.replace(last, time, &extracted, &[all.as_slice(), &[extra]].concat());
        assert_eq!(world.judge("item added", extra), Found::Verify);
    }
    world.reset(&whole);
    world.replace(last, time + SignedDuration::from_secs(1), &extracted, &all);
    assert_eq!(world.judge("archive's time changed", last), Found::Verify);
    world.reset(&whole);
    let other = world.extract(first);
    world.replace(last, time, &other, &all);
    assert_eq!(
        world.judge("another restore point under this name", ""),
        Found::Verify
    );

    // Consistent in itself, and signed, but by another key.
    world.reset(&whole);
    let extracted = world.extract(last);
    world.sign_as_thief(&extracted.join("manifest.json"), "strongroom-manifest@v1");
    world.replace(last, time, &extracted, &all);
    assert_eq!(world.judge("signed by another key", ""), Found::Verify);

    // All is as it was, but the key is trusted no more.
    world.reset(&whole);
    assert_eq!(world.judge("nothing", "at all"), Found::Harmless);
    trust(
        &world.lab.path("allowed_signers"),
        "lab@test",
        &world.lab.path("thief.pub"),
    );
    assert_eq!(world.judge("key not trusted any more", ""), Found::Verify);
    world.compare("By an attacker with the repository's key too");
}

/// What is put in the place of the newest restore point.
struct Forgery {
    /// Whose content it has.
    of: usize,
    /// What is altered in the manifest.
    number: Option<u64>,
    elsewhere: bool,
    /// The key that signs what is altered.
    key: &'static str,
    /// What the next backup says of it.
    why: &'static str,
}

/// A thief with the repository's key takes the newest restore point away and puts another one in its place, with an enormous
/// number, with what we have signed for another repository, or with what we have signed for another place in this one: no
/// next one is made to follow that, and what was taken away stays missing until that is acknowledged.
#[test]
fn a_forged_number_is_not_followed() {
    let world = World::new();
    let forged = |number, why| Forgery {
        of: 2,
        number: Some(number),
        elsewhere: false,
        key: "thief",
        why,
    };
    let forgeries = [
        forged(1000, "is not trusted itself"),
        forged(u64::MAX, "is the largest"),
        Forgery {
            elsewhere: true,
            key: "signing",
            ..forged(1000, "belongs to repository")
        },
        Forgery {
            of: 0,
            number: None,
            ..forged(1, "belongs to archive")
        },
    ];
    for forgery in &forgeries {
        for remembers in [true, false] {
            world.without_memory_of(|| world.follows_no_forgery(forgery, remembers));
        }
    }
}

impl World {
    /// With the records of the machine that makes the backups, or with the witness alone.
    #[track_caller]
    fn follows_no_forgery(&self, forgery: &Forgery, remembers: bool) {
        let newest = &self.archives[2];
        let name = format!("{}-2031-01-01T00:00:00.000Z", self.tiny.name);
        self.reset(&self.whole);
        let of = &self.archives[forgery.of];
        let extracted = self.extract(of);
        if let Some(number) = forgery.number {
            let manifest = extracted.join("manifest.json");
            let mut text = fs::read_to_string(&manifest).unwrap();
            let (_, started) = text.split_once("\"started\":\"").unwrap();
            let started = started.split('"').next().unwrap().to_owned();
            let mut alter = |from: &str, to: &str| {
                assert!(text.contains(from), "{from}: {text}");
                text = text.replace(from, to);
            };
            alter("\"sequence\":3,", &format!("\"sequence\":{number},"));
            alter(of, &name);
            alter(&started, "2031-01-01T00:00:00Z");
            if forgery.elsewhere {
                alter("\"repository\":\"", "\"repository\":\"00");
            }
            fs::write(&manifest, text).unwrap();
            self.sign(forgery.key, &manifest, "strongroom-manifest@v1");
        }
        let time = "2031-01-01T00:00:00Z".parse().unwrap();
        self.write(&name, time, &extracted, &ITEMS);
        self.borg(&["delete", &self.at(newest)]);
        if !remembers {
            fs::remove_dir_all(self.lab.path("state/trust")).unwrap();
        }
        let kinds = |report: &Report| -> Vec<&'static str> {
            let problems = report.vms[0].problems.iter();
            problems.map(|problem| problem.kind).collect()
        };
        let report = self.verify(false);
        assert!(kinds(&report).contains(&"omission"), "{report:?}");

        let hook = Hook::new(|_| {});
        let made = self.bench.backup(&self.tiny.name, &hook).unwrap();
        let warnings = hook.warnings.lock().unwrap().join("\n");
        assert_eq!(made.manifest.sequence, 4, "{warnings}");
        for word in [&name, forgery.why, "(number 3)"] {
            assert!(warnings.contains(word), "{word}: {warnings}");
        }
        // The forgery goes: what it was to cover up stays.
        self.borg(&["delete", &self.at(&name)]);
        for report in [Self::verify_on(&self.bench, false), self.verify(false)] {
            assert_eq!(kinds(&report), ["omission"], "{report:?}");
            let text = &report.vms[0].problems[0].text;
            assert!(
                text.contains("restore point 3 ") && text.contains("--acknowledge"),
                "{text}"
            );
        }
    }
}

#[test]
fn archives_of_headers_are_watched_over_like_restore_points() {
    let mut world = World::new();
    let whole = world.whole.clone();
    let points = world.archives.clone();
    let headers: Vec<String> = points.iter().map(|point| format!("{point}.headers")).collect();
    let (first, last) = (headers[0].as_str(), headers[2].as_str());
    let time = world.time(last);
    assert!(
        time < world.time(&points[2]),
        "the restore point is the newer of the two"
    );
    let all = ["headers.json", "headers.json.sig", "headers/vdb-0.luks"];

    // The newest has to be there; older ones are pruned.
    world.borg(&["delete", &world.at(last)]);
    assert_eq!(world.judge("newest headers dropped", last), Found::Verify);
    world.reset(&whole);
    world.borg(&["delete", &world.at(first), &headers[1]]);
    assert_eq!(world.judge("older headers pruned", first), Found::Harmless);
    world.borg(&["delete", &world.at(last)]);
    assert_eq!(world.judge("all headers dropped", ""), Found::Verify);
    for archive in [first, last] {
        world.reset(&whole);
        let name = format!("{}-2031-01-01T00:00:00.000Z.headers", world.tiny.name);
        world.borg(&["rename", &world.at(archive), &name]);
        assert_eq!(world.judge("headers renamed", archive), Found::Verify);
    }
    world.reset(&whole);
    for (from, to) in [(first, "swap.headers"), (last, first), ("swap.headers", last)] {
        world.borg(&["rename", &world.at(from), to]);
    }
    assert_eq!(world.judge("two archives of headers swapped", ""), Found::Verify);
    // A restore point that hides among them, and headers that pass for a restore point.
    world.reset(&whole);
    world.borg(&["rename", &world.at(&points[1]), "hidden.headers"]);
    assert_eq!(
        world.judge("restore point named as headers", &points[1]),
        Found::Verify
    );
    world.reset(&whole);
    world.borg(&["rename", &world.at(first), &format!("{}-2031", world.tiny.name)]);
    assert_eq!(
        world.judge("headers named as a restore point", first),
        Found::Verify
    );

    for item in all {
        world.reset(&whole);
        world.borg(&["recreate", "--exclude", &format!("fm:{item}"), &world.at(last)]);
        assert_eq!(world.judge("item of headers left out", item), Found::Verify);
    }
    world.reset(&whole);
    let extracted = world.extract(last);
    world.replace(last, time, &extracted, &all);
    assert_eq!(
        world.judge("headers written anew, unchanged", last),
        Found::Harmless
    );
    for item in all {
        world.reset(&whole);
        let extracted = world.extract(last);
        let mut bytes = fs::read(extracted.join(item)).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(extracted.join(item), bytes).unwrap();
        world.replace(last, time, &extracted, &all);
        assert_eq!(world.judge("item of headers altered", item), Found::Verify);
    }
    world.reset(&whole);
    let extracted = world.extract(last);
    fs::write(extracted.join("headers/vda-0.luks"), b"more").unwrap();
    world.reset(&whole);
    world.replace(
        last,
        time,
        &extracted,
        &[all.as_slice(), &["headers/vda-0.luks"]].concat(),
    );
    assert_eq!(world.judge("item of headers added", ""), Found::Verify);
    world.reset(&whole);
    world.replace(last, time + SignedDuration::from_secs(1), &extracted, &all);
    assert_eq!(world.judge("headers' time changed", last), Found::Verify);
    // Those of another instant, and those of a thief.
    world.reset(&whole);
    let other = world.extract(first);
    world.replace(last, time, &other, &all);
    assert_eq!(world.judge("headers of another instant", ""), Found::Verify);
    world.reset(&whole);
    let extracted = world.extract(last);
    world.sign_as_thief(&extracted.join("headers.json"), "strongroom-headers@v1");
    world.replace(last, time, &extracted, &all);
    assert_eq!(world.judge("headers signed by another key", ""), Found::Verify);
    // They are not used either: a restore takes those that are signed.
    world.is_harmless().unwrap();
    world.compare("LUKS headers, by an attacker with the repository's key too");
}
