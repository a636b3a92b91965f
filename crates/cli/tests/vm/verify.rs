//! What `strongroom verify` proves, what it notices, and what the next backup does about it.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use strongroom_base::cancel::Cancel;
use strongroom_engine::config::{Vm, Witness};
use strongroom_engine::restore;
use strongroom_engine::run::event::Kind;
use strongroom_engine::verify::{self, Surroundings};
use strongroom_points::store::Access;
use strongroom_points::trust::ledger::Ledger;
use strongroom_testkit::{Lab, run};

use crate::common::checks::request;
use crate::common::tiny::{MIB, Tiny, noise, with_signing};
use crate::common::{Bench, Hook};

/// A VM with signed restore points and a witness.
struct World {
    lab: Lab,
    tiny: Tiny,
    bench: Bench,
}

impl World {
    fn new(points: u64) -> Self {
        let lab = Lab::new();
        let tiny = Tiny::define(&lab, "verified");
        let mut bench = Bench::new(&lab, &[&tiny.name]);
        with_signing(&lab, &mut bench);
        bench.config.witness = Some(Witness {
            file: Some(lab.path("witness.jsonl")),
            ..Witness::default()
        });
        let world = Self { lab, tiny, bench };
        for point in 0..points {
            world.backup(point);
        }
        world
    }

    fn vm(&self) -> &str {
        &self.tiny.name
    }

    fn backup(&self, seed: u64) {
        self.tiny.set("vda", &noise(seed, 9 * MIB));
        self.tiny.set("vdb", &noise(1000, 2 * MIB));
        self.bench.backup(self.vm(), &()).unwrap();
    }

    /// Verifies with the program; gives its exit code and its report.
    #[track_caller]
    fn verify(&self, arguments: &[&str]) -> (i32, Value) {
        self.verify_with(&self.bench, arguments)
    }

    #[track_caller]
    fn verify_with(&self, bench: &Bench, arguments: &[&str]) -> (i32, Value) {
        let said = bench.says(&self.lab, &[&["--json", "verify"], arguments].concat());
        (said.code.unwrap(), said.json()["verify"].clone())
    }

    fn repository(&self) -> PathBuf {
        self.bench.repository(self.vm())
    }

    fn copy_to(&self, name: &str) -> PathBuf {
        let to = self.lab.path(name);
        copy(&self.repository(), &to);
        to
    }

    fn put_back(&self, copy_of: &Path) {
        fs::remove_dir_all(self.repository()).unwrap();
        copy(copy_of, &self.repository());
    }

    fn borg(&self, arguments: &[&str]) {
        self.bench.borg.run(arguments);
    }

    fn at(&self, archive: &str) -> String {
        format!("{}::{archive}", self.repository().display())
    }

