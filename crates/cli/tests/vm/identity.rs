//! Which disk is this? Targets change places, images are replaced, disks are of odd kinds: what is backed up is what was meant.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use crate::common::tiny::{MIB, Tiny, noise};
use crate::common::{Bench, Hook};
use strongroom_engine::backup::{BackupError, Report};
use strongroom_engine::capture::CaptureError;
use strongroom_engine::run::event::Kind;
use strongroom_points::manifest::{Exclusion, Mode};
use strongroom_testkit::{Format, Lab, run, sha256_of_raw, virsh};

/// How a disk was read, and why.
#[track_caller]
fn expect(report: &Report, target: &str, mode: Mode, reason: &str) {
    let disk = report.manifest.disk(target).unwrap();
    assert_eq!(disk.mode, mode, "{target}: {}", disk.reason);
    assert!(disk.reason.contains(reason), "{target}: {}", disk.reason);
    assert_eq!(disk.map_wrong_at, None);
}

/// The stored definition, changed and defined again.
fn redefine(lab: &Lab, vm: &str, change: impl Fn(String) -> String) {
    let xml = run(&mut virsh(["dumpxml", "--inactive", vm]));
    let file = lab.path("changed.xml");
    std::fs::write(&file, change(xml)).unwrap();
    run(virsh(["define"]).arg(&file));
}

fn exchange(xml: &str, one: &Path, other: &Path) -> String {
    let [one, other] = [one, other].map(|path| path.display().to_string());
    xml.replace(&one, "\0")
        .replace(&other, &one)
        .replace('\0', &other)
}

fn rename(one: &Path, other: &Path) {
    std::fs::rename(one, other).unwrap();
}

/// What is restored is what the images of the VM hold; it is off afterwards.
#[track_caller]
fn restored_as_is(bench: &Bench, lab: &Lab, vm: &str, archive: &str, disks: &[(&str, PathBuf)]) {
    run(&mut virsh(["destroy", vm]));
    for (target, image) in disks {
        assert_eq!(
            bench.sha256_of_restored(lab, vm, archive, target),
            sha256_of_raw(image, Format::Qcow2),
            "{target}"
        );
    }
}

/// A7: two disks of one size and of almost one content change places, in the definition and as files. Each costs a full read
/// of these two, what is restored is right, and nothing is said of a map of changes that is wrong.
#[test]
fn disks_that_change_places_are_read_in_full() {
    let lab = Lab::new();
    let tiny = Tiny::with_disks(&lab, "places", &[("vda", 12), ("vdb", 4), ("vdc", 4)]);
    let vm = tiny.name.as_str();
    for target in ["vdb", "vdc"] {
        tiny.set(target, &noise(1, 2 * MIB));
    }
    let bench = Bench::new(&lab, &[vm]);
    let quiet = Hook::new(|_| {});
    let start = || drop(run(&mut virsh(["start", "--paused", vm])));
    let [b, c] = ["vdb", "vdc"].map(|target| tiny.disk(target));

    start();
    bench.backup(vm, &quiet).unwrap();
    tiny.write("vdc", 7, 3 * MIB, 4096);
    let before = bench.backup(vm, &quiet).unwrap();
    for target in ["vda", "vdb", "vdc"] {
        expect(&before, target, Mode::Incremental, "changes since");
    }
    run(&mut virsh(["destroy", vm]));

    // In the definition.
    redefine(&lab, vm, |xml| exchange(&xml, &b, &c));
    start();
    tiny.write("vdb", 8, MIB, 4096);
    let exchanged = bench.backup(vm, &quiet).unwrap();
    expect(&exchanged, "vda", Mode::Incremental, "changes since");
    for target in ["vdb", "vdc"] {
        expect(&exchanged, target, Mode::Full, "it is another disk than in");
    }
    restored_as_is(
        &bench,
        &lab,
        vm,
        &exchanged.archive,
        &[("vdb", c.clone()), ("vdc", b.clone())],
    );

    // As files, under paths that stay.
    rename(&b, &lab.path("third"));
    rename(&c, &b);
    rename(&lab.path("third"), &c);
    start();
    let renamed = bench.backup(vm, &quiet).unwrap();
    expect(&renamed, "vdb", Mode::Full, "it is another disk than in");
    expect(&renamed, "vdc", Mode::Full, "it is another disk than in");
    tiny.write("vdb", 9, 2 * MIB, 4096);
    let after = bench.backup(vm, &quiet).unwrap();
    expect(&after, "vdb", Mode::Incremental, "changes since");
    restored_as_is(
        &bench,
        &lab,
        vm,
        &after.archive,
        &[("vdb", c.clone()), ("vdc", b.clone())],
    );

    // A copy in its place is another disk; the same image under another name and target device is the same one.
    std::fs::copy(&c, lab.path("copy")).unwrap();
    rename(&lab.path("copy"), &c);
    let moved = lab.path("moved.img");
    rename(&b, &moved);
    redefine(&lab, vm, |xml| {
        xml.replace(&b.display().to_string(), &moved.display().to_string())
    });
    // QEMU's tools record what they write, as QEMU does.
    run(Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 5 1M 64k"])
        .arg(&moved));
    start();
    let copied = bench.backup(vm, &quiet).unwrap();
    expect(&copied, "vdb", Mode::Full, "it is another disk than in");
    expect(&copied, "vdc", Mode::Incremental, "changes since");
    restored_as_is(&bench, &lab, vm, &copied.archive, &[("vdb", c), ("vdc", moved)]);

    let warnings = quiet.warnings.lock().unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    bench.check(vm);
}

