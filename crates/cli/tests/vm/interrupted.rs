//! What stops a backup half way: nothing of it stays, the guest runs on, and the next backup is as good as any. What of it takes
//! no guest is in `crates/engine/tests/sim`.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::sync::Once;
use std::time::Duration;

use strongroom_engine::run::event::Kind;
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Lab, TestGuest, run, virsh};

use crate::common::running::{Running, Said, child_of, signal};
use crate::common::tmpfs::Tmpfs;
use crate::common::{Bench, Hook};

/// A guest that writes all the time, and its repository on a file system of its own.
struct Scene<'a> {
    lab: &'a Lab,
    guest: TestGuest,
    bench: Bench,
    tmpfs: Tmpfs,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab) -> Self {
        let guest = lab.guest().root_mib(160).boot();
        let tmpfs = Tmpfs::new(lab.path(&format!("repo-{}", guest.name())), 1024);
        let bench = Bench::new(lab, &[guest.name()]);
        guest.probe("pattern start 20");
        guest.probe("write 24");
        Self {
            lab,
            guest,
            bench,
            tmpfs,
        }
    }

    fn vm(&self) -> &str {
        self.guest.name()
    }

    fn repository(&self) -> String {
        self.tmpfs.path().display().to_string()
    }

    fn backup(&self) -> Said {
        self.bench.says(self.lab, &["backup", self.vm()])
    }

    /// Starts a backup that reads for some seconds, and waits until it does.
    fn slow_backup(&mut self) -> Running {
        self.bench.config.reader.limit_mib = 4;
        let mut program = self.bench.program(self.lab);
        self.bench.config.reader.limit_mib = 0;
        let mut running = Running::start(program.args(["-v", "backup", self.vm()]));
        running.wait_for("reading");
        std::thread::sleep(Duration::from_millis(700));
        running
    }

    /// Nothing is left, and stock Borg finds these archives and nothing wrong.
    #[track_caller]
    fn expect(&self, archives: &[String]) {
        assert_eq!(self.bench.at_rest(self.lab, self.vm()), archives);
        self.bench.check(self.vm());
    }

    /// The next backup is incremental, says so of this parent, and what is restored is what the guest had.
    #[track_caller]
    fn next_is_incremental(&self, parent: &str) {
        let (report, hash) = self.bench.backup_with_hash(self.vm());
        let vda = &report.manifest.disks[0];
        assert_eq!(vda.mode, Mode::Incremental, "{}", vda.reason);
        assert_eq!(vda.parent.as_deref(), Some(parent));
        self.expect_restore(&report.archive, &hash);
    }

    #[track_caller]
    fn expect_restore(&self, archive: &str, hash: &str) {
        let restored = self.bench.sha256_of_restored(self.lab, self.vm(), archive, "vda");
        assert_eq!(restored, hash, "{archive}");
    }

    fn archives(&self) -> Vec<String> {
        self.bench.archives(self.vm())
    }

    fn newest(&self) -> String {
        self.archives().pop().unwrap()
    }
}

#[test]
fn a_backup_that_is_cut_short_leaves_nothing_behind() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);

    ctrl_c(&mut scene, &[]);
    scene.backup().expect(0, &["first backup"]);
    scene.guest.probe("write 24");
    let first = scene.archives();
    ctrl_c(&mut scene, &first);
    the_server_is_killed(&mut scene, &first);
    the_quota_is_used_up(&scene, &first);
    the_repository_is_full(&scene, &first);
    scene.next_is_incremental(&first[0]);

    the_program_is_killed(&mut scene);
    scene.guest.probe("verify");
    qemu_is_killed(&mut scene);
    scene.bench.check(scene.vm());
}

fn ctrl_c(scene: &mut Scene<'_>, archives: &[String]) {
    scene.slow_backup().interrupt();
    scene.expect(archives);
}

