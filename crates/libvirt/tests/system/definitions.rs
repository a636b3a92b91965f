//! Reading, changing and defining domains.

use std::os::unix::fs::FileTypeExt;
use std::process::Command;

use strongroom_hypervisor::{Bitmaps, DiskSource, Hypervisor, HypervisorError, Retarget, RunState};
use uuid::Uuid;

use crate::fixture::{Guest, expect, socket_of, unique_name};

const MIB: u64 = 1024 * 1024;

#[test]
fn a_domain_is_described() {
    let guest = Guest::define(" <i>&amp;'\"");
    assert!(guest.libvirt.domain_names().unwrap().contains(&guest.name));
    let facts = guest.facts();
    assert_eq!(
        (&facts.name, facts.uuid, facts.state),
        (&guest.name, guest.uuid, RunState::ShutOff)
    );
    assert_eq!(
        guest.libvirt.domain(&guest.uuid.to_string()).unwrap().name,
        guest.name
    );
    assert_eq!((facts.nvram, facts.has_tpm), (None, false));

    let check = || {
        let disks = guest.facts().disks;
        let sizes: Vec<_> = disks
            .iter()
            .map(|disk| (disk.target.as_str(), disk.size))
            .collect();
        let mib = |count: u64| Some(count * MIB);
        assert_eq!(
            sizes,
            [
                ("vda", mib(64)),
                ("vdb", mib(16)),
                ("vdc", mib(16)),
                ("vdd", mib(16)),
                ("sda", None)
            ]
        );
        let [vda, _, vdc, vdd, sda] = &disks[..] else {
            panic!()
        };
        assert_eq!(vda.source, DiskSource::File(guest.dir.path().join("vda.qcow2")));
        assert_eq!(
            (vda.format.as_str(), vda.serial.as_deref()),
            ("qcow2", Some("S-vda"))
        );
        assert_eq!(vda.bitmaps, Bitmaps::Supported);
        assert!(matches!(&vdc.bitmaps, Bitmaps::Unsupported(why) if why.contains("raw")));
        assert!(matches!(&vdd.bitmaps, Bitmaps::Unsupported(why) if why.contains("version 2")));
        assert_eq!(
            (&sda.source, sda.device.as_str(), sda.read_only),
            (&DiskSource::None, "cdrom", true)
        );
    };
    check();
    guest.virsh(&["start"], &[]);
    check();
    assert_eq!(guest.facts().state, RunState::Running);
    guest.virsh(&["suspend"], &[]);
    assert_eq!(guest.facts().state, RunState::Paused);
    assert_eq!(
        guest.facts().xml,
        facts.xml,
        "the inactive definition is the same while it runs"
    );
}

#[test]
fn a_running_domain_shows_the_disks_it_has() {
    let guest = Guest::start("");
    // It is left on an overlay, and defined anew without.
    let overlay = guest.dir.path().join("overlay.qcow2");
    let before = guest.facts().xml;
    let spec = format!("vda,snapshot=external,file={}", overlay.display());
    let others = ["vdb", "vdc", "vdd"].map(|target| format!("{target},snapshot=no"));
    let mut arguments = vec!["--disk-only", "--no-metadata", "--diskspec", &spec];
    for other in &others {
        arguments.extend(["--diskspec", other]);
    }
    guest.virsh(&["snapshot-create-as"], &arguments);
    assert_eq!(guest.facts().disks[0].source, DiskSource::File(overlay.clone()));
    std::fs::write(guest.dir.path().join("before.xml"), before).unwrap();
    expect(
        crate::fixture::virsh()
            .arg("define")
            .arg(guest.dir.path().join("before.xml")),
    );
    assert_eq!(guest.facts().disks[0].source, DiskSource::File(overlay));
    // What runs is what comes back; what is defined differs, and that is said.
    let facts = guest.facts();
    assert!(facts.xml.contains("overlay.qcow2") && !facts.xml.contains("vda.qcow2"));
    let differing: Vec<&str> = facts.differences.iter().map(|one| one.target.as_str()).collect();
    assert_eq!(differing, ["vda"]);
}

#[test]
fn what_is_not_there_is_said_so() {
    let guest = Guest::define("");
    let absent = Uuid::new_v4();
    let missing = |error: HypervisorError| {
        assert!(matches!(&error, HypervisorError::NoSuchDomain(..)), "{error}");
    };
    let libvirt = &guest.libvirt;
    missing(libvirt.domain("sr-lv-test-absent").unwrap_err());
    missing(libvirt.domain("").unwrap_err());
    missing(libvirt.domain("a\0b").unwrap_err());
    missing(libvirt.domain(&absent.to_string()).unwrap_err());
    missing(libvirt.checkpoints(absent).unwrap_err());
    missing(libvirt.check_checkpoint(absent, "a").unwrap_err());
    missing(libvirt.delete_checkpoint(absent, "a").unwrap_err());
    missing(libvirt.backup_job(absent).unwrap_err());
    missing(libvirt.end_backup(absent).unwrap_err());
    missing(socket_of(libvirt, absent, "x").unwrap_err());
}

#[test]
fn an_image_that_is_gone_has_no_size() {
    let guest = Guest::define("");
    std::fs::remove_file(guest.dir.path().join("vda.qcow2")).unwrap();
    let vda = &guest.facts().disks[0];
    assert_eq!((vda.size, &vda.bitmaps), (None, &Bitmaps::Unknown));
}

