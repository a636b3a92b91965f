//! Guests that are brought to rest: what is reached is what is on record, and however a run ends the guest goes on.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_engine::config::{CaptureMethod, IfMissed, Level, Quiesce};
use strongroom_engine::run::event::Kind;
use strongroom_engine::run::state::Pending;
use strongroom_hypervisor::{Agent as _, FreezeStatus, Hypervisor as _};
use strongroom_points::manifest::{Consistency, Manifest};
use strongroom_testkit::{GuestBuilder, Lab, Sshd, TestGuest, output_of, patience, run, virsh};
use uuid::Uuid;

use crate::common::running::{Running, Said, signal};
use crate::common::{Bench, Hook};

/// Long enough for a machine that is busy with other tests.
const PLENTY: Duration = Duration::from_mins(1);
const BUDGET_MS: u64 = 20_000;

struct Scene<'a> {
    lab: &'a Lab,
    guest: TestGuest,
    uuid: Uuid,
    bench: Bench,
    sshd: Sshd,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab, guest: GuestBuilder<'_>) -> Self {
        let guest = guest.root_mib(160).boot();
        let scene = Self {
            lab,
            uuid: guest.uuid().parse().unwrap(),
            bench: Bench::new(lab, &[guest.name()]),
            sshd: Sshd::start(),
            guest,
        };
        let ssh = format!("#!/bin/sh\nexec {} \"$@\"\n", scene.sshd.rsh());
        fs::write(scene.lab.path("ssh"), ssh).unwrap();
        fs::set_permissions(scene.lab.path("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        scene.guest.probe("pattern start 5");
        scene
    }

    /// One whose agent answers.
    fn with_agent(lab: &'a Lab) -> Self {
        let scene = Self::new(lab, lab.guest());
        await_that("the agent answers", || {
            scene.bench.hypervisor.agent_ping(scene.uuid, PLENTY).is_ok()
        });
        scene
    }

    fn vm(&self) -> &str {
        self.guest.name()
    }

    /// Asks for this; the rest is as by default, but for a budget that a busy machine keeps.
    fn ask(&mut self, quiesce: Quiesce) {
        let vm = self.guest.name();
        self.bench.config.vm.get_mut(vm).unwrap().quiesce = quiesce;
    }

    fn program(&self) -> Command {
        let mut program = self.bench.program(self.lab);
        program
            .env("STRONGROOM_SSH", self.lab.path("ssh"))
            .args(["-v", "backup", self.vm()]);
        program
    }

    fn backup(&self) -> Said {
        Said::of(&mut self.program())
    }

    /// The newest restore point.
    #[track_caller]
    fn latest(&self) -> Manifest {
        self.bench.manifest(self.lab, &format!("{}@latest", self.vm()))
    }

    #[track_caller]
    fn expect(&self, consistency: Consistency, missed: Option<&str>) -> Manifest {
        let manifest = self.latest();
        assert_eq!(manifest.consistency, consistency, "{:?}", manifest.missed);
        match (&manifest.missed, missed) {
            (None, None) => {}
            (Some(said), Some(word)) => assert!(said.contains(word), "{said}"),
            (said, word) => panic!("{said:?} instead of {word:?}"),
        }
        let frozen = matches!(consistency, Consistency::Filesystem);
        assert!(!frozen || manifest.frozen_us > 0);
        manifest
    }

    /// Nothing is frozen or owed, no watchdog is left, the guest has lost nothing.
    #[track_caller]
    fn at_rest(&self) -> Vec<String> {
        if self.bench.hypervisor.agent_connected(self.uuid).unwrap() {
            assert_eq!(self.status(), FreezeStatus::Thawed);
        }
        assert_eq!(self.pending(), Pending::default());
        await_that("the watchdog is gone", || self.watchdog().is_none());
        self.guest.probe("verify");
        self.bench.at_rest(self.lab, self.vm())
    }

    fn pending(&self) -> Pending {
        self.bench.state.peek(self.uuid).unwrap().unwrap().pending
    }

    #[track_caller]
    fn status(&self) -> FreezeStatus {
        self.bench.hypervisor.freeze_status(self.uuid, PLENTY).unwrap()
    }

    fn watchdog(&self) -> Option<u32> {
        let pattern = format!("thaw-watchdog {}", self.uuid);
        let found = output_of(Command::new("pgrep").args(["-f", "--", &pattern])).ok()?;
        Some(found.parse().unwrap_or_else(|_| panic!("{found}")))
    }

    /// The file that the scripts of [`Scene::scripts`] write to.
    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.lab.path("log")).unwrap_or_default();
        fs::write(self.lab.path("log"), "").unwrap();
        log.lines().map(str::to_owned).collect()
    }

    /// Scripts over ssh that write down what they were told; what `pre` does besides, and `post`.
    fn scripts(&self, pre: &str, post: &str) -> Quiesce {
        let log = self.lab.path("log");
        let note = format!(
            "echo $STRONGROOM_PHASE \"$STRONGROOM_VM\" \"$STRONGROOM_RUN\" >>{}",
            log.display()
        );
        Quiesce {
            ssh: Some("127.0.0.1".into()),
            pre: Some(format!("{note}; {pre}")),
            post: Some(format!("{note}; {post}")),
            ..asked(Level::Application)
        }
    }

    /// Restores `vda`; says whether its journal would have to be replayed, and makes sure that it is sound if not.
    #[track_caller]
    fn needs_recovery(&self) -> bool {
        let image = self.lab.path("vda.raw");
        let (point, to) = (format!("{}@latest", self.vm()), image.display().to_string());
        let restore = ["restore", &point, "--disk", "vda", "--format", "raw", "--to", &to];
        self.bench.says(self.lab, &restore).expect(0, &[]);
        let features = run(Command::new("dumpe2fs").arg("-h").arg(&image));
        let needs = features.contains("needs_recovery");
        if !needs {
            run(Command::new("e2fsck").arg("-fn").arg(&image));
        }
        fs::remove_file(image).unwrap();
        needs
    }
}

