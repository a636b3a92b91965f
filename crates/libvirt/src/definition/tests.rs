use std::path::Path;

use strongroom_hypervisor::{Bitmaps, DiskSource};

use super::{check_target, read};

const SERVER: &str = include_str!("../../tests/fixtures/server.xml");

/// A definition with `inner` among its devices.
fn with_devices(inner: &str) -> String {
    format!("<domain><name>a</name><devices>{inner}</devices></domain>")
}

#[test]
fn everything_that_matters_is_read() {
    let server = read(SERVER).unwrap();
    assert_eq!(server.name, "mail & \"news\" <ü>");
    assert_eq!(
        server.uuid.unwrap().to_string(),
        "11111111-2222-3333-4444-555555555555"
    );
    assert_eq!(
        server.nvram.as_deref(),
        Some(Path::new("/var/lib/libvirt/qemu/nvram/mail_VARS.fd"))
    );
    assert!(server.has_tpm);
    let disks: Vec<_> = server
        .disks
        .iter()
        .map(|disk| {
            (
                disk.target.as_str(),
                disk.device.as_str(),
                disk.format.as_str(),
                disk.source.clone(),
            )
        })
        .collect();
    let file = |path: &str| DiskSource::File(path.into());
    assert_eq!(
        disks,
        [
            ("vda", "disk", "qcow2", file("/images/over & lay.qcow2")),
            ("sdb", "lun", "raw", DiskSource::Block("/dev/mapper/lun".into())),
            ("vdc", "disk", "raw", DiskSource::Other("network".into())),
            (
                "nvme0n1",
                "disk",
                "qcow2",
                DiskSource::Volume {
                    pool: "default".into(),
                    volume: "data".into()
                }
            ),
            ("sda", "cdrom", "raw", DiskSource::None),
            ("sdc", "cdrom", "raw", file("/images/install.iso")),
            ("hda", "disk", "raw", file("/images/plain")),
        ]
    );
    let vda = &server.disks[0];
    assert_eq!(vda.serial.as_deref(), Some("ROOT-1"));
    assert!(!vda.read_only);
    assert_eq!((vda.size, &vda.bitmaps), (None, &Bitmaps::Unknown));
    assert!(server.disks[4].read_only);
}

#[test]
fn ways_in_and_out_are_named() {
    let inner =
        "<graphics type='spice' listen='0.0.0.0'/><channel type='spicevmc'/><redirdev type='spicevmc'/>
        <redirdev type='spicevmc'/><memballoon model='virtio'/><controller type='usb' model='qemu-xhci'/>
        <hostdev mode='subsystem'/><filesystem type='mount'/><shmem name='a'/>";
    let extras = read(&with_devices(inner)).unwrap().extras;
    let wanted = [
        "a screen (spice) on 0.0.0.0",
        "a shared clipboard (spicevmc)",
        "USB redirection",
        "a balloon",
        "a USB controller",
        "a device of the host (subsystem)",
        "a directory of the host",
        "memory shared with others",
    ];
    assert_eq!(extras, wanted);
    let inner = "<channel type='unix'/><memballoon model='none'/><controller type='usb' model='none'/>";
    let plain = read(&with_devices(inner)).unwrap();
    assert!(plain.extras.is_empty() && plain.launch_security.is_none());
    let sev = "<domain><name>a</name><launchSecurity type='sev-snp'/></domain>";
    assert_eq!(read(sev).unwrap().launch_security.as_deref(), Some("sev-snp"));
    let disks = "<disk><driver discard='unmap'/><target dev='vda'/></disk><disk><target dev='vdb'/></disk>";
    let discard: Vec<bool> = read(&with_devices(disks))
        .unwrap()
        .disks
        .iter()
        .map(|disk| disk.discard)
        .collect();
    assert_eq!(discard, [true, false]);
}

#[test]
fn a_bare_definition_has_nothing() {
    let bare = read("<domain><name>a</name></domain>").unwrap();
    assert_eq!(
        (bare.uuid, bare.disks.len(), bare.nvram, bare.has_tpm),
        (None, 0, None, false)
    );
}

