//! Making and describing image files.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, os::unix::fs::PermissionsExt};

use common::{MIB, run};
use strongroom_nbd::{Format, ImageError, create_qcow2, image_info};

#[test]
fn makes_an_image_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.qcow2");
    create_qcow2(&path, 5 << 40).unwrap();
    let info = image_info(&path, Format::Qcow2, false).unwrap();
    assert_eq!(
        (info.virtual_size, info.compat.as_deref()),
        (5 << 40, Some("1.1"))
    );
    assert_eq!(
        (info.cluster_size, info.backing_file, info.data_file),
        (Some(65536), None, None)
    );
    assert!(info.bitmaps.is_empty() && info.snapshots.is_empty());
    run("qemu-img", ["snapshot", "-c", "kept", path.to_str().unwrap()]);
    let kept = image_info(&path, Format::Qcow2, false).unwrap().snapshots;
    assert_eq!(
        (kept.len(), kept[0].name.as_str(), kept[0].vm_state_size),
        (1, "kept", 0)
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let before = fs::read(&path).unwrap();
    let error = create_qcow2(&path, MIB).unwrap_err();
    assert!(error.is_already_there(), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    let dangling = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &dangling).unwrap();
    assert!(create_qcow2(&dangling, MIB).unwrap_err().is_already_there());
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn leaves_nothing_behind_when_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.qcow2");
    assert!(matches!(
        create_qcow2(&path, 1000),
        Err(ImageError::Size { size: 1000, .. })
    ));
    let error = create_qcow2(&path, u64::MAX - 511).unwrap_err();
    assert!(
        matches!(&error, ImageError::Tool { what: "create", reason, .. } if !reason.is_empty()),
        "{error}"
    );
    assert!(!path.exists());
}

#[test]
fn describes_what_a_header_names_without_opening_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("top.qcow2");
    let name = path.to_str().unwrap();
    run(
        "qemu-img",
        [
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            "/etc/no-such-file",
            name,
            "1M",
        ],
    );
    let info = image_info(&path, Format::Qcow2, false).unwrap();
    assert_eq!(info.backing_file.as_deref(), Some("/etc/no-such-file"));
    run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-o", "compat=0.10", name, "1M"],
    );
    assert_eq!(
        image_info(&path, Format::Qcow2, false).unwrap().compat.as_deref(),
        Some("0.10")
    );
    let raw = image_info(&path, Format::Raw, false).unwrap();
    assert_eq!(
        (raw.compat, raw.virtual_size),
        (None, fs::metadata(&path).unwrap().len().next_multiple_of(512))
    );
    assert!(matches!(
        image_info(&dir.path().join("none"), Format::Raw, false),
        Err(ImageError::Tool { what: "describe", .. })
    ));
}
