use std::path::PathBuf;

use proptest::prelude::*;
use strongroom_hypervisor::{BlockJob, BlockJobState};

use super::{DiskChain, Image, MAX_IMAGES, read};

fn domain(disks: &str) -> String {
    format!("<domain type='kvm' id='7'><name>d</name><devices>{disks}</devices></domain>")
}

fn only(disk: &str) -> DiskChain {
    let mut chains = read(&domain(disk)).unwrap();
    assert_eq!(chains.len(), 1);
    chains.remove(0)
}

#[test]
fn a_disk_in_an_active_commit() {
    // As libvirt 11.3 shows it.
    let found = only(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>\
         <source file='/i/a &amp; b.overlay' index='5'/>\
         <backingStore type='file' index='4'><format type='qcow2'/><source file='/i/a.qcow2'/>\
         <backingStore type='block' index='3'><format type='raw'/><source dev='/dev/vg/lv'/><backingStore/>\
         </backingStore></backingStore>\
         <mirror type='file' job='active-commit' ready='yes'><format type='qcow2'/>\
         <source file='/i/a.qcow2' index='4'/></mirror>\
         <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>",
    );
    let image = |path: &str, block| Image {
        path: path.into(),
        block,
    };
    assert_eq!(
        found,
        DiskChain {
            target: "vda".into(),
            alias: Some("virtio-disk0".into()),
            images: vec![
                image("/i/a & b.overlay", false),
                image("/i/a.qcow2", false),
                image("/dev/vg/lv", true)
            ],
            job: Some(BlockJob {
                kind: "active-commit".into(),
                to: Some("/i/a.qcow2".into()),
                state: BlockJobState::Ready,
            }),
        }
    );
}

#[test]
fn a_job_has_a_state() {
    let job = |mirror: &str| {
        only(&format!("<disk><target dev='vda'/>{mirror}</disk>"))
            .job
            .unwrap()
    };
    for (attribute, state) in [
        ("", BlockJobState::Copying),
        ("ready='no'", BlockJobState::Copying),
        ("ready='yes'", BlockJobState::Ready),
        ("ready='pivot'", BlockJobState::Pivoting),
        ("ready='abort'", BlockJobState::Aborting),
    ] {
        assert_eq!(job(&format!("<mirror {attribute}/>")).state, state);
    }
    let copy = job("<mirror type='network'><source protocol='nbd'/></mirror>");
    assert_eq!((copy.kind.as_str(), copy.to), ("copy", None));
    let copy = job("<mirror type='block' job='copy'><source dev='/dev/x'/></mirror>");
    assert_eq!(copy.to, Some(PathBuf::from("/dev/x")));
}

#[test]
fn what_is_no_file_has_no_images() {
    for disk in [
        "<disk type='network'><source protocol='rbd' name='/a' file='/b'/><target dev='vda'/></disk>",
        "<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>",
        "<disk type='file'><source file=''/><target dev='vda'/></disk>",
        "<disk type='block'><source file='/x'/><target dev='vda'/></disk>",
        "<disk><target dev='vda'/></disk>",
    ] {
        assert_eq!(only(disk).images, [], "{disk}");
    }
    let cut = only(
        "<disk><source file='/a'/><backingStore type='network'><source protocol='nbd'/>\
         <backingStore><source file='/c'/></backingStore></backingStore><target dev='vda'/></disk>",
    );
    assert_eq!(cut.paths(), [PathBuf::from("/a")]);
}

#[test]
fn drives_for_media_are_left_out() {
    let disks = "<disk device='cdrom'><target dev='sda'/></disk><disk device='floppy'><target dev='fda'/></disk>\
                 <disk device='lun' type='block'><source dev='/dev/a'/><target dev='sdb'/></disk>";
    assert_eq!(only(disks).target, "sdb");
}

#[test]
fn a_bad_definition_is_told() {
    let error = |xml: &str| read(xml).unwrap_err();
    assert!(error(&domain("<disk/>")).contains("without a target"));
    assert!(error(&domain("<disk><target dev='../a'/></disk>")).contains("target device name"));
    let twice = "<disk><target dev='vda'/></disk>".repeat(2);
    assert!(error(&domain(&twice)).contains("more than one disk vda"));
    assert!(error("<domainsnapshot/>").contains("root element"));
    assert!(read("<!DOCTYPE domain [<!ENTITY a 'b'>]><domain/>").is_err());
    let endless = format!(
        "<disk>{}{}<target dev='vda'/></disk>",
        "<source file='/a'/><backingStore>".repeat(MAX_IMAGES + 1),
        "</backingStore>".repeat(MAX_IMAGES + 1)
    );
    assert!(read(&domain(&endless)).is_err());
}

proptest! {
    #[test]
    fn anything_is_read_or_refused(disks in "(<disk>|</disk>|<source file='/a'/>|<backingStore>|</backingStore>|<mirror/>|<target dev='vd[a-c]'/>|[a-z<>&']){0,30}") {
        for chain in read(&domain(&disks)).unwrap_or_default() {
            prop_assert!(chain.images.len() <= MAX_IMAGES);
        }
    }
}
