//! The promise: whatever the guest writes meanwhile, each restore point is what the disk held at its instant.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::sync::Mutex;

use crate::common::checks::request;
use crate::common::{Bench, Hook, names, sha256_of_export};
use strongroom_engine::restore::{self, Request};
use strongroom_engine::run::event::Kind;
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Format, Lab, run, sha256_of_raw, virsh};

/// How many incremental backups follow the first.
const ROUNDS: usize = 10;

#[test]
fn ten_incremental_backups_of_a_writing_guest_restore_bit_identical() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(512).boot();
    let vm = guest.name().to_owned();
    let bench = Bench::new(&lab, &[&vm]);
    guest.probe("pattern start 5");

    let mut points = Vec::new();
    for round in 0..=ROUNDS {
        // Through the frozen view, while the guest goes on writing: what the restore point has to be.
        let hash = Mutex::new(String::new());
        let hook = Hook::new(|event| {
            if let Kind::Captured { exports, .. } = event {
                assert_eq!(
                    exports
                        .iter()
                        .map(|export| export.target.as_str())
                        .collect::<Vec<_>>(),
                    ["vda"]
                );
                *hash.lock().unwrap() = sha256_of_export(&exports[0].at);
            }
        });
        let report = bench.backup(&vm, &hook).unwrap();
        assert_eq!(*hook.warnings.lock().unwrap(), Vec::<String>::new());
        let disk = &report.manifest.disks[0];
        let expected = if round == 0 { Mode::Full } else { Mode::Incremental };
        assert_eq!(disk.mode, expected, "round {round}: {}", disk.reason);
        assert_eq!(report.manifest.sequence, round as u64 + 1);
        assert_eq!(
            report.manifest.excluded[0].target, "vdb",
            "swap is never backed up"
        );
        println!(
            "round {round}: {:.1} s, {} read, {} stored",
            report.seconds, disk.bytes_read, disk.bytes_stored
        );
        points.push((report, hash.into_inner().unwrap()));
        guest.probe("write 1");
    }
    guest.probe("pattern stop");
    guest.probe("verify");

    // One checkpoint stands, that of the last archive; no job, no scratch file, no open run is left.
    let last = points.last().unwrap().0.manifest.checkpoint.clone().unwrap();
    assert_eq!(run(&mut virsh(["checkpoint-list", "--name", &vm])).trim(), last);
    assert_eq!(
        run(&mut virsh(["domjobinfo", &vm])).split_whitespace().last(),
        Some("None")
    );
    assert!(
        !names(lab.dir()).iter().any(|name| name.contains("scratch")),
        "{:?}",
        names(lab.dir())
    );

    // Stock Borg finds nothing to complain about, and yields the same bytes by itself.
    let repository = bench.repository(&vm);
    let at = |archive: &str| format!("{}::{archive}", repository.display());
    bench
        .borg
        .run(["check", "--verify-data", &repository.display().to_string()]);
    let listed = bench
        .borg
        .run(["list", "--short", &repository.display().to_string()]);
    assert_eq!(listed.lines().count(), ROUNDS + 1);
    bench.borg.run(["info", &at(&points[ROUNDS].0.archive)]);
    bench
        .borg
        .run(["diff", &at(&points[1].0.archive), &points[2].0.archive]);

    let context = bench.context(&());
    for (number, (report, hash)) in points.iter().enumerate() {
        assert_ne!(
            points.get(number + 1).map(|next| &next.1),
            Some(hash),
            "the guest wrote nothing"
        );
        let file = lab.path(&format!("restored-{number}.qcow2"));
        let request = Request {
            disks: vec!["vda".into()],
            to: Some(file.clone()),
            ..request(&vm, &report.archive)
        };
        restore::run(&context, &request).unwrap();
        println!("restored {number}");
        assert_eq!(
            sha256_of_raw(&file, Format::Qcow2),
            *hash,
            "restore point {number}"
        );
        std::fs::remove_file(file).unwrap();
    }
    // The oldest can go, and the rest still stands on its own.
    bench
        .borg
        .run(["prune", "--keep-last", "2", &repository.display().to_string()]);
    bench.borg.run(["compact", &repository.display().to_string()]);
    bench
        .borg
        .run(["check", "--verify-data", &repository.display().to_string()]);
    let after = bench.backup(&vm, &()).unwrap();
    assert_eq!(after.manifest.disks[0].mode, Mode::Incremental);

    // Gone, and back: same name, same UUID, same data; swap empty and in use again.
    let uuid = guest.uuid();
    let disks = ["vda", "vdb"].map(|target| guest.disk(target));
    guest.destroy();
    guest.undefine();
    for disk in disks {
        std::fs::remove_file(disk).unwrap();
    }
    let outcome = restore::run(&context, &request(&vm, "latest")).unwrap();
    let restore::Outcome::Done(report) = outcome else {
        panic!("not a dry run")
    };
    assert_eq!(report.uuid.unwrap().to_string(), uuid);
    assert_eq!(
        report.disks.iter().map(|disk| disk.fresh).collect::<Vec<_>>(),
        [false, true]
    );
    let restored = lab.open(&vm);
    restored.boot();
    restored.probe("verify");
    assert!(restored.sh("cat /proc/swaps").contains("/dev/vdb"));

    // The restored disks are new: their first backup is full, says why, and the next is incremental again.
    let full = bench.backup(&vm, &()).unwrap();
    assert_eq!(
        full.manifest.disks[0].mode,
        Mode::Full,
        "{}",
        full.manifest.disks[0].reason
    );
    assert_eq!(
        bench.backup(&vm, &()).unwrap().manifest.disks[0].mode,
        Mode::Incremental
    );
}

