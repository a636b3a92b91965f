//! `audit` and `adopt`: each finding is provoked once, on images made with the real cryptsetup, mkswap and sfdisk; a VM
//! without faults has none.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use strongroom_engine::config::{Config, Vm};
use strongroom_hypervisor::{Hypervisor as _, RunState};
use strongroom_testkit::{Lab, run, virsh};

use crate::common::Bench;
use crate::common::running::Said;
use crate::common::tiny::{MIB, noise, with_signing};

/// Where cryptsetup puts the data of a LUKS2 volume, in MiB.
const DATA: usize = 16;
/// Size of the disks in MiB.
const SIZE: usize = 24;
/// What a passphrase should cost.
const STRONG: [&str; 8] = [
    "--pbkdf",
    "argon2id",
    "--pbkdf-force-iterations",
    "4",
    "--pbkdf-memory",
    "65536",
    "--pbkdf-parallel",
    "1",
];
/// What is told from this in no time.
const QUICK: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// Runs a command with something on its standard input.
fn feed(command: &mut Command, input: &[u8]) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?}");
}

/// A raw image under construction.
struct Raw(PathBuf);

impl Raw {
    fn new(lab: &Lab, name: &str, mib: usize) -> Self {
        let path = lab.path(&format!("{name}.raw"));
        File::create(&path).unwrap().set_len((mib * MIB) as u64).unwrap();
        Self(path)
    }

    /// A LUKS2 volume with a key of its own and nothing in it.
    fn luks(lab: &Lab, name: &str, kdf: &[&str]) -> Self {
        let raw = Self::new(lab, name, SIZE);
        raw.cryptsetup(
            &[&["luksFormat", "-q", "--type", "luks2"], kdf].concat(),
            b"secret",
        );
        raw
    }

    /// The same, full of what looks like data under that key.
    fn encrypted(lab: &Lab, name: &str, kdf: &[&str], key: u64) -> Self {
        let raw = Self::luks(lab, name, kdf);
        raw.write(DATA, &noise(key, 4 * MIB));
        raw
    }

    fn cryptsetup(&self, arguments: &[&str], passphrase: &[u8]) {
        let mut command = Command::new("cryptsetup");
        command.args(arguments).args(["--key-file", "-"]).arg(&self.0);
        feed(&mut command, passphrase);
    }

    /// A token that opens slot 0.
    fn token(&self, token: &Value) {
        let mut command = Command::new("cryptsetup");
        command.args(["token", "import"]).arg(&self.0);
        feed(&mut command, token.to_string().as_bytes());
    }

    fn write(&self, mib: usize, content: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.0).unwrap();
        file.write_all_at(content, (mib * MIB) as u64).unwrap();
    }

    fn mkswap(self) -> Self {
        run(Command::new("/sbin/mkswap").arg("-q").arg(&self.0));
        self
    }

    fn sfdisk(&self, script: &str) {
        let mut command = Command::new("sfdisk");
        command
            .args(["-q", "--no-reread", "--no-tell-kernel"])
            .arg(&self.0);
        feed(&mut command, script.as_bytes());
    }

    fn qcow2(self) -> PathBuf {
        let path = self.0.with_extension("qcow2");
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&self.0, &path]));
        fs::remove_file(&self.0).unwrap();
        path
    }
}

/// Clear text of a file system.
fn text(length: usize) -> Vec<u8> {
    b"root:x:0:0:root:/root:/bin/bash\n".repeat(length / 32)
}

/// A Clevis token, as `clevis luks bind` leaves it.
fn clevis(pin: &Value) -> Value {
    let header = json!({"alg": "dir", "clevis": pin, "enc": "A256GCM"}).to_string();
    let protected = run(Command::new("sh")
        .args([
            "-c",
            "printf %s \"$1\" | base64 -w0 | tr '+/' '-_' | tr -d =",
            "sh",
        ])
        .arg(header));
    json!({"type": "clevis", "keyslots": ["0"], "jwe": {"protected": protected, "ciphertext": "c"}})
}

