//! Restores that cannot be made whole, repositories with more in them than ours, and what else a restore promises.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::common::running::{Running, Said};
use crate::common::tmpfs::Tmpfs;
use crate::common::{Bench, names};
use strongroom_engine::backup::Report;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::Access;
use strongroom_testkit::{Format, Lab, TestGuest, output_of, run, sha256_of_raw, virsh};

/// A guest with a network card, with two disks besides its swap, and one backup of it.
struct Scene<'a> {
    lab: &'a Lab,
    guest: TestGuest,
    bench: Bench,
    report: Report,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab) -> Self {
        let guest = lab
            .guest()
            .root_mib(160)
            .swap_mib(32)
            .disk(Format::Qcow2, 48)
            .define();
        let card = "<interface type='user'><model type='virtio'/></interface>";
        guest.define(&guest.xml().replace("</devices>", &format!("{card}</devices>")));
        guest.boot();
        let bench = Bench::new(lab, &[guest.name()]);
        guest.probe("pattern start 20");
        guest.probe("write 4");
        guest.sh("dd if=/dev/urandom of=/dev/vdc bs=1M count=40 && sync");
        let report = bench.backup(guest.name(), &()).unwrap();
        Self {
            lab,
            guest,
            bench,
            report,
        }
    }

    fn vm(&self) -> &str {
        self.guest.name()
    }

    fn repository(&self) -> PathBuf {
        self.bench.repository(self.vm())
    }

    fn restore(&self, arguments: &[&str]) -> Said {
        self.bench.says(
            self.lab,
            &[&["restore", self.vm(), "--trust-definition"], arguments].concat(),
        )
    }

    /// A new, empty directory.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.lab.path(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

fn exists(domain: &str) -> bool {
    output_of(&mut virsh(["domuuid", domain])).is_ok()
}

/// The MAC addresses in a domain's definition.
fn macs(xml: &str) -> Vec<&str> {
    xml.lines().filter(|line| line.contains("<mac address")).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_restore_harms_nothing_that_exists_and_leaves_nothing_when_it_fails() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    what_exists_is_refused(&scene);
    a_target_that_is_too_small(&scene);
    ctrl_c(&scene);
    scene.guest.probe("verify");
    a_copy_beside_the_original(&scene);
    over_the_original(&scene);
}

fn what_exists_is_refused(scene: &Scene<'_>) {
    let image = scene.guest.disk("vda");
    scene
        .restore(&[])
        .expect(1, &[text(&image), "exists already", "--to", "--overwrite"]);
    let empty = scene.directory("empty");
    let to = text(&empty);
    scene
        .restore(&["--to", to])
        .expect(1, &[scene.vm(), "exists already", "--as"]);
    scene
        .restore(&["--overwrite"])
        .expect(1, &[scene.vm(), "the domain of that name runs"]);
    scene
        .restore(&["--overwrite", "--to", to])
        .expect(1, &["the domain of that name runs"]);
    let image = text(&image);
    scene
        .restore(&["--overwrite", "--disk", "vda", "--to", image])
        .expect(1, &[image, scene.vm()]);
    scene
        .restore(&["--disk", "vdx", "--to", to])
        .expect(1, &["restore disk vdx", "has vda, vdc, vdb"]);
    assert_eq!(names(&empty), Vec::<String>::new());
}

fn a_target_that_is_too_small(scene: &Scene<'_>) {
    let small = Tmpfs::new(scene.lab.path("small"), 16);
    let copy = scene.lab.name("too-large");
    let to = ["--to", text(small.path())];
    for what in [
        ["--as", &copy, "--format", "qcow2"],
        ["--disk", "vda", "--format", "raw"],
    ] {
        scene
            .restore(&[&what[..], &to].concat())
            .expect(1, &[text(small.path()), "are to be written", "MiB are free"]);
        assert_eq!(names(small.path()), Vec::<String>::new());
    }
    assert!(!exists(&copy));
}

