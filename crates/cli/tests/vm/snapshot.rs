//! Backups by external snapshot: the guest comes home to its own images whatever happens, and what is restored is what
//! the disks held at the instant.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::common::{Bench, Hook, names, sha256_of_export};
use strongroom_engine::backup::Report;
use strongroom_engine::config::CaptureMethod;
use strongroom_engine::run::event::Kind;
use strongroom_points::manifest::{Method, Mode};
use strongroom_testkit::{Format, Lab, TestGuest, run, virsh};

/// How many incremental backups follow the first.
const ROUNDS: usize = 3;

/// An engine that backs up these VMs by snapshot.
fn bench(lab: &Lab, vms: &[&str]) -> Bench {
    let mut bench = Bench::new(lab, vms);
    for vm in bench.config.vm.values_mut() {
        vm.method = CaptureMethod::Snapshot;
    }
    bench
}

/// Backs up, and gives the hash of each frozen disk.
#[track_caller]
fn backup(bench: &Bench, vm: &str, then: impl Fn() + Send + Sync) -> (Report, Vec<(String, String)>) {
    let hashes = Mutex::new(Vec::new());
    let hook = Hook::new(|event| {
        if let Kind::Captured { exports, .. } = event {
            *hashes.lock().unwrap() = exports
                .iter()
                .map(|export| (export.target.clone(), sha256_of_export(&export.at)))
                .collect();
            then();
        }
    });
    let report = bench.backup(vm, &hook).unwrap();
    (report, hashes.into_inner().unwrap())
}

/// The images that QEMU, the live and the inactive definition name for the disks.
fn images(guest: &TestGuest) -> Vec<String> {
    let list = |inactive: &[&str]| run(virsh(["domblklist", guest.name()]).args(inactive));
    let mut images = vec![list(&[]), list(&["--inactive"])];
    if guest.state() != "shut off" {
        images.push(run(&mut virsh([
            "qemu-monitor-command",
            guest.name(),
            "--hmp",
            "info block",
        ])));
    }
    images
}

