use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proptest::prelude::*;
use strongroom_hypervisor::{DiskSource, Retarget};

use super::rewrite as rewritten;
use crate::definition::read;
use crate::fuzzing;

/// Without the notes.
fn rewrite(xml: &str, change: &Retarget) -> Result<String, String> {
    rewritten(xml, change).map(|changed| changed.xml)
}

const SERVER: &str = include_str!("../../tests/fixtures/server.xml");

fn place(disks: &[(&str, &str)]) -> Retarget {
    let disks = disks
        .iter()
        .map(|(target, file)| ((*target).to_owned(), (*file).into()))
        .collect();
    Retarget {
        disks,
        ..Retarget::default()
    }
}

/// The document element as it stands in the text.
fn body(xml: &str) -> &str {
    xml[xml.find("<domain").unwrap()..].trim_end()
}

#[test]
fn nothing_asked_changes_no_byte() {
    assert_eq!(rewrite(SERVER, &Retarget::default()).unwrap(), body(SERVER));
}

#[test]
fn a_new_identity() {
    let uuid = "99999999-2222-3333-4444-555555555555";
    let change = Retarget {
        name: Some("a <b> & 'c' ü".into()),
        uuid: Some(uuid.parse().unwrap()),
        copy: true,
        nvram: Some("/new/vars & more.fd".into()),
        ..Retarget::default()
    };
    let result = rewrite(SERVER, &change).unwrap();
    let definition = read(&result).unwrap();
    assert_eq!(definition.name, "a <b> & 'c' ü");
    assert_eq!(definition.uuid, change.uuid);
    assert_eq!(
        definition.nvram.as_deref(),
        Some(Path::new("/new/vars & more.fd"))
    );
    assert!(!result.contains("<mac "));
    assert!(
        !result.contains("11111111-2222"),
        "also the mainboard's copy of the UUID is changed"
    );
    assert_eq!(result.matches(uuid).count(), 2);
    assert!(result.contains("<nvram template=\"/usr/share/OVMF/OVMF_VARS_4M.fd\">"));
    // What else differs is nothing.
    for kept in [
        "<name xmlns=\"urn:example:other\">decoy</name>",
        "text='say \"hi\"'><![CDATA[ <name>no</name> ]]></app:note>",
        "<qemu:arg value='name=a,string=b &gt; c'/>",
        "<title>it's   spaced</title>",
        "<source network='default'/>",
        "<graphics type='vnc' port='-1' passwd='geheim'/>",
    ] {
        assert!(result.contains(kept), "{kept}");
    }
    assert_eq!(rewrite(&result, &change).unwrap(), result);
}