fn ctrl_c(scene: &Scene<'_>) {
    let to = scene.directory("interrupted");
    let copy = scene.lab.name("interrupted");
    for line in ["opening the repository", "writing disks"] {
        let mut program = scene.bench.program(scene.lab);
        program.args(["-v", "restore", scene.vm(), "--as", &copy, "--to", text(&to)]);
        program.arg("--trust-definition");
        let mut running = Running::start(&mut program);
        running.wait_for(line);
        running.interrupt();
        assert_eq!(names(&to), Vec::<String>::new());
        assert!(!exists(&copy));
        scene.bench.archives(scene.vm());
    }
}

fn a_copy_beside_the_original(scene: &Scene<'_>) {
    let name = scene.lab.name("copy");
    let said = scene.restore(&["--as", &name]);
    said.expect(0, &["vdb:", "made anew", "defined as"]);
    scene.restore(&["--as", &name]).expect(1, &["exists already"]);
    let copy = scene.lab.open(&name);
    assert_ne!(copy.uuid(), scene.guest.uuid());
    let (xml, original) = (copy.xml(), scene.guest.xml());
    assert_eq!((macs(&xml).len(), macs(&original).len()), (1, 1));
    assert_ne!(macs(&xml), macs(&original));
    for target in ["vda", "vdb", "vdc"] {
        assert_ne!(copy.disk(target), scene.guest.disk(target));
    }
    // Both run, each on its own disks, and the copy has swap space.
    copy.boot();
    copy.probe("verify");
    assert!(
        copy.sh("swapoff -a; swapon /dev/vdb && cat /proc/swaps")
            .contains("/dev/vdb")
    );
    copy.probe("write 1");
    scene.guest.probe("write 1");
    copy.probe("verify");
    scene.guest.probe("verify");
    copy.destroy();
}

/// The running guest is shut off, and what it did since the backup is gone on request.
fn over_the_original(scene: &Scene<'_>) {
    scene.guest.probe("write 1");
    scene.guest.destroy();
    let uuid = scene.guest.uuid();
    scene.restore(&["--overwrite"]).expect(0, &["defined as", &uuid]);
    assert_eq!(scene.guest.uuid(), uuid);
    for target in ["vda", "vdc"] {
        assert_eq!(
            sha256_of_raw(&scene.guest.disk(target), Format::Qcow2),
            scene
                .bench
                .sha256_of_restored(scene.lab, scene.vm(), &scene.report.archive, target),
            "{target}"
        );
    }
    scene.guest.boot();
    scene.guest.probe("verify");
    // The old checkpoint says nothing about these disks.
    let next = scene.bench.backup(scene.vm(), &()).unwrap();
    let vda = next.manifest.disk("vda").unwrap();
    assert_eq!(vda.parent, None, "{}", vda.reason);
    assert_eq!(scene.bench.at_rest(scene.lab, scene.vm()).len(), 2);
}

#[test]
fn a_damaged_or_crowded_repository() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.guest.probe("pattern stop");
    scene.guest.destroy();
    borg_alone_yields_a_bootable_disk(&scene);
    scene.guest.undefine();
    hostile_and_foreign_archives(&scene);
    damage_is_named_by_disk_and_offset(&scene);
}

/// Neither strongroom nor qemu-img is needed: the file that Borg extracts is the disk.
fn borg_alone_yields_a_bootable_disk(scene: &Scene<'_>) {
    let out = scene.directory("by-hand");
    let archive = format!("{}::{}", scene.repository().display(), scene.report.archive);
    run(scene
        .bench
        .borg
        .command()
        .current_dir(&out)
        .args(["extract", "--sparse", "--umask", "0022", &archive]));
    for file in ["manifest.json", "domain.xml", "disks/vda.raw", "disks/vdc.raw"] {
        assert!(out.join(file).exists(), "{file}");
    }
    assert!(!out.join("disks/vdb.raw").exists(), "swap is not in the archive");
    let name = scene.lab.name("by-hand");
    let image = scene.guest.disk("vda");
    let raw = out.join("disks/vda.raw");
    // Only what the manual says is changed: each disk's source and format; a new name as the old VM is still there.
    let mut xml = fs::read_to_string(out.join("domain.xml")).unwrap();
    let uuid = format!("<uuid>{}</uuid>", scene.guest.uuid());
    xml = xml
        .replace(&uuid, "")
        .replace(
            &format!("<name>{}</name>", scene.vm()),
            &format!("<name>{name}</name>"),
        )
        .replace(text(&image), text(&raw));
    let (head, tail) = xml.split_once("type='qcow2'").unwrap();
    let definition = out.join("by-hand.xml");
    fs::write(&definition, format!("{head}type='raw'{tail}")).unwrap();
    run(virsh(["define"]).arg(&definition));
    let guest = scene.lab.open(&name);
    guest.boot();
    guest.probe("verify");
    guest.destroy();
    guest.undefine();
    fs::remove_dir_all(out).unwrap();
}