/// A7: a name in `swap` or `exclude` that means another disk by now is asked about; nothing is read meanwhile.
#[test]
fn a_data_disk_is_not_taken_for_swap() {
    let lab = Lab::new();
    let tiny = Tiny::with_disks(&lab, "roles", &[("vda", 4), ("vdb", 4)]);
    let vm = tiny.name.as_str();
    let mut bench = Bench::new(&lab, &[vm]);
    let named = |bench: &mut Bench, swap: &str| {
        bench.config.vm.get_mut(vm).unwrap().swap = vec![swap.to_owned()];
    };
    named(&mut bench, "vdb");
    bench.backup(vm, &()).unwrap();
    redefine(&lab, vm, |xml| {
        exchange(&xml, &tiny.disk("vda"), &tiny.disk("vdb"))
    });
    for state in ["off", "running"] {
        if state == "running" {
            run(&mut virsh(["start", "--paused", vm]));
        }
        bench.says(&lab, &["backup", vm]).expect(
            1,
            &[
                "disk vdb counts as swap",
                "was vda and was backed up",
                "nothing was read",
            ],
        );
        assert_eq!(bench.archives(vm).len(), 1, "{state}");
    }
    // Either a person says that it is meant, once …
    bench
        .says(&lab, &["backup", "--confirm-disks", vm])
        .expect(0, &[]);
    bench.says(&lab, &["backup", vm]).expect(0, &[]);
    run(&mut virsh(["destroy", vm]));
    // … or, when they change places once more, the configuration follows the disk.
    redefine(&lab, vm, |xml| {
        exchange(&xml, &tiny.disk("vda"), &tiny.disk("vdb"))
    });
    bench.says(&lab, &["backup", vm]).expect(1, &["--confirm-disks"]);
    named(&mut bench, "vda");
    let followed = bench.backup(vm, &()).unwrap();
    assert_eq!(followed.manifest.excluded[0].target, "vda");
}

/// A domain whose disks are written as they come.
struct Odd(String);

impl Odd {
    fn define(lab: &Lab, suffix: &str, disks: &str) -> Self {
        let name = lab.name(suffix);
        let file = lab.path("odd.xml");
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disks}</devices></domain>"
        );
        std::fs::write(&file, xml).unwrap();
        run(virsh(["define"]).arg(&file));
        Self(name)
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        let _ = virsh(["destroy", &self.0]).status();
        let _ = virsh(["undefine", "--checkpoints-metadata", &self.0]).status();
    }
}

fn raw(image: &Path, inner: &str, target: &str) -> String {
    format!(
        "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'/><target dev='{target}' bus='virtio'/>{inner}</disk>",
        image.display()
    )
}

