#![allow(clippy::unwrap_used)] // A test fails by panicking.

use serde_json::json;
use strongroom_base::cancel::Cancel;
use strongroom_hypervisor::{Bitmaps, Identity};
use strongroom_points::store::{Archive, ArchiveInfo, ChunkId, Repositories};
use strongroom_sim::Lab;

use super::*;
use crate::config::Config;
use crate::run::settings::{Arguments, Settings};
use crate::run::state::StateDirectory;

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

/// A restore point of `vda`, `vdb`, the swap disk `vdc` and the excluded `vdd`, with UEFI variables and a TPM.
fn point() -> RestorePoint {
    let disk = |target: &str, size: u64| {
        json!({"target": target, "size": size, "source_format": "qcow2", "mode": "full", "reason": "", "parent": null,
            "tracked": true, "digest": "", "chunks": 0, "bytes_read": 0, "bytes_stored": 0, "luks": []})
    };
    let file = |path: &str| json!({"path": path, "sha256": ""});
    let json = json!({
        "format": 1, "vm": {"name": "web", "uuid": Uuid::from_u128(7)}, "run": "r", "archive": "web-1", "sequence": 1,
        "previous": null, "captured": "2026-01-01T00:00:00Z", "method": "checkpoint", "consistency": "crash",
        "stall_us": 0, "checkpoint": null, "inventory": [], "producer": "p",
        "disks": [disk("vda", 512), disk("vdb", 1024)],
        "excluded": [
            {"target": "vdc", "why": "swap", "size": 2048, "layout": null},
            {"target": "vdd", "why": "configured", "size": 512, "layout": null}],
        "files": [file("domain.xml"), file("nvram.fd"), file("tpm/tpm2/tpm2-00.permall")],
    });
    let bytes = json.to_string().into_bytes();
    let info = ArchiveInfo {
        name: "web-1".into(),
        id: ChunkId([0; 32]),
        time: jiff::Timestamp::UNIX_EPOCH,
    };
    RestorePoint {
        archive: Archive {
            time: info.time,
            authenticated: true,
            item_ids: Vec::new(),
            info,
        },
        manifest: strongroom_points::manifest::Manifest::parse(&bytes).unwrap(),
        link: String::new(),
        bytes,
        signature: None,
        items: std::collections::BTreeMap::new(),
        strange: Vec::new(),
        damaged: std::collections::BTreeSet::new(),
    }
}