/// No overlay is in use, none is left, no job runs, and no run is open.
#[track_caller]
fn expect_home(bench: &Bench, lab: &Lab, guest: &TestGuest) {
    for image in images(guest) {
        assert!(!image.contains(".overlay"), "{image}");
    }
    let left: Vec<String> = names(lab.dir())
        .into_iter()
        .filter(|name| name.ends_with(".overlay") || name.ends_with(".scratch"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    let uuid = guest.uuid().trim().parse().unwrap();
    assert_eq!(bench.state.peek(uuid).unwrap().unwrap().run, None);
    if guest.state() != "shut off" {
        let jobs = run(&mut virsh([
            "qemu-monitor-command",
            guest.name(),
            r#"{"execute":"query-block-jobs"}"#,
        ]));
        assert!(jobs.contains(r#""return":[]"#), "{jobs}");
    }
}

fn overlay(lab: &Lab) -> Option<PathBuf> {
    let name = names(lab.dir())
        .into_iter()
        .find(|name| name.ends_with(".overlay"))?;
    Some(lab.path(&name))
}

#[test]
fn snapshots_of_a_writing_guest_restore_bit_identical_and_it_comes_home() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(512).disk(Format::Raw, 64).boot();
    let vm = guest.name().to_owned();
    let bench = bench(&lab, &[&vm]);
    guest.probe("pattern start 5");
    let mut points = Vec::new();
    for round in 0..=ROUNDS {
        guest.sh(&format!(
            "dd if=/dev/urandom of=/dev/vdc bs=64k count=4 seek={round} 2>/dev/null && sync"
        ));
        let (report, hashes) = backup(&bench, &vm, || {
            let used = images(&guest);
            assert!(used.iter().all(|used| used.contains("vda.overlay")), "{used:?}");
            assert!(used.iter().all(|used| !used.contains("vdb.overlay")), "{used:?}");
            guest.probe("write 1");
        });
        assert_eq!(report.manifest.method, Method::Snapshot);
        let modes: Vec<_> = report
            .manifest
            .disks
            .iter()
            .map(|disk| (disk.target.as_str(), disk.mode, disk.reason.as_str()))
            .collect();
        println!("{modes:?}");
        let expected = if round == 0 { Mode::Full } else { Mode::Incremental };
        assert_eq!(modes[0].1, expected, "round {round}: {modes:?}");
        assert_eq!(modes[1].1, Mode::Full, "raw has no bitmap");
        assert_eq!(modes.len(), 2, "swap is not in it");
        expect_home(&bench, &lab, &guest);
        guest.probe("verify");
        points.push((report, hashes));
    }
    guest.probe("pattern stop");
    guest.probe("verify");
    // Between the two methods the chain of changes goes on.
    for (report, hashes) in &points {
        for (disk, hash) in hashes {
            assert_eq!(
                bench.sha256_of_restored(&lab, &vm, &report.archive, disk),
                *hash,
                "{disk} of {}",
                report.archive
            );
        }
    }
    assert_eq!(
        run(&mut virsh(["checkpoint-list", "--name", &vm])).trim(),
        points[ROUNDS].0.manifest.checkpoint.as_deref().unwrap()
    );
    let mut bench = bench;
    for settings in bench.config.vm.values_mut() {
        settings.method = CaptureMethod::Auto;
    }
    let (report, hashes) = backup(&bench, &vm, || ());
    assert_eq!(report.manifest.method, Method::Checkpoint);
    assert_eq!(
        report.manifest.disks[0].mode,
        Mode::Incremental,
        "{}",
        report.manifest.disks[0].reason
    );
    assert_eq!(
        bench.sha256_of_restored(&lab, &vm, &report.archive, "vda"),
        hashes[0].1
    );
}

#[test]
fn a_vm_that_goes_off_during_the_read_is_backed_up_and_comes_home() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(256).boot();
    let vm = guest.name().to_owned();
    let bench = bench(&lab, &[&vm]);
    guest.probe("write 8");
    let (report, hashes) = backup(&bench, &vm, || {
        guest.probe("write 8");
        guest.probe("sync");
        guest.destroy();
    });
    expect_home(&bench, &lab, &guest);
    assert_eq!(
        bench.sha256_of_restored(&lab, &vm, &report.archive, "vda"),
        hashes[0].1
    );
    guest.boot();
    guest.probe("verify");
}

#[test]
fn a_stale_definition_is_put_right_before_the_next_start() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(256).boot();
    let vm = guest.name().to_owned();
    let bench = bench(&lab, &[&vm]);
    let stale = guest.xml();
    let (_, _) = backup(&bench, &vm, || {
        guest.probe("write 8");
        guest.probe("sync");
        guest.define(&stale);
    });
    expect_home(&bench, &lab, &guest);
    guest.destroy();
    guest.boot();
    guest.probe("verify");
}

#[test]
fn a_backup_that_is_cancelled_on_the_overlay_comes_home() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(256).boot();
    let vm = guest.name().to_owned();
    let bench = bench(&lab, &[&vm]);
    guest.probe("write 8");
    let was_there = Mutex::new(false);
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            *was_there.lock().unwrap() = overlay(&lab).is_some();
            guest.probe("write 8");
            guest.probe("sync");
            bench.cancel.cancel();
        }
    });
    bench.backup(&vm, &hook).unwrap_err();
    assert!(*was_there.lock().unwrap());
    expect_home(&bench, &lab, &guest);
    guest.probe("verify");
}

/// Starts the program, and kills it once the guest is on its overlay.
fn killed_on_the_overlay(bench: &Bench, lab: &Lab, guest: &TestGuest) {
    let mut program = bench
        .program(lab)
        .args(["backup", guest.name()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !images(guest).iter().all(|used| used.contains(".overlay")) {
        assert!(begin.elapsed() < Duration::from_mins(2), "no overlay");
        assert_eq!(program.try_wait().unwrap(), None, "it was over too soon");
    }
    program.kill().unwrap();
    program.wait().unwrap();
    assert!(overlay(lab).is_some());
}

#[test]
fn a_backup_that_is_killed_on_the_overlay_is_undone_by_recover() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(512).boot();
    let vm = guest.name().to_owned();
    let bench = bench(&lab, &[&vm]);
    guest.probe("write 64");
    guest.probe("sync");
    bench.says(&lab, &["recover"]).expect(0, &[]);
    for off in [false, true] {
        killed_on_the_overlay(&bench, &lab, &guest);
        guest.probe("write 8");
        guest.probe("sync");
        if off {
            guest.destroy();
        }
        // Said, and not done.
        let said = bench.says(&lab, &["recover", "--dry-run", &vm]);
        said.expect(3, &[]);
        assert!(images(&guest)[0].contains(".overlay"), "{said:?}");
        bench
            .says(&lab, &["recover", &vm])
            .expect(3, &["was interrupted"]);
        expect_home(&bench, &lab, &guest);
        if off {
            guest.boot();
        }
        guest.probe("verify");
    }
    let (report, hashes) = backup(&bench, &vm, || ());
    assert_eq!(
        bench.sha256_of_restored(&lab, &vm, &report.archive, "vda"),
        hashes[0].1
    );
    bench.says(&lab, &["recover", &vm]).expect(0, &[]);
}
