//! VMs of another machine: everything over ssh, with nothing of ours on the other side.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use strongroom_engine::backup::Report;
use strongroom_engine::run::event::Kind;
use strongroom_hypervisor::Hypervisor as _;
use strongroom_libvirt::Libvirt;
use strongroom_nbd::Target;
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Format, Lab, Sshd, output_of, run, sha256_of_raw, virsh};

use crate::common::pool::Pool;
use crate::common::running::{Running, Said};
use crate::common::tiny::{MIB, Tiny, noise};
use crate::common::tmpfs::Tmpfs;
use crate::common::{Bench, Hook, names, sha256_of_export};

/// A bench whose hypervisor is another machine, as far as it can tell.
fn remote(lab: &Lab, vms: &[&str], sshd: &Sshd) -> Bench {
    let mut bench = Bench::new(lab, vms);
    bench.config.hypervisor = sshd.libvirt();
    bench.hypervisor = Libvirt::connect(&bench.config.hypervisor).unwrap();
    bench
}

/// Backs up over ssh, and takes the SHA-256 of `vda` on the other side.
fn backup(bench: &Bench, vm: &str) -> (Report, String) {
    let local = Libvirt::connect(crate::common::URI).unwrap();
    let hash = Mutex::new(String::new());
    let hook = Hook::new(|event| {
        if let Kind::Captured { exports, .. } = event {
            assert!(matches!(exports[0].at, Target::Command { .. }), "{exports:?}");
            let run = bench.run_of(vm).unwrap();
            *hash.lock().unwrap() = sha256_of_export(&local.export(&run.listener.unwrap(), "vda").unwrap());
        }
    });
    let report = bench.backup(vm, &hook).unwrap();
    (report, hash.into_inner().unwrap())
}

#[test]
fn a_vm_of_another_machine_is_backed_up_verified_and_restored_over_ssh() {
    let lab = Lab::new();
    let sshd = Sshd::start();
    let guest = lab.guest().root_mib(256).boot();
    let vm = guest.name();
    let mut bench = remote(&lab, &[vm], &sshd);
    guest.probe("pattern start 5");

    // It is not stated that what is on its disk may be seen elsewhere.
    let refused = bench.says(&lab, &["backup", vm]);
    refused.expect(
        1,
        &[
            "disk vda is not ciphertext: the disk has no LUKS header",
            "plaintext = true",
        ],
    );
    bench.guest_at_rest(&lab, vm);
    assert_eq!(bench.archives(vm), Vec::<String>::new());
    bench.config.vm.get_mut(vm).unwrap().plaintext = true;

    let mut points = Vec::new();
    for mode in [Mode::Full, Mode::Incremental, Mode::Incremental] {
        let (report, hash) = backup(&bench, vm);
        let disk = &report.manifest.disks[0];
        assert_eq!(disk.mode, mode, "{}", disk.reason);
        points.push((report.archive, hash));
        guest.probe("write 1");
    }
    assert_ne!(points[0].1, points[1].1, "the guest wrote nothing");

    // The connection breaks while a disk is read: the backup fails, and the guest keeps nothing of it.
    let broken = AtomicBool::new(false);
    let hook = Hook::new(|event| {
        if matches!(event, Kind::DiskStarted { .. }) && !broken.swap(true, Ordering::SeqCst) {
            sshd.cut();
        }
    });
    let error = bench.backup(vm, &hook).unwrap_err().to_string();
    assert!(broken.load(Ordering::SeqCst) && error.contains("vda"), "{error}");
    bench.guest_at_rest(&lab, vm);
    let (report, hash) = backup(&bench, vm);
    points.push((report.archive, hash));

    // Everything else as on the machine itself, by the program.
    for command in [
        &["backup", "--dry-run", vm][..],
        &["recover", vm],
        &["status"],
        &["list", vm],
    ] {
        let said = bench.says(&lab, command);
        assert!(matches!(said.code, Some(0 | 3)), "{command:?}: {}", said.err);
    }
    let said = bench.says(&lab, &["verify", vm, "--data"]);
    assert!(
        said.out.contains("found good") || said.err.contains("found good"),
        "{said:?}"
    );
    let file = lab.path("restored.qcow2");
    for (archive, hash) in &points {
        let point = format!("{vm}@{archive}");
        let to = ["restore", &point, "--disk", "vda", "--to", file.to_str().unwrap()];
        bench.says(&lab, &to).expect(0, &[]);
        assert_eq!(sha256_of_raw(&file, Format::Qcow2), *hash, "{archive}");
        std::fs::remove_file(&file).unwrap();
    }
    guest.probe("pattern stop");
    guest.probe("verify");

    // A whole VM comes back there: as one that boots, with what the guest wrote.
    let copy = lab.name("copy");
    bench
        .says(&lab, &["restore", vm, "--as", &copy, "--trust-definition"])
        .expect(1, &["storage pool", "pool-create-as"]);
    let _pool = Pool::of(lab.dir(), &copy);
    bench
        .says(&lab, &["restore", vm, "--as", &copy, "--trust-definition"])
        .expect(0, &["defined as"]);
    assert_eq!(
        sha256_of_raw(&lab.path(&format!("{copy}-vda.qcow2")), Format::Qcow2),
        points.last().unwrap().1
    );
    let restored = lab.open(&copy);
    restored.boot();
    restored.probe("verify");
    restored.destroy();
    // What is there is not replaced.
    bench
        .says(&lab, &["restore", vm, "--as", &copy, "--trust-definition"])
        .expect(1, &["exists already"]);
    bench
        .says(&lab, &["restore", vm, "--overwrite"])
        .expect(1, &["another machine", "remove it there first"]);

    // What this machine cannot do for another one is refused, with what to do instead.
    guest.shutdown();
    bench
        .says(&lab, &["backup", vm])
        .expect(1, &["shut off", "start it first"]);

    // Ciphertext can be demanded of this machine's VMs, too.
    let mut here = bench.elsewhere(&lab.path("here"));
    here.config.vm.get_mut(vm).unwrap().plaintext = false;
    here.config.ciphertext_only = true;
    let error = here.backup(vm, &()).unwrap_err().to_string();
    assert!(error.contains("disk vda is not ciphertext"), "{error}");
    here.config.ciphertext_only = false;
    here.backup(vm, &()).unwrap();
}

