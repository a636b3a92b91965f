//! Images of every format, on every bus: what the guest sees comes back.

use std::fs;
use std::process::Command;

use strongroom_testkit::run;

use super::Kind;
use super::course::{Expected, Outcome, WELL};
use super::place::Place;
use crate::common::tiny::MIB;

/// What the host encrypted comes back as the guest saw it.
const NOT_ENCRYPTED: Outcome = Outcome::Warned("kept it encrypted; what is restored is not");

pub const KINDS: &[Kind] = &[
    Kind {
        what: "formats and sizes",
        name: "two  words, and more",
        make: formats,
        expected: Expected {
            incremental: &["vde", "vdf", "vdi"],
            ..WELL
        },
    },
    Kind {
        what: "images in several files",
        name: "größe",
        make: several_files,
        expected: Expected {
            incremental: &["vda", "vdb"],
            finding: "overlay",
            ..WELL
        },
    },
    Kind {
        what: "buses: IDE, SATA",
        name: "a.b.c",
        make: old_buses,
        expected: WELL,
    },
    Kind {
        what: "buses: SCSI, USB",
        name: "me@there",
        make: scsi_and_usb,
        expected: Expected {
            incremental: &["sda", "sdb"],
            ..WELL
        },
    },
    Kind {
        what: "internal snapshots",
        name: "snapshots",
        make: internal_snapshots,
        expected: Expected {
            finding: "snapshot",
            ..WELL
        },
    },
    Kind {
        what: "encrypted by the host",
        name: "encrypted",
        make: host_encrypted,
        expected: Expected {
            // libvirt has the key.
            off: Outcome::Refused(2, &["encrypted by the host", "start the VM"]),
            copy: NOT_ENCRYPTED,
            restore: NOT_ENCRYPTED,
            audit: Outcome::Refused(1, &["disk vda", "encrypted by the host"]),
            incremental: &["vda"],
            ..WELL
        },
    },
];

fn formats(place: &mut Place) {
    let large = "<blockio logical_block_size='4096' physical_block_size='4096'/>";
    let made = place.raw("sectors-512.img", 8 * MIB);
    place.file("vda", "virtio", "raw", made, "");
    let made = place.raw("sectors-4096.img", 8 * MIB);
    place.file("vdb", "virtio", "raw", made, large);
    // QEMU shows whole sectors.
    let (path, mut content) = place.raw("odd.img", 10_000_001);
    content.resize(10_000_384, 0);
    place.file("vdc", "virtio", "raw", (path, content), "");
    for (target, file, options) in [
        ("vdd", "version-2", &["-o", "compat=0.10"][..]),
        ("vde", "version-3", &["-o", "compat=1.1"]),
        ("vdf", "extended", &["-o", "extended_l2=on,cluster_size=128k"]),
        ("vdi", "compressed", &["-c"]),
    ] {
        let made = place.qcow2(file, options);
        place.file(target, "virtio", "qcow2", made, "");
    }
}

fn several_files(place: &mut Place) {
    let data = place.lab.path("data.raw");
    let option = format!("data_file={},data_file_raw=on", data.display());
    let made = place.qcow2("external", &["-o", &option]);
    place.file("vda", "virtio", "qcow2", made, "");
    // An overlay on an overlay on a raw file.
    let (base, content) = place.raw("base.img", 8 * MIB);
    let mut below = (base, "raw");
    for name in ["middle.qcow2", "top.qcow2"] {
        let image = place.lab.path(name);
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", below.1, "-b"])
            .args([&below.0, &image]));
        below = (image, "qcow2");
    }
    place.file("vdb", "virtio", "qcow2", (below.0, content), "");
}

fn old_buses(place: &mut Place) {
    place.machine = "pc";
    place.devices += "<controller type='sata' index='0'/>";
    for (target, bus) in [("hda", "ide"), ("sda", "sata")] {
        let made = place.qcow2(bus, &[]);
        place.file(target, bus, "qcow2", made, "");
    }
}

fn scsi_and_usb(place: &mut Place) {
    place.devices += "<controller type='scsi' index='0' model='virtio-scsi'/>";
    for (target, bus) in [("sda", "scsi"), ("sdb", "usb")] {
        let made = place.qcow2(bus, &[]);
        place.file(target, bus, "qcow2", made, "");
    }
}

fn internal_snapshots(place: &mut Place) {
    let made = place.qcow2("snapshots.qcow2", &[]);
    run(Command::new("qemu-img")
        .args(["snapshot", "-c", "before"])
        .arg(&made.0));
    place.file("vda", "virtio", "qcow2", made, "");
}

/// The key of an image is libvirt's, and goes with the place.
struct Secret(String);

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = strongroom_testkit::output_of(&mut strongroom_testkit::virsh(["secret-undefine", &self.0]));
    }
}

fn host_encrypted(place: &mut Place) {
    let uuid = uuid::Uuid::new_v4().to_string();
    let image = place.lab.path("encrypted.qcow2");
    let xml = place.lab.path("secret.xml");
    let usage = image.display();
    fs::write(
        &xml,
        format!("<secret ephemeral='yes' private='no'><uuid>{uuid}</uuid><usage type='volume'><volume>{usage}</volume></usage></secret>"),
    )
    .unwrap();
    run(strongroom_testkit::virsh(["secret-define"]).arg(&xml));
    place.guards.push(Box::new(Secret(uuid.clone())));
    let key = place.lab.path("secret.key");
    fs::write(&key, "secret").unwrap();
    run(strongroom_testkit::virsh(["secret-set-value", &uuid, "--plain", "--file"]).arg(&key));
    let (raw, content) = place.raw("plain.img", 8 * MIB);
    let object = format!("secret,id=key,file={}", key.display());
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "--object", &object, "-o"])
        .arg("encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10")
        .arg(&image)
        .arg("8M"));
    let target = format!(
        "driver=qcow2,file.filename={},encrypt.key-secret=key",
        image.display()
    );
    run(Command::new("qemu-img")
        .args([
            "convert",
            "-n",
            "--object",
            &object,
            "-f",
            "raw",
            "--target-image-opts",
        ])
        .arg(&raw)
        .arg(&target));
    fs::remove_file(raw).unwrap();
    let inside = format!(
        "<driver name='qemu' type='qcow2'/><source file='{}'><encryption format='luks'>
         <secret type='passphrase' uuid='{uuid}'/></encryption></source>",
        image.display()
    );
    place.disk(
        "vda",
        "virtio",
        ("type='file' device='disk'", &inside),
        Some(content),
    );
}
