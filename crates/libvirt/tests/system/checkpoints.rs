//! Checkpoints that are fine, gone, broken.

use strongroom_engine::vm::{Hypervisor, HypervisorError};

use crate::fixture::Guest;

fn broken(guest: &Guest, name: &str) {
    let error = guest
        .libvirt
        .check_checkpoint(guest.uuid, name)
        .unwrap_err()
        .to_string();
    assert!(error.contains("missing or inconsistent on vda"), "{error}");
    // libvirt agrees: it does not start an incremental backup from it.
    let job = guest.job(None, vec![guest.disk("vda", Some(name), false)]);
    guest.libvirt.begin_backup(guest.uuid, &job).unwrap_err();
    assert_eq!(guest.libvirt.backup_job(guest.uuid).unwrap(), None);
}

fn names(guest: &Guest) -> Vec<String> {
    guest.libvirt.checkpoints(guest.uuid).unwrap()
}

#[test]
fn they_are_listed_checked_and_deleted() {
    let guest = Guest::start("");
    assert_eq!(names(&guest), [""; 0]);
    for name in ["b", "a", "c"] {
        guest.checkpoint(name);
    }
    assert_eq!(names(&guest), ["b", "a", "c"], "oldest first");
    for name in ["a", "b", "c"] {
        guest.libvirt.check_checkpoint(guest.uuid, name).unwrap();
    }
    let error = guest.libvirt.check_checkpoint(guest.uuid, "absent").unwrap_err();
    assert!(matches!(&error, HypervisorError::Failed { .. }), "{error}");
    guest.libvirt.delete_checkpoint(guest.uuid, "a").unwrap();
    guest.libvirt.delete_checkpoint(guest.uuid, "a").unwrap();
    guest
        .libvirt
        .delete_checkpoint(guest.uuid, "never \0 was")
        .unwrap_err();
    assert_eq!(names(&guest), ["b", "c"]);
    guest.libvirt.check_checkpoint(guest.uuid, "b").unwrap();
}

#[test]
fn a_lost_bitmap_is_noticed() {
    let guest = Guest::start("");
    guest.checkpoint("kept");
    guest.checkpoint("lost");
    let node = guest.virsh(
        &["qemu-monitor-command"],
        &[
            "--pretty",
            r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#,
        ],
    );
    let nodes: Vec<&str> = node
        .split("\"node-name\": \"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    let remove = |node: &str| {
        format!(r#"{{"execute":"block-dirty-bitmap-remove","arguments":{{"node":"{node}","name":"lost"}}}}"#)
    };
    // Only the node that has the bitmap can remove it.
    let removed = nodes
        .iter()
        .filter(|node| {
            !guest
                .virsh(&["qemu-monitor-command"], &[&remove(node)])
                .contains("\"error\"")
        })
        .count();
    assert_eq!(removed, 1);
    broken(&guest, "lost");
    guest.libvirt.check_checkpoint(guest.uuid, "kept").unwrap();
    guest.libvirt.delete_checkpoint(guest.uuid, "lost").unwrap();
    assert_eq!(names(&guest), ["kept"]);
}

#[test]
fn a_crash_of_qemu_breaks_them_all() {
    let guest = Guest::start("");
    guest.checkpoint("stored");
    guest.virsh(&["destroy"], &[]);
    guest.virsh(&["start"], &[]);
    guest.libvirt.check_checkpoint(guest.uuid, "stored").unwrap();
    guest.checkpoint("in-memory");
    guest.kill();
    assert_eq!(
        names(&guest),
        ["stored", "in-memory"],
        "libvirt's list shows nothing of it"
    );
    guest.virsh(&["start"], &[]);
    broken(&guest, "stored");
    broken(&guest, "in-memory");
    guest.libvirt.delete_checkpoint(guest.uuid, "in-memory").unwrap();
    guest.libvirt.delete_checkpoint(guest.uuid, "stored").unwrap();
    assert_eq!(names(&guest), [""; 0]);
    guest.checkpoint("new");
    guest.libvirt.check_checkpoint(guest.uuid, "new").unwrap();
}

#[test]
fn a_domain_that_does_not_run_keeps_them() {
    let guest = Guest::start("");
    guest.checkpoint("cp");
    guest.virsh(&["destroy"], &[]);
    guest.libvirt.check_checkpoint(guest.uuid, "cp").unwrap();
    guest.libvirt.check_checkpoint(guest.uuid, "absent").unwrap_err();
    let error = guest
        .libvirt
        .delete_checkpoint(guest.uuid, "cp")
        .unwrap_err()
        .to_string();
    assert!(error.contains("only while the domain runs"), "{error}");
    assert_eq!(names(&guest), ["cp"]);
    guest.libvirt.delete_checkpoint(guest.uuid, "absent").unwrap();
}

#[test]
fn a_disk_taken_out_does_not_spoil_the_others() {
    let guest = Guest::start("");
    let both = vec![guest.disk("vda", None, true), guest.disk("vdb", None, true)];
    guest
        .libvirt
        .begin_backup(guest.uuid, &guest.job(Some("cp"), both))
        .unwrap();
    guest.libvirt.end_backup(guest.uuid).unwrap();
    let facts = guest.facts();
    let change = strongroom_engine::vm::Retarget {
        drop_disks: vec!["vdb".into()],
        ..Default::default()
    };
    guest.virsh(&["destroy"], &[]);
    guest
        .libvirt
        .define(&guest.libvirt.retarget(&facts.xml, &change).unwrap(), true)
        .unwrap();
    guest.virsh(&["start"], &[]);
    guest.libvirt.check_checkpoint(guest.uuid, "cp").unwrap();
    let job = guest.job(Some("cp-2"), vec![guest.disk("vda", Some("cp"), true)]);
    guest.libvirt.begin_backup(guest.uuid, &job).unwrap();
    guest.libvirt.end_backup(guest.uuid).unwrap();
    guest.libvirt.delete_checkpoint(guest.uuid, "cp").unwrap();
    assert_eq!(names(&guest), ["cp-2"]);
}
