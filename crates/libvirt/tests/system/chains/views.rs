//! What is said of images in less plain domains.

use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_hypervisor::{Chain, Chains as _, Hypervisor as _, SnapshotDisk};
use strongroom_libvirt::Libvirt;

use super::{LONG, asked, chain, commit, home, overlay};
use crate::fixture::{Guest, URI, expect, unique_name, virsh};

#[test]
fn a_view_is_not_blurred_by_a_backup_job() {
    let guest = Guest::start("");
    let job = guest.job(None, vec![guest.disk("vda", None, false)]);
    guest.libvirt.begin_backup(guest.uuid, &job).unwrap();
    let found = chain(&guest, "vda");
    assert!(found.job_in_qemu);
    let job_in_qemu = false;
    assert_eq!(Chain { job_in_qemu, ..found }, home(&guest, "vda"));
    assert_eq!(chain(&guest, "vdb"), home(&guest, "vdb"));
    guest.libvirt.end_backup(guest.uuid).unwrap();
    assert_eq!(chain(&guest, "vda"), home(&guest, "vda"));
}

/// A domain with disks on every kind of bus, with oddly named images, limits and filters.
#[test]
fn disks_are_found_on_every_bus() {
    let (name, _cleanup) = unique_name("");
    let dir = tempfile::Builder::new()
        .prefix("sr-lv-test-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .unwrap();
    let image = |target: &str| {
        dir.path()
            .join(format!("{target} \"ü\" & <x>' {{🔒}} %41:,.qcow2"))
    };
    let escaped = |path: &Path| {
        let path = path.to_str().unwrap().replace('&', "&amp;");
        path.replace('<', "&lt;").replace('\'', "&apos;")
    };
    let mut disks = String::new();
    let targets = [
        (
            "vda",
            "virtio",
            "<driver name='qemu' type='qcow2' copy_on_read='on'/>",
            "",
        ),
        (
            "vdb",
            "virtio",
            "<driver name='qemu' type='qcow2' discard='unmap' detect_zeroes='unmap'/>",
            "<iotune><total_iops_sec>1000</total_iops_sec></iotune><alias name='ua-my-disk'/>",
        ),
        (
            "sda",
            "scsi",
            "<driver name='qemu' type='qcow2' cache='none'/>",
            "",
        ),
        (
            "sdb",
            "sata",
            "<driver name='qemu' type='qcow2'/>",
            "<serial>s</serial>",
        ),
        ("sdc", "usb", "<driver name='qemu' type='qcow2'/>", ""),
    ];
    for (target, bus, driver, more) in targets {
        let file = image(target);
        expect(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&file)
                .arg("16M"),
        );
        let disk = format!(
            "<disk type='file'>{driver}<source file='{}'/><target dev='{target}' bus='{bus}'/>{more}</disk>",
            escaped(&file)
        );
        disks.push_str(&disk);
    }
    let xml = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os>\
         <devices><controller type='scsi' model='virtio-scsi'/>{disks}</devices></domain>"
    );
    let libvirt = Libvirt::connect(URI).unwrap();
    let uuid = libvirt.define(&xml, false).unwrap();
    expect(virsh().args(["start", &name]));
    let overlay = |target: &str| image(target).with_extension("overlay");
    let views = |wanted: &dyn Fn(&str) -> Vec<PathBuf>| {
        let chains = libvirt.chains(uuid).unwrap();
        assert_eq!(chains.len(), targets.len());
        for chain in chains {
            let wanted = wanted(&chain.target);
            assert_eq!((&chain.qemu, &chain.live), (&wanted, &wanted));
            assert_eq!(chain.inactive.first(), wanted.first());
        }
    };
    views(&|target| vec![image(target)]);
    let disks = targets.map(|(target, ..)| SnapshotDisk {
        target: target.into(),
        overlay: overlay(target),
    });
    libvirt.take_snapshot(uuid, &disks).unwrap();
    views(&|target| vec![overlay(target), image(target)]);
    for (target, ..) in targets {
        let mut seen = libvirt.events(uuid);
        libvirt
            .start_commit(uuid, target, &overlay(target), &image(target), 0)
            .unwrap();
        while libvirt.pivot(uuid, target).is_err() {
            let now = libvirt.await_event(uuid, seen, LONG);
            assert!(now > seen);
            seen = now;
        }
    }
    views(&|target| vec![image(target)]);
}

#[test]
fn a_transient_domain_gets_no_definition() {
    let guest = Guest::define("");
    let xml = guest.virsh(&["dumpxml"], &["--inactive"]);
    guest.virsh(&["undefine"], &[]);
    let file = guest.dir.path().join("domain.xml");
    std::fs::write(&file, xml).unwrap();
    expect(virsh().arg("create").arg(&file));
    let libvirt = &guest.libvirt;
    libvirt
        .take_snapshot(guest.uuid, &[asked(&guest, "vda")])
        .unwrap();
    let top = overlay(&guest, "vda");
    let error = libvirt
        .set_inactive_image(guest.uuid, "vda", &top, "qcow2")
        .unwrap_err();
    assert!(error.to_string().contains("transient"), "{error}");
    assert!(expect(virsh().args(["list", "--transient", "--name"])).contains(&guest.name));
    commit(&guest, "vda");
    assert_eq!(chain(&guest, "vda"), home(&guest, "vda"));
}