#[test]
fn a_variable_store_may_be_a_source() {
    let xml = "<domain><name>a</name><os><nvram type='file' format='raw'>\n <source file='/n v'/>\n</nvram></os></domain>";
    assert_eq!(read(xml).unwrap().nvram.as_deref(), Some(Path::new("/n v")));
    let xml = "<domain><name>a</name><os><nvram template='/t'/></os></domain>";
    assert_eq!(read(xml).unwrap().nvram, None);
}

#[test]
fn a_hardware_tpm_keeps_nothing_outside_itself() {
    let xml = with_devices("<tpm><backend type='passthrough'/></tpm>");
    assert!(!read(&xml).unwrap().has_tpm);
}

#[test]
fn target_names_are_checked() {
    for good in ["vda", "sdaa", "hdc", "nvme0n1", "xvda", "fda"] {
        check_target(good).unwrap();
    }
    let long = "v".repeat(32);
    for bad in [
        "", "v", "1a", "v1a", "VDA", "vd a", "../x", "vd/a", "vda\n", "vdä", &long,
    ] {
        check_target(bad).unwrap_err();
        let disk = with_devices(&format!("<disk><target dev='{bad}'/></disk>"));
        assert!(read(&disk).unwrap_err().contains("target device name"), "{bad:?}");
    }
}

#[test]
fn hostile_documents_are_refused() {
    let deep = "<domain><name>a</name>".to_owned() + &"<x>".repeat(60_000);
    let wide = format!("<domain><name>a</name>{}</domain>", "<x/>".repeat(60_000));
    let huge = format!(
        "<domain><name>a</name><!--{}--></domain>",
        " ".repeat(super::super::xml::MAX_BYTES)
    );
    let two_disks = with_devices("<disk><target dev='vda'/></disk><disk><target dev='vda'/></disk>");
    let cases = [
        ("", "root"),
        ("not XML", ""),
        ("<domain><name>a</name>", ""),
        ("<domain><name>a</name></domain><domain/>", ""),
        (
            "<domainsnapshot><name>a</name></domainsnapshot>",
            "root element is not <domain>",
        ),
        (
            "<domain xmlns='urn:x'><name>a</name></domain>",
            "root element is not <domain>",
        ),
        ("<domain><name>a\0</name></domain>", ""),
        ("<domain><name>a&#1;</name></domain>", ""),
        ("<domain><name>&evil;</name></domain>", "unknown entity"),
        (
            "<!DOCTYPE domain [<!ENTITY e 'x'>]><domain><name>&e;</name></domain>",
            "DTD",
        ),
        (
            "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain><name>a</name></domain>",
            "DTD",
        ),
        ("<domain/>", "no name"),
        ("<domain><name/></domain>", "no name"),
        (
            "<domain><name>a</name><name>b</name></domain>",
            "more than one <name>",
        ),
        ("<domain><name>a</name><uuid>1</uuid></domain>", "not a UUID"),
        (
            "<domain><name>a</name><uuid>11111111-2222-3333-4444-555555555555</uuid><uuid>11111111-2222-3333-4444-555555555556</uuid></domain>",
            "more than one <uuid>",
        ),
        (
            "<domain><name>a</name><devices><disk/></devices></domain>",
            "without a target",
        ),
        (
            "<domain><name>a</name><devices><disk><target/></disk></devices></domain>",
            "without a target",
        ),
        (&two_disks, "more than one disk vda"),
        (&deep, ""),
        (&wide, ""),
        (&huge, "more than 4194304"),
    ];
    for (xml, reason) in cases {
        let error = read(xml).expect_err(&xml[..xml.len().min(80)]);
        assert!(error.contains(reason), "{:?}: {error}", &xml[..xml.len().min(80)]);
    }
}

#[test]
fn a_disk_that_its_host_encrypts_is_told() {
    let disk = |inner: &str, source: &str| {
        let xml =
            format!("<disk type='file'>{inner}<source file='/a'>{source}</source><target dev='vda'/></disk>");
        read(&with_devices(&xml)).unwrap().disks[0].encrypted
    };
    assert!(!disk("", ""));
    let encryption = "<encryption format='luks'><secret type='passphrase' uuid='0'/></encryption>";
    assert!(disk("", encryption));
    assert!(disk(encryption, ""));
}
