//! Whole VMs that are restored where other things are, or are not any more.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::running::Said;
use crate::common::tiny::{MIB, Tiny, noise, with_signing};
use crate::common::tmpfs::Tmpfs;
use crate::common::{Bench, names};
use strongroom_testkit::{Format, Lab, run, sha256_of_raw, virsh};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Adds elements to a domain's definition: beside its devices, and among them.
fn extend(lab: &Lab, tiny: &Tiny, beside: &str, devices: &str) {
    let xml = run(&mut virsh(["dumpxml", "--inactive", &tiny.name]));
    let xml = xml
        .replace("<devices>", &format!("{beside}<devices>"))
        .replace("</devices>", &format!("{devices}</devices>"));
    let file = lab.path("extended.xml");
    fs::write(&file, xml).unwrap();
    run(virsh(["define"]).arg(&file));
}

fn xml(domain: &str) -> String {
    run(&mut virsh(["dumpxml", "--inactive", domain]))
}

/// The changes that a restore names.
fn changes(said: &Said, of: &str) -> String {
    said.json()[of]["changes"].to_string()
}

/// Rows A5, A13 and "a copy claims nothing": both run at the same time, each with what is its own.
#[test]
fn a_copy_claims_nothing_that_the_original_has() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "claims");
    let bench = Bench::new(&lab, &[&tiny.name]);
    let vm = tiny.name.as_str();
    let socket = |name: &str| format!("/tmp/{vm}-{name}");
    extend(
        &lab,
        &tiny,
        "<genid>aaaaaaaa-2222-3333-4444-555555555555</genid>",
        &format!(
            "<interface type='user'><mac address='52:54:00:11:22:33'/></interface>
             <serial type='unix'><source mode='bind' path='{}'/><log file='{}'/></serial>
             <serial type='tcp'><source mode='bind' host='127.0.0.1' service='45701'/><protocol type='raw'/></serial>
             <channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='a.b'/></channel>
             <graphics type='vnc' port='5977' autoport='no' listen='127.0.0.1'/>",
            socket("serial"),
            lab.path("serial.log").display(),
            socket("channel"),
        ),
    );
    bench.backup(vm, &()).unwrap();
    let pending = lab.path("pending.qcow2");
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&pending)
        .arg("1M"));

    let copy = lab.name("claims-copy");
    let say = ["--json", "restore", vm, "--as", &copy, "--trust-definition"];
    let planned = bench.says(&lab, &[&say[..], &["--dry-run"]].concat());
    let said = bench.says(&lab, &say);
    let named = changes(said.expect(0, &[]), "restore");
    assert_eq!(changes(planned.expect(0, &[]), "plan"), named);
    for change in [
        "serial is a terminal instead of unix",
        "not logged to",
        "port 45701",
        "channel has a socket that libvirt places",
        "the port of its screen (vnc)",
    ] {
        assert!(named.contains(change), "{change} in {named}");
    }
    let (original, copied) = (xml(vm), xml(&copy));
    for claim in [
        "aaaaaaaa-2222",
        "52:54:00:11:22:33",
        &socket("serial"),
        &socket("channel"),
        "serial.log",
        "45701",
        "5977",
    ] {
        assert!(
            original.contains(claim) && !copied.contains(claim),
            "{claim}: {copied}"
        );
    }
    assert!(copied.contains("<genid>"), "{copied}");
    for domain in [vm, &copy] {
        run(&mut virsh(["start", "--paused", domain]));
    }
    for domain in [vm, &copy] {
        run(&mut virsh(["destroy", domain]));
    }

    // The original is deleted, and another domain has its addresses when it comes back: that is said.
    run(&mut virsh(["undefine", vm]));
    let other = Tiny::define(&lab, "claims-other");
    extend(
        &lab,
        &other,
        "",
        "<interface type='user'><mac address='52:54:00:11:22:33'/></interface>",
    );
    let to = lab.path("again");
    let mac = format!(
        "the MAC address 52:54:00:11:22:33 is that of domain {:?}",
        other.name
    );
    bench
        .says(&lab, &["restore", vm, "--to", text(&to), "--trust-definition"])
        .expect(3, &[&mac]);
    assert!(!xml(vm).contains("aaaaaaaa-2222"), "a new generation");
}

