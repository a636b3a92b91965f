//! Which files domains use: clones, volumes of storage pools, disks that only run or are only stored, several names of one
//! file. Nothing that a domain may still use is replaced, and a copy shares nothing that its guest could write to.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use strongroom_hypervisor::{DiskSource, Hypervisor as _};
use strongroom_testkit::{Format, Lab, OwnLibvirtd, create_disk, output_of, run, sha256_of_raw, virsh};

use crate::common::Bench;
use crate::common::hangs::Held;
use crate::common::pool::Pool;
use crate::common::running::Running;
use crate::common::tiny::{MIB, Tiny, noise};

/// Defines, or creates, a domain with these devices.
fn domain(lab: &Lab, how: &str, name: &str, devices: &str) {
    let xml = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"
    );
    let file = lab.path("domain.xml");
    std::fs::write(&file, xml).unwrap();
    let paused = (how == "create").then_some("--paused");
    run(virsh([how]).arg(&file).args(paused));
}

fn disk(image: &Path, format: &str, target: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>
         <target dev='{target}' bus='virtio'/></disk>",
        image.display()
    )
}

fn clone(lab: &Lab, of: &Path, suffix: &str) -> String {
    let (name, image) = (lab.name(suffix), lab.path(&format!("{suffix}.qcow2")));
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([of, &image]));
    domain(lab, "define", &name, &disk(&image, "qcow2", "vda"));
    name
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A2: all ways to replace or change what a clone rests on are refused, and name the clone.
#[test]
fn a_clone_keeps_its_template() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "template");
    let bench = Bench::new(&lab, &[&tiny.name]);
    let (vm, image) = (tiny.name.as_str(), tiny.disk("vda"));
    tiny.set("vda", &noise(1, MIB));
    bench.backup(vm, &()).unwrap();
    let clone = clone(&lab, &image, "clone");
    let again = self::clone(&lab, &lab.path("clone.qcow2"), "again");
    // What was restored would be seen.
    run(Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 7 0 64k"])
        .arg(&image));
    let hash = || sha256_of_raw(&lab.path("again.qcow2"), Format::Qcow2);
    let before = hash();
    std::fs::hard_link(&image, lab.path("second-name")).unwrap();
    let second = lab.path("second-name");
    // Renamed to where a whole restore puts it: still the clone's.
    let ways: [&[&str]; 4] = [
        &["--disk", "vda", "--overwrite", "--to", text(&image)],
        &["--disk", "vda", "--overwrite", "--to", text(&second)],
        &["--disk", "vda", "--onto", text(&image)],
        &["--disk", "vda", "--dry-run", "--overwrite", "--to", text(&image)],
    ];
    for way in ways {
        let said = bench.says(&lab, &[&["restore", vm], way].concat());
        said.expect(1, &["an image below its disk vda of domain"]);
        assert!(
            said.err.contains(&clone) || said.err.contains(&again),
            "{}",
            said.err
        );
    }
    let usual = lab.path(&format!("{vm}-vda.qcow2"));
    std::fs::rename(&image, &usual).unwrap();
    std::os::unix::fs::symlink(&usual, &image).unwrap();
    bench
        .says(&lab, &["restore", vm, "--overwrite"])
        .expect(1, &["an image below its disk vda of domain"]);
    assert_eq!(hash(), before);
    // Nothing rests on the clone's clone, and when it and the clone are gone, the template may be replaced.
    for name in [&clone, &again] {
        run(&mut virsh(["undefine", name]));
    }
    bench.says(&lab, &["restore", vm, "--overwrite"]).expect(0, &[]);
}

