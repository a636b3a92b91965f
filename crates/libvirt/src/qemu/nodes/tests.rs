use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Bitmap, Drive, drives, file, jobs, nodes};
use crate::qemu::answered;

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

/// As QEMU 10.0 answers, less what is not read.
fn on_overlay() -> Value {
    json!([
        {"qdev": "/machine/peripheral/virtio-disk0/virtio-backend", "device": "", "inserted": {
            "node-name": "libvirt-5-format", "drv": "qcow2", "file": "/i/a.overlay",
            "dirty-bitmaps": [
                {"name": "cp1", "recording": true, "busy": false, "persistent": true, "granularity": 65536, "count": 0},
                {"name": "cp0", "recording": false, "inconsistent": true, "persistent": true},
                {"recording": true, "persistent": false}],
            "image": {"filename": "/i/a.overlay", "format": "qcow2", "backing-filename": "/i/a.qcow2",
                "backing-image": {"filename": "/i/a.qcow2", "format": "qcow2"}}}},
        {"qdev": "scsi0-0-0-1", "inserted": {"node-name": "libvirt-3-storage",
            "image": {"filename": "/i/b.raw", "format": "file"}}},
        {"qdev": "sata0-0-2", "removable": true, "tray_open": false}
    ])
}

#[test]
fn drives_are_found_by_their_alias() {
    let found = drives(&on_overlay()).unwrap();
    assert_eq!(found.len(), 2, "without the empty drive");
    let of = |alias: &str| found.iter().find(|drive| drive.is(alias));
    assert_eq!(
        of("virtio-disk0"),
        Some(&Drive {
            device: "/machine/peripheral/virtio-disk0/virtio-backend".into(),
            node: "libvirt-5-format".into(),
            images: paths(&["/i/a.overlay", "/i/a.qcow2"]),
            bitmaps: vec![
                Bitmap {
                    name: "cp1".into(),
                    sound: true
                },
                Bitmap {
                    name: "cp0".into(),
                    sound: false
                },
            ],
        })
    );
    assert_eq!(of("scsi0-0-0-1").unwrap().images, paths(&["/i/b.raw"]));
    for none in ["virtio-disk", "disk0", "scsi0-0-0", "", "sata0-0-2"] {
        assert_eq!(of(none), None, "{none:?}");
    }
}

#[test]
fn filters_are_seen_through() {
    let answer = json!([{"qdev": "d", "inserted": {"node-name": "#block1", "drv": "copy-before-write",
        "image": {"filename": "/o", "format": "copy-before-write", "backing-image":
            {"filename": "/o", "format": "qcow2", "backing-image":
                {"filename": "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/b\"}}", "backing-image":
                    {"filename": "nbd+unix:///x?socket=/s", "backing-image": {"filename": "/never"}}}}}}}]);
    assert_eq!(drives(&answer).unwrap()[0].images, paths(&["/o", "/b"]));
}

#[test]
fn a_file_has_many_names() {
    for (name, path) in [
        ("/a b/c", Some("/a b/c")),
        ("file:/a:b", Some("/a:b")),
        ("json:{\"driver\":\"raw\",\"file.filename\":\"/a\"}", Some("/a")),
        ("json:{\"filename\":\"/a\\u00fc\"}", Some("/aü")),
        ("relative", None),
        ("nbd://host/x", None),
        ("json:{\"driver\":\"nbd\",\"path\":\"/s\"}", None),
        ("json:{\"filename\":7}", None),
        ("json:{\"file\":\"node\"}", None),
        ("json:[]", None),
        ("json:", None),
        ("", None),
    ] {
        assert_eq!(file(name), path.map(PathBuf::from), "{name}");
    }
    let deep = format!("json:{}\"/a\"{}", "{\"file\":".repeat(100), "}".repeat(100));
    assert_eq!(file(&deep), None);
}

#[test]
fn jobs_belong_to_the_disk_in_their_name() {
    let found = jobs(&json!([
        {"id": "commit-vda-libvirt-5-format", "status": "ready", "type": "commit"},
        {"id": "create-libvirt-6-storage", "status": "concluded", "error": "no space"}
    ]))
    .unwrap();
    assert!(found[0].is_on("vda") && !found[0].is_on("vd") && !found[0].is_on("libvirt"));
    assert!(!found[1].is_on("vda") && !found[1].is_on(""));
    assert_eq!((found[0].status.as_str(), &found[0].error), ("ready", &None));
    assert_eq!(found[1].error.as_deref(), Some("no space"));
}

#[test]
fn the_file_is_told_from_its_format() {
    let found = nodes(&json!([
        {"node-name": "f", "drv": "qcow2", "file": "/a"},
        {"node-name": "s", "drv": "file", "file": "/a"},
        {"node-name": "n", "drv": "nbd", "file": "nbd://x"}
    ]))
    .unwrap();
    let facts: Vec<_> = found
        .iter()
        .map(|node| (node.is_storage(), node.file.is_some()))
        .collect();
    assert_eq!(facts, [(false, true), (true, true), (false, false)]);
}

#[test]
fn odd_answers_are_refused_or_empty() {
    for answer in [json!({}), json!(null), json!("x")] {
        assert!(drives(&answer).is_err() && nodes(&answer).is_err() && jobs(&answer).is_err());
    }
    assert!(jobs(&Value::Array(vec![Value::Null; 20_000])).is_err());
    let empty = json!([null, 7, {}, {"inserted": null}, {"inserted": {"image": [], "node-name": 1}}]);
    assert!(
        drives(&empty)
            .unwrap()
            .iter()
            .all(|drive| drive.images.is_empty() && !drive.is(""))
    );
    assert_eq!(nodes(&empty).unwrap().len(), 5);
}

#[test]
fn an_answer_is_a_result_or_an_error() {
    assert_eq!(answered("c", r#"{"return":[1],"id":"x"}"#).unwrap(), json!([1]));
    let refused = r#"{"id":"x","error":{"class":"GenericError","desc":"Could not\n open"}}"#;
    assert_eq!(answered("c", refused).unwrap_err(), "c: Could not  open");
    assert_eq!(answered("c", r#"{"error":7}"#).unwrap_err(), "c: no reason given");
    assert!(answered("c", "{}").is_err() && answered("c", "no JSON").is_err());
    assert!(answered("c", &format!("{}{}", "[".repeat(9999), "]".repeat(9999))).is_err());
}
