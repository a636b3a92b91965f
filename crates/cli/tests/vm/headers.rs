//! LUKS headers are kept apart from the restore points, so that a revoked passphrase stops opening old ones.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::checks::request;
use crate::common::tiny::{MIB, noise, with_signing};
use crate::common::{Bench, Hook, luks};
use strongroom_engine::config::{LuksHeaders, Vm};
use strongroom_engine::restore::{self, ImageFormat};
use strongroom_points::manifest::{DiskRecord, Mode};
use strongroom_testkit::{Lab, TestGuest, run};

/// Where the volume begins on its disk, and its header area: neither ends on the grid of chunks.
const START: usize = MIB;
const HEADER: usize = 16 * MIB;
/// The disk and the volume in its only partition.
const DISK: usize = 40 * MIB;
const VOLUME: usize = 38 * MIB;

/// A disk with a LUKS2 volume in a partition, as cryptsetup makes it unless told otherwise, and its two passphrases.
struct Disk {
    directory: PathBuf,
    old: PathBuf,
    new: PathBuf,
    /// What the disk holds at first.
    content: Vec<u8>,
}

impl Disk {
    fn new(lab: &Lab) -> Self {
        let directory = lab.path("volume");
        fs::create_dir(&directory).unwrap();
        let [old, new] = ["old", "new"].map(|name| luks::key(&directory, name));
        let volume = directory.join("volume");
        fs::write(&volume, noise(1, VOLUME)).unwrap();
        luks::format(&volume, &old, &["--type", "luks2"]);
        let raw = directory.join("raw");
        fs::write(&raw, vec![0; DISK]).unwrap();
        let line = format!(
            "printf 'label: gpt\\nstart=2048,size={}\\n' | sfdisk -q {}",
            VOLUME / 512,
            raw.display()
        );
        run(Command::new("bash").args(["-o", "pipefail", "-c", &line]));
        let mut content = fs::read(&raw).unwrap();
        content[START..START + VOLUME].copy_from_slice(&fs::read(&volume).unwrap());
        Self {
            directory,
            old,
            new,
            content,
        }
    }

    /// The header area with the passphrase changed.
    fn changed_header(&self) -> Vec<u8> {
        let volume = self.directory.join("volume");
        luks::change_key(&volume, &self.old, &self.new);
        let mut bytes = fs::read(&volume).unwrap();
        assert!(bytes[HEADER..] == self.content[START + HEADER..START + VOLUME]);
        bytes.truncate(HEADER);
        bytes
    }

    /// Which of the two passphrases open the volume on such a disk.
    fn opened_by(&self, content: &[u8]) -> (bool, bool) {
        let volume = self.directory.join("restored");
        fs::write(&volume, &content[START..START + VOLUME]).unwrap();
        (luks::opens(&volume, &self.old), luks::opens(&volume, &self.new))
    }
}

fn convert(content: &[u8], image: &Path) {
    let raw = image.with_extension("content");
    fs::write(&raw, content).unwrap();
    run(Command::new("qemu-img")
        .args(["convert", "-n", "-f", "raw", "-O", "qcow2"])
        .arg(&raw)
        .arg(image));
    fs::remove_file(raw).unwrap();
}

/// A running guest whose `vdc` is the disk, and `vdd` the changed header; with a key that signs.
fn running(lab: &Lab, disk: &Disk) -> (TestGuest, Bench) {
    let qcow2 = strongroom_testkit::Format::Qcow2;
    let guest = lab
        .guest()
        .root_mib(128)
        .swap_mib(16)
        .disk(qcow2, (DISK / MIB) as u64)
        .disk(qcow2, (HEADER / MIB) as u64)
        .define();
    convert(&disk.content, &guest.disk(TARGET));
    convert(&disk.changed_header(), &guest.disk(SPARE));
    guest.boot();
    let mut bench = Bench::new(lab, &[guest.name()]);
    with_signing(lab, &mut bench);
    (guest, bench)
}

/// The extra disks' names, in the guest as well: it has a root and a swap disk before them.
const TARGET: &str = "vdc";
const SPARE: &str = "vdd";

fn restored(bench: &Bench, lab: &Lab, vm: &str, archive: &str, own: bool) -> Result<Vec<u8>, String> {
    let file = lab.path("restored.raw");
    let _ = fs::remove_file(&file);
    let request = restore::Request {
        disks: vec![TARGET.into()],
        to: Some(file.clone()),
        format: ImageFormat::Raw,
        own_headers: own,
        tight: false,
        trust_definition: true,
        ..request(vm, archive)
    };
    restore::run(&bench.context(&()), &request).map_err(|error| error.to_string())?;
    Ok(fs::read(file).unwrap())
}

