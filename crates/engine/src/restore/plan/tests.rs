#![allow(clippy::unwrap_used)] // A test fails by panicking.

use strongroom_hypervisor::{Bitmaps, Disk, DiskSource, Identity, Retarget};
use strongroom_points::manifest::{ExcludedDisk, Exclusion};

use super::fit;

fn disk(target: &str, device: &str) -> Disk {
    Disk {
        target: target.into(),
        device: device.into(),
        source: DiskSource::File(format!("/images/{target}").into()),
        format: "qcow2".into(),
        serial: None,
        read_only: device == "cdrom",
        discard: false,
        size: None,
        bitmaps: Bitmaps::Unknown,
        encrypted: false,
        transient: false,
        shared: false,
        identity: Identity::default(),
    }
}

fn excluded(target: &str, why: Exclusion) -> ExcludedDisk {
    ExcludedDisk {
        target: target.into(),
        why,
        size: None,
        layout: None,
        identity: None,
    }
}

/// A5, also of archives of 0.1.0, whose definition may name disks that never ran: whatever is not restored and could be
/// written to is no part of a copy, and each is named.
#[test]
fn a_copy_shares_nothing_that_it_could_write_to() {
    let stored = [
        disk("vda", "disk"),
        disk("vdb", "disk"),
        disk("vdc", "disk"),
        Disk {
            read_only: true,
            ..disk("vdd", "disk")
        },
        Disk {
            source: DiskSource::Other("network".into()),
            ..disk("vde", "disk")
        },
        disk("sda", "cdrom"),
        disk("fda", "floppy"),
        Disk {
            source: DiskSource::None,
            ..disk("fdb", "floppy")
        },
    ];
    let known = [
        excluded("vdb", Exclusion::Configured),
        excluded("vdd", Exclusion::Removable),
        excluded("sda", Exclusion::Removable),
        excluded("fda", Exclusion::Removable),
    ];
    let change = Retarget {
        disks: vec![("vda".into(), "/new/vda".into())],
        ..Retarget::default()
    };
    let (copy, left_out) = fit(change.clone(), &stored, &known, true);
    assert_eq!(copy.drop_disks, ["vdb", "vdc", "vde"]);
    assert_eq!(copy.empty_drives, ["fda"]);
    let named: Vec<_> = left_out.iter().map(|left| left.target.as_str()).collect();
    assert_eq!(named, ["vdb", "vdc", "vde", "fda"]);
    assert!(left_out[1].what.contains("a start that had not come yet"));
    assert!(left_out[2].what.contains("storage of type network"));
    // The VM itself keeps what it has; what never ran is in no restore point of it.
    let (itself, left_out) = fit(change, &stored, &known, false);
    assert_eq!(itself.drop_disks, ["vdc", "vde"]);
    assert!(itself.empty_drives.is_empty());
    assert_eq!(left_out.len(), 2);
}