fn the_server_is_killed(scene: &mut Scene<'_>, archives: &[String]) {
    let running = scene.slow_backup();
    signal(child_of(running.id(), "serve"), "KILL");
    running.end().expect(
        1,
        &[
            scene.vm(),
            "connection to the Borg server lost",
            "hint: check that the host can be reached",
        ],
    );
    scene.expect(archives);
}

fn the_quota_is_used_up(scene: &Scene<'_>, archives: &[String]) {
    let repository = scene.repository();
    scene
        .bench
        .borg
        .run(["config", &repository, "storage_quota", "30M"]);
    scene
        .backup()
        .expect(1, &["storage quota is exceeded", "hint: prune and compact"]);
    scene
        .bench
        .borg
        .run(["config", "--delete", &repository, "storage_quota"]);
    scene.expect(archives);
}

fn the_repository_is_full(scene: &Scene<'_>, archives: &[String]) {
    let ballast = scene.tmpfs.fill(8);
    let said = scene.backup();
    fs::remove_file(ballast).unwrap();
    said.expect(
        1,
        &["not enough free space for the repository", "hint: free space"],
    );
    scene.expect(archives);
}

/// Not even the program itself can tidy up then: the next run does.
fn the_program_is_killed(scene: &mut Scene<'_>) {
    let before = scene.newest();
    scene.guest.probe("write 16");
    let running = scene.slow_backup();
    running.signal("KILL");
    assert_eq!(running.end().code, None);
    let vm = scene.vm();
    let job = run(&mut virsh(["domjobinfo", vm]));
    assert_ne!(job.split_whitespace().last(), Some("None"), "the job is left");
    let checkpoints = || run(&mut virsh(["checkpoint-list", "--name", vm]));
    assert_eq!(checkpoints().split_whitespace().count(), 2, "{}", checkpoints());
    let status = scene.bench.json(scene.lab, &["status"]);
    assert_eq!(status["vms"][0]["interrupted"], true, "{status}");

    let said = scene.bench.says(scene.lab, &["--json", "backup", vm]);
    let warning = format!("warning: {vm}: the backup that began at");
    said.expect(3, &[&warning, "was interrupted"]);
    let document = said.json();
    assert_eq!(
        document["warning_details"][0]["code"], "interrupted-backup",
        "{document}"
    );
    assert_eq!(document["warnings"].as_array().unwrap().len(), 1, "{document}");
    let disk = &document["backups"][0]["backup"]["manifest"]["disks"][0];
    assert_eq!(disk["parent"], *before, "{document}");
    let recovered = scene.newest();
    assert_eq!(
        scene.bench.at_rest(scene.lab, vm).pop().as_ref(),
        Some(&recovered)
    );
    // What the next one does not read comes from the one that recovered.
    scene.next_is_incremental(&recovered);
}

/// The VM dies while it is read, and with it all that QEMU knew of what changed.
fn qemu_is_killed(scene: &mut Scene<'_>) {
    let before = scene.archives();
    scene.guest.probe("write 16");
    scene.bench.config.reader.limit_mib = 4;
    let kill = Once::new();
    let hook = Hook::new(|event| {
        if let Kind::DiskProgress { .. } = event {
            kill.call_once(|| scene.guest.kill());
        }
    });
    let error = scene.bench.backup(scene.vm(), &hook).unwrap_err().to_string();
    scene.bench.config.reader.limit_mib = 0;
    assert!(
        error.contains("it went off while it was read")
            && error.contains("read disk vda: ")
            && error.contains(" bytes at "),
        "{error}"
    );
    assert_eq!(scene.archives(), before);
    scene.guest.boot();
    scene.guest.probe("verify");
    let (report, hash) = scene.bench.backup_with_hash(scene.vm());
    let vda = &report.manifest.disks[0];
    assert_eq!(vda.mode, Mode::Full);
    assert!(vda.reason.contains("checkpoint"), "{}", vda.reason);
    scene.expect_restore(&report.archive, &hash);
    scene.bench.at_rest(scene.lab, scene.vm());
    scene.next_is_incremental(&report.archive);
}