/// Empties the bitmap of a checkpoint inside the running QEMU: from then on the map of changes lies.
fn forget_changes(vm: &str, checkpoint: &str) {
    let monitor = |command: &str| run(&mut virsh(["qemu-monitor-command", vm, command]));
    let nodes: serde_json::Value = serde_json::from_str(&monitor(
        r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#,
    ))
    .unwrap();
    let has_bitmap = |node: &&serde_json::Value| {
        let bitmaps = node["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        bitmaps.iter().any(|bitmap| bitmap["name"] == checkpoint)
    };
    let node = nodes["return"]
        .as_array()
        .unwrap()
        .iter()
        .find(has_bitmap)
        .unwrap()["node-name"]
        .clone();
    let clear = serde_json::json!({
        "execute": "block-dirty-bitmap-clear", "arguments": { "node": node, "name": checkpoint }
    });
    assert!(!monitor(&clear.to_string()).contains("error"));
}

#[test]
fn a_map_of_changes_that_lies_is_noticed_and_the_disk_read_in_full() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(256).boot();
    let vm = guest.name().to_owned();
    let mut bench = Bench::new(&lab, &[&vm]);
    bench.config.spot_check.chunks = Some(1000);
    let first = bench.backup(&vm, &()).unwrap();
    guest.probe("write 8");
    guest.probe("sync");
    let honest = bench.backup(&vm, &()).unwrap();
    assert_eq!(honest.manifest.disks[0].mode, Mode::Incremental);
    assert!(honest.manifest.disks[0].audited > 0);
    assert_eq!(
        honest.manifest.previous.is_some(),
        first.manifest.previous.is_none()
    );

    guest.probe("write 8");
    guest.probe("sync");
    forget_changes(&vm, honest.manifest.checkpoint.as_ref().unwrap());
    let hash = Mutex::new(String::new());
    let hook = Hook::new(|event| {
        if let Kind::Captured { exports, .. } = event {
            *hash.lock().unwrap() = sha256_of_export(&exports[0].at);
        }
    });
    let report = bench.backup(&vm, &hook).unwrap();
    let disk = &report.manifest.disks[0];
    assert_eq!(disk.mode, Mode::Full);
    assert!(disk.reason.contains("missed a change"), "{}", disk.reason);
    assert!(disk.map_wrong_at.is_some(), "it is on record");
    for (command, point) in [("list", vm.clone()), ("show", format!("{vm}@latest"))] {
        let said = bench.says(&lab, &[command, &point]);
        assert!(said.out.contains("WRONG"), "{command}: {}", said.out);
    }
    assert!(hook.warnings.lock().unwrap()[0].contains("map of changes is wrong"));
    let file = lab.path("restored.qcow2");
    let request = Request {
        disks: vec!["vda".into()],
        to: Some(file.clone()),
        ..request(&vm, "latest")
    };
    restore::run(&bench.context(&()), &request).unwrap();
    assert_eq!(sha256_of_raw(&file, Format::Qcow2), *hash.lock().unwrap());
}
