//! `strongroom release`, and checkpoints beside snapshots and beside definitions that come and go.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;

use crate::common::tiny::{MIB, Tiny};
use crate::common::{Bench, Hook};
use serde_json::Value;
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Lab, output_of, run, virsh};

/// The names of the bitmaps in a disk's image, of a VM that is off.
fn bitmaps(tiny: &Tiny, target: &str) -> Vec<String> {
    let told = run(Command::new("qemu-img")
        .args(["info", "--output=json"])
        .arg(tiny.disk(target)));
    let told: Value = serde_json::from_str(&told).unwrap();
    let list = told["format-specific"]["data"]["bitmaps"].as_array().cloned();
    list.unwrap_or_default()
        .iter()
        .map(|bitmap| bitmap["name"].as_str().unwrap().to_owned())
        .collect()
}

fn checkpoints(vm: &str) -> usize {
    run(&mut virsh(["checkpoint-list", "--name", vm]))
        .split_whitespace()
        .count()
}

fn start(vm: &str) {
    run(&mut virsh(["start", "--paused", vm]));
}

fn destroy(vm: &str) {
    run(&mut virsh(["destroy", vm]));
}

/// A1: a snapshot inside the images and a checkpoint get into each other's way. It is said beforehand, `release` puts an end to
/// it, and once there is a snapshot no checkpoint is made unless the configuration asks for it.
#[test]
fn a_snapshot_can_be_reverted_to() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "revert");
    let vm = tiny.name.as_str();
    let mut bench = Bench::new(&lab, &[vm]);
    let revert = || output_of(&mut virsh(["snapshot-revert", vm, "s1"]));
    run(&mut virsh(["snapshot-create-as", vm, "s1"]));

    // The snapshot was there first.
    start(vm);
    let report = bench.backup(vm, &()).unwrap();
    assert_eq!((report.manifest.checkpoint, checkpoints(vm)), (None, 0));
    assert!(
        report.manifest.disks[0]
            .reason
            .contains("internal snapshots (s1)"),
        "{}",
        report.manifest.disks[0].reason
    );
    revert().unwrap();
    assert_eq!(bitmaps(&tiny, "vda"), [""; 0]);

    // A person has asked for both.
    bench.config.vm.get_mut(vm).unwrap().track_beside_snapshots = true;
    start(vm);
    let said = bench.says(&lab, &["-v", "backup", vm]);
    said.expect(0, &["`virsh snapshot-revert` would fail"]);
    assert_eq!(checkpoints(vm), 1);

    // Not any more: status and audit say what is in the way, and the next backup takes it out of it.
    bench.config.vm.get_mut(vm).unwrap().track_beside_snapshots = false;
    let release = format!("strongroom release {vm}");
    bench.says(&lab, &["status", vm]).expect(3, &[&release]);
    let audit = bench.says(&lab, &["audit", vm]);
    assert!(audit.out.contains("snapshot-and-checkpoint"), "{}", audit.out);
    destroy(vm);
    assert!(revert().is_err(), "libvirt has learnt to revert beside bitmaps");
    bench.says(&lab, &["backup", vm]).expect(3, &[&release]);
    let found = bench.says(&lab, &["--json", "release", "--dry-run", vm]);
    found.expect(0, &[]);
    assert!(found.out.contains("checkpoint strongroom-"), "{}", found.out);
    assert_eq!((checkpoints(vm), bitmaps(&tiny, "vda").len()), (1, 1));
    bench.says(&lab, &["release", vm]).expect(0, &[]);
    assert_eq!((checkpoints(vm), bitmaps(&tiny, "vda").len()), (0, 0));
    revert().unwrap();

    // Running, and with the snapshot only taken afterwards.
    bench.config.vm.get_mut(vm).unwrap().track_beside_snapshots = true;
    start(vm);
    bench.backup(vm, &()).unwrap();
    bench.says(&lab, &["release", vm]).expect(0, &[]);
    assert_eq!(checkpoints(vm), 0);
    bench
        .says(&lab, &["release", vm])
        .expect(0, &["nothing of strongroom's is there"]);
    let again = bench.backup(vm, &()).unwrap();
    assert_eq!(again.manifest.disks[0].mode, Mode::Full);
    bench.config.vm.get_mut(vm).unwrap().track_beside_snapshots = false;
    bench.backup(vm, &()).unwrap();
    assert_eq!(
        checkpoints(vm),
        0,
        "the next full backup lets go of the checkpoint by itself"
    );
    destroy(vm);
    revert().unwrap();
    run(&mut virsh(["snapshot-delete", vm, "s1"]));
    run(&mut virsh(["undefine", vm]));
}

/// A15: a definition that is lost takes libvirt's checkpoints with it. The bitmap that is sound serves on, others go.
#[test]
fn bitmaps_do_not_pile_up() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "lost");
    let vm = tiny.name.as_str();
    let bench = Bench::new(&lab, &[vm]);
    let quiet = Hook::new(|_| {});
    let xml = run(&mut virsh(["dumpxml", "--inactive", vm]));
    let file = lab.path("transient.xml");
    std::fs::write(&file, xml).unwrap();
    run(&mut virsh(["undefine", vm]));
    let create = || drop(run(virsh(["create", "--paused"]).arg(&file)));

    let mut modes = Vec::new();
    for round in 0..5 {
        create();
        tiny.write("vda", round + 1, MIB, 4096);
        let report = bench.backup(vm, &quiet).unwrap();
        modes.push(report.manifest.disks[0].mode);
        destroy(vm);
        assert_eq!(bitmaps(&tiny, "vda").len(), 1, "round {round}");
    }
    assert_eq!(modes[0], Mode::Full);
    assert_eq!(modes[1..], [Mode::Incremental; 4]);

    // Lost with the records as well: nothing is built upon it, and it goes.
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    std::fs::create_dir(lab.path("state")).unwrap();
    create();
    let report = bench.backup(vm, &quiet).unwrap();
    assert_eq!(report.manifest.disks[0].mode, Mode::Full);
    destroy(vm);
    assert_eq!(bitmaps(&tiny, "vda").len(), 1);

    // Off, for good: audit names what is left, recover and release remove it.
    run(virsh(["define"]).arg(&file));
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    std::fs::create_dir(lab.path("state")).unwrap();
    let audit = bench.says(&lab, &["audit", vm]);
    assert!(audit.out.contains("bitmaps-left"), "{}", audit.out);
    bench
        .says(&lab, &["recover", vm])
        .expect(3, &["of a checkpoint that was forgotten"]);
    assert_eq!(bitmaps(&tiny, "vda"), [""; 0]);

    start(vm);
    bench.backup(vm, &quiet).unwrap();
    destroy(vm);
    run(&mut virsh(["undefine", "--checkpoints-metadata", vm]));
    run(virsh(["define"]).arg(&file));
    assert_eq!(bitmaps(&tiny, "vda").len(), 1);
    bench
        .says(&lab, &["release", vm])
        .expect(0, &["of no checkpoint"]);
    assert_eq!((bitmaps(&tiny, "vda").len(), bitmaps(&tiny, "vdb").len()), (0, 0));
    run(&mut virsh(["undefine", vm]));
    let warnings = quiet.warnings.lock().unwrap();
    assert!(
        !warnings.iter().any(|text| text.contains("bitmap")),
        "{warnings:?}"
    );
}