    /// An empty machine: nothing but the configuration, the public keys and the witness.
    fn empty_machine(&self) -> Bench {
        let state = self.lab.path("empty-state");
        let _ = fs::remove_dir_all(&state);
        let mut bench = self.bench.elsewhere(&state);
        if let Some(signing) = &mut bench.config.signing {
            signing.key = None;
        }
        bench
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").args([from, to]));
}

#[track_caller]
fn kinds(report: &Value) -> Vec<String> {
    let vms = report["vms"].as_array().unwrap().iter();
    let problems = vms.flat_map(|vm| vm["problems"].as_array().unwrap());
    let all = problems.chain(report["problems"].as_array().unwrap());
    let mut kinds: Vec<String> = all
        .map(|problem| problem["kind"].as_str().unwrap().to_owned())
        .collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_whole_repository_is_proven_from_an_empty_machine() {
    let world = World::new(3);
    for arguments in [vec![world.vm()], vec!["--all"], vec!["--all", "--data"]] {
        let (code, report) = world.verify(&arguments);
        assert_eq!((code, kinds(&report)), (0, vec![]), "{report:#}");
        assert_eq!(report["vms"][0]["points"].as_array().unwrap().len(), 3);
    }
    let empty = world.empty_machine();
    let (code, report) = world.verify_with(&empty, &["--all", "--data"]);
    assert_eq!(code, 0, "{report:#}");
    let point = &report["vms"][0]["points"][2];
    assert_eq!(point["sequence"], 3);
    assert!(
        point["signer"].as_str().unwrap().starts_with("lab@test (ED25519"),
        "{point}"
    );

    // Without a witness an empty machine cannot know what the newest one is, and says so; from then on it does.
    let mut blind = world.empty_machine();
    blind.config.witness = None;
    assert_eq!(world.verify_with(&blind, &["--all"]).0, 3);
    assert_eq!(world.verify_with(&blind, &["--all"]).0, 0);

    // Without signatures nothing is believed.
    let mut trusting = world.empty_machine();
    trusting.config.signing = None;
    let (code, report) = world.verify_with(&trusting, &["--all"]);
    assert_eq!((code, kinds(&report)), (1, vec!["signature".to_owned()]));

    // Parts cover everything once.
    let bytes = |report: &Value| report["vms"][0]["verified_bytes"].as_u64().unwrap();
    let (_, all) = world.verify(&["--all", "--data"]);
    let parts: u64 = (1..=4)
        .map(|part| {
            bytes(
                &world
                    .verify(&["--all", "--data", "--part", &format!("{part}/4")])
                    .1,
            )
        })
        .sum();
    assert_eq!(parts, bytes(&all));
    let newest = format!("{}@latest", world.vm());
    assert_eq!(world.verify(&[&newest, "--data"]).0, 0);
}

#[test]
fn rollback_omission_and_pruning_are_told_apart() {
    let world = World::new(2);
    let old = world.copy_to("old");
    world.backup(2);
    let new = world.copy_to("new");
    let archives = world.bench.archives(world.vm());

    // An old copy of everything: Borg's own records notice it here, the witness anywhere.
    world.put_back(&old);
    let (code, report) = world.verify(&["--all"]);
    assert_eq!(
        (code, kinds(&report)),
        (1, vec!["rollback".to_owned()]),
        "{report:#}"
    );
    let (code, report) = world.verify_with(&world.empty_machine(), &["--all"]);
    assert_eq!(
        (code, kinds(&report)),
        (1, vec!["rollback".to_owned()]),
        "{report:#}"
    );

    // The newest taken away.
    world.put_back(&new);
    world.borg(&["delete", &world.at(&archives[2])]);
    let (code, report) = world.verify(&["--all"]);
    assert_eq!(
        (code, kinds(&report)),
        (1, vec!["omission".to_owned()]),
        "{report:#}"
    );
    let (_, report) = world.verify_with(&world.empty_machine(), &["--all"]);
    assert_eq!(kinds(&report), ["omission"]);
    // A backup is made all the same, with a warning, and no number is given twice.
    world
        .bench
        .says(&world.lab, &["backup", world.vm()])
        .expect(3, &["number 3", "rolled back"]);
    assert_eq!(world.newest()["lost"][0]["sequence"], 3);
    // That heals nothing: neither for us nor for an auditor who has nothing but the witness, and not by still another one.
    world.backup(4);
    let empty = world.empty_machine();
    for bench in [&world.bench, &empty] {
        let (code, report) = world.verify_with(bench, &["--all"]);
        assert_eq!(
            (code, kinds(&report)),
            (1, vec!["omission".to_owned()]),
            "{report:#}"
        );
        assert_eq!(report["vms"][0]["removed"], serde_json::json!([[3, 3]]));
    }
    // What goes on being there can be pruned, without the loss being forgotten by that.
    world.borg(&["delete", &world.at(&world.bench.archives(world.vm())[2])]);
    assert_eq!(kinds(&world.verify(&["--all"]).1), ["omission"]);
    assert_eq!(kinds(&world.verify_with(&empty, &["--all"]).1), ["omission"]);
    // It was meant, and is acknowledged. Others hear of that by the next restore point, or acknowledge it themselves.
    let said = world
        .bench
        .says(&world.lab, &["verify", world.vm(), "--acknowledge"]);
    said.expect(0, &[]);
    assert!(
        said.out.contains("acknowledged: restore point 3 "),
        "{}",
        said.out
    );
    assert_eq!(world.verify(&["--all"]).0, 0);
    assert_eq!(world.verify_with(&empty, &["--all"]).0, 1);
    world.backup(5);
    assert!(world.newest()["lost"].is_null());
    assert_eq!(world.verify_with(&empty, &["--all"]).0, 0);
    assert_eq!(world.verify(&["--all"]).0, 0);
    // That was about number 3 alone.
    world.borg(&[
        "delete",
        &world.at(world.bench.archives(world.vm()).last().unwrap()),
    ]);
    assert_eq!(kinds(&world.verify(&["--all"]).1), ["omission"]);
    // Acknowledged before the next backup: what is left is watched over, and numbers go on.
    let (code, report) = world.verify(&[world.vm(), "--acknowledge"]);
    let acknowledged = &report["vms"][0]["acknowledged"];
    assert_eq!(
        (code, acknowledged.as_array().unwrap().len()),
        (0, 1),
        "{report:#}"
    );
    world.borg(&[
        "delete",
        &world.at(world.bench.archives(world.vm()).last().unwrap()),
    ]);
    assert_eq!(kinds(&world.verify(&["--all"]).1), ["omission"]);
    assert_eq!(world.verify(&[world.vm(), "--acknowledge"]).0, 0);
    world.backup(6);
    assert_eq!(world.newest()["sequence"], 7);
    assert_eq!(world.verify(&["--all"]).0, 0);

    // Pruned: said, and no failure.
    world.put_back(&new);
    world.bench.forget_replay();
    fs::remove_dir_all(world.bench.config.state_directory().join("trust")).unwrap();
    fs::write(world.lab.path("witness.jsonl"), world.witness_lines(3)).unwrap();
    world.borg(&["delete", &world.at(&archives[0])]);
    let (code, report) = world.verify(&["--all"]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["vms"][0]["removed"], serde_json::json!([[1, 1]]));

    // All gone; the repository gone.
    world.borg(&["delete", &world.at(&archives[1]), &archives[2]]);
    let (code, report) = world.verify(&["--all"]);
    assert_eq!(
        (code, kinds(&report)),
        (1, vec!["no-restore-point".into(), "omission".to_owned()])
    );
    fs::remove_dir_all(world.repository()).unwrap();
    let (code, report) = world.verify(&["--all"]);
    assert_eq!((code, kinds(&report)), (1, vec!["repository".to_owned()]));
    // A witness that cannot be read proves nothing.
    fs::write(world.lab.path("witness.jsonl"), "{}\n").unwrap();
    assert!(kinds(&world.verify(&["--all"]).1).contains(&"witness".to_owned()));
}

impl World {
    /// The newest restore point's manifest.
    fn newest(&self) -> Value {
        let archive = self.bench.archives(self.vm()).pop().unwrap();
        let text = self
            .bench
            .borg
            .run(["extract", "--stdout", &self.at(&archive), "manifest.json"]);
        serde_json::from_str(&text).unwrap()
    }

    /// The first lines of the witness.
    fn witness_lines(&self, count: usize) -> String {
        let text = fs::read_to_string(self.lab.path("witness.jsonl")).unwrap();
        text.lines().take(count).collect::<Vec<_>>().join("\n") + "\n"
    }
}

#[test]
fn a_vm_that_the_inventory_lists_has_to_be_there() {
    let mut world = World::new(0);
    let other = Tiny::define(&world.lab, "other");
    other.set("vda", &noise(5, MIB));
    world.bench.add_vm(&other.name);
    world.backup(0);
    // Configured, with a repository, never backed up.
    let (code, report) = world.verify(&["--all"]);
    assert_eq!((code, kinds(&report)), (1, vec!["no-restore-point".to_owned()]));
    world.bench.backup(&other.name, &()).unwrap();
    assert_eq!(world.verify(&["--all"]).0, 0);
    // Dropped from the auditor's configuration, and its repository is gone: the inventory knows it.
    let mut fewer = world.empty_machine();
    fewer
        .config
        .vm
        .retain(|name, _: &mut Vm| *name == world.tiny.name);
    let (code, report) = world.verify_with(&fewer, &["--all"]);
    assert_eq!(
        (code, report["vms"].as_array().unwrap().len()),
        (0, 2),
        "{report:#}"
    );
    fs::remove_dir_all(world.bench.repository(&other.name)).unwrap();
    let (code, report) = world.verify_with(&fewer, &["--all"]);
    assert_eq!(
        (code, kinds(&report)),
        (1, vec!["repository".to_owned()]),
        "{report:#}"
    );
}

/// A VM is taken out of the configuration, and its repository vanishes: whatever remembers it has it missed.
#[test]
fn a_vm_that_anybody_remembers_has_to_be_there() {
    let mut world = World::new(0);
    let gone = Tiny::define(&world.lab, "gone");
    gone.set("vda", &noise(5, MIB));
    world.bench.add_vm(&gone.name);
    world.bench.backup(&gone.name, &()).unwrap();
    world.backup(0);
    assert_eq!(world.verify(&["--all"]).0, 0);
    world.bench.config.vm.remove(&gone.name);
    world.backup(1);

    // Still there, but not backed up any more: that is said.
    let empty = world.empty_machine();
    let mut blind = world.bench.elsewhere(&world.lab.path("blind-state"));
    blind.config.witness = None;
    let (code, report) = world.verify_with(&empty, &["--all"]);
    assert_eq!((code, kinds(&report)), (3, vec![]), "{report:#}");
    let notes = report["vms"][0]["notes"].to_string();
    assert_eq!(report["vms"][0]["vm"], gone.name.as_str());
    assert!(notes.contains("dropped out of the configuration"), "{notes}");

    // Gone: an older inventory knows it, the witness, our own records.
    fs::remove_dir_all(world.bench.repository(&gone.name)).unwrap();
    let missed = |bench: &Bench| {
        let (code, report) = world.verify_with(bench, &["--all"]);
        (code, kinds(&report))
    };
    let fails = (1, vec!["repository".to_owned()]);
    assert_eq!(missed(&blind), fails);
    let inventory = &world.bench.archives(world.vm())[0];
    world.borg(&["delete", &world.at(inventory)]);
    assert_eq!(missed(&blind), (0, vec![]), "it is known nowhere");
    assert_eq!(missed(&empty), fails);
    let mut own = world.bench.elsewhere(&world.bench.config.state_directory());
    own.config.witness = None;
    assert_eq!(missed(&own), fails);

    // It was given up, which is said on each machine that is to know it.
    for bench in [&own, &empty] {
        let said = bench.says(&world.lab, &["verify", &gone.name, "--acknowledge"]);
        said.expect(0, &[]);
        assert!(said.out.contains("need not be there"), "{}", said.out);
        assert_eq!(missed(bench), (0, vec![]));
        let (_, report) = world.verify_with(bench, &["--all"]);
        assert_eq!(report["given_up"], serde_json::json!([gone.name]));
    }
    // Until it is heard of again. What the witness says makes no name of a file or repository that is none.
    let witness = world.lab.path("witness.jsonl");
    let lines = fs::read_to_string(&witness).unwrap();
    let line = lines.lines().find(|line| line.contains(&gone.name)).unwrap();
    let mut head: Value = serde_json::from_str(line).unwrap();
    head["committed"] = "2999-01-01T00:00:00Z".into();
    fs::write(&witness, format!("{lines}{head}\n")).unwrap();
    assert_eq!(missed(&empty), fails);
    head["vm"] = "../../etc".into();
    fs::write(&witness, format!("{lines}{head}\n")).unwrap();
    assert_eq!(missed(&empty), (1, vec!["witness".to_owned()]));
}

/// An auditor without a witness, and without this VM in the configuration: each thing is acknowledged for itself, and the VM
/// as a whole only when nothing else is missing.
#[test]
fn an_auditor_acknowledges_one_thing_at_a_time() {
    let mut world = World::new(2);
    let vm = world.tiny.name.clone();
    let mut auditor = world.bench.elsewhere(&world.lab.path("auditor-state"));
    auditor.config.witness = None;
    auditor.config.vm.clear();
    assert_eq!(world.verify_with(&auditor, &[&vm]).0, 3, "nothing on record");

    // The newest is deleted; the VM moves to another repository.
    let newest = world.bench.archives(&vm).pop().unwrap();
    world.borg(&["delete", &world.at(&newest)]);
    acknowledges(&world, &auditor, "omission", "restore point 2 ");
    let moved = world.lab.path("moved-{vm}").display().to_string();
    for bench in [&mut world.bench, &mut auditor] {
        bench.config.repository.clone_from(&moved);
    }
    world.bench.add_vm(&vm);
    world.backup(2);
    assert_eq!(world.newest()["sequence"], 1);
    assert_eq!(world.verify(&["--all"]).0, 0);
    acknowledges(&world, &auditor, "other-repository", "is not in this repository");
    world.backup(3);
    assert_eq!(world.verify_with(&auditor, &[&vm]).0, 0);

    // What is not trusted is a failure, and no VM that was given up.
    let signing = auditor.config.signing.take();
    let (code, report) = world.verify_with(&auditor, &[&vm, "--acknowledge"]);
    assert_eq!((code, kinds(&report)), (1, vec!["signature".to_owned()]));
    assert_eq!(report["vms"][0]["acknowledged"], serde_json::json!([]));
    auditor.config.signing = signing;

    // Emptied: lost, and nothing is left of it. That is acknowledged at once.
    for archive in world.bench.archives(&vm) {
        world.borg(&["delete", &world.at(&archive)]);
    }
    let (code, report) = world.verify_with(&auditor, &[&vm]);
    assert_eq!(
        (code, kinds(&report)),
        (1, vec!["no-restore-point".into(), "omission".to_owned()])
    );
    assert!(
        report["vms"][0]["problems"][0]["text"]
            .as_str()
            .unwrap()
            .contains("--acknowledge")
    );
    let (code, report) = world.verify_with(&auditor, &[&vm, "--acknowledge"]);
    let acknowledged = report["vms"][0]["acknowledged"].to_string();
    assert_eq!((code, kinds(&report)), (0, vec![]), "{report:#}");
    assert!(
        acknowledged.contains("restore point 2 ") && acknowledged.contains("need not be there"),
        "{acknowledged}"
    );
}

/// Verification fails over one thing and says how to acknowledge it; it is acknowledged alone, and all is well.
#[track_caller]
fn acknowledges(world: &World, bench: &Bench, kind: &str, words: &str) {
    let (code, report) = world.verify_with(bench, &[world.vm()]);
    assert_eq!((code, kinds(&report)), (1, vec![kind.to_owned()]), "{report:#}");
    let text = report["vms"][0]["problems"][0]["text"].as_str().unwrap();
    assert!(
        text.contains(&format!("`strongroom verify {} --acknowledge`", world.vm())),
        "{text}"
    );
    let (code, report) = world.verify_with(bench, &[world.vm(), "--acknowledge"]);
    assert_eq!((code, kinds(&report)), (0, vec![]), "{report:#}");
    let acknowledged = report["vms"][0]["acknowledged"].as_array().unwrap();
    assert_eq!(acknowledged.len(), 1, "{acknowledged:?}");
    assert!(
        acknowledged[0].as_str().unwrap().contains(words),
        "{acknowledged:?}"
    );
    assert_eq!(world.verify_with(bench, &[world.vm()]).0, 0);
}

#[test]
fn a_disk_that_is_not_backed_up_any_more_is_named_until_that_is_acknowledged() {
    let mut world = World::new(1);
    let settings = world.bench.config.vm.get_mut(&world.tiny.name).unwrap();
    settings.exclude = vec!["vdb".into()];
    world.backup(1);
    let vm = world.vm();
    let check = |bench: &Bench| {
        let (code, report) = world.verify_with(bench, &["--all"]);
        assert_eq!(kinds(&report), Vec::<String>::new());
        let dropped = report["vms"][0]["dropped"].as_array().unwrap().clone();
        (code, dropped)
    };
    let empty = world.empty_machine();
    for bench in [&world.bench, &empty] {
        let (code, dropped) = check(bench);
        assert_eq!((code, dropped.len()), (3, 1), "{dropped:?}");
        assert_eq!(dropped[0]["disk"], "vdb");
        assert_eq!(dropped[0]["why"], "configured");
        assert_eq!(dropped[0]["sequence"], 2);
    }
    let said = world.bench.says(&world.lab, &["verify", vm, "--acknowledge"]);
    said.expect(0, &[]);
    assert!(said.out.contains("acknowledged: disk vdb"), "{}", said.out);
    // Also when those before and after are pruned; and elsewhere, where that is not acknowledged, it is named on.
    world.backup(2);
    world.backup(3);
    world.borg(&["delete", &world.at(&world.bench.archives(vm)[1])]);
    assert_eq!(check(&world.bench), (0, vec![]));
    assert_eq!(check(&empty).0, 3);
    let newest = format!("{vm}@latest");
    world
        .bench
        .says(&world.lab, &["verify", &newest, "--acknowledge"])
        .expect(2, &["whole VM"]);
}

#[test]
fn damage_is_named_and_the_next_backup_heals_it() {
    let world = World::new(2);
    // The second restore point has new content on vda; vdb is the same in both.
    let segment = world.segment_with_most();
    let before = fs::read(&segment).unwrap();
    let mut bytes = before.clone();
    // Inside the second object of the first restore point's disks, and near the start of the file.
    for at in [1 << 20, before.len() / 2] {
        bytes[at] ^= 1;
    }
    fs::write(&segment, &bytes).unwrap();
    // Depth tells: the ids are all there, the bytes are not.
    assert_eq!(world.verify(&["--all"]).0, 0);
    let (code, report) = world.verify(&["--all", "--data"]);
    assert_eq!(
        (code, kinds(&report)),
        (1, vec!["damaged-chunk".to_owned()]),
        "{report:#}"
    );
    let problems = report["vms"][0]["problems"].as_array().unwrap().clone();
    for problem in &problems {
        assert!(
            problem["disk"].is_string() && problem["offset"].is_u64(),
            "{problem}"
        );
    }
    // The content is brought back: so the next backup stores those chunks again, and all restore points are whole.
    world.tiny.set("vda", &noise(0, 9 * MIB));
    let said = world.bench.says(&world.lab, &["-v", "backup", world.vm()]);
    said.expect(0, &["damaged chunks have been stored anew"]);
    let (code, report) = world.verify(&["--all", "--data"]);
    assert_eq!(code, 0, "{report:#}");
    // Borg's own check still finds the old, bad copy; its repair loses nothing now.
    let repository = world.repository().display().to_string();
    let repair = world
        .bench
        .borg
        .command()
        .args(["check", "--repair", &repository])
        .env("BORG_CHECK_I_KNOW_WHAT_I_AM_DOING", "YES")
        .output();
    repair.unwrap();
    world.bench.check(world.vm());
    let (code, report) = world.verify(&["--all", "--data"]);
    assert_eq!(code, 0, "{report:#}");
    world.whole(&[0, 1, 0]);
}

#[test]
fn a_cycle_goes_on_where_it_was_left() {
    let world = World::new(1);
    let part = |report: &Value| report["vms"][0]["part"]["number"].as_u64();
    let read = |report: &Value| report["vms"][0]["verified_bytes"].as_u64().unwrap();
    let next = || world.verify(&["--all", "--data", "--part", "next/3"]);
    let (_, all) = world.verify(&["--all", "--data"]);
    assert_eq!(part(&all), None);
    let nights: Vec<Value> = (1..=3)
        .map(|night| {
            let (code, report) = next();
            assert_eq!((code, part(&report)), (0, Some(night)), "{report:#}");
            report
        })
        .collect();
    assert_eq!(nights.iter().map(read).sum::<u64>(), read(&all));

    // Damage is found once in a cycle, which goes on; then it is on record until it has been looked at again.
    let segment = world.segment_with_most();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let found: Vec<(i32, Option<u64>)> = (0..3)
        .map(|_| next())
        .map(|(code, report)| (code, part(&report)))
        .collect();
    assert_eq!(
        found.iter().map(|(_, part)| part.unwrap()).sum::<u64>(),
        1 + 2 + 3
    );
    assert_eq!(
        found.iter().filter(|(code, _)| *code == 1).count(),
        1,
        "{found:?}"
    );
    let damaged = || {
        Ledger::open(world.bench.state.path(), world.vm())
            .unwrap()
            .damaged()
    };
    assert_eq!(damaged().len(), 1);

    // A night that is interrupted has read nothing: neither is the cycle further, nor the damage forgotten.
    let cancel = Cancel::new();
    let hook = Hook::new(|event| {
        if matches!(event, Kind::DiskStarted { .. }) {
            cancel.cancel();
        }
    });
    let here = Surroundings {
        vm: None,
        settings: world.bench.settings(),
        state: &world.bench.state,
        repositories: &world.bench.repositories,
        observer: &hook,
        cancel: &cancel,
    };
    for part in [None, Some("next/3".parse().unwrap())] {
        let request = verify::Request {
            what: Vec::new(),
            all: true,
            data: true,
            part,
            acknowledge: false,
        };
        verify::run(&here, &request).unwrap_err();
        assert_eq!(damaged().len(), 1);
    }
    assert_eq!(part(&next().1), Some(1));
    // Another length of the cycle begins a new one; and a cycle is of a whole VM.
    let (_, report) = world.verify(&["--all", "--data", "--part", "next/2"]);
    assert_eq!(part(&report), Some(1));
    let newest = format!("{}@latest", world.vm());
    world
        .bench
        .says(&world.lab, &["verify", &newest, "--data", "--part", "next/3"])
        .expect(2, &["whole VM"]);
}

#[test]
fn content_that_is_gone_stays_lost_and_that_is_said() {
    let world = World::new(1);
    let segment = world.segment_with_most();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    assert_eq!(world.verify(&["--all", "--data"]).0, 1);
    world.tiny.set("vda", &noise(77, 9 * MIB));
    world.tiny.set("vdb", &noise(78, 2 * MIB));
    let said = world.bench.says(&world.lab, &["backup", world.vm()]);
    said.expect(3, &["no longer has their content"]);
    let newest = format!("{}@latest", world.vm());
    assert_eq!(world.verify(&[&newest, "--data"]).0, 0);
    assert_eq!(world.verify(&["--all", "--data"]).0, 1);
}

#[test]
fn an_append_only_repository_survives_its_client() {
    let world = World::new(1);
    let repository = world.repository().display().to_string();
    let test = |code: i32, words: &[&str]| {
        let said = world
            .bench
            .says(&world.lab, &["repo", "test-append-only", world.vm()]);
        said.expect(code, words);
    };
    test(1, &["is not append-only", "hint: `borg serve --append-only"]);
    // Asking has changed nothing.
    assert_eq!(world.verify(&["--all", "--data"]).0, 0);
    world.bench.check(world.vm());

    // Whether its server is told so, or the repository itself.
    let mut serving = world.bench.repositories.clone();
    serving.settings.serve_args.push("--append-only".into());
    let open = serving.open(&repository, Access::Write).unwrap();
    assert!(open.probe_append_only().unwrap());
    world.borg(&["config", &repository, "append_only", "1"]);
    test(0, &["append-only"]);
    world.backup(1);
    world.backup(2);
    let (code, report) = world.verify(&["--all", "--data"]);
    assert_eq!(code, 0, "{report:#}");
    world.bench.check(world.vm());
    let log = fs::read_to_string(world.repository().join("transactions")).unwrap();
    let last = log.lines().last().unwrap();
    let number: u64 = last.split([' ', ',']).nth(1).unwrap().parse().unwrap();

    // The client goes mad. A verification sees it; the server's administrator undoes it.
    let archives = world.bench.archives(world.vm());
    world.borg(&["delete", &world.at(&archives[0]), &archives[1], &archives[2]]);
    world.borg(&["compact", &repository]);
    assert!(kinds(&world.verify(&["--all"]).1).contains(&"omission".to_owned()));
    for file in run(Command::new("find").arg(&repository).args(["-type", "f"])).lines() {
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        let written_since = file.contains("/data/") && name.parse::<u64>().unwrap() > number;
        if written_since
            || ["index.", "hints.", "integrity."]
                .iter()
                .any(|kind| name.starts_with(kind))
        {
            fs::remove_file(file).unwrap();
        }
    }
    world.bench.forget_replay();
    let (code, report) = world.verify(&["--all", "--data"]);
    assert_eq!(code, 0, "{report:#}");
    world.whole(&[0, 1, 2]);
}

impl World {
    /// The largest file of the repository.
    fn segment_with_most(&self) -> PathBuf {
        let list = run(Command::new("find")
            .arg(self.repository().join("data"))
            .args(["-type", "f", "-printf", "%s %p\n"]));
        let largest = list
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .max_by_key(|(size, _)| size.parse::<u64>().unwrap());
        PathBuf::from(largest.unwrap().1)
    }

    /// Restores `vda` of all restore points and compares them with what was backed up.
    #[track_caller]
    fn whole(&self, seeds: &[u64]) {
        for (archive, seed) in self.bench.archives(self.vm()).iter().zip(seeds) {
            let file = self.lab.path("compared.raw");
            let request = restore::Request {
                disks: vec!["vda".into()],
                to: Some(file.clone()),
                format: restore::ImageFormat::Raw,
                ..request(self.vm(), archive)
            };
            restore::run(&self.bench.context(&()), &request).unwrap();
            let content = fs::read(&file).unwrap();
            assert!(content[..9 * MIB] == noise(*seed, 9 * MIB), "{archive}");
            fs::remove_file(file).unwrap();
        }
    }
}