fn asked(level: Level) -> Quiesce {
    Quiesce {
        level,
        budget_ms: BUDGET_MS,
        ..Quiesce::default()
    }
}

#[track_caller]
fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(PLENTY);
    while !holds() {
        assert!(Instant::now() < deadline, "it never comes that {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn file_systems_are_at_rest_in_the_restore_point() {
    let lab = Lab::new();
    let mut scene = Scene::with_agent(&lab);
    scene.backup().expect(0, &[]);
    let crash = scene.expect(Consistency::Crash, None);
    assert_eq!(crash.frozen_us, 0);
    assert!(scene.needs_recovery(), "it writes all the time");

    scene.ask(asked(Level::Filesystem));
    scene.backup().expect(0, &["freezing its file systems"]);
    scene.expect(Consistency::Filesystem, None);
    assert!(!scene.needs_recovery());
    let shown = scene.bench.says(&lab, &["show", scene.vm()]).out;
    assert!(shown.contains("Consistency  filesystem, frozen for "), "{shown}");
    assert!(
        scene
            .bench
            .says(&lab, &["list", scene.vm()])
            .out
            .contains(" filesystem ")
    );
    scene.at_rest();

    // Another program's freeze is nothing of ours: not to be used, and not to be ended.
    scene.bench.hypervisor.freeze(scene.uuid, PLENTY).unwrap();
    scene.backup().expect(3, &["another program has frozen"]);
    assert_eq!(scene.status(), FreezeStatus::Frozen);
    scene.bench.hypervisor.thaw(scene.uuid, PLENTY).unwrap();
    scene.expect(Consistency::Crash, Some("another program"));

    run(&mut virsh(["suspend", scene.vm()]));
    scene
        .backup()
        .expect(3, &["consistency crash, and not filesystem: the VM is paused"]);
    run(&mut virsh(["resume", scene.vm()]));
    scene.at_rest();
    scene.guest.shutdown();
    scene.backup().expect(0, &[]);
    scene.expect(Consistency::Clean, None);
}

#[test]
fn applications_are_brought_to_rest_by_scripts() {
    let lab = Lab::new();
    let mut scene = Scene::with_agent(&lab);
    over_ssh(&mut scene);
    by_the_agent(&mut scene);
    scripts_that_fail(&mut scene);
    a_panic(&mut scene);
}

fn over_ssh(scene: &mut Scene<'_>) {
    scene.ask(scene.scripts("true", "true"));
    scene.backup().expect(0, &["freezing its file systems"]);
    let manifest = scene.expect(Consistency::Application, None);
    assert!(manifest.frozen_us > 0);
    assert!(!scene.needs_recovery());
    let (vm, run) = (scene.vm(), &manifest.run);
    assert_eq!(
        scene.log(),
        [format!("pre {vm} {run}"), format!("post {vm} {run}")]
    );
    scene.at_rest();
}

fn by_the_agent(scene: &mut Scene<'_>) {
    scene.ask(Quiesce {
        pre: Some("echo \"$STRONGROOM_VM\" >/run/pre".into()),
        post: Some("mv /run/pre /run/post".into()),
        ..asked(Level::Application)
    });
    scene.backup().expect(0, &[]);
    scene.expect(Consistency::Application, None);
    assert_eq!(scene.guest.sh("cat /run/post").trim(), scene.vm());
    scene.at_rest();
}

fn scripts_that_fail(scene: &mut Scene<'_>) {
    let broken = "echo it is broken >&2; exit 7";
    scene.ask(scene.scripts(broken, "true"));
    let said = scene.backup();
    said.expect(
        3,
        &[
            "consistency filesystem, and not application",
            "status 7",
            "it is broken",
        ],
    );
    scene.expect(
        Consistency::Filesystem,
        Some("the pre script ended with status 7"),
    );
    assert_eq!(scene.log().len(), 2, "post runs all the same");
    let archives = scene.at_rest();

    scene.ask(Quiesce {
        if_missed: IfMissed::Fail,
        ..scene.scripts(broken, "true")
    });
    let said = scene.backup();
    said.expect(
        1,
        &[
            "consistency application was not reached",
            "status 7",
            "it is broken",
        ],
    );
    assert!(!said.err.contains("freezing"), "{}", said.err);
    assert_eq!(scene.log().len(), 2);
    assert_eq!(scene.at_rest(), archives);

    // A script that hangs is ended, with all that it has started here.
    scene.ask(Quiesce {
        timeout_s: 5,
        ..scene.scripts("sleep 1234", "true")
    });
    scene
        .backup()
        .expect(3, &["the pre script still ran after 5 seconds"]);
    assert_eq!(scene.log().len(), 2);
    // A destination that there is not.
    scene.ask(Quiesce {
        ssh: Some("127.0.0.2".into()),
        ..scene.scripts("true", "true")
    });
    scene.backup().expect(
        3,
        &[
            "the pre script did not run: ssh failed",
            "the post script did not run",
        ],
    );
    assert!(scene.pending().post.is_some(), "it is still owed");
    assert!(scene.log().is_empty());

    // What is owed is paid by the next run, before it begins anew.
    let owing = scene.latest().run;
    scene.ask(scene.scripts("true", "true"));
    scene
        .backup()
        .expect(0, &["running the post script that an earlier run owes it"]);
    let log = scene.log();
    assert_eq!(log[0], format!("post {} {owing}", scene.vm()));
    assert_eq!(log.len(), 3);
    scene.at_rest();
}

fn a_panic(scene: &mut Scene<'_>) {
    scene.ask(Quiesce {
        pre: Some("touch /run/panic".into()),
        post: Some("rm /run/panic".into()),
        ..asked(Level::Application)
    });
    let hook = Hook::new(|event| {
        assert!(
            !matches!(event, Kind::Note { text } if text.contains("freezing")),
            "this is where it ends"
        );
    });
    assert!(catch_unwind(AssertUnwindSafe(|| scene.bench.backup(scene.vm(), &hook))).is_err());
    assert_eq!(scene.pending().post, None, "post ran on the way out");
    scene.guest.sh("test ! -e /run/panic");
    assert_eq!(scene.status(), FreezeStatus::Thawed);
    assert!(!scene.needs_recovery(), "the run was undone on the way out");
    scene.backup().expect(0, &[]);
    scene.at_rest();
}

/// A job of another program on the domain: until it is released, the capture has to wait, with the guest frozen.
struct Held {
    dump: Child,
    pipe: File,
}

impl Held {
    /// Begins to save the running guest's memory into a pipe that is not read.
    fn new(scene: &Scene<'_>) -> Self {
        let fifo = scene.lab.path("fifo");
        if !fifo.exists() {
            run(Command::new("mkfifo").args(["-m", "666"]).arg(&fifo));
        }
        let dump = virsh(["dump", "--live", scene.vm()]).arg(&fifo).spawn().unwrap();
        let held = Self {
            dump,
            pipe: File::open(fifo).unwrap(),
        };
        let job = || run(&mut virsh(["domjobinfo", scene.vm()]));
        await_that("the domain is held", || job().contains("Dump"));
        held
    }

    fn release(mut self) {
        std::io::copy(&mut self.pipe, &mut std::io::sink()).unwrap();
        assert!(self.dump.wait().unwrap().success());
    }
}

/// A run that is caught with the guest frozen.
struct Caught {
    running: Running,
    held: Held,
}

impl Caught {
    fn new(scene: &mut Scene<'_>, budget_ms: u64) -> Self {
        let path = |name: &str| -> PathBuf { scene.lab.path(name) };
        let (begun, go) = (path("begun"), path("go"));
        for file in [&begun, &go] {
            let _ = fs::remove_file(file);
        }
        let wait = format!(
            "touch {}; while [ ! -e {} ]; do sleep 0.05; done",
            begun.display(),
            go.display()
        );
        scene.ask(Quiesce {
            budget_ms,
            ..scene.scripts(&wait, "true")
        });
        let running = Running::start(&mut scene.program());
        await_that("pre runs", || begun.exists());
        let held = Held::new(scene);
        fs::write(go, "").unwrap();
        await_that("the guest is frozen", || scene.status() == FreezeStatus::Frozen);
        Self { running, held }
    }
}

#[test]
fn a_guest_is_thawed_whatever_becomes_of_the_run() {
    let lab = Lab::new();
    let mut scene = Scene::with_agent(&lab);
    scene.backup().expect(0, &[]);
    over_the_budget(&mut scene);
    killed(&mut scene);
    stopped_by_ctrl_c(&mut scene);
}

fn over_the_budget(scene: &mut Scene<'_>) {
    let caught = Caught::new(scene, 1500);
    let clock = Instant::now();
    await_that("it is thawed", || scene.status() == FreezeStatus::Thawed);
    assert!(
        clock.elapsed() < patience(Duration::from_secs(3)),
        "{:?}",
        clock.elapsed()
    );
    assert!(
        scene.watchdog().is_some(),
        "the run still waits, and so does its watchdog"
    );
    caught.held.release();
    caught
        .running
        .end()
        .expect(3, &["did not stay frozen until the view was taken: 1500 ms"]);
    let manifest = scene.expect(Consistency::Crash, Some("1500 ms"));
    assert!(manifest.frozen_us >= 1_400_000, "{}", manifest.frozen_us);
    assert_eq!(scene.log().len(), 2);
    scene.at_rest();
}

fn killed(scene: &mut Scene<'_>) {
    // A budget that is not what thaws it here.
    let caught = Caught::new(scene, 60_000);
    let watchdog = scene.watchdog().unwrap();
    for deaf in ["INT", "TERM", "HUP"] {
        signal(watchdog, deaf);
    }
    let clock = Instant::now();
    caught.running.signal("KILL");
    await_that("it is thawed", || scene.status() == FreezeStatus::Thawed);
    assert!(
        clock.elapsed() < patience(Duration::from_secs(3)),
        "{:?}",
        clock.elapsed()
    );
    assert_eq!(caught.running.end().code, None);
    await_that("the watchdog is gone", || scene.watchdog().is_none());
    let pending = scene.pending();
    assert!(pending.thaw && pending.post.is_some(), "{pending:?}");
    assert_eq!(scene.log().len(), 1, "only pre has run");
    caught.held.release();
    // The daemon goes on with what the dead run has asked for.
    await_that("its job has begun", || {
        scene.bench.hypervisor.backup_job(scene.uuid).unwrap().is_some()
    });
    scene
        .backup()
        .expect(3, &["was interrupted", "an earlier run owes it"]);
    let log = scene.log();
    assert_eq!(log[0], format!("post {} {}", scene.vm(), pending.post.unwrap()));
    assert_eq!(log.len(), 3);
    scene.expect(Consistency::Application, None);
    scene.at_rest();
}

fn stopped_by_ctrl_c(scene: &mut Scene<'_>) {
    let archives = scene.at_rest();
    let caught = Caught::new(scene, 60_000);
    caught.running.signal("INT");
    caught.held.release();
    caught.running.end().expect(1, &["interrupted"]);
    assert_eq!(scene.log().len(), 2);
    assert_eq!(scene.at_rest(), archives);
}

#[test]
fn an_agent_that_hangs_costs_a_bounded_time_and_no_guest() {
    let lab = Lab::new();
    let mut scene = Scene::with_agent(&lab);
    scene.ask(Quiesce {
        budget_ms: 1000,
        ..asked(Level::Filesystem)
    });
    let stop = || scene.guest.sh("kill -STOP $(pidof qemu-ga)");
    // It hangs between its last sign of life and the freeze: the request stays in its channel.
    let hook = Hook::new(|event| {
        if matches!(event, Kind::Note { text } if text.contains("freezing")) {
            stop();
        }
    });
    let clock = Instant::now();
    let report = scene.bench.backup(scene.vm(), &hook).unwrap();
    assert!(clock.elapsed() < PLENTY, "{:?}", clock.elapsed());
    assert_eq!(report.manifest.consistency, Consistency::Crash);
    let missed = report.manifest.missed.unwrap();
    assert!(missed.contains("freeze the file systems"), "{missed}");
    assert!(scene.pending().thaw, "whether it will be frozen is not known");
    // It wakes up, and does as it was told. The run is long over; its watchdog is not.
    let watchdog = scene.watchdog().unwrap();
    signal(watchdog, "STOP");
    // Whatever it has asked for is over when another one has been answered for.
    scene.bench.hypervisor.agent_ping(scene.uuid, PLENTY).unwrap_err();
    scene.guest.sh("kill -CONT $(pidof qemu-ga)");
    await_that("the guest freezes", || {
        let status = scene.bench.hypervisor.freeze_status(scene.uuid, PLENTY);
        status.is_ok_and(|status| status == FreezeStatus::Frozen)
    });
    signal(watchdog, "CONT");
    await_that("it is thawed", || scene.status() == FreezeStatus::Thawed);
    await_that("the watchdog is gone", || scene.watchdog().is_none());

    // One that hangs from the start is asked for nothing.
    scene.guest.sh("kill -STOP $(pidof qemu-ga)");
    let clock = Instant::now();
    scene.backup().expect(
        3,
        &["may still be frozen by an earlier run", "ping the guest agent"],
    );
    assert!(clock.elapsed() < PLENTY, "{:?}", clock.elapsed());
    scene.expect(Consistency::Crash, Some("ping the guest agent"));
    let archives = scene.bench.archives(scene.vm());
    scene.ask(Quiesce {
        if_missed: IfMissed::Fail,
        ..asked(Level::Filesystem)
    });
    scene.backup().expect(
        1,
        &["consistency filesystem was not reached", "ping the guest agent"],
    );
    scene.guest.sh("kill -CONT $(pidof qemu-ga)");
    await_that("the agent answers", || {
        scene.bench.hypervisor.agent_ping(scene.uuid, PLENTY).is_ok()
    });
    assert_eq!(scene.bench.archives(scene.vm()), archives);
    scene.backup().expect(0, &[]);
    scene.expect(Consistency::Filesystem, None);
    scene.at_rest();
}

/// It hangs when the guest is frozen: the watchdog asks for the thaw until it is done, also when the run is over.
#[test]
fn an_agent_that_hangs_while_frozen_is_asked_until_it_thaws() {
    let lab = Lab::new();
    let mut scene = Scene::with_agent(&lab);
    let vm = scene.vm().to_owned();
    for method in [CaptureMethod::Snapshot, CaptureMethod::Checkpoint] {
        scene.bench.config.vm.get_mut(&vm).unwrap().method = method;
        let caught = Caught::new(&mut scene, 3000);
        scene.guest.sh("kill -STOP $(pidof qemu-ga)");
        caught.held.release();
        let clock = Instant::now();
        caught
            .running
            .end()
            .expect(3, &["may still be frozen", "the watchdog goes on trying"]);
        assert!(clock.elapsed() < PLENTY, "{:?}", clock.elapsed());
        assert!(scene.pending().thaw);
        assert!(scene.watchdog().is_some());
        scene.guest.sh("kill -CONT $(pidof qemu-ga)");
        await_that("it is thawed", || scene.status() == FreezeStatus::Thawed);
        await_that("the watchdog is gone", || scene.watchdog().is_none());
        let again = scene.backup();
        assert!(matches!(again.code, Some(0 | 3)), "{}", again.err);
        scene.at_rest();
    }
}

#[test]
fn a_guest_without_an_agent_has_its_scripts() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab, lab.guest().without_agent());
    scene.ask(asked(Level::Filesystem));
    scene.backup().expect(
        3,
        &["consistency crash, and not filesystem", "agent is not connected"],
    );
    scene.expect(Consistency::Crash, Some("agent is not connected"));
    let archives = scene.at_rest();
    scene.ask(Quiesce {
        if_missed: IfMissed::Fail,
        ..asked(Level::Filesystem)
    });
    scene.backup().expect(1, &["agent is not connected"]);
    assert_eq!(scene.at_rest(), archives);
    scene.ask(scene.scripts("true", "true"));
    scene.backup().expect(0, &["only the scripts bring it to rest"]);
    let manifest = scene.expect(Consistency::Application, None);
    assert_eq!(manifest.frozen_us, 0);
    assert_eq!(scene.log().len(), 2);
    scene.at_rest();
}