/// A restore onto another machine is all or nothing.
#[test]
fn a_restore_that_does_not_get_there_leaves_nothing_there() {
    let lab = Lab::new();
    let sshd = Sshd::start();
    let tiny = Tiny::with_disks(&lab, "vm", &[("vda", 64), ("vdb", 12)]);
    tiny.set("vda", &noise(3, 60 * MIB));
    tiny.set("vdb", &noise(4, 8 * MIB));
    let hashes = ["vda", "vdb"].map(|target| (target, sha256_of_raw(&tiny.disk(target), Format::Qcow2)));
    run(virsh(["start", &tiny.name]).arg("--paused"));
    let mut bench = remote(&lab, &[&tiny.name], &sshd);
    bench.config.vm.get_mut(&tiny.name).unwrap().plaintext = true;
    bench.backup(&tiny.name, &()).unwrap();

    let copy = lab.name("copy");
    let files = |directory: &Path| {
        names(directory)
            .into_iter()
            .filter(|name| name.contains("copy"))
            .collect::<Vec<_>>()
    };
    let nothing = |directory: &Path| {
        assert_eq!(files(directory), Vec::<String>::new());
        assert!(output_of(&mut virsh(["domstate", &copy])).is_err());
        assert_eq!(names(&lab.path("staging")), Vec::<String>::new());
    };
    std::fs::create_dir(lab.path("staging")).unwrap();
    let restore = |bench: &Bench| {
        let mut program = bench.program(&lab);
        program.args(["-v", "restore", &tiny.name, "--as", &copy]);
        program.env("TMPDIR", lab.path("staging"));
        program
    };

    // No room there: the first disk fits, the second does not.
    let small = Tmpfs::new(lab.path("small"), 65);
    let _small = Pool::of(small.path(), &lab.name("small"));
    small.path().clone_into(&mut bench.config.images);
    Said::of(&mut restore(&bench)).expect(1, &["vdb.qcow2"]);
    nothing(small.path());

    // Interrupted on the way, and cut off from there.
    lab.dir().clone_into(&mut bench.config.images);
    let _pool = Pool::of(lab.dir(), &copy);
    for fault in ["INT", "cut"] {
        let mut running = Running::start(&mut restore(&bench));
        running.wait_for("take ");
        match fault {
            "cut" => sshd.cut(),
            signal => running.signal(signal),
        }
        let said = running.end();
        said.expect(1, &["vda.qcow2"]);
        nothing(lab.dir());
    }
    Said::of(&mut restore(&bench)).expect(0, &["defined as"]);
    assert_eq!(names(&lab.path("staging")), Vec::<String>::new());
    run(&mut virsh(["domstate", &copy]));
    for (target, hash) in hashes {
        let restored = lab.path(&format!("{copy}-{target}.qcow2"));
        assert_eq!(sha256_of_raw(&restored, Format::Qcow2), hash, "{target}");
    }
}