/// Works with a host that has no VM; the path is where images go if nothing else is said.
fn with_host(work: impl FnOnce(&Context<'_>, &Path)) {
    let lab = Lab::new();
    let mut config = Config::new("/r/{vm}");
    config.images = lab.path("restored");
    std::fs::create_dir(&config.images).unwrap();
    let settings = Settings::resolve(&config, &Arguments::default(), |_, _| None).unwrap();
    let (host, cancel) = (lab.host(), Cancel::new());
    let context = Context {
        vm: None,
        hypervisor: &host,
        own_domain: None,
        settings: settings.into(),
        state: &StateDirectory::open(lab.path("state")).unwrap(),
        repositories: &Repositories::from_env(&cancel),
        observer: &(),
        cancel: &cancel,
        watchdog: &|_, _| unreachable!("no guest is frozen"),
    };
    work(&context, &config.images);
}

fn request() -> Request {
    Request {
        point: "web".parse().unwrap(),
        rename: None,
        disks: Vec::new(),
        to: None,
        onto: None,
        format: ImageFormat::Qcow2,
        overwrite: false,
        keep_going: false,
        unsigned: false,
        allow_rollback: false,
        headers: None,
        own_headers: false,
        tight: false,
        trust_definition: false,
        dry_run: false,
    }
}

/// The disks of a plan, and where they go.
fn places(plan: &RestorePlan) -> Vec<(&str, &Path)> {
    let disks = plan.disks.iter();
    disks
        .map(|disk| (disk.target.as_str(), disk.path.as_path()))
        .collect()
}

#[test]
fn a_whole_vm_comes_with_its_disks_swap_and_files() {
    with_host(|context, images| {
        let plan = make(context, &request(), &point()).unwrap();
        let at = |name: &str| images.join(name);
        assert_eq!(
            places(&plan),
            [
                ("vda", &*at("web-vda.qcow2")),
                ("vdb", &*at("web-vdb.qcow2")),
                ("vdc", &*at("web-vdc.qcow2"))
            ]
        );
        assert_eq!(plan.disks[1].size, 1024);
        let swap = |disk: &DiskTarget| matches!(disk.content, DiskContent::Swap(SwapLayout::Blank));
        assert_eq!(
            plan.disks.iter().map(swap).collect::<Vec<_>>(),
            [false, false, true]
        );
        let uuid = point().manifest.vm.uuid;
        let files: Vec<_> = plan
            .files
            .iter()
            .map(|file| (file.path.as_str(), file.to.clone()))
            .collect();
        let tpm = context
            .hypervisor
            .tpm_directory(uuid)
            .join("tpm2/tpm2-00.permall");
        assert_eq!(
            files,
            [
                ("nvram.fd", at("web-nvram.fd")),
                ("tpm/tpm2/tpm2-00.permall", tpm)
            ]
        );
        let define = plan.define.unwrap();
        assert_eq!((define.uuid, define.copy), (Some(uuid), false));
        assert_eq!(define.nvram, Some(at("web-nvram.fd")));
        // A copy is another VM.
        let copy = Request {
            rename: Some("copy".into()),
            ..request()
        };
        let define = make(context, &copy, &point()).unwrap().define.unwrap();
        assert!(define.copy && define.uuid != Some(uuid), "{define:?}");
        let raw = Request {
            format: ImageFormat::Raw,
            ..request()
        };
        assert!(matches!(make(context, &raw, &point()), Err(PlanError::RawDomain)));
        for name in ["", ".copy", "a/b", "a\0b"] {
            let odd = Request {
                rename: Some(name.into()),
                ..request()
            };
            assert!(
                matches!(make(context, &odd, &point()), Err(PlanError::Name(_))),
                "{name:?}"
            );
        }
    });
}

#[test]
fn single_disks_come_where_they_are_asked_for() {
    with_host(|context, images| {
        let asked = |disks: &[&str], to: Option<&Path>| Request {
            disks: disks.iter().map(|&disk| disk.to_owned()).collect(),
            to: to.map(Path::to_owned),
            format: ImageFormat::Raw,
            ..request()
        };
        let plan = make(context, &asked(&["vdb"], None), &point()).unwrap();
        assert_eq!(places(&plan), [("vdb", &*images.join("web-vdb.raw"))]);
        assert!(plan.files.is_empty() && plan.define.is_none());
        // One disk has a file, unless that is a directory; several have a directory.
        let file = images.join("one.img");
        let plan = make(context, &asked(&["vdb"], Some(&file)), &point()).unwrap();
        assert_eq!(places(&plan), [("vdb", &*file)]);
        let plan = make(context, &asked(&["vdb"], Some(images)), &point()).unwrap();
        assert_eq!(places(&plan), [("vdb", &*images.join("web-vdb.raw"))]);
        let plan = make(context, &asked(&["vda", "vdc"], Some(&file)), &point()).unwrap();
        assert_eq!(
            places(&plan),
            [
                ("vda", &*file.join("web-vda.raw")),
                ("vdc", &*file.join("web-vdc.raw"))
            ]
        );
        let error = make(context, &asked(&["vda", "vdd"], None), &point()).unwrap_err();
        assert!(
            error.to_string().contains("archive web-1 has vda, vdb, vdc"),
            "{error}"
        );
    });
}

#[test]
fn what_is_in_the_way_is_replaced_only_if_that_is_said() {
    with_host(|context, images| {
        let vm = point().manifest.vm.uuid;
        let says = |overwrite| {
            let request = Request {
                disks: vec!["vda".into()],
                overwrite,
                ..request()
            };
            let plan = make(context, &request, &point()).unwrap();
            check(context, &request, &plan, vm, None)
        };
        says(false).unwrap();
        let path = images.join("web-vda.qcow2");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(says(false), Err(PlanError::FileExists(there)) if there == path));
        says(true).unwrap();
        // Nothing but a regular file is ever replaced.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        for overwrite in [false, true] {
            assert!(
                matches!(says(overwrite), Err(PlanError::NotAFile(_))),
                "{overwrite}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(says(true), Err(PlanError::NotAFile(_))));
    });
}