/// A3, A3b: a volume of a storage pool is the file that it is, running and shut off; and so is a file under another name.
#[test]
fn a_volume_is_a_file() {
    let lab = Lab::new();
    let name = lab.name("volumes");
    let storage = lab.path("storage");
    std::fs::create_dir(&storage).unwrap();
    let pool = lab.name("pool");
    let _pool = Pool::of(&storage, &pool);
    // Newer than the pool's last look.
    for (volume, format) in [("a.qcow2", "qcow2"), ("b.raw", "raw")] {
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", format])
            .arg(storage.join(volume))
            .arg("3M"));
    }
    let volume = |volume: &str, format: &str, target: &str| {
        format!(
            "<disk type='volume' device='disk'><driver name='qemu' type='{format}'/><source pool='{pool}' volume='{volume}'/>
             <target dev='{target}' bus='virtio'/></disk>"
        )
    };
    let devices = volume("a.qcow2", "qcow2", "vda") + &volume("b.raw", "raw", "vdb");
    domain(&lab, "define", &name, &devices);
    let bench = Bench::new(&lab, &[&name]);
    let (vm, image) = (name.as_str(), storage.join("a.qcow2"));
    run(Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 7 0 64k"])
        .arg(&image));

    // Shut off: like files in every command.
    let facts = bench.hypervisor.domain(vm).unwrap();
    assert_eq!(facts.disks[0].source, DiskSource::File(image.clone()));
    assert_eq!(
        facts.disks.iter().map(|disk| disk.size).collect::<Vec<_>>(),
        [Some(3 << 20); 2]
    );
    let hash = sha256_of_raw(&image, Format::Qcow2);
    let off = bench.backup(vm, &()).unwrap();
    assert_eq!(bench.sha256_of_restored(&lab, vm, &off.archive, "vda"), hash);
    let pools = bench.json(&lab, &["status"]);
    // Tests run side by side, on one storage.
    assert!(pools["pools"][0]["images"].as_u64().unwrap() >= 2, "{pools}");
    let audit = bench.says(&lab, &["--json", "audit", vm]).json();
    assert!(
        audit["audit"]["vms"][0]["problems"]
            .as_array()
            .unwrap()
            .is_empty(),
        "{audit}"
    );

    // Running: scratch files are where the volume is, and no program takes it away.
    run(&mut virsh(["start", "--paused", vm]));
    let plan = bench.says(&lab, &["--json", "backup", "--dry-run", vm]).json();
    assert!(
        plan.to_string()
            .contains(&format!("{}/strongroom-", storage.display())),
        "{plan}"
    );
    bench.backup(vm, &()).unwrap();
    bench.at_rest(&lab, vm);
    let link = lab.path("link");
    std::fs::hard_link(&image, &link).unwrap();
    std::os::unix::fs::symlink(&storage, lab.path("elsewhere")).unwrap();
    for path in [&image, &link, &lab.path("elsewhere/a.qcow2")] {
        bench
            .says(
                &lab,
                &["restore", vm, "--disk", "vda", "--overwrite", "--to", text(path)],
            )
            .expect(1, &["runs on it", vm]);
        bench
            .says(&lab, &["restore", vm, "--disk", "vda", "--onto", text(path)])
            .expect(1, &["runs on it"]);
    }
    run(&mut virsh(["destroy", vm]));
    bench
        .says(
            &lab,
            &[
                "restore",
                vm,
                "--disk",
                "vda",
                "--overwrite",
                "--to",
                text(&image),
            ],
        )
        .expect(0, &[]);
    assert_eq!(sha256_of_raw(&image, Format::Qcow2), hash);
}