/// Row A5 and "a copy claims nothing": what only one domain can have is gone from a copy, and named; the rest stays.
#[test]
fn a_copy_claims_nothing_exclusive() {
    let xml = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>
        <genid>aaaaaaaa-2222-3333-4444-555555555555</genid>
        <os><type>hvm</type><nvram template='/usr/share/OVMF/V.fd'>/claims/nvram.fd</nvram></os>
        <devices>
        <disk type='file'><source file='/new'/><target dev='vda'/></disk>
        <disk type='file'><source file='/claims/pending'/><target dev='vdb'/></disk>
        <disk type='block'><source dev='/claims/lv'/><target dev='vdc'/><shareable/></disk>
        <disk type='network'><source protocol='iscsi' name='claims'/><target dev='vdd'/></disk>
        <disk type='file' device='floppy'><source file='/claims/floppy'/><target dev='fda'/></disk>
        <disk type='file' device='cdrom'><source file='/kept.iso'/><target dev='sda'/><readonly/></disk>
        <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='claims0'/>
          <virtualport type='openvswitch'><parameters interfaceid='claims-id'/></virtualport></interface>
        <interface type='vhostuser'><source type='unix' path='/claims/vhost' mode='server'/></interface>
        <interface type='direct'><source dev='eth0' mode='passthrough'/></interface>
        <serial type='unix'><source mode='bind' path='/claims/serial'/><target port='0'/></serial>
        <console type='file'><source path='/claims/console'/><log file='/claims/log'/></console>
        <parallel type='dev'><source path='/claims/parport'/></parallel>
        <serial type='tcp'><source mode='connect' host='logs' service='514'/></serial>
        <channel type='unix'><source mode='bind' path='/claims/channel'/><target type='virtio' name='kept.0'/></channel>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        <graphics type='vnc' port='5901' autoport='no' websocket='5701'><listen type='socket' socket='/claims/vnc'/></graphics>
        <graphics type='spice' autoport='yes'/>
        <vsock><cid auto='no' address='31337'/></vsock>
        <hostdev mode='subsystem' type='mdev'><source><address uuid='claims'/></source></hostdev>
        <filesystem><source dir='/claims/dir'/><target dir='x'/></filesystem>
        <filesystem><source dir='/kept-dir'/><target dir='y'/><readonly/></filesystem>
        <filesystem><source socket='/claims/virtiofs'/><target dir='z'/><readonly/></filesystem>
        <tpm><backend type='emulator'><source type='dir' path='/claims/tpm'/></backend></tpm>
        <memory model='nvdimm'><source><path>/claims/nvdimm</path></source></memory>
        <shmem name='claims'/><lease><key>claims</key></lease>
        <input type='evdev'><source dev='/claims/event'/></input>
        <audio id='1' type='file' path='/claims/wav'/>
        </devices>
        <seclabel type='static' model='apparmor'><label>claims</label></seclabel>
        <seclabel type='static' model='dac'><label>kept-label</label></seclabel>
        <qemu:commandline><qemu:arg value='-chardev'/><qemu:arg value='socket,path=/claims/q'/></qemu:commandline>
        </domain>";
    let genid = "bbbbbbbb-2222-3333-4444-555555555555";
    let change = Retarget {
        copy: true,
        genid: Some(genid.parse().unwrap()),
        ..place(&[("vda", "/new/vda")])
    };
    let copy = rewritten(xml, &change).unwrap();
    for claim in [
        "claims",
        "5901",
        "5701",
        "31337",
        "52:54:00:00:00:01",
        "aaaaaaaa",
        "evdev",
        "passthrough",
    ] {
        assert!(!copy.xml.contains(claim), "{claim}: {}", copy.xml);
    }
    for kept in [
        genid,
        "/kept.iso",
        "kept.0",
        "guest_agent",
        "/kept-dir",
        "kept-label",
        "br0",
        "logs",
        "V.fd",
    ] {
        assert!(copy.xml.contains(kept), "{kept}: {}", copy.xml);
    }
    let targets: Vec<_> = read(&copy.xml)
        .unwrap()
        .disks
        .into_iter()
        .map(|disk| disk.target)
        .collect();
    assert_eq!(targets, ["vda", "sda"]);
    // 4 disks, nvram, 3 of interfaces and ids, 4 ports and a log, 2 of the screen, and one each of the rest.
    assert_eq!(copy.notes.len(), 28, "{:#?}", copy.notes);
    assert_eq!(rewritten(&copy.xml, &change).unwrap().xml, copy.xml);
    // The same domain, brought back, keeps what is its own.
    let same = rewritten(
        xml,
        &Retarget {
            copy: false,
            ..change
        },
    )
    .unwrap();
    assert!(same.notes.is_empty() && same.xml.contains("/claims/serial") && !same.xml.contains("aaaaaaaa"));
}

#[test]
fn disks_become_files() {
    let change = place(&[
        ("vda", "/new/a & b.qcow2"),
        ("sdb", "/new/sdb.qcow2"),
        ("vdc", "/new/vdc.qcow2"),
        ("nvme0n1", "/new/nvme.qcow2"),
        ("sda", "/new/sda.qcow2"),
        ("hda", "/new/hda.qcow2"),
    ]);
    let result = rewrite(SERVER, &change).unwrap();
    let definition = read(&result).unwrap();
    for (target, file) in &change.disks {
        let disk = definition
            .disks
            .iter()
            .find(|disk| disk.target == *target)
            .unwrap();
        assert_eq!(
            (&disk.source, disk.format.as_str()),
            (&DiskSource::File(file.clone()), "qcow2")
        );
        assert_ne!(disk.device, "lun");
    }
    for gone in [
        "backingStore",
        "mirror",
        "base.qcow2",
        "slices",
        "ceph",
        "luks",
        "rbd",
        "mon1",
        "reservations",
        "shareable",
        "rawio",
        "sgio",
        "'volume'",
        "mandatory",
    ] {
        assert!(!result.contains(gone), "{gone}");
    }
    for kept in [
        "cache=\"none\" io=\"native\" discard=\"unmap\" detect_zeroes=\"unmap\"><metadata_cache>",
        "<iotune><total_iops_sec>1000</total_iops_sec></iotune>",
        "<serial>ROOT-1</serial>",
        "<address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>",
        "<source file='/images/install.iso' startupPolicy='optional'/>",
        "<mac address='52:54:00:aa:bb:cc'/>",
    ] {
        assert!(result.contains(kept), "{kept}");
    }
    assert_eq!(rewrite(&result, &change).unwrap(), result);
}