fn hostile_and_foreign_archives(scene: &Scene<'_>) {
    let files = scene.directory("foreign");
    fs::write(files.join("notes"), "somebody's\n").unwrap();
    fs::create_dir(files.join("odd")).unwrap();
    let no_text = OsStr::from_bytes(b"\xff\xfe\x1b[31m");
    fs::write(files.join("odd").join(no_text), "not UTF-8\n").unwrap();
    let create = |name: &str, file: &str| {
        let place = format!("{}::{name}", scene.repository().display());
        let mut borg = scene.bench.borg.command();
        run(borg.current_dir(&files).args(["create", &place, file]));
    };
    create("plain", "notes");
    create("evil\x1b[31m\x07", "notes");
    create("evil\u{202e}gpj", "notes");
    create("no-text", "odd");

    let list = || scene.bench.says(scene.lab, &["-v", "list", scene.vm()]);
    let said = list();
    said.expect(
        0,
        &["archive plain was not made by strongroom", r"evil\u{1b}[31m"],
    );
    assert!(said.out.contains(&scene.report.archive), "{}", said.out);
    assert_eq!(said.out.lines().count(), 2, "a heading and ours: {}", said.out);
    for point in ["latest", &scene.report.archive] {
        let point = format!("{}@{point}", scene.vm());
        let said = scene.bench.says(scene.lab, &["show", &point]);
        assert!(said.expect(0, &[]).out.contains(&scene.report.archive));
    }
    scene
        .bench
        .says(scene.lab, &["show", &format!("{}@plain", scene.vm())])
        .expect(1, &["archive plain", "strongroom did not make it"]);

    // Manifests that are none, from a future version, or of an attacker who wants to write elsewhere.
    let manifest = serde_json::to_string(&scene.report.manifest).unwrap();
    let forged = [
        (
            "broken",
            "{\"format\":1,\u{1b}".to_owned(),
            "understand manifest.json",
        ),
        (
            "newer",
            manifest.replace("\"format\":1,", "\"format\":99,"),
            "its format is 99",
        ),
        (
            "elsewhere",
            manifest.replace("\"target\":\"vdc\"", "\"target\":\"../../etc\""),
            "not a disk's target name",
        ),
    ];
    for (name, content, why) in &forged {
        fs::write(files.join("manifest.json"), content).unwrap();
        create(name, "manifest.json");
        let said = scene
            .bench
            .says(scene.lab, &["show", &format!("{}@{name}", scene.vm())]);
        said.expect(1, &[name, why]);
    }
    let said = list();
    said.expect(3, &["archive broken", "archive newer", "archive elsewhere"]);
    let unreadable = said
        .out
        .lines()
        .filter(|line| line.contains("unreadable"))
        .count();
    assert_eq!((said.out.lines().count(), unreadable), (5, 3), "{}", said.out);
    let shown = scene.bench.says(scene.lab, &["--json", "list", scene.vm()]);
    let document = shown.expect(3, &[]).json();
    let points = document["restore_points"].as_array().unwrap();
    let count = |key: &str| points.iter().filter(|point| point.get(key).is_some()).count();
    assert_eq!((count("manifest"), count("error")), (1, 3), "{document}");

    // One that is whole, but says things that a terminal would obey.
    let named = manifest.replace("first backup", "first\\u001b[2J\\u0007 backup");
    fs::write(files.join("manifest.json"), named).unwrap();
    create("speaks", "manifest.json");
    let said = scene
        .bench
        .says(scene.lab, &["show", &format!("{}@speaks", scene.vm())]);
    assert!(
        said.expect(3, &["fork", "speaks"])
            .out
            .contains(r"first\u{1b}[2J"),
        "{}",
        said.out
    );
    for name in ["broken", "newer", "elsewhere", "speaks"] {
        let place = format!("{}::{name}", scene.repository().display());
        scene.bench.borg.run(["delete", &place]);
    }
    // With the foreign ones still there, the newest of ours is what comes back.
    let to = scene.directory("beside-foreign");
    let said = scene.restore(&["--disk", "vda", "--to", text(&to.join("vda.qcow2"))]);
    said.expect(0, &[&scene.report.archive]);
    fs::remove_dir_all(to).unwrap();
}