/// VMs with disks, and a configuration that knows them, except those that are called so.
struct Scene {
    lab: Lab,
    bench: Bench,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let mut bench = Bench::new(&lab, &[]);
        with_signing(&lab, &mut bench);
        Self { lab, bench }
    }

    /// Defines a domain with these disks: image, and more of its definition.
    fn define(&self, suffix: &str, disks: &[(PathBuf, &str)]) -> String {
        let name = self.lab.name(suffix);
        let mut devices = String::new();
        for ((image, more), letter) in disks.iter().zip('a'..) {
            let discard = if more.contains("keep") { "ignore" } else { "unmap" };
            let serial = if more.contains("swap") {
                "<serial>swap</serial>"
            } else {
                ""
            };
            let _ = write!(
                devices,
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='{discard}'/>
                 <source file='{}'/><target dev='vd{letter}' bus='virtio'/>{serial}</disk>",
                image.display()
            );
        }
        let balloon = match suffix {
            "balloon" => "<memballoon model='virtio'/>",
            _ => "<memballoon model='none'/>",
        };
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
             <os><type arch='x86_64' machine='q35'>hvm</type></os>
             <devices>{devices}<controller type='usb' model='none'/>{balloon}</devices></domain>"
        );
        let file = self.lab.path(&format!("{suffix}.xml"));
        fs::write(&file, xml).unwrap();
        run(virsh(["define"]).arg(&file));
        name
    }

    /// The same, and the configuration knows it.
    fn add(&mut self, suffix: &str, disks: &[(PathBuf, &str)]) -> String {
        let name = self.define(suffix, disks);
        self.bench.config.vm.insert(name.clone(), Vm::default());
        name
    }

    fn audit(&self, arguments: &[&str]) -> Said {
        Said::of(
            self.bench
                .program(&self.lab)
                .args(["--json", "audit"])
                .args(arguments),
        )
    }

    /// What is found about a VM beyond notes; that it was never backed up does not count.
    #[track_caller]
    fn faults(&self, vm: &str) -> BTreeSet<String> {
        let said = self.audit(&[vm]);
        said.expect(3, &[]);
        codes(&said.json(), vm, |level| level != "note")
            .into_iter()
            .filter(|code| code != "no-backup")
            .collect()
    }

    /// Makes sure that exactly this is found about a VM.
    #[track_caller]
    fn expect(&self, vm: &str, faults: &[&str]) {
        let wanted: BTreeSet<String> = faults.iter().map(|code| (*code).to_owned()).collect();
        assert_eq!(self.faults(vm), wanted, "{vm}");
    }
}