#[test]
fn sockets_have_a_place() {
    let guest = Guest::define("");
    let error = socket_of(&guest.libvirt, guest.uuid, "x")
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not run"), "{error}");
    guest.virsh(&["start"], &[]);
    let socket = socket_of(&guest.libvirt, guest.uuid, "x").unwrap();
    let types: Vec<_> = std::fs::read_dir(socket.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_type().unwrap())
        .collect();
    assert!(
        types.iter().any(FileTypeExt::is_socket),
        "QEMU's monitor is there, too"
    );
}

#[test]
fn a_copy_is_defined_beside_the_original_and_starts() {
    let guest = Guest::start("");
    let (name, _cleanup) = unique_name("-copy \"ü\" & <b>");
    let file = guest.dir.path().join("copy & paste.qcow2");
    expect(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&file)
            .arg("8M"),
    );
    let original = guest.facts();
    let change = Retarget {
        name: Some(name.clone()),
        uuid: Some(Uuid::new_v4()),
        copy: true,
        disks: vec![("vdc".into(), file.clone())],
        drop_disks: vec!["vda".into(), "vdb".into(), "vdd".into()],
        ..Retarget::default()
    };
    let xml = guest.libvirt.retarget(&original.xml, &change).unwrap().xml;
    let uuid = guest.libvirt.define(&xml, false).unwrap();
    assert_eq!(Some(uuid), change.uuid);
    let copy = guest.libvirt.domain(&name).unwrap();
    assert_eq!(copy.uuid, uuid);
    assert_eq!(copy.disks[0].source, DiskSource::File(file));
    assert_eq!(
        (copy.disks[0].size, &copy.disks[0].bitmaps),
        (Some(8 * MIB), &Bitmaps::Supported)
    );
    let mac = |xml: &str| xml.split("<mac address='").nth(1).unwrap()[..17].to_owned();
    assert_ne!(mac(&copy.xml), mac(&original.xml));
    expect(crate::fixture::virsh().args(["start", &uuid.to_string()]));
    assert_eq!(guest.facts().xml, original.xml, "the original is as it was");
}

#[test]
fn nothing_is_overwritten_unasked() {
    let guest = Guest::define("");
    let libvirt = &guest.libvirt;
    let xml = guest.facts().xml;
    let retarget = |name: Option<&str>, uuid: Option<Uuid>| {
        libvirt
            .retarget(
                &xml,
                &Retarget {
                    name: name.map(Into::into),
                    uuid,
                    ..Retarget::default()
                },
            )
            .unwrap()
            .xml
    };
    let exists = |xml: &str, replace: bool, kind: &str| {
        let error = libvirt.define(xml, replace).unwrap_err();
        assert!(
            matches!(&error, HypervisorError::Exists(_, found) if *found == kind),
            "{error}"
        );
    };
    exists(&xml, false, "name");
    exists(&retarget(None, Some(Uuid::new_v4())), false, "name");
    let (other, _cleanup) = unique_name("-other");
    exists(&retarget(Some(&other), None), false, "UUID");
    // To replace is to replace the same one.
    exists(&retarget(None, Some(Uuid::new_v4())), true, "name");
    exists(&retarget(Some(&other), None), true, "UUID");
    let without_uuid = xml.replace(&format!("<uuid>{}</uuid>", guest.uuid), "");
    exists(&without_uuid, true, "name");
    let change = Retarget {
        drop_disks: vec!["vdd".into()],
        ..Retarget::default()
    };
    assert_eq!(
        libvirt
            .define(&libvirt.retarget(&xml, &change).unwrap().xml, true)
            .unwrap(),
        guest.uuid
    );
    assert_eq!(guest.facts().disks.len(), 4);

    let refused = |words: &str| {
        let error = libvirt.define(&xml, true).unwrap_err();
        assert!(
            matches!(&error, HypervisorError::Failed { message, .. } if message.contains(words)),
            "{error}"
        );
        assert_eq!(guest.facts().disks.len(), 4);
    };
    guest.virsh(&["start"], &[]);
    refused("runs");
    guest.virsh(&["managedsave"], &[]);
    refused("memory is saved");
    guest.virsh(&["managedsave-remove"], &[]);
    libvirt.define(&xml, true).unwrap();
    assert_eq!(guest.facts().disks.len(), 5);
}

#[test]
fn libvirt_refuses_with_its_own_words() {
    let guest = Guest::define("");
    let error = guest
        .libvirt
        .define("<domain><name>sr-lv-test-bad</name></domain>", false)
        .unwrap_err();
    assert!(matches!(&error, HypervisorError::Failed { .. }), "{error}");
    let error = guest
        .libvirt
        .define("<!DOCTYPE x><domain><name>a</name></domain>", false)
        .unwrap_err();
    assert!(matches!(&error, HypervisorError::Definition { .. }), "{error}");
    let (slash, _cleanup) = unique_name("/slash");
    let change = Retarget {
        name: Some(slash),
        uuid: Some(Uuid::new_v4()),
        ..Retarget::default()
    };
    let xml = guest.libvirt.retarget(&guest.facts().xml, &change).unwrap().xml;
    let error = guest.libvirt.define(&xml, false).unwrap_err();
    assert!(matches!(&error, HypervisorError::Failed { .. }), "{error}");
}
