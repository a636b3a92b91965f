//! Disks of every kind, disks that come, go and grow, and VMs that are shut off.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use crate::common::checks::request;
use crate::common::{Bench, Hook};
use strongroom_engine::backup::{BackupError, Report};
use strongroom_engine::capture::CaptureError;
use strongroom_engine::config::Vm;
use strongroom_engine::restore::{self, Request};
use strongroom_engine::run::event::Kind;
use strongroom_points::manifest::{Consistency, DiskRecord, Method, Mode};
use strongroom_points::store::Encryption;
use strongroom_testkit::{Format, Lab, TestGuest, create_disk, run, sha256_of_raw, virsh};

/// A file as a block device.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path) -> Self {
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Self(device.into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[track_caller]
fn disk<'a>(report: &'a Report, target: &str) -> &'a DiskRecord {
    report
        .manifest
        .disk(target)
        .unwrap_or_else(|| panic!("{target} is not in {}", report.archive))
}

#[track_caller]
fn expect(report: &Report, target: &str, mode: Mode, reason: &str) {
    let disk = disk(report, target);
    assert_eq!(disk.mode, mode, "{target}: {}", disk.reason);
    assert!(disk.reason.contains(reason), "{target}: {}", disk.reason);
}

fn disk_xml(kind: &str, source: &Path, format: &str, target: &str) -> String {
    let attribute = if kind == "block" { "dev" } else { "file" };
    format!(
        "<disk type='{kind}' device='disk'><driver name='qemu' type='{format}'/>
         <source {attribute}='{}'/><target dev='{target}' bus='virtio'/><serial>{target}</serial></disk>",
        source.display()
    )
}

