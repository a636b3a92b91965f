use std::path::Path;

use super::rewrite;

const BEFORE: &str = "<domain type='kvm'><!-- kept --><name>a &amp; b</name><devices>\n\
  <disk type='file' device='disk'>\n    <driver name='qemu' type='raw' cache='none'/>\n    \
  <source file='/i/a.img' startupPolicy='optional'><seclabel model='dac' relabel='no'/></source>\n    \
  <backingStore type='file'><format type='qcow2'/><source file='/i/b'/></backingStore>\
  <target dev='vda' bus='virtio'/><shareable/></disk>\
  <disk type='file'><source file='/i/a.img'/><backingStore/><target dev='vdb'/></disk>\
  <graphics passwd='s&quot;t'/></devices></domain>";

fn file(xml: &str, image: &str, format: &str) -> Result<Option<String>, String> {
    rewrite(xml, "vda", Path::new(image), false, format)
}

#[test]
fn only_the_image_changes() {
    let after = file(BEFORE, "/i/o & \"p\"", "qcow2").unwrap().unwrap();
    let wanted = BEFORE
        .replace(
            "<driver name='qemu' type='raw' cache='none'/>",
            "<driver name=\"qemu\" type=\"qcow2\" cache=\"none\"/>",
        )
        .replace(
            "<source file='/i/a.img' startupPolicy='optional'>",
            "<source file=\"/i/o &amp; &quot;p&quot;\" startupPolicy=\"optional\">",
        )
        .replace(
            "<disk type='file' device='disk'>",
            "<disk type=\"file\" device=\"disk\">",
        )
        .replace(
            "<backingStore type='file'><format type='qcow2'/><source file='/i/b'/></backingStore>",
            "",
        );
    assert_eq!(after, wanted);
    assert_eq!(
        file(&after, "/i/o & \"p\"", "qcow2").unwrap(),
        None,
        "it says so already"
    );
}

#[test]
fn the_same_image_only_loses_its_backing_store() {
    let after = file(BEFORE, "/i/a.img", "raw").unwrap().unwrap();
    assert_eq!(after.matches("backingStore").count(), 1, "{after}");
    assert_eq!(file(&after, "/i/a.img", "raw").unwrap(), None);
}

#[test]
fn files_and_block_devices_change_places() {
    let block = rewrite(BEFORE, "vda", Path::new("/dev/vg/lv"), true, "raw")
        .unwrap()
        .unwrap();
    assert!(block.contains("<disk type=\"block\" device=\"disk\">"), "{block}");
    assert!(
        block.contains("<source startupPolicy=\"optional\" dev=\"/dev/vg/lv\">"),
        "{block}"
    );
    let back = file(&block, "/i/a.img", "raw").unwrap().unwrap();
    assert!(
        back.contains("<source startupPolicy=\"optional\" file=\"/i/a.img\">"),
        "{back}"
    );
    assert!(!back.contains("/dev/"));
}

#[test]
fn a_disk_without_a_driver_gets_one() {
    let xml = "<domain><name>d</name><devices><disk><source file='/a'/><target dev='vda'/></disk></devices></domain>";
    let after = file(xml, "/a", "qcow2").unwrap().unwrap();
    assert!(
        after.contains("<driver name=\"qemu\" type=\"qcow2\"/>"),
        "{after}"
    );
    assert_eq!(file(xml, "/a", "raw").unwrap(), None, "no format means raw");
}

#[test]
fn what_cannot_be_changed_is_told() {
    let disk = |disk: &str| format!("<domain><name>d</name><devices>{disk}</devices></domain>");
    let refused = |xml: &str| file(xml, "/o", "qcow2").unwrap_err();
    assert!(refused(&disk("")).contains("no disk vda"));
    let network = "<disk type='network'><source protocol='rbd'/><target dev='vda'/></disk>";
    assert!(refused(&disk(network)).contains("neither a file nor"));
    let empty = "<disk device='cdrom'><target dev='vda'/></disk>";
    assert!(refused(&disk(empty)).contains("neither a file nor"));
    for part in [
        "<encryption/>",
        "<slices><slice type='storage' offset='1' size='2'/></slices>",
    ] {
        let own = format!("<disk><source file='/a'>{part}</source><target dev='vda'/></disk>");
        assert!(refused(&disk(&own)).contains("encrypted or a part"));
    }
    let twice = "<disk><source file='/a'/><source file='/b'/><target dev='vda'/></disk>";
    let after = file(&disk(twice), "/o", "qcow2").unwrap().unwrap();
    assert_eq!(after.matches("<source").count(), 1);
    assert!(
        file(BEFORE, "relative", "qcow2")
            .unwrap_err()
            .contains("not absolute")
    );
    assert!(
        file(BEFORE, "/new\nline", "qcow2")
            .unwrap_err()
            .contains("control characters")
    );
    for format in ["", "qcow2' x='", "a b"] {
        assert!(
            file(BEFORE, "/o", format)
                .unwrap_err()
                .contains("not an image format")
        );
    }
    refused("<domain><name>d</name>");
    refused("<!DOCTYPE domain><domain><name>d</name></domain>");
}
