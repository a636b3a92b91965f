//! Storage that runs out while a backup holds a frozen view: the backup gives way, never the guest.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::tmpfs::Tmpfs;
use crate::common::{Bench, Hook, names};
use strongroom_engine::backup::BackupError;
use strongroom_engine::capture::CaptureError;
use strongroom_engine::config::CaptureMethod;
use strongroom_engine::run::event::Kind;
use strongroom_testkit::{Format, Lab, create_disk, output_of, patience, run, virsh};

/// A small file system of its own over a lab's directory.
struct SmallStorage(PathBuf);

impl SmallStorage {
    fn over(lab: &Lab, mib: u64) -> Self {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        image.as_file().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0"])
            .arg(image.path()));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image.path())
            .arg(lab.dir()));
        run(Command::new("chmod").arg("755").arg(lab.dir()));
        Self(lab.dir().to_owned())
    }

    fn free_mib(&self) -> u64 {
        let text = run(Command::new("df").args(["--output=avail", "-B1M"]).arg(&self.0));
        text.lines().last().unwrap().trim().parse().unwrap()
    }
}

impl Drop for SmallStorage {
    fn drop(&mut self) {
        // Detached at once, gone when the guest is.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < patience(Duration::from_mins(1)), "{what}");
        sleep(Duration::from_millis(200));
    }
}

fn has_job(vm: &str) -> bool {
    !run(&mut virsh(["domjobinfo", vm])).contains("None")
}

fn state(vm: &str) -> String {
    run(&mut virsh(["domstate", "--reason", vm])).trim().to_owned()
}

fn scratch_files(directory: &Path) -> Vec<String> {
    names(directory)
        .into_iter()
        .filter(|name| name.contains("scratch"))
        .collect()
}