/// Where in the repository's segment files an object lies: file, offset of its entry, bytes of the entry.
fn find_object(repository: &Path, id: &[u8]) -> (PathBuf, usize, usize) {
    for name in names(&repository.join("data/0")) {
        let file = repository.join("data/0").join(name);
        let bytes = fs::read(&file).unwrap();
        // CRC (4), size (4), tag 0 = PUT (1), id (32), data: Borg's internals, section on segments.
        let mut found = bytes.windows(32).enumerate().filter(|(_, window)| *window == id);
        if let Some(entry) = found.find_map(|(at, _)| at.checked_sub(9)) {
            let size = u32::from_le_bytes(bytes[entry + 4..entry + 8].try_into().unwrap());
            return (file, entry, size as usize);
        }
    }
    panic!("the object is in no segment");
}

fn damage_is_named_by_disk_and_offset(scene: &Scene<'_>) {
    // The third chunk of vdc.
    let (index, offset) = (2, 8 << 20);
    let location = scene.repository().display().to_string();
    let mut repository = scene.bench.repositories.open(&location, Access::Read).unwrap();
    let name = scene.report.archive.as_str();
    let info = repository.archives().find(|info| info.name == *name);
    let info = info.cloned().unwrap();
    let point = RestorePoint::read(&mut repository, &info).unwrap();
    let chunk = point.chunks("vdc").unwrap()[index];
    repository.close().unwrap();
    let (file, entry, size) = find_object(&scene.repository(), &chunk.id.0);
    let whole = fs::read(&file).unwrap();

    for repaired_crc in [false, true] {
        let mut bytes = whole.clone();
        bytes[entry + 5000] ^= 0x20;
        if repaired_crc {
            // Now only the client can notice: the entry's checksum is right, the object's authentication is not.
            let crc = crc32fast::hash(&bytes[entry + 4..entry + size]);
            bytes[entry..entry + 4].copy_from_slice(&crc.to_le_bytes());
        }
        let segment = fs::OpenOptions::new().write(true).open(&file).unwrap();
        segment.write_all_at(&bytes, 0).unwrap();
        drop(segment);
        restore_what_is_whole(scene, offset);
    }
    fs::write(&file, whole).unwrap();
    let to = scene.directory("whole-again");
    let copy = scene.lab.name("whole-again");
    scene
        .restore(&["--as", &copy, "--to", text(&to)])
        .expect(0, &["defined as"]);
}

fn restore_what_is_whole(scene: &Scene<'_>, offset: u64) {
    let to = scene.directory("damaged");
    let copy = scene.lab.name("damaged");
    let named = format!("damaged at offset {offset} ({} bytes)", 4 << 20);
    scene
        .restore(&["--as", &copy, "--to", text(&to)])
        .expect(1, &["restore disk vdc", &named, "hint: --keep-going"]);
    assert_eq!(names(&to), Vec::<String>::new());
    assert!(!exists(&copy));

    scene
        .restore(&["--as", &copy, "--to", text(&to), "--keep-going"])
        .expect(
            1,
            &[
                "disk vdc",
                &named,
                "the other disks are restored, the domain is not defined",
            ],
        );
    let kept = names(&to);
    assert_eq!(kept, [format!("{copy}-vda.qcow2"), format!("{copy}-vdb.qcow2")]);
    assert!(!exists(&copy));
    let alone = to.join("alone.qcow2");
    scene
        .restore(&["--disk", "vda", "--to", text(&alone)])
        .expect(0, &[]);
    assert_eq!(
        sha256_of_raw(&alone, Format::Qcow2),
        sha256_of_raw(&to.join(&kept[0]), Format::Qcow2)
    );
    fs::remove_dir_all(to).unwrap();
}
