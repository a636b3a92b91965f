//! Checkpoints that are fine, gone, broken.

use strongroom_hypervisor::Hypervisor;

use crate::fixture::Guest;

fn broken(guest: &Guest, name: &str) {
    assert_eq!(bad(guest, name), ["vda: its bitmap is missing or inconsistent"]);
    // libvirt agrees: it does not start an incremental backup from it.
    let job = guest.job(None, vec![guest.disk("vda", Some(name), false)]);
    let error = guest.libvirt.begin_backup(guest.uuid, &job).unwrap_err();
    assert!(error.to_string().contains("bitmap"), "{error}");
    assert_eq!(guest.libvirt.backup_job(guest.uuid).unwrap(), None);
}

/// The disks whose bitmaps are bad, and why.
fn bad(guest: &Guest, name: &str) -> Vec<String> {
    let found = guest.libvirt.check_checkpoint(guest.uuid, name).unwrap();
    found
        .iter()
        .map(|bad| format!("{}: {}", bad.target, bad.why))
        .collect()
}

fn good(guest: &Guest, name: &str) {
    assert_eq!(bad(guest, name), [""; 0]);
}

fn names(guest: &Guest) -> Vec<String> {
    guest.libvirt.checkpoints(guest.uuid).unwrap()
}

#[test]
fn a_lost_bitmap_is_noticed() {
    let guest = Guest::start("");
    guest.checkpoint("kept");
    let both = || vec![guest.disk("vda", None, true), guest.disk("vdb", None, true)];
    for name in ["lost", "next"] {
        let job = guest.job(Some(name), both());
        guest.libvirt.begin_backup(guest.uuid, &job).unwrap();
        guest.libvirt.end_backup(guest.uuid).unwrap();
    }
    let images = |target: &str| guest.dir.path().join(format!("{target}.qcow2"));
    remove_bitmap(&guest, &images("vda"), "lost");
    broken(&guest, "lost");
    good(&guest, "kept");
    good(&guest, "next");
    // The other disk of the same checkpoint is as good as before.
    let mixed = vec![
        guest.disk("vda", None, true),
        guest.disk("vdb", Some("lost"), true),
    ];
    guest
        .libvirt
        .begin_backup(guest.uuid, &guest.job(Some("after"), mixed))
        .unwrap();
    guest.libvirt.end_backup(guest.uuid).unwrap();
    guest.libvirt.delete_checkpoint(guest.uuid, "lost").unwrap();
    assert_eq!(names(&guest), ["kept", "next", "after"]);
}

/// Takes a bitmap away behind libvirt's back.
fn remove_bitmap(guest: &Guest, image: &std::path::Path, bitmap: &str) {
    let monitor = |command: &str| guest.virsh(&["qemu-monitor-command"], &[command]);
    let nodes = monitor(r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#);
    let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
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
fn a_disk_taken_out_does_not_spoil_the_others() {
    let guest = Guest::start("");
    let both = vec![guest.disk("vda", None, true), guest.disk("vdb", None, true)];
    guest
        .libvirt
        .begin_backup(guest.uuid, &guest.job(Some("cp"), both))
        .unwrap();
    guest.libvirt.end_backup(guest.uuid).unwrap();
    let facts = guest.facts();
    let change = strongroom_hypervisor::Retarget {
        drop_disks: vec!["vdb".into()],
        ..Default::default()
    };
    guest.virsh(&["destroy"], &[]);
    guest
        .libvirt
        .define(&guest.libvirt.retarget(&facts.xml, &change).unwrap().xml, true)
        .unwrap();
    guest.virsh(&["start"], &[]);
    good(&guest, "cp");
    let job = guest.job(Some("cp-2"), vec![guest.disk("vda", Some("cp"), true)]);
    guest.libvirt.begin_backup(guest.uuid, &job).unwrap();
    guest.libvirt.end_backup(guest.uuid).unwrap();
    guest.libvirt.delete_checkpoint(guest.uuid, "cp").unwrap();
    assert_eq!(names(&guest), ["cp-2"]);
}