/// A4: the definition that is stored fits the disks that are stored. A5: a copy shares nothing that it could write to.
#[test]
fn what_runs_is_what_comes_back() {
    let lab = Lab::new();
    let name = lab.name("plugged");
    let (vm, image) = (name.as_str(), lab.path("plugged.qcow2"));
    create_disk(&image, Format::Qcow2, 3);
    // With slots for more disks.
    let root = "<controller type='pci' index='0' model='pcie-root'/>";
    let slots = root.to_owned() + &"<controller type='pci' model='pcie-root-port'/>".repeat(4);
    domain(&lab, "define", vm, &(disk(&image, "qcow2", "vda") + &slots));
    let bench = Bench::new(&lab, &[vm]);
    let (plugged, pending, floppy) = (lab.path("plugged"), lab.path("pending"), lab.path("floppy.img"));
    std::fs::write(&plugged, noise(5, 2 * MIB)).unwrap();
    std::fs::write(&pending, noise(6, MIB)).unwrap();
    std::fs::write(&floppy, vec![0; 1440 << 10]).unwrap();
    let hash = sha256_of_raw(&plugged, Format::Raw);
    let attach = |file: &Path, target: &str, how: &str| {
        run(virsh(["attach-disk", vm]).args([text(file), target, how, "--subdriver", "raw"]));
    };
    run(virsh(["attach-disk", vm]).args([text(&floppy), "fda", "--type", "floppy", "--config"]));
    run(&mut virsh(["start", "--paused", vm]));
    attach(&plugged, "vdc", "--live");
    attach(&pending, "vdd", "--config");
    let words = [
        "disk vdc: it is attached to the running domain only",
        "disk vdd: it is in the stored definition only",
    ];
    bench.says(&lab, &["backup", vm]).expect(3, &words);
    bench.at_rest(&lab, vm);

    let said = bench.says(&lab, &["--json", "restore", vm, "--as", &lab.name("copy")]);
    let report = said.expect(0, &[]).json();
    assert_eq!(report["restore"]["left_out"][0]["target"], "fda", "{report}");
    let copy = bench.hypervisor.domain(&lab.name("copy")).unwrap();
    let own: Vec<_> = files_of(&bench, vm);
    for disk in &copy.disks {
        assert!(
            !disk
                .source
                .path()
                .is_some_and(|path| own.contains(&path.to_owned())),
            "{disk:?}"
        );
    }
    assert!(copy.disks.iter().any(|disk| disk.target == "vdc"));
    assert!(copy.disks.iter().all(|disk| disk.target != "vdd"));
    run(&mut virsh(["start", "--paused", &lab.name("copy")]));
    run(&mut virsh(["destroy", &lab.name("copy")]));

    // The host is lost; what ran comes back.
    run(&mut virsh(["destroy", vm]));
    run(virsh(["undefine", vm]).arg("--checkpoints-metadata"));
    bench.says(&lab, &["restore", vm]).expect(0, &[]);
    let restored = lab.path(&format!("{vm}-vdc.qcow2"));
    assert_eq!(sha256_of_raw(&restored, Format::Qcow2), hash);
    run(&mut virsh(["start", "--paused", vm]));
    let live = run(&mut virsh(["domblklist", vm]));
    assert!(live.contains(text(&restored)) && !live.contains("vdd"), "{live}");
}

fn files_of(bench: &Bench, vm: &str) -> Vec<std::path::PathBuf> {
    let disks = bench.hypervisor.domain(vm).unwrap().disks;
    disks
        .iter()
        .filter_map(|disk| disk.source.path())
        .map(Path::to_owned)
        .collect()
}

/// Siblings of A2 and A5: an image that another domain writes to, known to libvirt only while it runs; a place that only a stored
/// definition names; a VM without disks.
#[test]
fn what_others_use_is_known() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "shared");
    let (none, other) = (lab.name("diskless"), lab.name("other"));
    let mut bench = Bench::new(&lab, &[&tiny.name]);
    let (vm, image) = (tiny.name.as_str(), tiny.disk("vda"));
    bench.backup(vm, &()).unwrap();

    // A transient domain runs on the image of a VM that is shut off.
    let link = lab.path("link.qcow2");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    domain(&lab, "create", &other, &disk(&link, "qcow2", "vdx"));
    let words = ["it is shut off, but", &other, "runs and writes to", "disk vda"];
    bench.says(&lab, &["backup", vm]).expect(1, &words);
    bench
        .says(
            &lab,
            &[
                "restore",
                vm,
                "--disk",
                "vda",
                "--overwrite",
                "--to",
                text(&image),
            ],
        )
        .expect(1, &[&other, "runs on it"]);
    let audit = bench.says(&lab, &["--json", "audit", vm]).json().to_string();
    assert!(
        audit.contains("shared-image") && audit.contains("disk vdx of VM"),
        "{audit}"
    );
    run(&mut virsh(["destroy", &other]));

    // A place that is free, but is another one's when that starts.
    let copy = lab.name("copy");
    let place = lab.path(&format!("{copy}-vda.qcow2"));
    domain(&lab, "define", &other, &disk(&place, "qcow2", "vda"));
    bench
        .says(&lab, &["restore", vm, "--as", &copy])
        .expect(1, &[&other, "take another path with --to"]);
    assert!(!place.exists());
    output_of(&mut virsh(["dominfo", &copy])).unwrap_err();

    // Nothing to back up.
    domain(&lab, "define", &none, "");
    bench.add_vm(&none);
    let words = ["it has no disk", "virsh dumpxml"];
    bench.says(&lab, &["backup", &none]).expect(2, &words);
}

