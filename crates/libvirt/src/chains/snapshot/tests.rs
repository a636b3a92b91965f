use std::path::PathBuf;

use strongroom_hypervisor::{Disk, SnapshotDisk};

use super::request;

fn domain() -> Vec<Disk> {
    let disk = |target| format!("<disk><target dev='{target}'/></disk>");
    let disks: String = ["vda", "vdb", "sda"].map(disk).concat();
    let xml = format!("<domain><name>d</name><devices>{disks}</devices></domain>");
    crate::definition::read(&xml).unwrap().disks
}

fn asked(target: &str, overlay: &str) -> SnapshotDisk {
    SnapshotDisk {
        target: target.into(),
        overlay: PathBuf::from(overlay),
    }
}

#[test]
fn every_other_disk_is_excluded_by_name() {
    assert_eq!(
        request(&[asked("vdb", "/images/\"ü\" & <x>'.overlay")], &domain()).unwrap(),
        "<domainsnapshot><disks><disk name=\"vda\" snapshot=\"no\"/>\
         <disk name=\"vdb\" snapshot=\"external\" type=\"file\"><driver type=\"qcow2\"/>\
         <source file=\"/images/&quot;ü&quot; &amp; &lt;x&gt;&apos;.overlay\"/></disk>\
         <disk name=\"sda\" snapshot=\"no\"/></disks></domainsnapshot>"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |disks: &[SnapshotDisk]| request(disks, &domain()).unwrap_err();
    assert!(refused(&[]).contains("no disk was asked for"));
    assert!(refused(&[asked("vdz", "/o")]).contains("no disk vdz"));
    assert!(refused(&[asked("vda", "/o"), asked("vda", "/p")]).contains("twice"));
    assert!(refused(&[asked("vda", "/o"), asked("vdb", "/o")]).contains("twice"));
    assert!(refused(&[asked("vda", "o")]).contains("not absolute"));
    assert!(refused(&[asked("vda", "/o\n")]).contains("control characters"));
}
