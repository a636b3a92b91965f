//! Restores onto images that exist: only what differs is fetched and written, and a death at any point loses nothing.
//! And what a backup may cost at most, counted.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::running::Said;
use common::tiny::{MIB, Tiny, noise};
use common::{Bench, names};
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