/// A4: archives of 0.1.0 may hold a disk that the definition beside them lacks.
#[test]
fn a_disk_that_is_not_there_is_added() {
    let change = place(&[("vdz", "/new/z.qcow2")]);
    let result = rewrite(SERVER, &change).unwrap();
    let added = read(&result).unwrap().disks.pop().unwrap();
    assert_eq!((added.target.as_str(), added.format.as_str()), ("vdz", "qcow2"));
    assert_eq!(added.source, DiskSource::File("/new/z.qcow2".into()));
    assert_eq!(rewrite(&result, &change).unwrap(), result);
}

/// A5: a copy's floppy drive has no medium that it could share.
#[test]
fn drives_lose_their_medium() {
    let change = Retarget {
        empty_drives: vec!["sdc".into()],
        ..Retarget::default()
    };
    let result = rewrite(SERVER, &change).unwrap();
    assert!(!result.contains("install.iso") && result.contains("sdc"));
    assert_eq!(rewrite(&result, &change).unwrap(), result);
}

#[test]
fn disks_are_taken_out() {
    let change = Retarget {
        drop_disks: vec!["sdb".into(), "sdc".into()],
        ..Retarget::default()
    };
    let result = rewrite(SERVER, &change).unwrap();
    let left: Vec<_> = read(&result)
        .unwrap()
        .disks
        .into_iter()
        .map(|disk| disk.target)
        .collect();
    assert_eq!(left, ["vda", "vdc", "nvme0n1", "sda", "hda"]);
    assert_eq!(
        rewrite(&result, &change).unwrap(),
        result,
        "taking out what is not there is no error"
    );
}

