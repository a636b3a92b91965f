use serde_json::json;
use strongroom_hypervisor::{Bitmaps, DiskSource, FileIdentity, Identity, RunState};

use super::*;
use crate::testing::job;

fn identity(inode: u64) -> Identity {
    Identity {
        source: Some(format!("/i/{inode}")),
        file: Some(FileIdentity {
            inode,
            born: Some(jiff::Timestamp::from_second(7).unwrap()),
        }),
        ..Identity::default()
    }
}

fn disk(target: &str, identity: Identity) -> Disk {
    Disk {
        target: target.into(),
        device: "disk".into(),
        source: DiskSource::File("/i".into()),
        format: "qcow2".into(),
        serial: None,
        read_only: false,
        discard: false,
        size: Some(512),
        bitmaps: Bitmaps::Supported,
        encrypted: false,
        transient: false,
        shared: false,
        identity,
    }
}

fn domain(disks: Vec<Disk>) -> Domain {
    Domain {
        name: "web".into(),
        uuid: uuid::Uuid::nil(),
        state: RunState::Running,
        disks,
        xml: String::new(),
        nvram: None,
        saved: false,
        shut_down: false,
        away: false,
        autostart: false,
        has_tpm: false,
        memory_encryption: None,
        extras: Vec::new(),
        busy: None,
        snapshots: Vec::new(),
        internal_snapshots: Vec::new(),
        differences: Vec::new(),
    }
}

/// A restore point of `vda` (inode 1), swap `vdb` (2) and the excluded `vdc` (3), of 512 bytes each.
fn newest(known: bool) -> Manifest {
    let identity = |inode| known.then(|| identity(inode));
    let json = json!({
        "format": 1, "vm": {"name": "web", "uuid": uuid::Uuid::nil()}, "run": "r", "archive": "web-1", "sequence": 1,
        "previous": null, "captured": "2026-01-01T00:00:00Z", "method": "checkpoint", "consistency": "crash",
        "stall_us": 0, "checkpoint": null, "files": [], "inventory": [], "producer": "p",
        "disks": [{"target": "vda", "size": 512, "source_format": "qcow2", "mode": "full", "reason": "",
            "parent": null, "tracked": true, "digest": "", "chunks": 0, "bytes_read": 0, "bytes_stored": 0,
            "luks": [], "identity": identity(1)}],
        "excluded": [
            {"target": "vdb", "why": "swap", "size": 512, "layout": null, "identity": identity(2)},
            {"target": "vdc", "why": "configured", "size": 512, "layout": null, "identity": identity(3)}],
    });
    serde_json::from_value(json).unwrap()
}

fn settings(swap: &[&str], exclude: &[&str]) -> VmJob {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    VmJob {
        swap: names(swap),
        exclude: names(exclude),
        ..job()
    }
}

/// What is said of a machine with these disks.
fn asked(disks: &[(&str, Identity)], job: &VmJob) -> Option<String> {
    let disks = disks
        .iter()
        .map(|(target, identity)| disk(target, identity.clone()));
    let domain = domain(disks.collect());
    check(&domain, job, Some(&newest(true)))
        .err()
        .map(|moved| moved.to_string())
}

/// A7: swap is never read into a backup, and a data disk never silently taken for swap, when targets change places.
#[test]
fn a_name_that_means_another_disk_is_asked_about() {
    let as_named = settings(&["vdb"], &["vdc"]);
    let usual = [("vda", identity(1)), ("vdb", identity(2)), ("vdc", identity(3))];
    assert_eq!(asked(&usual, &as_named), None);

    // The data disk and the swap disk have changed places.
    let exchanged = [("vda", identity(2)), ("vdb", identity(1)), ("vdc", identity(3))];
    let said = asked(&exchanged, &as_named).unwrap();
    assert!(
        said.contains("disk vdb counts as swap") && said.contains("was vda and was backed up"),
        "{said}"
    );
    // Once the configuration follows, all is well.
    assert_eq!(asked(&exchanged, &settings(&["vda"], &["vdc"])), None);

    // Swap and the disk that is left out have.
    let roles = [("vda", identity(1)), ("vdb", identity(3)), ("vdc", identity(2))];
    assert!(
        asked(&roles, &as_named)
            .unwrap()
            .contains("/i/3 (inode 3) was vdc")
    );

    // The swap disk has moved on, and a new disk has its name.
    let moved = [("vda", identity(1)), ("vdb", identity(9)), ("vdd", identity(2))];
    assert!(
        asked(&moved, &settings(&["vdb"], &[]))
            .unwrap()
            .contains("is vdd now")
    );

    // The configuration has followed: the swap disk is swap where it is now, and so is the new one.
    assert_eq!(asked(&moved, &settings(&["vdb", "vdd"], &[])), None);

    // A disk that was never seen has its name, and nothing shows that it is swap.
    let strange = [("vda", identity(1)), ("vdb", identity(9))];
    let said = asked(&strange, &settings(&["vdb"], &[])).unwrap();
    assert!(
        said.contains("it was /i/2") && said.contains("--confirm-disks web"),
        "{said}"
    );
}

/// A snapshot of the swap disk is no other disk: it stands on an overlay for a while.
#[test]
fn an_overlay_of_a_snapshot_is_the_same_disk() {
    let disks = [("vda", identity(1)), ("vdb", identity(9)), ("vdc", identity(3))];
    let mut domain = domain(
        disks
            .into_iter()
            .map(|(target, identity)| disk(target, identity))
            .collect(),
    );
    let as_named = settings(&["vdb"], &["vdc"]);
    check(&domain, &as_named, Some(&newest(true))).unwrap_err();
    domain.snapshots = vec![strongroom_hypervisor::Snapshot {
        name: "before".into(),
        target: "vdb".into(),
        overlay: "/i/9".into(),
    }];
    check(&domain, &as_named, Some(&newest(true))).unwrap();
}

#[test]
fn what_is_meant_is_not_asked_about() {
    // Two swap disks have changed places.
    let mut before = newest(true);
    before.excluded[1].why = Exclusion::Swap;
    let both = domain(vec![
        disk("vda", identity(1)),
        disk("vdb", identity(3)),
        disk("vdc", identity(2)),
    ]);
    check(&both, &settings(&["vdb", "vdc"], &[]), Some(&before)).unwrap();

    // Made anew in its place.
    let anew = Identity {
        file: identity(9).file,
        ..identity(2)
    };
    let disks = [("vda", identity(1)), ("vdb", anew), ("vdc", identity(3))];
    assert_eq!(asked(&disks, &settings(&["vdb"], &["vdc"])), None);

    // The whole machine was made anew: it was restored, or is on other storage now.
    let restored = [
        ("vda", identity(11)),
        ("vdb", identity(12)),
        ("vdc", identity(13)),
    ];
    assert_eq!(asked(&restored, &settings(&["vdb"], &["vdc"])), None);

    // A disk that was backed up is to be left out from now on.
    let usual = [("vda", identity(1)), ("vdb", identity(2)), ("vdc", identity(3))];
    assert_eq!(asked(&usual, &settings(&["vdb"], &["vdc", "vda"])), None);

    // What 0.1.0 wrote says nothing.
    let exchanged = domain(vec![disk("vda", identity(2)), disk("vdb", identity(1))]);
    check(&exchanged, &settings(&["vdb"], &[]), Some(&newest(false))).unwrap();
    check(&exchanged, &settings(&["vdb"], &[]), None).unwrap();
}