/// What the guest has on one of its disks.
fn hash(guest: &TestGuest, target: &str) -> String {
    guest.probe(&format!("hash /dev/{target}"))["sha256"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn scribble(guest: &TestGuest, target: &str, mib: u64) {
    guest.sh(&format!(
        "dd if=/dev/urandom of=/dev/{target} bs=1M count=1 seek={mib} && sync"
    ));
}

#[test]
fn each_disk_is_read_as_it_can_be() {
    let lab = Lab::new();
    create_disk(&lab.path("block.img"), Format::Raw, 64);
    let device = Loop::new(&lab.path("block.img"));
    let guest = lab
        .guest()
        .root_mib(128)
        .swap_mib(32)
        .disk(Format::Raw, 64)
        .disk(Format::Qcow2V2, 64)
        .disk(Format::Qcow2, 64)
        .define();
    let block = disk_xml("block", &device.0, "raw", "vdf");
    // With a slot for one more disk.
    let slot = "<controller type='pci' model='pcie-root-port'/>";
    guest.define(
        &guest
            .xml()
            .replace("</devices>", &format!("{slot}{block}</devices>")),
    );
    guest.boot();
    let vm = guest.name().to_owned();
    let bench = Bench::new(&lab, &[&vm]);
    guest.probe("pattern start 20");
    for target in ["vdc", "vdd", "vde", "vdf"] {
        scribble(&guest, target, 3);
    }

    let first = bench.backup(&vm, &()).unwrap();
    for target in ["vda", "vdc", "vdd", "vde", "vdf"] {
        assert_eq!(disk(&first, target).mode, Mode::Full);
    }
    for target in ["vdc", "vdd", "vde", "vdf"] {
        scribble(&guest, target, 40);
    }
    let second = bench.backup(&vm, &()).unwrap();
    expect(&second, "vda", Mode::Incremental, &first.archive);
    expect(&second, "vdc", Mode::Full, "raw has no place for a dirty bitmap");
    expect(&second, "vdd", Mode::Full, "qcow2 version 2");
    expect(&second, "vde", Mode::Incremental, &first.archive);
    expect(&second, "vdf", Mode::Full, "raw has no place for a dirty bitmap");
    // Unchanged chunks are not stored again, whichever way the disk is read.
    for target in ["vdc", "vdd", "vde", "vdf"] {
        let stored = disk(&second, target).bytes_stored;
        assert!((1 << 20..2 << 20).contains(&stored), "{target}: {stored}");
        let restored = bench.sha256_of_restored(&lab, &vm, &second.archive, target);
        assert_eq!(restored, hash(&guest, target), "{target}");
    }
    bench.at_rest(&lab, &vm);

    a_disk_grows(&bench, &guest, &second);
    let last = a_disk_comes(&lab, &bench, &guest);
    guest.probe("verify");
    disks_go(&bench, &guest, &last);
    bench.at_rest(&lab, &vm);
    bench.check(&vm);
}

fn a_disk_grows(bench: &Bench, guest: &TestGuest, before: &Report) {
    let image = guest.disk("vde");
    run(virsh(["blockresize", guest.name()]).arg(image).arg("96M"));
    scribble(guest, "vde", 80);
    let grown = bench.backup(guest.name(), &()).unwrap();
    let sizes = format!("its size changed from {} to {} bytes", 64 << 20, 96 << 20);
    expect(&grown, "vde", Mode::Full, &sizes);
    expect(&grown, "vda", Mode::Incremental, &before.archive);
    let next = bench.backup(guest.name(), &()).unwrap();
    expect(&next, "vde", Mode::Incremental, &grown.archive);
}

/// A disk is plugged in while the guest runs.
fn a_disk_comes(lab: &Lab, bench: &Bench, guest: &TestGuest) -> Report {
    let image = lab.path("added.qcow2");
    create_disk(&image, Format::Qcow2, 32);
    let xml = lab.path("added.xml");
    std::fs::write(&xml, disk_xml("file", &image, "qcow2", "vdg")).unwrap();
    run(virsh(["attach-device", guest.name()])
        .arg(&xml)
        .arg("--persistent"));
    let with_it = bench.backup(guest.name(), &()).unwrap();
    expect(&with_it, "vdg", Mode::Full, "the disk is not in");
    assert_eq!(disk(&with_it, "vda").mode, Mode::Incremental);
    let next = bench.backup(guest.name(), &()).unwrap();
    expect(&next, "vdg", Mode::Incremental, &with_it.archive);
    next
}

/// Some are taken out while the VM is off, one is replaced by another of the same name and size.
fn disks_go(bench: &Bench, guest: &TestGuest, before: &Report) {
    guest.probe("pattern stop");
    guest.destroy();
    let replaced = guest.disk("vde");
    std::fs::remove_file(&replaced).unwrap();
    create_disk(&replaced, Format::Qcow2, 96);
    for target in ["vdc", "vdf"] {
        run(&mut virsh(["detach-disk", guest.name(), target, "--config"]));
    }
    guest.boot();
    let without = bench.backup(guest.name(), &()).unwrap();
    let targets: Vec<&str> = without
        .manifest
        .disks
        .iter()
        .map(|disk| disk.target.as_str())
        .collect();
    assert_eq!(targets, ["vda", "vdd", "vde", "vdg"]);
    // Its old bitmap went with the old image: what it holds cannot be told from the old copy.
    expect(&without, "vde", Mode::Full, "");
    assert_ne!(without.archive, before.archive);
    scribble(guest, "vde", 7);
    let next = bench.backup(guest.name(), &()).unwrap();
    assert_eq!(disk(&next, "vde").mode, Mode::Incremental);
    assert_eq!(disk(&next, "vda").mode, Mode::Incremental);
}

/// Takes away what QEMU knows of the changes of one disk.
fn remove_bitmap(guest: &TestGuest, target: &str, bitmap: &str) {
    let monitor = |command: &str| run(virsh(["qemu-monitor-command", guest.name()]).arg(command));
    let nodes = monitor(r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#);
    let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    let image = guest.disk(target);
    let node = nodes["return"]
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["drv"] == "qcow2" && node["file"] == *image.to_str().unwrap())
        .unwrap();
    let name = &node["node-name"];
    let answer = monitor(&format!(
        r#"{{"execute":"block-dirty-bitmap-remove","arguments":{{"node":{name},"name":"{bitmap}"}}}}"#
    ));
    assert!(answer.contains(r#""return":{}"#), "{answer}");
}

#[test]
fn one_bad_bitmap_concerns_one_disk() {
    let lab = Lab::new();
    let guest = lab
        .guest()
        .root_mib(128)
        .swap_mib(32)
        .disk(Format::Qcow2, 64)
        .boot();
    let vm = guest.name().to_owned();
    let bench = Bench::new(&lab, &[&vm]);
    guest.probe("pattern start 20");
    scribble(&guest, "vdc", 3);
    let first = bench.backup(&vm, &()).unwrap();

    // Known before the job begins.
    let checkpoint = first.manifest.checkpoint.clone().unwrap();
    remove_bitmap(&guest, "vdc", &checkpoint);
    scribble(&guest, "vdc", 20);
    let (second, hash_of_vda) = bench.backup_with_hash(&vm);
    expect(&second, "vda", Mode::Incremental, &first.archive);
    expect(
        &second,
        "vdc",
        Mode::Full,
        &format!("checkpoint {checkpoint} cannot be used: its bitmap is missing or inconsistent"),
    );
    let restored = |archive: &str, target: &str| bench.sha256_of_restored(&lab, &vm, archive, target);
    assert_eq!(restored(&second.archive, "vda"), hash_of_vda);
    assert_eq!(restored(&second.archive, "vdc"), hash(&guest, "vdc"));
    bench.at_rest(&lab, &vm);

    // Found out by libvirt's refusal.
    let checkpoint = second.manifest.checkpoint.clone().unwrap();
    let removed = Once::new();
    let hook = Hook::new(|event| {
        if let Kind::Planned { plan } = event {
            assert!(plan.disks.iter().all(|disk| disk.mode == Mode::Incremental));
            removed.call_once(|| remove_bitmap(&guest, "vdc", &checkpoint));
        }
    });
    scribble(&guest, "vdc", 30);
    let third = bench.backup(&vm, &hook).unwrap();
    expect(&third, "vda", Mode::Incremental, &second.archive);
    expect(
        &third,
        "vdc",
        Mode::Full,
        "refused an incremental backup: its bitmap is missing",
    );
    assert_eq!(restored(&third.archive, "vdc"), hash(&guest, "vdc"));
    scribble(&guest, "vdc", 40);
    let (last, hash_of_vda) = bench.backup_with_hash(&vm);
    for target in ["vda", "vdc"] {
        expect(&last, target, Mode::Incremental, &third.archive);
    }
    assert_eq!(restored(&last.archive, "vda"), hash_of_vda);
    assert_eq!(restored(&last.archive, "vdc"), hash(&guest, "vdc"));
    bench.at_rest(&lab, &vm);
    guest.probe("verify");
    bench.check(&vm);
}

#[test]
fn a_vm_that_is_shut_off_is_backed_up_too() {
    let lab = Lab::new();
    let guest = lab
        .guest()
        .root_mib(128)
        .swap_mib(32)
        .disk(Format::Raw, 32)
        .boot();
    let vm = guest.name().to_owned();
    let bench = Bench::new(&lab, &[&vm]);
    guest.probe("pattern start 20");
    guest.probe("write 8");
    let online = bench.backup(&vm, &()).unwrap();
    assert_eq!(online.manifest.method, Method::Checkpoint);
    assert_eq!(online.manifest.consistency, Consistency::Crash);
    guest.probe("write 1");
    guest.probe("pattern stop");
    guest.shutdown();

    let image = guest.disk("vda");
    let held = sha256_of_raw(&image, Format::Qcow2);
    let off = bench.backup(&vm, &()).unwrap();
    assert_eq!(off.manifest.method, Method::Offline);
    assert_eq!(off.manifest.consistency, Consistency::Clean);
    expect(&off, "vda", Mode::Full, "the VM is shut off");
    let (read, stored) = (disk(&off, "vda").bytes_read, disk(&off, "vda").bytes_stored);
    assert!(
        stored < disk(&online, "vda").bytes_stored,
        "{read} read, {stored} stored"
    );
    assert_eq!(bench.sha256_of_restored(&lab, &vm, &off.archive, "vda"), held);
    assert_eq!(bench.at_rest(&lab, &vm).len(), 2);

    // Again, and nothing at all is new.
    let again = bench.backup(&vm, &()).unwrap();
    assert_eq!(disk(&again, "vda").bytes_stored, 0);

    // Started in the middle: nothing keeps it from starting, and what was read counts for nothing.
    let start = Once::new();
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            start.call_once(|| guest.boot());
        }
    });
    let error = bench.backup(&vm, &hook).unwrap_err();
    assert!(
        matches!(error, BackupError::Capture(CaptureError::Disturbed(_))),
        "{error}"
    );
    assert!(error.to_string().contains(&vm), "{error}");
    assert_eq!(bench.at_rest(&lab, &vm).len(), 3);
    guest.probe("verify");

    // The pair from before still stands: what changed since then is known.
    guest.probe("write 1");
    let (next, hash) = bench.backup_with_hash(&vm);
    expect(&next, "vda", Mode::Incremental, &online.archive);
    assert_eq!(bench.sha256_of_restored(&lab, &vm, &next.archive, "vda"), hash);
    assert_eq!(bench.at_rest(&lab, &vm).len(), 4);
    bench.check(&vm);
}

/// A shut-off domain with a small disk, under any name that libvirt takes.
struct Named(String);

impl Named {
    fn new(lab: &Lab, name: &str, number: usize) -> Self {
        let image = lab.path(&format!("named-{number}.qcow2"));
        create_disk(&image, Format::Qcow2, 4);
        let escaped = name
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        let disk = disk_xml("file", &image, "qcow2", "vda");
        let xml = lab.path(&format!("named-{number}.xml"));
        let text = format!(
            "<domain type='qemu'><name>{escaped}</name><memory unit='MiB'>64</memory>
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disk}</devices></domain>"
        );
        std::fs::write(&xml, text).unwrap();
        run(virsh(["define"]).arg(&xml));
        Self(name.to_owned())
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = virsh(["undefine", "--checkpoints-metadata", "--domain"])
            .arg(&self.0)
            .status();
    }
}

