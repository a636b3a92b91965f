//! Which restore point is the newest, whose it is, and whether what it refers to is there: what the record says goes before what a
//! repository shows.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::running::Said;
use crate::common::tiny::{MIB, Tiny, noise, with_signing};
use crate::common::{Bench, Hook};
use strongroom_engine::config::Witness;
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Lab, run, virsh};

/// A shut-off VM with signed restore points and a witness.
struct World {
    lab: Lab,
    tiny: Tiny,
    bench: Bench,
}

impl World {
    fn new(points: u64) -> Self {
        let lab = Lab::new();
        let tiny = Tiny::define(&lab, "order");
        let mut bench = Bench::new(&lab, &[&tiny.name]);
        with_signing(&lab, &mut bench);
        bench.config.witness = Some(Witness {
            file: Some(lab.path("witness.jsonl")),
            ..Witness::default()
        });
        let world = Self { lab, tiny, bench };
        for point in 0..points {
            world.tiny.set("vda", &noise(point, 2 * MIB));
            world.bench.backup(world.vm(), &()).unwrap();
        }
        world
    }

    fn vm(&self) -> &str {
        &self.tiny.name
    }

    fn says(&self, bench: &Bench, arguments: &[&str]) -> Said {
        bench.says(&self.lab, arguments)
    }

    fn restores(&self, bench: &Bench, point: &str, more: &[&str]) -> Said {
        let file = self.lab.path("restored.qcow2");
        let _ = std::fs::remove_file(&file);
        let to = file.display().to_string();
        self.says(
            bench,
            &[&["restore", point, "--disk", "vda", "--to", &to], more].concat(),
        )
    }

    fn repository(&self) -> PathBuf {
        self.bench.repository(self.vm())
    }