#[test]
fn what_cannot_be_done_is_an_error() {
    let not_utf8 = Path::new(std::ffi::OsStr::from_bytes(b"/a\xff")).to_owned();
    let both = Retarget {
        drop_disks: vec!["vda".into()],
        ..place(&[("vda", "/a")])
    };
    let cases = [
        (place(&[("../vdz", "/a")]), "not a disk's target device name"),
        (place(&[("vda", "a")]), "not absolute"),
        (place(&[("vda", "/a\nb")]), "control characters"),
        (
            Retarget {
                disks: vec![("vda".into(), not_utf8)],
                ..Retarget::default()
            },
            "not UTF-8",
        ),
        (both, "both placed and taken out"),
        (
            Retarget {
                name: Some(String::new()),
                ..Retarget::default()
            },
            "empty",
        ),
        (
            Retarget {
                name: Some("a\0".into()),
                ..Retarget::default()
            },
            "control characters",
        ),
        (
            Retarget {
                nvram: Some("vars.fd".into()),
                ..Retarget::default()
            },
            "not absolute",
        ),
    ];
    for (change, reason) in cases {
        let error = rewrite(SERVER, &change).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let change = Retarget {
        nvram: Some("/vars.fd".into()),
        ..Retarget::default()
    };
    let error = rewrite("<domain><name>a</name></domain>", &change).unwrap_err();
    assert!(error.contains("no UEFI variable store"), "{error}");
}

#[test]
fn odd_spellings_are_changed_right_or_not_at_all() {
    // Two drivers and two sources: the first one counts and stays, alone.
    let xml = "<domain><name>a</name><devices><disk type='block'><source dev='/x'/><driver type='raw' cache='none'/>\
               <source file='/y'/><driver type='vmdk'/><target dev='vda'/></disk></devices></domain>";
    let result = rewrite(xml, &place(&[("vda", "/z")])).unwrap();
    assert_eq!(
        (
            result.matches("<source").count(),
            result.matches("<driver").count()
        ),
        (1, 1)
    );
    assert!(result.contains("cache=\"none\""));
    // A prefix for no namespace cannot be had; one for another namespace is another element.
    let xml = "<domain xmlns:x='urn:x'><name>a</name><devices><x:disk><target dev='vda'/></x:disk></devices></domain>";
    let result = rewrite(xml, &place(&[("vda", "/z")])).unwrap();
    assert!(
        result.contains("<x:disk><target dev='vda'/></x:disk>"),
        "{result}"
    );
    assert_eq!(read(&result).unwrap().disks.len(), 1);
    // Read as two names by one reader, as one by another.
    let xml = "<domain><name xmlns='urn:x'>x</name><name>a</name></domain>";
    let change = Retarget {
        name: Some("b".into()),
        ..Retarget::default()
    };
    let result = rewrite(xml, &change).unwrap();
    assert_eq!(read(&result).unwrap().name, "b");
    // Attribute values are kept whatever quotes they stand in.
    let xml = "<domain><name>a</name><devices><disk type='file' x='\"' y=\"'\"><target dev='vda'/></disk></devices></domain>";
    let result = rewrite(xml, &place(&[("vda", "/z")])).unwrap();
    assert!(result.contains("x=\"&quot;\" y=\"'\""), "{result}");
}

#[test]
fn hostile_documents_are_refused() {
    let deep = format!(
        "<domain><name>a</name>{}{}</domain>",
        "<x>".repeat(1000),
        "</x>".repeat(1000)
    );
    for xml in [
        "",
        "<a/>",
        "<!DOCTYPE domain><domain><name>a</name></domain>",
        "<domain><name>\0</name></domain>",
        &deep,
    ] {
        rewrite(xml, &Retarget::default()).unwrap_err();
    }
}

proptest! {
    #[test]
    fn a_damaged_definition_is_refused_or_handled(at in 0..SERVER.len(), length in 0_usize..40, with in "[<>/&'\"a-z =!\\[\\]-]{0,8}") {
        let cut = |at: usize| (0..=at.min(SERVER.len())).rev().find(|at| SERVER.is_char_boundary(*at)).unwrap();
        let damaged = format!("{}{with}{}", &SERVER[..cut(at)], &SERVER[cut(at + length)..]);
        fuzzing::definition(&damaged);
        fuzzing::retarget(&damaged);
    }

    #[test]
    fn the_result_says_what_was_asked(name in "[^\\p{C}\u{fffe}\u{ffff}]{1,40}", file in "/[^\\p{C}\u{fffe}\u{ffff}]{0,60}", mask in 0_u8..128) {
        let disks = ["vda", "sdb", "vdc", "nvme0n1", "sda", "sdc", "hda"];
        let (placed, dropped): (Vec<_>, Vec<_>) = disks.iter().enumerate().partition(|(at, _)| mask >> at & 1 == 1);
        let change = Retarget {
            name: Some(name.clone()),
            disks: placed.iter().map(|(_, target)| ((**target).to_owned(), file.clone().into())).collect(),
            drop_disks: dropped.iter().map(|(_, target)| (**target).to_owned()).collect(),
            ..Retarget::default()
        };
        let result = rewrite(SERVER, &change).unwrap();
        let read = read(&result).unwrap();
        prop_assert_eq!(&read.name, &name);
        prop_assert_eq!(read.disks.len(), placed.len());
        for disk in &read.disks {
            prop_assert_eq!(&disk.source, &DiskSource::File(file.clone().into()));
        }
        prop_assert_eq!(rewrite(&result, &change).unwrap(), result);
    }

    #[test]
    fn no_text_makes_it_panic(xml in "(<(/)?(domain|name|devices|disk|target dev='vda'|source|!\\[CDATA\\[|!--|\\?)?(/)?>|a|&|'|\"){0,30}") {
        fuzzing::definition(&xml);
        fuzzing::retarget(&xml);
    }
}