/// A12: a raw image that ends within a sector, and one with sectors of 4096 bytes: the size is the one that QEMU shows, off
/// and on, and comes back.
#[test]
fn a_disk_is_as_large_as_its_guest_sees_it() {
    let lab = Lab::new();
    let [odd, large] = ["odd.raw", "large.raw"].map(|name| lab.path(name));
    std::fs::write(&odd, noise(1, 1_000_001)).unwrap();
    std::fs::write(&large, noise(2, 256 * 4096)).unwrap();
    let sectors = "<blockio logical_block_size='4096' physical_block_size='4096'/>";
    let disks = raw(&odd, "", "vda") + &raw(&large, sectors, "vdb");
    let domain = Odd::define(&lab, "size", &disks);
    let vm = domain.0.as_str();
    let bench = Bench::new(&lab, &[vm]);
    let mut padded = noise(1, 1_000_001);
    padded.resize(1_000_448, 0);
    let size = |report: &Report, target: &str| report.manifest.disk(target).unwrap().size;
    for state in ["off", "on"] {
        if state == "on" {
            run(&mut virsh(["start", "--paused", vm]));
        }
        let report = bench.backup(vm, &()).unwrap();
        assert_eq!(
            (size(&report, "vda"), size(&report, "vdb")),
            (1_000_448, 256 * 4096),
            "{state}"
        );
        let restored = lab.path("restored.raw");
        let arguments = ["restore", vm, "--disk", "vda", "--format", "raw", "--to"];
        let mut arguments: Vec<&str> = arguments.to_vec();
        arguments.push(restored.to_str().unwrap());
        bench.says(&lab, &arguments).expect(0, &[]);
        assert!(std::fs::read(&restored).unwrap() == padded, "{state}");
        std::fs::remove_file(restored).unwrap();
    }
}

/// A18: what a guest writes to a transient disk is thrown away; the disk is left out, and the VM is backed up all the same. A
/// disk that others may write to is read, with a warning.
#[test]
fn odd_disks_are_left_out_or_warned_of() {
    let lab = Lab::new();
    let images = ["a.raw", "b.raw", "c.raw"].map(|name| lab.path(name));
    for image in &images {
        std::fs::write(image, noise(1, MIB)).unwrap();
    }
    let disks = raw(&images[0], "", "vda") + &raw(&images[1], "<transient/>", "vdb");
    let domain = Odd::define(&lab, "odd", &disks);
    let vm = domain.0.as_str();
    let mut bench = Bench::new(&lab, &[vm]);
    for state in ["off", "on"] {
        if state == "on" {
            run(&mut virsh(["start", "--paused", vm]));
        }
        let said = bench.says(&lab, &["-v", "backup", vm]);
        said.expect(0, &["disk vdb is left out: it is transient"]);
        let manifest = bench.manifest(&lab, &format!("{vm}@latest"));
        assert_eq!(manifest.excluded[0].why, Exclusion::Transient, "{state}");
    }
    let shared = Odd::define(&lab, "shared", &raw(&images[2], "<shareable/>", "vda"));
    bench.add_vm(&shared.0);
    bench
        .says(&lab, &["backup", &shared.0])
        .expect(3, &["disk vda can be written to by other VMs"]);
}

/// A loop device over a file.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Self {
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// R8: a VM on a block device is started, written to and destroyed while it is read. QEMU writes through a device node of its
/// own, so that the times of the host's say nothing.
#[test]
fn an_offline_read_that_was_disturbed_counts_for_nothing() {
    let lab = Lab::new();
    let file = lab.path("device.raw");
    std::fs::write(&file, noise(1, 4 * MIB)).unwrap();
    let device = Loop::over(&file);
    let disk = format!(
        "<disk type='block'><driver name='qemu' type='raw' cache='none'/><source dev='{}'/><target dev='vda' bus='virtio'/></disk>",
        device.0
    );
    let domain = Odd::define(&lab, "device", &disk);
    let vm = domain.0.as_str();
    let bench = Bench::new(&lab, &[vm]);
    bench.backup(vm, &()).unwrap();
    let once = Once::new();
    let disturb = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            once.call_once(|| {
                run(&mut virsh(["start", "--paused", vm]));
                let write = "qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"write -P 9 3M 4k\"";
                run(virsh(["qemu-monitor-command", vm, "--hmp"]).arg(write));
                run(&mut virsh(["destroy", vm]));
            });
        }
    });
    let error = bench.backup(vm, &disturb).unwrap_err();
    assert!(
        matches!(error, BackupError::Capture(CaptureError::Disturbed(_))),
        "{error}"
    );
    assert_eq!(bench.archives(vm).len(), 1);
    bench.backup(vm, &()).unwrap();
}