#[test]
fn a_backup_gives_way_before_the_storage_is_full_and_resumes_a_guest_that_was_stopped() {
    let lab = Lab::new();
    let storage = SmallStorage::over(&lab, 900);
    let guest = lab.guest().root_mib(512).swap_mib(0).boot();
    let vm = guest.name().to_owned();
    let mut bench = Bench::new(&lab, &[&vm]);
    guest.probe("pattern start 20");
    // Once around its circle of 128 MiB: all that it writes from now on has old content.
    guest.probe("load start 100");
    wait_until("the load does not get around", || storage.free_mib() < 900 - 180);
    sleep(Duration::from_secs(2));

    // Early: at a floor above what the guest will need.
    bench.config.limits.free_mib = storage.free_mib() - 40;
    let slow = Hook::new(|event| {
        if let Kind::DiskStarted { .. } = event {
            wait_until("the job goes on", || !has_job(&vm));
        }
    });
    let error = bench.backup(&vm, &slow).unwrap_err();
    assert!(
        matches!(error, BackupError::Capture(CaptureError::Scratch { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("the guest runs on"), "{error}");
    assert_eq!(state(&vm), "running (booted)");
    assert_eq!(scratch_files(lab.dir()), Vec::<String>::new());

    // There is no room to begin: nothing is touched.
    bench.config.limits.free_mib = storage.free_mib() + 100;
    let error = bench
        .backup(
            &vm,
            &Hook::new(|event| assert!(!matches!(event, Kind::Captured { .. }))),
        )
        .unwrap_err();
    assert!(
        matches!(error, BackupError::Capture(CaptureError::Scratch { .. })),
        "{error}"
    );

    // Too late: without a watch QEMU has stopped the guest. It loses nothing.
    bench.config.limits.free_mib = 0;
    let filler = lab.path("filler");
    let full = Hook::new(|event| match event {
        Kind::Captured { .. } => {
            let size = format!("{}M", storage.free_mib() - 8);
            run(Command::new("fallocate").args(["-l", &size]).arg(&filler));
        }
        Kind::DiskStarted { .. } => {
            wait_until("the guest is not stopped", || state(&vm) == "paused (I/O error)");
            std::fs::remove_file(&filler).unwrap();
        }
        _ => {}
    });
    bench.backup(&vm, &full).unwrap();
    assert!(
        full.warnings
            .lock()
            .unwrap()
            .iter()
            .any(|text| text.contains("it runs on"))
    );
    assert_eq!(state(&vm), "running (unpaused)");
    assert_eq!(scratch_files(lab.dir()), Vec::<String>::new());
    guest.probe("load stop");
    guest.probe("pattern stop");
    guest.probe("verify");
    bench.borg.run([
        "check",
        "--verify-data",
        &bench.repository(&vm).display().to_string(),
    ]);
}

#[test]
fn a_snapshot_gives_way_although_the_repository_has_all_that_is_read() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(512).swap_mib(0).boot();
    let vm = guest.name().to_owned();
    let mut bench = Bench::new(&lab, &[&vm]);
    bench.config.vm.entry(vm.clone()).or_default().method = CaptureMethod::Snapshot;
    guest.probe("load start 100");
    sleep(Duration::from_secs(3));
    guest.probe("load stop");
    guest.probe("pattern start 20");
    bench.backup(&vm, &()).unwrap();

    // Without records all of it is read again, which would take minutes, and stored already.
    let mut again = bench.elsewhere(&lab.path("other-state"));
    again.config.reader.limit_mib = 1;
    again.config.limits.scratch_mib = 16;
    let begin = Instant::now();
    let loaded = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            guest.probe("load start 20");
        }
    });
    let error = again.backup(&vm, &loaded).unwrap_err();
    assert!(
        matches!(error, BackupError::Capture(CaptureError::Scratch { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("has grown beyond 16 MiB"), "{error}");
    assert!(
        begin.elapsed() < patience(Duration::from_mins(1)),
        "the reading went on for {:.0?}",
        begin.elapsed()
    );
    assert!(state(&vm).starts_with("running"));
    assert_eq!(again.run_of(&vm), None);
    bench.guest_at_rest(&lab, &vm);
    guest.probe("load stop");
    guest.probe("pattern stop");
    guest.probe("verify");
    bench.backup(&vm, &()).unwrap();
}

#[test]
fn storage_that_can_fill_is_told_before_it_does() {
    let lab = Lab::new();
    let pool = Tmpfs::new(lab.path("pool"), 64);
    let name = lab.name("thin");
    let image = pool.path().join("thin.qcow2");
    let define = |mib: u64| {
        let _ = std::fs::remove_file(&image);
        create_disk(&image, Format::Qcow2, mib);
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>
             <driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk></devices>
             </domain>",
            image.display()
        );
        std::fs::write(lab.path("thin.xml"), xml).unwrap();
        // The first time there is none.
        let _ = output_of(&mut virsh(["undefine", &name]));
        run(virsh(["define"]).arg(lab.path("thin.xml")));
    };
    let look = |bench: &Bench, code: i32| {
        let said = bench.says(&lab, &["--json", "status"]);
        let document = said.expect(code, &[]).json();
        let pools = document["pools"].as_array().unwrap().clone();
        assert_eq!(pools.len(), 1, "{document}");
        assert_eq!(pools[0]["place"], pool.path().display().to_string());
        (said, pools[0].clone())
    };
    define(32);
    let bench = Bench::new(&lab, &[&name]);
    // That it was never backed up is a warning, too.
    let (said, found) = look(&bench, 3);
    assert!(!said.err.contains("guests may yet write"), "{}", said.err);
    assert_eq!(
        (&found["virtual"], &found["size"]),
        (&(32_u64 << 20).into(), &(64_u64 << 20).into())
    );
    let sum = found["promised"].as_u64().unwrap() + found["actual"].as_u64().unwrap();
    assert_eq!(sum, 32 << 20);

    // The same image beside what fills the pool.
    let ballast = pool.fill(16);
    let (said, _) = look(&bench, 3);
    said.expect(3, &["guests may yet write 3", "but 16.0 MiB are free"]);
    std::fs::remove_file(ballast).unwrap();
    look(&bench, 3);
    define(256);
    let (said, found) = look(&bench, 3);
    said.expect(3, &["guests may yet write 255.", "When it is full, they stop"]);
    assert_eq!(found["images"], 1);
    let said = bench.says(&lab, &["status"]);
    assert!(
        said.out.contains("PROMISED") && said.out.contains("256.0 MiB"),
        "{}",
        said.out
    );
    bench.backup(&name, &()).unwrap();
    define(32);
    look(&bench, 0);
}