/// Codes of a VM's findings of some levels.
#[track_caller]
fn codes(document: &Value, vm: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let vms = document["audit"]["vms"].as_array().unwrap();
    let found = vms.iter().find(|found| found["vm"] == vm).unwrap();
    let findings = found["findings"].as_array().unwrap();
    findings
        .iter()
        .filter(|finding| wanted(finding["level"].as_str().unwrap()))
        .map(|finding| finding["code"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_vm_without_faults_has_no_findings() {
    let mut scene = Scene::new();
    let lab = &scene.lab;
    // A disk as installers make it: a boot partition in clear text, the rest encrypted.
    let inside = Raw::encrypted(lab, "inside", &STRONG, 1);
    inside.token(&clevis(
        &json!({"pin": "tang", "tang": {"url": "http://tang.example:7500"}}),
    ));
    feed(
        Command::new("cryptsetup")
            .args(["luksAddKey", "-q", "--key-slot", "3", "--key-file", "-"])
            .args(STRONG)
            .arg(&inside.0)
            .arg("/proc/self/exe"),
        b"secret",
    );
    let disk = Raw::new(lab, "clean", SIZE + 8);
    disk.sfdisk(
        "label: gpt\nstart=2048, size=8192, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nstart=10240\n",
    );
    disk.write(1, &text(MIB));
    disk.write(5, &fs::read(&inside.0).unwrap());
    let swap = Raw::new(lab, "swap", 4);
    swap.write(0, &noise(9, MIB));
    let disks = [(disk.qcow2(), ""), (swap.qcow2(), "swap")];
    let name = scene.define("clean", &disks);
    scene.bench.add_vm(&name);
    scene.bench.backup(&name, &()).unwrap();

    let said = scene.audit(&[&name]);
    let document = said.expect(0, &[]).json();
    assert_eq!(codes(&document, &name, |level| level != "note"), BTreeSet::new());
    let notes = codes(&document, &name, |level| level == "note");
    let wanted = ["clear-boot", "luks-discard", "memory", "unlock"].map(str::to_owned);
    assert_eq!(notes, wanted.into(), "{document}");
    let volume = &document["audit"]["vms"][0]["volumes"][0];
    assert_eq!(
        (&volume["disk"], &volume["partition"]),
        (&json!("vda"), &json!(2))
    );
    assert_eq!(volume["ciphers"], json!(["aes-xts-plain64"]));
    assert_eq!(
        volume["slots"][0]["opened_by"],
        json!(["clevis: tang http://tang.example:7500"])
    );
    assert_eq!(
        (&volume["slots"][1]["slot"], &volume["slots"][1]["kdf"]),
        (&json!(3), &json!("argon2id, 64 MiB, time 4, 1 lanes"))
    );
    // In words, for people.
    let said = scene.bench.says(&scene.lab, &["audit", &name]);
    said.expect(0, &[]);
    assert!(
        said.out
            .contains("tang http://tang.example:7500, 1 passphrase slots"),
        "{}",
        said.out
    );
    assert!(
        said.out.ends_with(&format!("{name}: nothing unsafe\n")),
        "{}",
        said.out
    );

    // The same without what protects it.
    let old = scene.audit(&["--max-age", "0", &name]).expect(3, &[]).json();
    assert_eq!(
        codes(&old, &name, |level| level != "note"),
        ["old-backup".to_owned()].into()
    );
    let signing = scene.bench.config.signing.take();
    scene.expect(&name, &["unsigned"]);
    scene.bench.config.signing = signing;
    let vm = scene.bench.config.vm.remove(&name).unwrap();
    scene.expect(&name, &["unprotected"]);
    scene.bench.config.vm.insert(name, vm);
}

#[test]
fn each_fault_of_a_disk_is_found() {
    let mut scene = Scene::new();
    let lab = Lab::new();
    let mut key = 100;
    let mut good = |name: &str, kdf: &[&str]| {
        key += 1;
        Raw::encrypted(&lab, name, kdf, key)
    };

    let plain = Raw::new(&lab, "plain", SIZE);
    plain.write(0, &text(MIB));
    let vm = scene.add("plain", &[(plain.qcow2(), "")]);
    scene.expect(&vm, &["not-encrypted"]);

    // A header alone protects nothing.
    let fake = Raw::luks(&lab, "fake", &STRONG);
    fake.write(DATA, &text(MIB));
    let vm = scene.add("fake", &[(fake.qcow2(), "")]);
    scene.expect(&vm, &["clear-text"]);

    let beside = Raw::new(&lab, "beside", 4096);
    beside.sfdisk("label: gpt\nstart=2048, size=49152\nstart=51200\n");
    beside.write(1, &fs::read(good("inside", &STRONG).0).unwrap());
    beside.write(25, &text(MIB));
    let vm = scene.add("beside", &[(beside.qcow2(), "")]);
    scene.expect(&vm, &["clear-partition"]);

    let weak = [
        "--pbkdf",
        "argon2id",
        "--pbkdf-force-iterations",
        "4",
        "--pbkdf-memory",
        "1024",
    ];
    for (name, kdf) in [("pbkdf2", &QUICK[..]), ("argon2", &weak)] {
        let disk = good(name, kdf);
        let vm = scene.add(name, &[(disk.qcow2(), "")]);
        scene.expect(&vm, &["weak-kdf"]);
    }

    // A random secret need not be costly to guess.
    let bound = good("bound", &QUICK);
    let tang = |url: &str| {
        let token = clevis(&json!({"pin": "tang", "tang": {"url": url}}));
        format!("{}..i.c.t", token["jwe"]["protected"].as_str().unwrap())
    };
    let shares = json!({"t": 2, "jwe": [tang("http://a"), tang("http://b")]});
    bound.token(&clevis(&json!({"pin": "sss", "sss": shares})));
    let vm = scene.add("bound", &[(bound.qcow2(), "")]);
    scene.expect(&vm, &[]);
    let document = scene.audit(&[&vm]).json();
    let opened = &document["audit"]["vms"][0]["volumes"][0]["slots"][0]["opened_by"][0];
    assert_eq!(opened, "clevis: 2 of 2 (tang http://a; tang http://b)");

    let host = good("host", &QUICK);
    host.token(&clevis(&json!({"pin": "tpm2", "tpm2": {"pcr_ids": "7"}})));
    let vm = scene.add("host", &[(host.qcow2(), "")]);
    scene.expect(&vm, &["host-unlock"]);

    let begun = good("begun", &STRONG);
    begun.cryptsetup(&["reencrypt", "--init-only"], b"secret");
    let vm = scene.add("begun", &[(begun.qcow2(), "")]);
    scene.expect(&vm, &["reencryption"]);

    let vm = scene.add("keep", &[(good("keep", &STRONG).qcow2(), "keep")]);
    scene.expect(&vm, &["no-discard"]);

    let vm = scene.add("balloon", &[(good("balloon", &STRONG).qcow2(), "")]);
    scene.expect(&vm, &[]);
    let document = scene.audit(&[&vm]).json();
    assert!(codes(&document, &vm, |level| level == "note").contains("extras"));
    assert!(document["audit"].to_string().contains("balloon"), "{document}");

    // Without a header nothing can be said, which is said.
    let bare = Raw::new(&lab, "bare", SIZE);
    bare.write(0, &noise(7, MIB));
    let vm = scene.add("bare", &[(bare.qcow2(), "")]);
    scene.expect(&vm, &[]);
    assert!(codes(&scene.audit(&[&vm]).json(), &vm, |level| level == "note").contains("no-header"));

    let torn = Raw::new(&lab, "torn", SIZE);
    torn.sfdisk("label: gpt\nstart=2048\n");
    let file = OpenOptions::new().write(true).open(&torn.0).unwrap();
    for header in [512, (SIZE * MIB - 512) as u64] {
        file.write_all_at(&[0xff; 4], header + 16).unwrap();
    }
    let vm = scene.add("torn", &[(torn.qcow2(), "")]);
    scene.expect(&vm, &["damaged-table", "not-encrypted"]);
}

#[test]
fn each_fault_of_swap_is_found() {
    let mut scene = Scene::new();
    let lab = Lab::new();
    let vm = scene.add(
        "signature",
        &[(Raw::new(&lab, "signature", 4).mkswap().qcow2(), "swap")],
    );
    scene.expect(&vm, &["swap-clear"]);

    // The signature was wiped, what was swapped out was not.
    let wiped = Raw::new(&lab, "wiped", 4);
    wiped.write(2, &text(MIB));
    let vm = scene.add("wiped", &[(wiped.qcow2(), "swap")]);
    scene.expect(&vm, &["swap-clear"]);

    let vm = scene.add("unnamed", &[(Raw::new(&lab, "unnamed", 4).mkswap().qcow2(), "")]);
    scene.expect(&vm, &["swap-clear", "swap-not-named"]);
    scene.bench.config.vm.get_mut(&vm).unwrap().swap = vec!["vda".into()];
    scene.expect(&vm, &["swap-clear"]);

    // Encrypted, but on the disk that is backed up.
    let shared = Raw::new(&lab, "shared", SIZE + 8);
    shared.sfdisk("label: gpt\nstart=2048, size=4096, type=S\nstart=8192\n");
    shared.write(1, &noise(5, MIB));
    shared.write(
        4,
        &fs::read(Raw::encrypted(&lab, "beside", &STRONG, 6).0).unwrap(),
    );
    let vm = scene.add("shared", &[(shared.qcow2(), "")]);
    scene.expect(&vm, &["swap-shared-disk"]);
}

#[test]
fn clones_are_found_among_all_vms() {
    let mut scene = Scene::new();
    let lab = Lab::new();
    let key = lab.path("volume.key");
    fs::write(&key, noise(1, 64)).unwrap();
    let with_key = |name: &str, seed| {
        let raw = Raw::new(&lab, name, SIZE);
        let key = key.display().to_string();
        let format = ["luksFormat", "-q", "--type", "luks2", "--volume-key-file", &key];
        raw.cryptsetup(&[&format[..], &STRONG].concat(), b"secret");
        raw.write(DATA, &noise(seed, 4 * MIB));
        raw
    };
    let original = with_key("original", 1);
    let copy = Raw(lab.path("copy.raw"));
    fs::copy(&original.0, &copy.0).unwrap();
    // Opened with another passphrase, under another UUID, with another digest: the key is the same, and so is what was
    // written before. The volume has been in use since.
    let renewed = with_key("renewed", 1);
    renewed.write(DATA + 1, &noise(2, 3 * MIB));
    let namesake = Raw::encrypted(&lab, "namesake", &STRONG, 3);
    let uuid = run(Command::new("cryptsetup").arg("luksUUID").arg(&original.0));
    namesake.cryptsetup(&["luksUUID", "-q", "--uuid", &uuid], b"");
    let stranger = Raw::encrypted(&lab, "stranger", &STRONG, 4);

    let vm = scene.add("original", &[(original.qcow2(), "")]);
    scene.expect(&vm, &[]);
    let other = scene.define("stranger", &[(stranger.qcow2(), "")]);
    scene.expect(&vm, &[]);
    let namesake = scene.define("namesake", &[(namesake.qcow2(), "")]);
    scene.expect(&vm, &["shared-uuid"]);
    run(&mut virsh(["undefine", &namesake]));
    for (name, image) in [("copy", copy), ("renewed", renewed)] {
        // The other one was not asked for, and the configuration does not know it.
        let clone = scene.define(name, &[(image.qcow2(), "")]);
        scene.expect(&vm, &["shared-key"]);
        let document = scene.audit(&[&vm]).json();
        let findings = document["audit"]["vms"][0]["findings"].to_string();
        assert!(
            findings.contains(&clone) && !findings.contains(&other),
            "{findings}"
        );
        // From the other side, too.
        assert!(scene.faults(&clone).contains("shared-key"));
        run(&mut virsh(["undefine", &clone]));
    }
    scene.expect(&vm, &[]);
    // One image in two VMs is no clone, and a fault of its own.
    let image = lab.path("original.qcow2");
    scene.define("twin", &[(image, "")]);
    scene.expect(&vm, &["shared-image"]);
}

#[test]
fn what_is_left_behind_is_found() {
    let mut scene = Scene::new();
    let lab = Lab::new();
    let disk = |name: &str, key| Raw::encrypted(&lab, name, &STRONG, key).qcow2();

    let base = disk("base", 1);
    let overlay = lab.path("overlay.qcow2");
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([&base, &overlay]));
    let vm = scene.add("overlay", &[(overlay, "")]);
    scene.expect(&vm, &["overlay"]);

    let image = disk("snapshot", 2);
    run(Command::new("qemu-img")
        .args(["snapshot", "-c", "left"])
        .arg(&image));
    let vm = scene.add("snapshot", &[(image, "")]);
    scene.expect(&vm, &["snapshot"]);

    let vm = scene.add("recorded", &[(disk("recorded", 3), "")]);
    run(&mut virsh(["snapshot-create-as", &vm, "left"]));
    scene.expect(&vm, &["snapshot"]);

    // A running VM is looked at as it is: it keeps its locks, its images are not touched, it runs on.
    let image = disk("running", 4);
    let vm = scene.add("running", &[(image.clone(), "")]);
    run(&mut virsh(["start", &vm]));
    let stamp = |image: &Path| {
        (
            fs::metadata(image).unwrap().modified().unwrap(),
            fs::read(image).unwrap(),
        )
    };
    let before = stamp(&image);
    scene.expect(&vm, &[]);
    assert!(stamp(&image) == before, "the image has changed");
    assert_eq!(
        scene.bench.hypervisor.domain(&vm).unwrap().state,
        RunState::Running
    );
    // Its memory on the host's disk, in both ways.
    run(&mut virsh(["snapshot-create-as", &vm, "awake"]));
    scene.expect(&vm, &["memory-saved", "snapshot"]);
    run(&mut virsh(["snapshot-delete", &vm, "awake"]));
    scene.expect(&vm, &[]);
    run(&mut virsh(["managedsave", &vm]));
    scene.expect(&vm, &["memory-saved"]);

    // A run that died.
    let uuid = scene.bench.hypervisor.domain(&vm).unwrap().uuid;
    let mut records = scene.bench.state.lock(&vm, uuid).unwrap();
    let run: strongroom_engine::run::state::Run = serde_json::from_value(json!({
        "id": "1", "started": "2026-01-01T00:00:00Z", "archive": "a", "checkpoint": null,
        "socket": "/none", "scratch": [], "running": false,
    }))
    .unwrap();
    records.begin(run).unwrap();
    drop(records);
    scene.expect(&vm, &["interrupted", "memory-saved"]);

    // What cannot be looked at is no clean bill of health.
    fs::remove_file(&image).unwrap();
    let said = scene.audit(&[&vm]);
    said.expect(1, &["disk vda"]);
    let problems = said.json()["audit"]["vms"][0]["problems"].to_string();
    assert!(problems.contains("disk vda"), "{problems}");
    scene.audit(&["no-such-vm"]).expect(1, &["no-such-vm"]);
}

#[test]
fn an_adopted_vm_is_under_protection() {
    let scene = Scene::new();
    let lab = Lab::new();
    let system = Raw::new(&lab, "system", SIZE);
    system.write(0, &text(MIB));
    let swap = Raw::new(&lab, "swap", 4).mkswap();
    let name = scene.define("old", &[(system.qcow2(), ""), (swap.qcow2(), "")]);
    let file = lab.path("new.toml");
    let repository = lab.path("repo-{vm}").display().to_string();
    let strongroom = |arguments: &[&str]| {
        let mut program = scene.bench.program(&scene.lab);
        program.env("STRONGROOM_CONFIG", &file).args(arguments);
        Said::of(&mut program)
    };
    let said = strongroom(&[
        "--connect",
        crate::common::URI,
        "adopt",
        "--repository",
        &repository,
        &name,
    ]);
    said.expect(
        3,
        &["made repository", "vdb: 4.0 MiB qcow2, swap, never backed up"],
    );
    for word in ["not-encrypted", "swap-clear", "no-backup", "unsigned"] {
        assert!(said.out.contains(word), "{word} in {}", said.out);
    }
    assert!(!said.out.contains("swap-not-named"), "{}", said.out);
    let config = Config::read(&file).unwrap();
    assert_eq!(config.vm[&name].swap, ["vdb"]);
    assert!(lab.path(&format!("repo-{name}")).join("config").exists());
    // It can be backed up at once; adopted again, it is looked at again.
    strongroom(&["backup", &name]).expect(0, &[]);
    let again = strongroom(&["--json", "adopt", &name]);
    let found = codes(&again.expect(3, &[]).json(), &name, |level| level != "note");
    let wanted = ["not-encrypted", "swap-clear", "unsigned"].map(str::to_owned);
    assert_eq!(found, wanted.into());
    assert_eq!(Config::read(&file).unwrap().vm, config.vm);
    strongroom(&["adopt", "no-such-vm"]).expect(1, &["no-such-vm"]);
}
