//! Disks that are no files of their own, that come and go, and domains that are odd themselves.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use strongroom_testkit::{patience, run, virsh};

use super::Kind;
use super::course::{Expected, Outcome, WELL};
use super::place::{Disk, Place};
use crate::common::pool::Pool;
use crate::common::tiny::MIB;

pub const KINDS: &[Kind] = &[
    Kind {
        what: "a block device",
        name: "block",
        make: block,
        expected: WELL,
    },
    Kind {
        what: "a pool's volume",
        name: "volume",
        make: volume,
        expected: Expected {
            incremental: &["vda"],
            ..WELL
        },
    },
    Kind {
        what: "a network disk",
        name: "network",
        make: network,
        expected: Expected {
            off: Outcome::Refused(
                2,
                &["disk vda", "neither a file nor a block device", "start the VM"],
            ),
            audit: Outcome::Refused(1, &["disk vda", "neither a file nor a block device"]),
            ..WELL
        },
    },
    Kind {
        what: "a transient domain",
        name: "transient",
        make: transient_domain,
        expected: Expected {
            off: Outcome::Never,
            incremental: &["vda"],
            ..WELL
        },
    },
    Kind {
        what: "a transient disk",
        name: "forgets",
        make: transient_disk,
        expected: Expected {
            incremental: &["vda"],
            left_out: &["vdb"],
            ..WELL
        },
    },
    Kind {
        what: "shareable, read-only, media",
        name: "media",
        make: media,
        expected: Expected {
            off: Outcome::Warned("<shareable/>"),
            running: Outcome::Warned("<shareable/>"),
            left_out: &["vdb", "hda", "hdb", "fda"],
            ..WELL
        },
    },
    Kind {
        what: "hot-plugged and pending disks",
        name: "plugged",
        make: plugged,
        expected: Expected {
            running: Outcome::Warned("vdb"),
            ..WELL
        },
    },
    Kind {
        what: "a long name",
        name: LONG,
        make: plain,
        expected: Expected {
            incremental: &["vda"],
            ..WELL
        },
    },
    Kind {
        what: "no disk at all",
        name: "diskless",
        make: |_| {},
        expected: Expected {
            init: Outcome::Refused(2, &["it has no disk", "virsh dumpxml"]),
            ..WELL
        },
    },
];

/// With the lab's prefix, libvirt's longest names.
const LONG: &str = "l234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890\
                    1234567890123456789012345678901234567890123456789012345678901234567890123456789012345";

fn plain(place: &mut Place) {
    let made = place.qcow2("vda.qcow2", &[]);
    place.file("vda", "virtio", "qcow2", made, "");
}

/// A file as a block device.
struct Loop(PathBuf);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn block(place: &mut Place) {
    let (file, content) = place.raw("block.img", 8 * MIB);
    let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&file));
    place.guards.push(Box::new(Loop(device.clone().into())));
    let inside = format!("<driver name='qemu' type='raw'/><source dev='{device}'/>");
    place.disk(
        "vda",
        "virtio",
        ("type='block' device='disk'", &inside),
        Some(content),
    );
}

fn volume(place: &mut Place) {
    let directory = place.lab.path("pool");
    fs::create_dir(&directory).unwrap();
    let (_, content) = place.qcow2("pool/volume.qcow2", &[]);
    let name = place.lab.name("pool");
    place.guards.push(Box::new(Pool::of(&directory, &name)));
    let inside = format!("<driver name='qemu' type='qcow2'/><source pool='{name}' volume='volume.qcow2'/>");
    place.disk(
        "vda",
        "virtio",
        ("type='volume' device='disk'", &inside),
        Some(content),
    );
}

/// A server of an image.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn network(place: &mut Place) {
    let (file, content) = place.raw("served.img", 8 * MIB);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let server = Command::new("qemu-nbd")
        .args(["--persistent", "--shared=4", "--bind=127.0.0.1", "--format=raw"])
        .arg(format!("--port={port}"))
        .arg("--export-name=odd")
        .arg(&file)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    place.guards.push(Box::new(Server(server)));
    let end = Instant::now() + patience(Duration::from_secs(10));
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "qemu-nbd does not serve");
        std::thread::sleep(Duration::from_millis(50));
    }
    let inside = format!(
        "<driver name='qemu' type='raw'/><source protocol='nbd' name='odd'><host name='127.0.0.1' port='{port}'/></source>"
    );
    place.disk(
        "vda",
        "virtio",
        ("type='network' device='disk'", &inside),
        Some(content),
    );
}

fn transient_domain(place: &mut Place) {
    plain(place);
    place.transient = true;
}

fn transient_disk(place: &mut Place) {
    plain(place);
    let (image, _) = place.qcow2("vdb.qcow2", &[]);
    let inside = format!(
        "<driver name='qemu' type='qcow2'/><source file='{}'/><transient/>",
        image.display()
    );
    place.disk("vdb", "virtio", ("type='file' device='disk'", &inside), None);
}

fn media(place: &mut Place) {
    place.machine = "pc";
    let made = place.raw("shared.img", 8 * MIB);
    place.file("vda", "virtio", "raw", made, "<shareable/>");
    let (image, _) = place.raw("read-only.img", MIB);
    let read_only = format!(
        "<driver name='qemu' type='raw'/><source file='{}'/><readonly/>",
        image.display()
    );
    place.disk("vdb", "virtio", ("type='file' device='disk'", &read_only), None);
    place.disk("hda", "ide", ("type='file' device='cdrom'", &read_only), None);
    place.disk("hdb", "ide", ("type='file' device='cdrom'", "<readonly/>"), None);
    let (image, _) = place.raw("floppy.img", 1_474_560);
    let floppy = format!(
        "<driver name='qemu' type='raw'/><source file='{}'/>",
        image.display()
    );
    place.disk("fda", "fdc", ("type='file' device='floppy'", &floppy), None);
}

fn plugged(place: &mut Place) {
    plain(place);
    place.started = Some(|place| {
        for (target, way) in [("vdb", "--live"), ("vdc", "--config")] {
            let image = place.lab.path(&format!("{target}.qcow2"));
            run(Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&image)
                .arg("8M"));
            run(virsh(["attach-disk", "--subdriver", "qcow2", "--domain"])
                .arg(&place.name)
                .arg(&image)
                .args([target, way]));
        }
        let content = Some(vec![0; 8 * MIB]);
        place.disks.push(Disk {
            target: "vdb",
            content,
        });
    });
}