#[test]
fn any_name_that_libvirt_takes_is_fine() {
    let lab = Lab::new();
    let unique = lab.name("x");
    let names = [
        format!("{unique} two  words'{{now}}::x@y"),
        format!("{unique}<&>&amp; \"quoted\" $(name) `x` \\ ; *"),
        format!("{unique}..%s%n-größe-数-🦀"),
        format!("-{unique}"),
        format!("--json={unique}-{}", "l".repeat(180)),
    ];
    let domains: Vec<Named> = (0..)
        .zip(&names)
        .map(|(number, name)| Named::new(&lab, name, number))
        .collect();
    let mut bench = Bench::new(&lab, &[]);
    for (number, name) in names.iter().enumerate() {
        let own = lab.path(&format!("repository-{number}")).display().to_string();
        bench.repositories.create(&own, Encryption::STANDARD).unwrap();
        let vm = Vm {
            repository: Some(own),
            ..Vm::default()
        };
        bench.config.vm.insert(name.clone(), vm);
    }
    bench
        .says(&lab, &["backup", "--all"])
        .expect(0, &["the VM is shut off"]);
    for (number, name) in names.iter().enumerate() {
        bench.says(&lab, &["backup", "--", name]).expect(0, &[name]);
        assert_eq!(bench.archives(name).len(), 2, "{name:?}");
        let listed = bench.json(&lab, &["list", "--", name]);
        assert_eq!(listed["restore_points"][0]["manifest"]["vm"]["name"], **name);
        let archive = listed["restore_points"][1]["archive"]
            .as_str()
            .unwrap()
            .to_owned();
        let point = format!("{name}@{archive}");
        bench.says(&lab, &["show", "--", &point]).expect(0, &[]);
        let to = Request {
            to: Some(lab.path(&format!("restored-{number}"))),
            rename: Some(format!("{name}2")),
            ..request(name, &archive)
        };
        std::fs::create_dir(to.to.as_ref().unwrap()).unwrap();
        restore::run(&bench.context(&()), &to).unwrap();
        drop(Named(format!("{name}2")));
    }
    bench.says(&lab, &["status"]).expect(0, &[]);
    drop(domains);

    // Names that are no names are refused before anything is read.
    for name in ["../x", ".hidden", "a/b", ""] {
        bench
            .says(
                &lab,
                &["restore", "--as", name, "--", &format!("{}@latest", names[0])],
            )
            .expect(1, &["a VM's name has no slash and no leading dot"]);
    }
}
