//! The damage matrix: whatever happens to a repository, `verify` notices, or it does no harm.
//!
//! Two attackers. One has the repository's host: every file of it is altered, cut short, removed, and old copies are put
//! back. The other has the repository's key and stock Borg as well: archives are dropped, renamed, swapped, and written
//! anew with one thing changed. What is not noticed has to be harmless: all restore points are restored and compared.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test fails by panicking; this one tells its table.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use strongroom_borg::{Access, ArchiveOptions, Item};

use common::checks::request;
use common::tiny::{MIB, Tiny, noise, trust, with_signing};
use common::{Bench, luks};
use strongroom_engine::config::Witness;
use strongroom_engine::headers::PIECE;
use strongroom_engine::restore;
use strongroom_engine::verify::{self, Report, Request, Surroundings};
use strongroom_testkit::{Lab, run, ssh_keygen};

/// Restore points.
const POINTS: u64 = 3;

/// At which depth something is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Verify,
    Data,
    Harmless,
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
    table: BTreeMap<String, BTreeSet<Found>>,
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
        let auditor = self.bench.elsewhere(&state);
        let here = Surroundings {
            config: &auditor.config,
            state: &auditor.state,
            repositories: &auditor.repositories,
            observer: &(),
            cancel: &auditor.cancel,
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
        self.table.entry(class.to_owned()).or_default().insert(found);
        found
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

    /// Puts an archive from a directory in the place of one, with any time, cut as we cut: what somebody with the key can do.
    fn replace(&self, archive: &str, time: Timestamp, directory: &Path, items: &[&str]) {
        self.borg(&["delete", &self.at(archive)]);
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

    /// Signs a file in the place of whoever has, with a key that nobody trusts: `thief` in the lab.
    fn sign_as_thief(&self, file: &Path, namespace: &str) {
        let key = self.lab.path("thief");
        ssh_keygen(&key, "thief");
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

/// The class of a repository's file.
fn class(file: &str) -> String {
    let name = file.split('/').next().unwrap();
    let stem = name.split('.').next().unwrap();
    if file.starts_with("data/") {
        "segment".into()
    } else {
        stem.to_owned()
    }
}

#[test]
fn no_damage_to_a_file_of_the_repository_goes_unnoticed() {
    let mut world = World::new();
    assert_eq!(world.judge("nothing", "at all"), Found::Harmless);
    for file in world.files() {
        let size = fs::metadata(world.whole.join(&file)).unwrap().len();
        let flips = match size {
            0 => vec![],
            1..=0xf_ffff => vec![size / 3, size - 1],
            _ => (1..6)
                .map(|part| size * part / 6)
                .chain([9, size - 200])
                .collect(),
        };
        for at in flips {
            let whole = world.whole.clone();
            world.reset(&whole);
            let path = world.repository().join(&file);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at as usize] ^= 0x10;
            fs::write(&path, bytes).unwrap();
            world.judge(
                &format!("{}, a bit flipped", class(&file)),
                &format!("{file} at {at}"),
            );
        }
        for (what, keep) in [("cut short", Some(size / 2)), ("removed", None)] {
            let whole = world.whole.clone();
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
            world.judge(&format!("{}, {what}", class(&file)), &file);
        }
    }
    let older = world.older.clone();
    world.reset(&older);
    assert_eq!(world.judge("an old copy of everything", ""), Found::Verify);
    println!("\n{:#?}", world.table);
    let segments = world.table.keys().filter(|class| class.starts_with("segment"));
    assert!(segments.count() >= 3);
}

#[test]
fn whoever_has_the_repository_key_cannot_pass_anything_off_as_ours() {
    let mut world = World::new();
    let names = world.archives.clone();
    let (first, middle, last) = (names[0].as_str(), names[1].as_str(), names[2].as_str());
    let time = world.time(last);
    let whole = world.whole.clone();
    let all = [
        "manifest.json",
        "manifest.json.sig",
        "domain.xml",
        "disks/vda.raw",
        "disks/vdb.raw",
    ];

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

    // Consistent in itself, and signed, but by somebody else.
    world.reset(&whole);
    let extracted = world.extract(last);
    world.sign_as_thief(&extracted.join("manifest.json"), "strongroom-manifest@v1");
    world.replace(last, time, &extracted, &all);
    assert_eq!(world.judge("signed by somebody else", ""), Found::Verify);

    // All is as it was, but the key is trusted no more.
    world.reset(&whole);
    assert_eq!(world.judge("nothing", "at all"), Found::Harmless);
    trust(
        &world.lab.path("allowed_signers"),
        "lab@test",
        &world.lab.path("thief.pub"),
    );
    assert_eq!(world.judge("key not trusted any more", ""), Found::Verify);
    println!("\n{:#?}", world.table);
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
    assert_eq!(world.judge("headers signed by somebody else", ""), Found::Verify);
    // They are not used either: a restore takes those that are signed.
    world.is_harmless().unwrap();
    println!("\n{:#?}", world.table);
}