/// Row "unsigned restore point": what acts on the host is listed and refused, unless it is signed or told to be trusted.
#[test]
fn what_acts_on_the_host_needs_somebody_who_vouches() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "powers");
    let plain = Tiny::define(&lab, "powers-plain");
    let mut bench = Bench::new(&lab, &[&tiny.name, &plain.name]);
    let vm = tiny.name.as_str();
    let log = lab.path("a.log");
    extend(
        &lab,
        &tiny,
        "",
        &format!("<serial type='file'><source path='{}'/></serial>", log.display()),
    );
    bench.backup(vm, &()).unwrap();
    bench.backup(&plain.name, &()).unwrap();
    run(&mut virsh(["undefine", vm]));
    run(&mut virsh(["undefine", &plain.name]));
    let to = lab.path("to");
    let restore = |bench: &Bench, more: &[&str]| {
        bench.says(&lab, &[&["restore", vm, "--to", text(&to)], more].concat())
    };
    restore(&bench, &[]).expect(
        1,
        &["no trusted key has signed", text(&log), "--trust-definition"],
    );
    assert!(!to.exists(), "nothing is written before");
    let planned = restore(&bench, &["--dry-run"]);
    assert!(planned.expect(0, &[]).out.contains(text(&log)), "{}", planned.out);
    restore(&bench, &["--trust-definition"]).expect(0, &[]);
    run(&mut virsh(["undefine", vm]));
    fs::remove_dir_all(&to).unwrap();
    // What has no such things needs no signature, as ever.
    bench
        .says(&lab, &["restore", &plain.name, "--to", text(&to)])
        .expect(0, &[]);
    fs::remove_dir_all(&to).unwrap();

    // Signed by a key that is trusted, it is taken.
    run(virsh(["define"]).arg(lab.path("extended.xml")));
    with_signing(&lab, &mut bench);
    bench.backup(vm, &()).unwrap();
    run(&mut virsh(["undefine", vm]));
    restore(&bench, &[]).expect(0, &[]);
}

/// Row "host-side state", and what is gone at the restore: said before the work, not found out at the start.
#[test]
fn what_the_host_keeps_comes_back_and_what_is_gone_is_said() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "hoststate");
    let bench = Bench::new(&lab, &[&tiny.name]);
    let vm = tiny.name.as_str();
    let medium = lab.path("install.iso");
    fs::write(&medium, vec![0; MIB]).unwrap();
    let network = lab.name("gone");
    extend(
        &lab,
        &tiny,
        "",
        &format!(
            "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{}'/>
             <target dev='sda' bus='sata'/><readonly/></disk>
             <interface type='network'><source network='{network}'/></interface>",
            medium.display()
        ),
    );
    run(&mut virsh(["autostart", vm]));
    bench.backup(vm, &()).unwrap();
    run(&mut virsh(["undefine", vm]));
    fs::remove_file(&medium).unwrap();

    let to = lab.path("to");
    let say = ["--json", "restore", vm, "--to", text(&to)];
    let planned = bench.says(&lab, &[&say[..], &["--dry-run"]].concat());
    assert!(changes(planned.expect(3, &[]), "plan").contains("the drive is empty"));
    assert!(!to.exists());
    let said = bench.says(&lab, &say);
    let named = changes(said.expect(3, &[]), "restore");
    assert!(
        named.contains(text(&medium)) && named.contains("the drive is empty"),
        "{named}"
    );
    assert!(
        said.json()["warnings"].to_string().contains(&network),
        "{}",
        said.out
    );
    assert!(
        run(&mut virsh(["dominfo", vm]))
            .lines()
            .any(|line| { line.starts_with("Autostart:") && line.ends_with("enable") })
    );
    assert!(!xml(vm).contains("install.iso"));
    // A copy does not start by itself.
    let copy = lab.name("hoststate-copy");
    bench
        .says(&lab, &["restore", vm, "--as", &copy, "--to", text(&to)])
        .expect(3, &[&network]);
    assert!(
        run(&mut virsh(["dominfo", &copy]))
            .lines()
            .any(|line| { line.starts_with("Autostart:") && line.ends_with("disable") })
    );
}

