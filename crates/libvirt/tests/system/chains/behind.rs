//! Snapshots that libvirt has forgotten.

use std::process::Command;

use strongroom_hypervisor::{Chain, Chains as _, Repair as _};

use super::{MIB, asked, away, chain, commit, home, image, image_holds, overlay};
use crate::fixture::{Guest, expect};

/// Speaks to QEMU past libvirt.
fn qemu(guest: &Guest, command: &str, arguments: &str) -> String {
    let request = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}");
    let answer = guest.virsh(&["qemu-monitor-command"], &[&request]);
    assert!(answer.contains("\"return\""), "{request}: {answer}");
    answer
}

/// Brings about what a libvirtd leaves that is killed inside the snapshot call: QEMU is on the overlay, and libvirt
/// knows nothing of it.
fn snapshot_behind(guest: &Guest, target: &str, format: &str, node: &str) {
    let (top, base) = (overlay(guest, target), image(guest, target));
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]);
    expect(create.args([&base, &top]));
    std::fs::set_permissions(&top, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let file = format!(
        "{{\"driver\": \"file\", \"node-name\": \"{target}-lost-storage\", \"filename\": \"{}\"}}",
        top.display()
    );
    qemu(guest, "blockdev-add", &file);
    let overlay = format!(
        "{{\"driver\": \"qcow2\", \"node-name\": \"{target}-lost-format\", \"file\": \"{target}-lost-storage\", \
         \"backing\": null}}"
    );
    qemu(guest, "blockdev-add", &overlay);
    let snapshot = format!("{{\"node\": \"{node}\", \"overlay\": \"{target}-lost-format\"}}");
    qemu(guest, "blockdev-snapshot", &snapshot);
}

/// Name of the node that the live definition gives a disk's image, and `suffix`.
fn node(guest: &Guest, target: &str, suffix: &str) -> String {
    let xml = guest.virsh(&["dumpxml"], &[]);
    let disk = xml
        .split("<disk")
        .find(|disk| disk.contains(&format!("dev='{target}'")))
        .unwrap();
    let index = disk.split("index='").nth(1).unwrap().split('\'').next().unwrap();
    format!("libvirt-{index}-{suffix}")
}

#[test]
fn a_snapshot_that_libvirt_forgot_is_committed_past_it() {
    let guest = Guest::start("");
    let libvirt = &guest.libvirt;
    let repair = |target: &str| {
        let (top, base) = (overlay(&guest, target), image(&guest, target));
        libvirt.commit_behind_libvirt(guest.uuid, target, &top, &base)
    };
    for (target, format, suffix) in [("vda", "qcow2", "format"), ("vdc", "raw", "storage")] {
        guest.write(target, 0x77, "0", "1M");
        snapshot_behind(&guest, target, format, &node(&guest, target, suffix));
        guest.write(target, 0x78, "1M", "4M");
        let lost = Chain {
            qemu: away(&guest, target).qemu,
            ..home(&guest, target)
        };
        assert_eq!(chain(&guest, target), lost);
        let (top, base) = (overlay(&guest, target), image(&guest, target));
        libvirt
            .start_commit(guest.uuid, target, &top, &base, 0)
            .unwrap_err();

        // Only what was named is merged.
        let other = libvirt.commit_behind_libvirt(guest.uuid, target, &base, &top);
        other.unwrap_err();
        let error = libvirt
            .commit_behind_libvirt(guest.uuid, target, &top, &overlay(&guest, "vdb"))
            .unwrap_err();
        assert!(error.to_string().contains("QEMU has the images"), "{error}");
        assert_eq!(chain(&guest, target), lost);

        repair(target).unwrap();
        assert_eq!(chain(&guest, target), home(&guest, target));
        let nodes = qemu(&guest, "query-named-block-nodes", "{\"flat\": true}");
        assert!(!nodes.contains("lost"), "the overlay is closed: {nodes}");
        assert!(
            !qemu(&guest, "query-jobs", "{}").contains("strongroom"),
            "the job is forgotten"
        );
        std::fs::remove_file(&top).unwrap();
        for (pattern, offset, length) in [(0x77, "0", "1M"), (0x78, "1M", "4M")] {
            assert!(
                image_holds(&base, format, pattern, offset, length),
                "{target} {pattern:x}"
            );
        }
        repair(target).unwrap();
    }
    assert!(repair("vdz").is_err());

    // libvirt finds its way from here on.
    let disks = [asked(&guest, "vda"), asked(&guest, "vdc")];
    libvirt.take_snapshot(guest.uuid, &disks).unwrap();
    for target in ["vda", "vdc"] {
        guest.write(target, 0x79, "0", "1M");
        commit(&guest, target);
        assert_eq!(chain(&guest, target), home(&guest, target));
    }
}

#[test]
fn a_repair_that_died_goes_on() {
    let guest = Guest::start("");
    let node = node(&guest, "vda", "format");
    snapshot_behind(&guest, "vda", "qcow2", &node);
    guest.write("vda", 0x31, "0", "8M");
    let start = format!(
        "{{\"job-id\": \"commit-vda-strongroom\", \"device\": \"vda-lost-format\", \"base-node\": \"{node}\", \
         \"auto-dismiss\": false, \"speed\": {}}}",
        32 * MIB
    );
    qemu(&guest, "block-commit", &start);
    let found = chain(&guest, "vda");
    assert!(found.job_in_qemu && found.job.is_none(), "{found:?}");
    let (top, base) = (overlay(&guest, "vda"), image(&guest, "vda"));
    guest
        .libvirt
        .commit_behind_libvirt(guest.uuid, "vda", &top, &base)
        .unwrap();
    assert_eq!(chain(&guest, "vda"), home(&guest, "vda"));
    assert!(image_holds(&base, "qcow2", 0x31, "0", "8M"));
}
