//! Restores onto images that exist: only what differs is fetched and written, and a death at any point loses nothing.
//! And what a backup may cost at most, counted.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::running::Said;
use crate::common::tiny::{MIB, Tiny, noise};
use crate::common::{Bench, names};
use strongroom_testkit::{Format, Lab, run, sha256_of_raw, virsh};

fn restore(bench: &Bench, lab: &Lab, vm: &str, arguments: &[&str]) -> Said {
    bench.says(
        lab,
        &[&["--json", "restore", vm, "--disk", "vda"], arguments].concat(),
    )
}

fn written(said: &Said) -> u64 {
    said.expect(0, &[]).json()["restore"]["disks"][0]["bytes_written"]
        .as_u64()
        .unwrap()
}

/// Changes an image in one place, as a guest that is shut off again would have.
fn write(image: &Path, at: &str) {
    run(Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &format!("write -P 77 {at}")])
        .arg(image));
}

#[test]
fn only_what_differs_is_written_and_nothing_is_lost_on_the_way() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "onto");
    let bench = Bench::new(&lab, &[&tiny.name]);
    let (vm, image) = (tiny.name.as_str(), tiny.disk("vda"));
    let path = image.to_str().unwrap();
    // Data, a hole, data.
    let content = [noise(1, 4 * MIB), vec![0; 4 * MIB], noise(2, 3 * MIB)].concat();
    tiny.set("vda", &content);
    bench.backup(vm, &()).unwrap();
    let hash = sha256_of_raw(&image, Format::Qcow2);
    let untouched = || {
        names(lab.dir())
            .iter()
            .all(|name| !name.starts_with(".strongroom"))
    };

    // Nothing differs, nothing is written.
    let stamp = fs::metadata(&image).unwrap().modified().unwrap();
    assert_eq!(written(&restore(&bench, &lab, vm, &["--onto", path])), 0);
    assert_eq!(fs::metadata(&image).unwrap().modified().unwrap(), stamp);

    // A hole that has been written to, and data that has been changed, each in one chunk.
    write(&image, "5M 64k");
    write(&image, "9M 64k");
    assert_ne!(sha256_of_raw(&image, Format::Qcow2), hash);
    assert_eq!(
        written(&restore(&bench, &lab, vm, &["--onto", path])),
        8 * MIB as u64
    );
    assert_eq!(sha256_of_raw(&image, Format::Qcow2), hash);
    assert!(untouched());

    // Damage is found before the image is touched.
    write(&image, "1M 64k");
    let changed = sha256_of_raw(&image, Format::Qcow2);
    let segments = bench.repository(vm).join("data/0");
    let (segment, kept) = (largest(&segments), lab.path("kept"));
    fs::copy(&segment, &kept).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[..middle]
        .iter_mut()
        .skip(4096)
        .step_by(512)
        .for_each(|byte| *byte ^= 1);
    fs::write(&segment, bytes).unwrap();
    assert_ne!(restore(&bench, &lab, vm, &["--onto", path]).code, Some(0));
    assert_eq!(sha256_of_raw(&image, Format::Qcow2), changed);
    assert!(untouched());
    fs::copy(&kept, &segment).unwrap();

    // A VM that runs on it is in the way, and so is another size.
    run(&mut virsh(["start", "--paused", vm]));
    restore(&bench, &lab, vm, &["--onto", path]).expect(1, &[path, vm, "runs on it"]);
    run(&mut virsh(["destroy", vm]));
    let other = tiny.disk("vdb");
    restore(&bench, &lab, vm, &["--onto", other.to_str().unwrap()])
        .expect(1, &["it has 4194304 bytes, the disk 12582912"]);
    assert_eq!(sha256_of_raw(&image, Format::Qcow2), changed);

    // Died in the middle of the merge: the image stands aside, beside what is to be merged into it. A VM cannot start on it.
    let (aside, difference) = (
        lab.path(&beside(&image, "merging")),
        lab.path(&beside(&image, "diff")),
    );
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&difference)
        .arg("12M"));
    write(&difference, "2M 64k");
    fs::rename(&image, &aside).unwrap();
    assert!(
        !virsh(["start", "--paused", vm])
            .output()
            .unwrap()
            .status
            .success()
    );
    // What was collected comes first; then the comparison starts anew.
    assert_eq!(
        written(&restore(&bench, &lab, vm, &["--onto", path])),
        4 * MIB as u64
    );
    assert_eq!(sha256_of_raw(&image, Format::Qcow2), hash);
    assert!(untouched());

    // Died between giving the image its name back and taking the other one away.
    fs::hard_link(&image, &aside).unwrap();
    assert_eq!(written(&restore(&bench, &lab, vm, &["--onto", path])), 0);
    assert_eq!(sha256_of_raw(&image, Format::Qcow2), hash);
    assert!(untouched());

    // The next backup reads all of it, and finds all of it in the repository.
    let report = bench.backup(vm, &()).unwrap();
    assert_eq!(report.manifest.disks[0].bytes_stored, 0);
}

/// Operations, not seconds: what is read, put and kept is the same on any machine.
#[test]
fn a_backup_costs_what_has_changed() {
    const CELL: u64 = 4 << 20;
    const PIECE: u64 = 64 << 10;
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "costs");
    let bench = Bench::new(&lab, &[&tiny.name]);
    let (vm, image) = (tiny.name.as_str(), tiny.disk("vda"));
    tiny.set("vda", &noise(3, 12 * MIB));
    // Paused, so that only this test changes anything.
    let start = || run(&mut virsh(["start", "--paused", vm]));
    // What was read, the chunks there are, what was stored of the disk and beside it.
    let costs = || {
        let report = bench.backup(vm, &()).unwrap();
        let disk = &report.manifest.disks[0];
        assert_eq!(disk.target, "vda");
        let beside = report.bytes_stored
            - report
                .manifest
                .disks
                .iter()
                .map(|disk| disk.bytes_stored)
                .sum::<u64>();
        (disk.bytes_read, disk.chunks, disk.bytes_stored, beside)
    };
    let change = |at: &str| {
        run(&mut virsh(["destroy", "--graceful", vm]));
        write(&image, at);
        start();
    };
    // An object's envelope, and the header of its compression.
    let sealed = |bytes: u64, objects: u64| bytes + objects * 43;

    start();
    let (read, chunks, stored, _) = costs();
    assert_eq!((read, chunks, stored), (3 * CELL, 3, sealed(3 * CELL, 3)));
    let (read, chunks, stored, beside) = costs();
    assert_eq!((read, chunks, stored), (0, 3, 0));
    assert!(beside < 16 << 10, "{beside}");
    // The first small change costs its cell, which is in pieces from then on.
    change("5M 4k");
    let (read, chunks, stored, _) = costs();
    assert_eq!((read, chunks), (CELL, 2 + 64));
    assert!(stored < sealed(CELL, 64) && stored > CELL - PIECE, "{stored}");
    // The second one costs a block of the bitmap.
    change("6M 4k");
    let (read, chunks, stored, beside) = costs();
    assert_eq!((read, chunks), (PIECE, 2 + 64));
    assert!(stored <= sealed(PIECE, 1), "{stored}");
    assert!(beside < 24 << 10, "{beside}");
    bench
        .borg
        .run(["check", "--verify-data", bench.repository(vm).to_str().unwrap()]);
}

fn beside(image: &Path, what: &str) -> String {
    format!(
        ".strongroom-{}.{what}",
        image.file_name().unwrap().to_str().unwrap()
    )
}

fn largest(directory: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}
