//! What others have put together: a disk as vendors offer them, and a root directory in a tar file.

use std::path::PathBuf;
use std::process::Command;

use strongroom_testkit::run;

use super::bench::Bench;

/// A disk with a table and the template's system in a partition; and that system as a tar file, without `age`.
pub fn vendors_images(bench: &Bench) -> (PathBuf, PathBuf) {
    let (disk, tar) = (bench.lab.path("vendor.qcow2"), bench.lab.path("root.tar"));
    let script = r#"
        set -euo pipefail
        export PATH=$PATH:/usr/sbin
        work=$1 root=$2
        mkdir "$work/mount" "$work/tree"
        qemu-img convert -f qcow2 -O raw "$root" "$work/root.raw"
        size=$(stat -c %s "$work/root.raw")
        truncate -s $((size + 4194304)) "$work/disk.raw"
        sfdisk -q -X gpt "$work/disk.raw" <<<"start=2048, size=$((size / 512)), type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
        dd if="$work/root.raw" of="$work/disk.raw" bs=1M seek=1 conv=notrunc,sparse status=none
        qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$work/vendor.qcow2"
        fuse2fs -o ro "$work/root.raw" "$work/mount"
        trap 'umount --lazy "$work/mount"' EXIT
        tar -C "$work/mount" --xattrs -cf - . | tar -C "$work/tree" --xattrs -xpf -
        dpkg --root="$work/tree" --force-depends -r age >/dev/null
        tar -C "$work/tree" --xattrs -cf "$work/root.tar" .
        rm -rf "$work/tree" "$work/disk.raw"
    "#;
    run(Command::new("bash")
        .args(["-c", script, "vendors-images"])
        .arg(bench.lab.dir())
        .arg(bench.templates.base().join("root.qcow2")));
    (disk, tar)
}