    fn witness(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.lab.path("witness.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    run(Command::new("cp").arg("-a").args([from, to]));
}

/// R2, R9: an old copy of the repository is put back. Every reader says so, none believes its newest, and nothing is encrypted
/// into it before a person has decided; then with counters that were never used.
#[test]
fn an_old_copy_is_noticed_by_all_and_written_to_by_none() {
    let world = World::new(2);
    let (vm, old) = (world.vm(), world.lab.path("old"));
    copy(&world.repository(), &old);
    world.bench.backup(vm, &()).unwrap();
    let archives = world.bench.archives(vm);
    let (named, newest) = (format!("{vm}@{}", archives[0]), &archives[2]);
    copy(&old, &world.repository());

    // On the machine that made it, and on one that has nothing but the configuration and the witness.
    let empty = world.bench.elsewhere(&world.lab.path("empty-state"));
    for (bench, anew) in [(&world.bench, false), (&empty, true)] {
        if anew {
            world.bench.forget_replay();
        }
        world
            .restores(bench, vm, &[])
            .expect(1, &["rollback", newest, "--allow-rollback", "VM@ARCHIVE"]);
        world
            .restores(bench, vm, &["--allow-rollback"])
            .expect(3, &["rollback"]);
        world.restores(bench, &named, &[]).expect(3, &["rollback"]);
        for command in ["list", "show", "status"] {
            world.says(bench, &[command, vm]).expect(3, &["rollback", newest]);
        }
        let before = world.witness().len();
        let says = world.says(bench, &["backup", vm]);
        says.expect(1, &["--acknowledge"]);
        let listed = world.says(bench, &["--json", "list", vm]).json();
        assert_eq!(listed["restore_points"].as_array().unwrap().len(), 2);
        assert_eq!(world.witness().len(), before);
    }

    // Borg's own directory is gone, too: what the witness has seen is above all that is used from now on.
    empty.forget_replay();
    let known = world.witness()[2]["counter"].as_u64().unwrap();
    world
        .says(&empty, &["backup", vm])
        .expect(1, &["rollback", "nothing is encrypted"]);
    world
        .says(&empty, &["verify", vm, "--acknowledge"])
        .expect(0, &[]);
    world.says(&empty, &["backup", vm]).expect(0, &[]);
    let last = world.witness().pop().unwrap();
    assert_eq!(last["sequence"], 4);
    assert!(last["counter"].as_u64().unwrap() > known + (1 << 44), "{last}");
    world.restores(&empty, vm, &[]).expect(0, &[]);
}

/// R9: Borg's own record alone knows, and the person decides by the same command.
#[test]
fn what_was_meant_to_be_put_back_is_acknowledged_once() {
    let world = World::new(1);
    let (vm, old) = (world.vm(), world.lab.path("old"));
    copy(&world.repository(), &old);
    world.bench.backup(vm, &()).unwrap();
    copy(&old, &world.repository());
    world
        .says(&world.bench, &["backup", vm])
        .expect(1, &["--acknowledge"]);
    world
        .says(&world.bench, &["verify", vm])
        .expect(1, &["rollback", "--acknowledge"]);
    world
        .says(&world.bench, &["verify", vm, "--acknowledge"])
        .expect(0, &[]);
    world.says(&world.bench, &["backup", vm]).expect(0, &[]);
    world.says(&world.bench, &["verify", vm]).expect(0, &[]);
    world.restores(&world.bench, vm, &[]).expect(0, &[]);
}

/// R2: the newest archive was deleted.
#[test]
fn a_newest_that_is_gone_stops_a_restore_of_the_newest() {
    let world = World::new(2);
    let vm = world.vm();
    let newest = world.bench.archives(vm).pop().unwrap();
    let at = format!("{}::{newest}", world.repository().display());
    world.bench.borg.run(["delete", &at]);
    world
        .restores(&world.bench, vm, &[])
        .expect(1, &["omission", &newest]);
    world
        .restores(&world.bench, vm, &["--allow-rollback"])
        .expect(3, &["omission"]);
    for command in ["list", "show", "status"] {
        world.says(&world.bench, &[command, vm]).expect(3, &["omission"]);
    }
}

/// R15: a repository was moved to another VM's place, and a VM was made anew.
#[test]
fn a_chain_belongs_to_one_vm() {
    let mut world = World::new(1);
    let other = Tiny::define(&world.lab, "other");
    other.set("vda", &noise(9, MIB));
    world.bench.add_vm(&other.name);
    copy(&world.repository(), &world.bench.repository(&other.name));
    let bench = &world.bench;
    bench.forget_replay();
    world
        .says(bench, &["backup", &other.name])
        .expect(1, &["is of another VM", world.vm(), "a repository of its own"]);
    world
        .says(bench, &["backup", &other.name, "--made-anew"])
        .expect(1, &["is of another VM"]);
    let listed = world.says(bench, &["--json", "list", &other.name]).json();
    assert_eq!(listed["restore_points"].as_array().unwrap().len(), 1);

    // The first one is defined anew: libvirt gives it another UUID.
    let bench = world.bench.elsewhere(&world.lab.path("anew"));
    let xml = run(&mut virsh(["dumpxml", world.vm()]));
    let anew: String = xml.lines().filter(|line| !line.contains("<uuid>")).collect();
    let file = world.lab.path("anew.xml");
    std::fs::write(&file, anew).unwrap();
    run(&mut virsh(["undefine", world.vm()]));
    run(virsh(["define"]).arg(&file));
    let hint = format!("strongroom backup {} --made-anew", world.vm());
    world
        .says(&bench, &["backup", world.vm()])
        .expect(1, &["is of another VM", &hint]);
    world
        .says(&bench, &["backup", world.vm(), "--made-anew"])
        .expect(0, &[]);
    world.says(&bench, &["backup", world.vm()]).expect(0, &[]);
    world.says(&bench, &["verify", world.vm()]).expect(0, &[]);
}

/// R4: objects vanish without a word in the manifest, as by `borg check --repair --repository-only`. What is taken over is
/// asked for, and what is gone is read anew, metadata too.
#[test]
fn what_an_increment_takes_over_is_there() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "adopted");
    tiny.set("vda", &noise(1, 9 * MIB));
    let bench = Bench::new(&lab, &[&tiny.name]);
    run(virsh(["start", &tiny.name]).arg("--paused"));
    let vm = tiny.name.as_str();
    let repository = bench.repository(vm).display().to_string();
    let backup = || {
        let hook = Hook::new(|_| {});
        let report = bench.backup(vm, &hook).unwrap();
        let warnings = hook.warnings.lock().unwrap().join("\n");
        (report, warnings)
    };
    backup();
    let (second, warnings) = backup();
    assert_eq!(warnings, "");
    assert_eq!(second.manifest.disk("vda").unwrap().bytes_read, 0);

    // A chunk of the disk, by its id.
    let gone = {
        let repositories = &bench.repositories;
        let mut open = repositories
            .open(&repository, strongroom_points::store::Access::Read)
            .unwrap();
        let info = open.archives().find(|info| info.name == *second.archive);
        let info = info.cloned().unwrap();
        let archive = open.archive_by_info(&info).unwrap();
        let items: Vec<_> = open.items(&archive).collect::<Result<_, _>>().unwrap();
        let disk = items.iter().find(|item| item.path == "disks/vda.raw").unwrap();
        disk.chunks.as_ref().unwrap()[0].id.to_string()
    };
    bench.borg.run(["debug", "delete-obj", &repository, &gone]);
    let (third, warnings) = backup();
    assert!(
        warnings.contains("1 objects that earlier restore points need"),
        "{warnings}"
    );
    let disk = third.manifest.disk("vda").unwrap();
    assert_eq!(disk.mode, Mode::Incremental);
    assert!(disk.bytes_read > 0);
    bench.check(vm);

    // No other client has written since: nothing is asked for, nothing is said.
    let (fourth, warnings) = backup();
    assert_eq!(warnings, "");
    assert_eq!(fourth.manifest.disk("vda").unwrap().bytes_read, 0);
}