fn record(report: &strongroom_engine::backup::Report) -> &DiskRecord {
    report.manifest.disk(TARGET).unwrap()
}

/// Every byte of so many restore points is good.
#[track_caller]
fn verifies(bench: &Bench, lab: &Lab, points: usize) {
    let said = bench.says(lab, &["verify", "--all", "--data"]);
    said.expect(0, &[]);
    assert!(
        said.out.contains(&format!("ok ({points} restore points")),
        "{}",
        said.out
    );
}

/// Everything but the header area.
fn same_data(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one[..START] == other[..START]
        && one[START + HEADER..] == other[START + HEADER..]
}

#[test]
fn a_revoked_passphrase_opens_no_old_restore_point() {
    let lab = Lab::new();
    let disk = Disk::new(&lab);
    let (guest, bench) = running(&lab, &disk);
    let vm = guest.name();
    let backup = || bench.backup(vm, &()).unwrap();
    let [first, second, third] = [
        backup(),
        {
            // The passphrase is changed: nothing but the header.
            guest.sh("dd if=/dev/vdd of=/dev/vdc bs=1M seek=1 count=16 && sync");
            backup()
        },
        {
            // And then the data that follows at once: the rest of a cell whose beginning is the header.
            guest.sh("dd if=/dev/vda of=/dev/vdc bs=4096 seek=4352 count=1 && sync");
            backup()
        },
    ];
    let header = record(&first).luks[0].header.as_ref().unwrap();
    assert_eq!(header.length, HEADER as u64);
    assert_eq!(
        record(&second).mode,
        Mode::Incremental,
        "{}",
        record(&second).reason
    );
    assert_eq!(
        record(&second).digest,
        record(&first).digest,
        "only its header has changed"
    );
    assert_eq!(record(&second).bytes_read, HEADER as u64);
    assert_ne!(
        record(&second).luks[0].header.as_ref().unwrap().sha256,
        header.sha256
    );
    let read = record(&third).bytes_read - HEADER as u64;
    assert!(
        read <= 3 * MIB as u64,
        "the header is not a part of the cell: {read}"
    );
    assert!(
        record(&third).bytes_stored < 4 * MIB as u64,
        "headers are stored once"
    );

    // What the restore points hold themselves is zero where the headers were.
    let by_stock = lab.path("by-stock");
    fs::create_dir(&by_stock).unwrap();
    let at = |archive: &str| format!("{}::{archive}", bench.repository(vm).display());
    run(bench
        .borg
        .command()
        .args(["extract", &at(&first.archive), &format!("disks/{TARGET}.raw")])
        .current_dir(&by_stock));
    let bare = fs::read(by_stock.join(format!("disks/{TARGET}.raw"))).unwrap();
    assert!(same_data(&bare, &disk.content));
    assert!(bare[START..START + HEADER].iter().all(|byte| *byte == 0));
    assert_eq!(disk.opened_by(&bare), (false, false));

    // By hand, exactly as the documentation says.
    let page = include_str!("../../../../docs/reference/formats/headers.md");
    let (_, rest) = page.split_once("```sh\n# put a header back by hand\n").unwrap();
    let (script, _) = rest.split_once("```").unwrap();
    run(Command::new("sh")
        .args(["-euc", script])
        .current_dir(&by_stock)
        .envs(bench.borg.environment())
        .env("ARCHIVE", at(&first.archive))
        .env("HEADERS", at(&format!("{}.headers", first.archive)))
        .env("DISK", TARGET)
        .env("OFFSET", START.to_string()));
    let by_hand = fs::read(by_stock.join(format!("disks/{TARGET}.raw"))).unwrap();
    assert!(by_hand == disk.content, "byte for byte what it was");

    // A restore takes the newest header, unless it is told otherwise.
    for archive in [&first.archive, &second.archive] {
        let content = restored(&bench, &lab, vm, archive, false).unwrap();
        assert!(same_data(&content, &disk.content));
        assert_eq!(disk.opened_by(&content), (false, true));
    }
    let content = restored(&bench, &lab, vm, &first.archive, true).unwrap();
    assert!(content == disk.content);
    assert_eq!(disk.opened_by(&content), (true, false));

    // Brought back onto an image: the header that the image has is no part of what is compared, and the newest takes its place.
    let image = lab.path("image.raw");
    for changed in [None, Some(START + HEADER + MIB), Some(START + MIB)] {
        let mut content = content.clone();
        if let Some(at) = changed {
            content[at] ^= 1;
        }
        fs::write(&image, &content).unwrap();
        let path = image.to_str().unwrap();
        let onto = ["--disk", TARGET, "--format", "raw", "--onto", path];
        let point = format!("{vm}@{}", first.archive);
        let say = [&["--json", "restore", &point][..], &onto].concat();
        let written =
            || bench.says(&lab, &say).expect(0, &[]).json()["restore"]["disks"][0]["bytes_written"].clone();
        assert_ne!(written(), 0);
        let content = fs::read(&image).unwrap();
        assert!(same_data(&content, &disk.content), "{changed:?}");
        assert_eq!(disk.opened_by(&content), (false, true), "{changed:?}");
        assert_eq!(written(), 0, "nothing differs any more");
    }

    // The old header goes the documented way; then nothing brings it back, and all restore points stay whole.
    let says = |arguments: &[&str]| bench.says(&lab, arguments);
    verifies(&bench, &lab, 3);
    let repository = bench.repository(vm).display().to_string();
    let glob = format!("{vm}-*.headers");
    bench
        .borg
        .run(["prune", "--glob-archives", &glob, "--keep-last", "1", &repository]);
    bench.borg.run(["compact", "--threshold", "0", &repository]);
    bench.borg.run(["check", "--verify-data", &repository]);
    verifies(&bench, &lab, 3);
    let content = restored(&bench, &lab, vm, &first.archive, false).unwrap();
    assert!(same_data(&content, &disk.content));
    assert_eq!(disk.opened_by(&content), (false, true));
    let none = restored(&bench, &lab, vm, &first.archive, true).unwrap_err();
    assert!(none.contains("no header opens LUKS volume"), "{none}");

    // Without any header the data could not be opened: that is a failure, and the next backup mends it.
    bench.borg.run(["delete", "--glob-archives", &glob, &repository]);
    says(&["verify", "--all"]).expect(1, &["no header that is there opens LUKS volume"]);
    says(&["restore", vm, "--disk", TARGET, "--to", "/nowhere/x"]).expect(1, &["no header opens"]);
    backup();
    verifies(&bench, &lab, 4);
    let content = restored(&bench, &lab, vm, &first.archive, false).unwrap();
    assert_eq!(disk.opened_by(&content), (false, true));
}

