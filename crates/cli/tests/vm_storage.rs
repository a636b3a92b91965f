//! Storage that runs out while a backup holds a frozen view: the backup gives way, never the guest.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Bench, Hook, names};
use strongroom_engine::backup::BackupError;
use strongroom_engine::event::Event;
use strongroom_testkit::{Lab, run, virsh};

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
        assert!(begin.elapsed() < Duration::from_mins(1), "{what}");
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
        if let Event::DiskStarted { .. } = event {
            wait_until("the job goes on", || !has_job(&vm));
        }
    });
    let error = bench.backup(&vm, &slow).unwrap_err();
    assert!(matches!(error, BackupError::Scratch { .. }), "{error}");
    assert!(error.to_string().contains("the guest runs on"), "{error}");
    assert_eq!(state(&vm), "running (booted)");
    assert_eq!(scratch_files(lab.dir()), Vec::<String>::new());

    // There is no room to begin: nothing is touched.
    bench.config.limits.free_mib = storage.free_mib() + 100;
    let error = bench
        .backup(
            &vm,
            &Hook::new(|event| assert!(!matches!(event, Event::Captured { .. }))),
        )
        .unwrap_err();
    assert!(matches!(error, BackupError::Scratch { .. }), "{error}");

    // Too late: nobody watched, QEMU has stopped the guest. It loses nothing.
    bench.config.limits.free_mib = 0;
    let filler = lab.path("filler");
    let full = Hook::new(|event| match event {
        Event::Captured { .. } => {
            let size = format!("{}M", storage.free_mib() - 8);
            run(Command::new("fallocate").args(["-l", &size]).arg(&filler));
        }
        Event::DiskStarted { .. } => {
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