/// Rows A8 and A16.
#[test]
fn modes_and_room_do_not_depend_on_luck() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "room");
    let mut bench = Bench::new(&lab, &[&tiny.name]);
    let vm = tiny.name.as_str();
    tiny.set("vda", &noise(1, 8 * MIB));
    tiny.set("vdb", &noise(2, 4 * MIB));
    bench.backup(vm, &()).unwrap();

    // Together they need 12 MiB and their tables: neither fits nor spoils what has to stay free.
    let storage = Tmpfs::new(lab.path("storage"), 24);
    bench.config.limits.free_mib = 8;
    let copy = lab.name("room-copy");
    let to = ["restore", vm, "--as", &copy, "--to", text(storage.path())];
    let ballast = storage.fill(16);
    bench
        .says(&lab, &to)
        .expect(1, &["are to be written", "8 MiB have to stay free", "--tight"]);
    assert_eq!(names(storage.path()), ["ballast"]);
    bench.says(&lab, &[&to[..], &["--tight"]].concat()).code.unwrap();
    run(Command::new("rm").arg(&ballast));
    let _ = virsh(["undefine", &copy]).output();
    for name in names(storage.path()) {
        fs::remove_file(storage.path().join(name)).unwrap();
    }
    // One of them fits by itself.
    bench
        .says(
            &lab,
            &["restore", vm, "--disk", "vdb", "--to", text(storage.path())],
        )
        .expect(0, &[]);

    // A umask does not keep QEMU out.
    bench.config.limits.free_mib = 0;
    let to = lab.path("masked/deep");
    let mut program = bench.program(&lab);
    program.args(["restore", vm, "--as", &copy, "--to", text(&to)]);
    let mut masked = Command::new("sh");
    masked
        .args(["-c", "umask 077; exec \"$@\"", "sh"])
        .arg(program.get_program());
    masked.args(program.get_args());
    for (name, value) in program.get_envs() {
        if let Some(value) = value {
            masked.env(name, value);
        }
    }
    Said::of(&mut masked).expect(0, &[]);
    for directory in [&to, &to.parent().unwrap().to_owned()] {
        let mode = fs::metadata(directory).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o711, "{}", directory.display());
    }
    run(&mut virsh(["start", "--paused", &copy]));
    run(&mut virsh(["destroy", &copy]));
}

/// A file system without links, and without renames that replace nothing.
struct ExFat {
    place: PathBuf,
    device: String,
}

impl ExFat {
    fn mount(lab: &Lab) -> Self {
        let (image, place) = (lab.path("exfat.img"), lab.path("exfat"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&place).unwrap();
        run(Command::new("mkfs.exfat").arg(&image));
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image));
        let device = device.trim().to_owned();
        let mounted = Self { place, device };
        run(Command::new("mount.exfat-fuse")
            .arg(&mounted.device)
            .arg(&mounted.place));
        mounted
    }
}

impl Drop for ExFat {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.place).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// Row A9.
#[test]
fn storage_without_links_takes_restores() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "exfat");
    let mut bench = Bench::new(&lab, &[&tiny.name]);
    bench.config.limits.free_mib = 0;
    let vm = tiny.name.as_str();
    tiny.set("vdb", &noise(3, 2 * MIB));
    bench.backup(vm, &()).unwrap();
    let hash = sha256_of_raw(&tiny.disk("vdb"), Format::Qcow2);
    let storage = ExFat::mount(&lab);
    for (format, name) in [(Format::Qcow2, "qcow2"), (Format::Raw, "raw")] {
        let file = storage.place.join(format!("vdb.{name}"));
        let to = [
            "restore",
            vm,
            "--disk",
            "vdb",
            "--format",
            name,
            "--to",
            text(&file),
        ];
        bench.says(&lab, &to).expect(0, &[]);
        assert_eq!(sha256_of_raw(&file, format), hash);
        bench.says(&lab, &to).expect(1, &["exists already"]);
        bench
            .says(&lab, &[&to[..], &["--overwrite"]].concat())
            .expect(0, &[]);
        assert_eq!(sha256_of_raw(&file, format), hash);
    }
    assert_eq!(names(&storage.place), ["vdb.qcow2", "vdb.raw"]);
}