#[test]
fn a_hypervisor_that_cannot_be_reached_is_named() {
    let lab = Lab::new();
    let sshd = Sshd::start();
    let mut bench = Bench::new(&lab, &["vm"]);
    bench.config.hypervisor = sshd.libvirt();
    drop(sshd);
    bench
        .says(&lab, &["backup", "vm"])
        .expect(1, &["connect to the hypervisor at qemu+ssh://"]);
    // One that takes connections and never says a word is given up.
    let dead = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = dead.local_addr().unwrap().port();
    bench.config.hypervisor = format!("qemu+ssh://127.0.0.1:{port}/system?no_tty=1");
    bench
        .says(&lab, &["backup", "vm"])
        .expect(1, &["no answer within 30 s"]);
}

/// Four VMs on four hypervisors: this machine, another one, one that takes connections and never says a word, one that is
/// not there.
#[test]
fn hypervisors_are_served_side_by_side_and_a_dead_one_holds_nobody() {
    let lab = Lab::new();
    let sshd = Sshd::start();
    let here = Tiny::define(&lab, "here");
    let there = Tiny::define(&lab, "there");
    let mut bench = Bench::new(&lab, &[&here.name, &there.name, "hangs", "gone"]);
    let mut hashes = Vec::new();
    for (tiny, seed) in [(&there, 1), (&here, 2)] {
        tiny.set("vda", &noise(seed, 6 * MIB));
        hashes.push(sha256_of_raw(&tiny.disk("vda"), Format::Qcow2));
        run(virsh(["start", &tiny.name]).arg("--paused"));
    }
    let hung = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = hung.local_addr().unwrap().port();
    for (vm, hypervisor) in [
        (there.name.as_str(), sshd.libvirt()),
        ("hangs", format!("qemu+ssh://127.0.0.1:{port}/system?no_tty=1")),
        ("gone", "qemu+unix:///system?socket=/nonexistent".into()),
    ] {
        let settings = bench.config.vm.get_mut(vm).unwrap();
        settings.hypervisor = Some(hypervisor);
        settings.plaintext = true;
    }

    // The dead ones have their turn first.
    let vms = ["hangs", "gone", &there.name, &here.name];
    let begin = Instant::now();
    let said = bench.says(&lab, &[&["--json", "backup", "--jobs", "2"][..], &vms].concat());
    let took = begin.elapsed();
    said.expect(
        1,
        &[
            "back up hangs",
            "no answer within 30 s",
            "back up gone",
            "/nonexistent",
        ],
    );
    assert!(took < Duration::from_mins(2), "{took:?}");
    let document = said.json();
    let points = |tiny: &Tiny| bench.archives(&tiny.name);
    for ((tiny, at), hash) in [(&there, 2), (&here, 3)].into_iter().zip(hashes) {
        let report = &document["backups"][at];
        assert_eq!(report["vm"], tiny.name.as_str());
        let archives = points(tiny);
        assert_eq!(archives.len(), 1, "{said:?}");
        let file = lab.path("restored.qcow2");
        let point = format!("{}@latest", tiny.name);
        let to = ["restore", &point, "--disk", "vda", "--to", file.to_str().unwrap()];
        bench.says(&lab, &to).expect(0, &[]);
        assert_eq!(sha256_of_raw(&file, Format::Qcow2), hash);
        std::fs::remove_file(&file).unwrap();
    }

    // Everything else asks the hypervisor that a VM is on, and says of a dead one what is known without it.
    let status = bench.says(&lab, &["--json", "status"]);
    let vms = status.json()["vms"].clone();
    let vms = vms.as_array().unwrap();
    let of = |name: &str| vms.iter().find(|vm| vm["vm"] == name).unwrap();
    for tiny in [&here, &there] {
        assert_eq!(of(&tiny.name)["state"], "paused");
        assert_eq!(of(&tiny.name)["next"], "incremental");
    }
    for dead in ["hangs", "gone"] {
        assert_eq!(of(dead)["state"], "unknown");
        assert!(
            of(dead)["problem"].as_str().unwrap().contains("connect"),
            "{status:?}"
        );
    }
    bench.says(&lab, &["recover"]).expect(
        1,
        &[
            "recover gone: connect",
            &format!("{}: nothing to do", here.name),
            &format!("{}: nothing to do", there.name),
        ],
    );
    // A VM that is put under protection on another machine is looked for there from then on.
    let uri = sshd.libvirt();
    let other = Tiny::define(&lab, "other");
    let place = lab.path("repo-{vm}").display().to_string();
    let add = ["--connect", &uri, "init", "--repository", &place, &other.name];
    let config = bench.config_file(&lab);
    bench.says(&lab, &add).expect(0, &["made repository"]);
    let text = std::fs::read_to_string(config).unwrap();
    let table = text.split(&format!("[vm.{}]", other.name)).nth(1).unwrap();
    assert!(table.contains(&format!("hypervisor = \"{uri}\"")), "{text}");
}