#[test]
fn headers_stay_inside_if_that_is_wanted_and_come_out_again() {
    let lab = Lab::new();
    let disk = Disk::new(&lab);
    let (guest, mut bench) = running(&lab, &disk);
    let vm = guest.name().to_owned();
    let set = |bench: &mut Bench, luks_headers| {
        let settings = Vm {
            luks_headers,
            ..Vm::default()
        };
        bench.config.vm.insert(vm.clone(), settings);
    };
    let mut archives = Vec::new();
    for (headers, apart) in [
        (LuksHeaders::Inside, false),
        (LuksHeaders::Apart, true),
        (LuksHeaders::Apart, true),
        (LuksHeaders::Inside, false),
    ] {
        set(&mut bench, headers);
        let report = bench.backup(&vm, &()).unwrap();
        assert_eq!(record(&report).luks[0].header.is_some(), apart);
        assert_eq!(report.manifest.headers.is_some(), apart);
        assert_eq!(report.manifest.format, if apart { 2 } else { 1 });
        archives.push(report.archive);
    }
    for archive in &archives {
        let content = restored(&bench, &lab, &vm, archive, false).unwrap();
        assert!(content == disk.content, "{archive}");
    }
    verifies(&bench, &lab, 4);

    // A guest that loses its header is told of while older ones are still there.
    set(&mut bench, LuksHeaders::Apart);
    bench.backup(&vm, &()).unwrap();
    guest.sh("dd if=/dev/zero of=/dev/vdc bs=1M seek=1 count=16 && sync");
    let hook = Hook::new(|_| {});
    bench.backup(&vm, &hook).unwrap();
    let warnings = hook.warnings.lock().unwrap().join("\n");
    assert!(warnings.contains("has lost its header"), "{warnings}");
}