/// A running domain whose QEMU is stopped while a job of libvirt's waits for its answer. When this is dropped, it goes on.
struct Hung {
    held: Option<Held>,
    job: Child,
}

impl Hung {
    fn domain(name: &str) -> Self {
        let pid = std::fs::read_to_string(format!("/run/libvirt/qemu/{name}.pid")).unwrap();
        let held = Some(Held::stop(pid.trim().parse().unwrap()));
        let job = virsh(["qemu-monitor-command", name, "--hmp", "info version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_secs(1));
        Self { held, job }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.held.take();
        let _ = self.job.wait();
    }
}

/// libvirt refuses the definition of a domain that hangs, after half a minute. Other VMs are backed up meanwhile, and restored
/// where nothing is replaced. A libvirtd of its own: to other tests that domain would be in the way as well.
#[test]
fn a_domain_that_hangs_keeps_no_other_from_its_backup() {
    let test = "a_domain_that_hangs_keeps_no_other_from_its_backup";
    let Some(_daemon) = OwnLibvirtd::enter(module_path!(), test) else {
        return;
    };
    let lab = Lab::new();
    let tiny = ["off", "running", "replaced", "free"].map(|suffix| Tiny::define(&lab, suffix));
    let [off, running, replaced, free] = &tiny;
    let names = tiny.each_ref().map(|one| one.name.as_str());
    let bench = Bench::new(&lab, &names);
    for one in [replaced, free] {
        one.set("vda", &noise(8, MIB));
        bench.backup(&one.name, &()).unwrap();
    }
    run(&mut virsh(["start", "--paused", &running.name]));
    let dead = lab.name("dead");
    domain(&lab, "create", &dead, "");
    let image = replaced.disk("vda");
    let (hash, place) = (sha256_of_raw(&image, Format::Qcow2), lab.path("free-place.qcow2"));
    let (vm, at) = (replaced.name.as_str(), text(&image));
    let over = ["restore", vm, "--disk", "vda", "--overwrite", "--to", at];
    let onto = ["restore", vm, "--disk", "vda", "--onto", at];
    let aside = ["restore", &free.name, "--disk", "vda", "--to", text(&place)];
    let unknown = ["may use it", &dead, "virsh destroy"];
    let undetermined = ["it could not be determined", &dead, "writes to its disks"];
    let noted = ["may use its disks", &dead];
    // Half a minute each, and twice that for the last one, which asks again before the file takes its place.
    let all: [(&[&str], i32, &[&str]); 5] = [
        (&["backup", &off.name], 3, &undetermined),
        (&["-v", "backup", &running.name], 0, &noted),
        (&over, 1, &unknown),
        (&onto, 1, &unknown),
        (&aside, 0, &[]),
    ];
    // Each writes the configuration, so all are made before any begins.
    let mut programs = all.map(|(arguments, ..)| {
        let mut program = bench.program(&lab);
        program.args(arguments);
        program
    });

    let hung = Hung::domain(&dead);
    let runs = programs.each_mut().map(Running::start);
    for (run, (_, code, words)) in runs.into_iter().zip(all) {
        run.end().expect(code, words);
    }
    for file in [&image, &place] {
        assert_eq!(sha256_of_raw(file, Format::Qcow2), hash);
    }
    drop(hung);
    bench.says(&lab, &over).expect(0, &[]);
}
