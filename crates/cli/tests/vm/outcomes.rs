//! What becomes of a backup when something happens to its VM meanwhile that is no fault: it is reset, reboots, is
//! paused, renamed. Each has a clear outcome, with either way of holding the disks still.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::tiny::{MIB, Tiny, noise};
use crate::common::{Bench, Hook, sha256_of_export};
use strongroom_engine::backup::Report;
use strongroom_engine::config::CaptureMethod;
use strongroom_engine::run::event::Kind;
use strongroom_points::manifest::{Method, Mode};
use strongroom_testkit::{Lab, TestGuest, run, virsh};

/// How long a guest may take to boot.
const PATIENCE: Duration = Duration::from_mins(2);

const METHODS: [(CaptureMethod, Method); 2] = [
    (CaptureMethod::Checkpoint, Method::Checkpoint),
    (CaptureMethod::Snapshot, Method::Snapshot),
];

struct Scene<'a> {
    lab: &'a Lab,
    bench: Bench,
    guest: TestGuest,
}

impl Scene<'_> {
    fn vm(&self) -> &str {
        self.guest.name()
    }

    fn set_method(&mut self, method: CaptureMethod) {
        for vm in self.bench.config.vm.values_mut() {
            vm.method = method;
        }
    }

    /// Backs up, and does something to the guest while its disks are held still. What is restored is what they held.
    #[track_caller]
    fn backup(&self, meanwhile: impl Fn() + Send + Sync) -> Report {
        let hash = Mutex::new(String::new());
        let hook = Hook::new(|event| {
            if let Kind::Captured { exports, .. } = event {
                *hash.lock().unwrap() = sha256_of_export(&exports[0].at);
                meanwhile();
            }
        });
        let report = self.bench.backup(self.vm(), &hook).unwrap();
        assert_eq!(*hook.warnings.lock().unwrap(), Vec::<String>::new());
        let restored = self
            .bench
            .sha256_of_restored(self.lab, self.vm(), &report.archive, "vda");
        assert_eq!(restored, *hash.lock().unwrap());
        // On its own images, without a job or a file of ours.
        self.bench.at_rest(self.lab, self.vm());
        let images = run(&mut virsh(["domblklist", self.vm()]));
        assert!(!images.contains("overlay"), "{images}");
        report
    }
}

#[test]
fn a_guest_that_is_reset_reboots_or_is_paused_is_backed_up_as_it_was() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(256).boot();
    let bench = Bench::new(&lab, &[guest.name()]);
    let mut scene = Scene {
        lab: &lab,
        bench,
        guest,
    };
    scene.guest.probe("write 8");
    for (method, used) in METHODS {
        scene.set_method(method);

        let report = scene.backup(|| {
            run(&mut virsh(["reset", scene.vm()]));
        });
        assert_eq!(report.manifest.method, used);
        scene.guest.wait_ready();
        scene.guest.probe("verify");

        // QEMU stays, and with it what it knows of changes.
        let report = scene.backup(|| {
            scene.guest.probe("write 4");
            scene.guest.probe("sync");
            let boots = || scene.guest.serial().matches("GUEST: ready").count();
            let before = boots();
            scene
                .guest
                .sh("(sleep 1; echo b > /proc/sysrq-trigger) >/dev/null 2>&1 &");
            let begin = Instant::now();
            while boots() == before {
                assert!(begin.elapsed() < PATIENCE, "it does not reboot");
                sleep(Duration::from_millis(200));
            }
        });
        assert_eq!(report.manifest.disks[0].mode, Mode::Incremental);
        scene.guest.wait_ready();
        scene.guest.probe("verify");

        // Who paused it may have a reason: paused it stays.
        scene.guest.probe("write 4");
        scene.backup(|| {
            run(&mut virsh(["suspend", scene.vm()]));
        });
        assert_eq!(scene.guest.state(), "paused");
        // And the other way round.
        scene.backup(|| {
            run(&mut virsh(["resume", scene.vm()]));
        });
        assert_eq!(scene.guest.state(), "running");
        scene.guest.probe("write 4");
        let report = scene.backup(|| ());
        assert_eq!(report.manifest.disks[0].mode, Mode::Incremental);
        scene.guest.probe("verify");
    }
}

/// libvirt renames only what is off and has no checkpoints. A run knows its VM by the UUID.
#[test]
fn a_vm_that_is_renamed_is_backed_up_under_the_name_that_was_asked_for() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "before");
    tiny.set("vda", &noise(1, 6 * MIB));
    let bench = Bench::new(&lab, &[&tiny.name]);
    let renamed = lab.name("after");
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            run(&mut virsh(["domrename", &tiny.name, &renamed]));
        }
    });
    let report = bench.backup(&tiny.name, &hook).unwrap();
    assert_eq!(report.manifest.vm.name, tiny.name);
    assert_eq!(bench.archives(&tiny.name), [report.archive]);
    // From then on there is no VM of that name, and that is what is said.
    let error = bench.backup(&tiny.name, &()).unwrap_err().to_string();
    assert!(
        error.contains("find a domain") && error.contains(&tiny.name),
        "{error}"
    );
    let uuid = run(&mut virsh(["domuuid", &renamed])).trim().parse().unwrap();
    assert_eq!(bench.state.peek(uuid).unwrap().unwrap().run, None);
}
