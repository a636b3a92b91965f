//! Runs that die, and what has to hold for the guest and between the runs afterwards.
//!
//! The victim is this test binary itself, started once more for its ignored test `victim`: it backs up in process and
//! sends itself SIGKILL at a given stop. The stops are both sides of each write of the records, and events while the frozen
//! view stands. They are counted, not named: a step that the engine gains is covered as soon as it is on record.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use strongroom_engine::config::{CaptureMethod, Config, Level, Quiesce, Vm};
use strongroom_engine::run::event::{Kind, Step};
use strongroom_testkit::{Borg, Lab, TestGuest, output_of, run, virsh};

use super::running::Said;
use super::{Bench, Hook};

/// What a victim is told, as JSON in its environment.
const ORDER: &str = "STRONGROOM_TEST_VICTIM";
/// How long the watchdog and helpers of a dead run may take to finish.
const AFTERMATH: Duration = Duration::from_secs(15);

/// For how long libvirt may be at a loss about a job that begins or ends.
const LOST: Duration = Duration::from_secs(5);

/// There as long as the guest's application is stopped.
const STOPPED: &str = "/run/stopped";

/// One way of backing up a running guest.
#[derive(Clone, Copy)]
pub struct Mode {
    /// Its name.
    pub name: &'static str,
    apply: fn(&mut Vm),
}

/// All ways.
pub const MODES: &[Mode] = &[
    Mode {
        name: "checkpoint",
        apply: |vm| vm.method = CaptureMethod::Checkpoint,
    },
    Mode {
        name: "checkpoint, quiesced",
        apply: |vm| {
            vm.method = CaptureMethod::Checkpoint;
            vm.quiesce = quiesced();
        },
    },
    Mode {
        name: "snapshot",
        apply: |vm| vm.method = CaptureMethod::Snapshot,
    },
    Mode {
        name: "snapshot, quiesced",
        apply: |vm| {
            vm.method = CaptureMethod::Snapshot;
            vm.quiesce = quiesced();
        },
    },
];

/// An application that is stopped, and file systems that are frozen, by the guest's agent.
fn quiesced() -> Quiesce {
    Quiesce {
        level: Level::Application,
        pre: Some(format!("touch {STOPPED}")),
        post: Some(format!("rm {STOPPED}")),
        ..Quiesce::default()
    }
}

#[derive(Serialize, Deserialize)]
struct Order {
    config: PathBuf,
    borg: PathBuf,
    vm: String,
    /// The stop at which to die, counted from 1.
    stop: usize,
}

/// The body of the ignored test `victim`.
pub fn victim() {
    let order = std::env::var(ORDER).expect("only other tests start this one");
    let order: Order = serde_json::from_str(&order).unwrap();
    let mut bench = Bench::open(Config::read(&order.config).unwrap(), Borg::sharing(&order.borg));
    let stops = Arc::new(AtomicUsize::new(0));
    let stop_at = move |what: String| {
        if stops.fetch_add(1, Ordering::SeqCst) + 1 == order.stop {
            die(&format!("stop {}: {what}", order.stop));
        }
    };
    let stop = stop_at.clone();
    bench.state = bench.state.watched(Arc::new(move |write| {
        stop(format!("a write of the records is {write:?}"));
    }));
    let hook = Hook::new(|event| match event {
        Kind::Captured { .. } => stop_at("the view is frozen".into()),
        Kind::DiskRead { .. } => stop_at("a disk is read".into()),
        Kind::Step { step: Step::Seal } => stop_at("the view is given up".into()),
        _ => {}
    });
    bench.backup(&order.vm, &hook).unwrap();
}

#[allow(clippy::print_stderr)] // The harness reads it.
fn die(at: &str) {
    eprintln!("dies at {at}");
    kill_process(getpid(), Signal::KILL).unwrap();
    // Until the signal arrives.
    sleep(Duration::from_mins(1));
}

/// A guest that writes all the time, backed up again and again.
pub struct Patient<'a> {
    pub lab: &'a Lab,
    pub guest: TestGuest,
    pub bench: Bench,
    /// Targets and the images that they belong on.
    home: Vec<(String, String)>,
    /// How much the guest had written when it was last looked at.
    records: Cell<u64>,
    /// Its agent cannot be reached before its next start.
    agent_is_lost: Cell<bool>,
}

impl<'a> Patient<'a> {
    /// Boots one with a disk of so many MiB.
    pub fn new(lab: &'a Lab, mib: u64) -> Self {
        let guest = lab.guest().root_mib(mib).swap_mib(32).boot();
        let bench = Bench::new(lab, &[guest.name()]);
        guest.probe("pattern start 20");
        let home = disks(guest.name(), &["--inactive"]);
        Self {
            lab,
            guest,
            bench,
            home,
            records: Cell::new(0),
            agent_is_lost: Cell::new(false),
        }
    }

    pub fn vm(&self) -> &str {
        self.guest.name()
    }

    /// From now on it is backed up in this way.
    pub fn set_mode(&mut self, mode: Mode) {
        let vm = self.vm().to_owned();
        let mut settings = Vm::default();
        (mode.apply)(&mut settings);
        self.bench.config.vm.insert(vm, settings);
    }

    /// Starts a backup that dies at this stop. Says which that was, or nothing if the run was over before.
    #[track_caller]
    pub fn dies_at(&self, stop: usize) -> Option<String> {
        let order = Order {
            config: self.bench.config_file(self.lab),
            borg: self.bench.borg.base().to_owned(),
            vm: self.vm().to_owned(),
            stop,
        };
        let said = Said::of(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "kill::victim", "--ignored", "--nocapture"])
                .env(ORDER, serde_json::to_string(&order).unwrap()),
        );
        if said.code.is_none() {
            let at = said.err.lines().find(|line| line.starts_with("dies at "));
            return Some(
                at.unwrap_or_else(|| panic!("stop {stop}: {}", said.err))
                    .to_owned(),
            );
        }
        assert_eq!(said.code, Some(0), "stop {stop}: {}{}", said.out, said.err);
        None
    }

    /// Starts the guest again after it went down. What it had written, it finds.
    #[track_caller]
    pub fn boots(&self) {
        self.guest.boot();
        self.agent_is_lost.set(false);
        self.begins_again();
    }

    /// The guest has been reset. libvirt does not find this one's agent again then, whether it is backed up or not.
    #[track_caller]
    pub fn was_reset(&self) {
        self.guest.wait_ready();
        self.agent_is_lost.set(true);
        self.begins_again();
    }

    #[track_caller]
    fn begins_again(&self) {
        self.guest.probe("verify");
        self.guest.probe("pattern start 20");
    }

    /// Gives the guest back what it has lost by a reset.
    #[track_caller]
    pub fn finds_its_agent(&self) {
        if self.agent_is_lost.get() {
            self.guest.destroy();
            self.boots();
        }
    }

    /// The guest runs and writes, whatever has just died.
    #[track_caller]
    pub fn expect_alive(&self) {
        assert_eq!(self.guest.state(), "running");
        self.await_thawed();
        let records = self.guest.probe("verify")["records"].as_u64().unwrap();
        assert!(records > self.records.get(), "the guest has stopped writing");
        self.records.set(records);
    }

    /// libvirt shows a job that QEMU does not have, and therefore refuses every other one: libvirtd was killed while it
    /// switched the guest to its base, or while it began a backup job.
    pub fn is_wedged(&self) -> bool {
        let is_at_rest = || monitor(self.vm(), "query-block-jobs") == Value::Array(Vec::new());
        let mirrors = || run(&mut virsh(["dumpxml", self.vm()])).contains("<mirror");
        let knows_its_job = || {
            let said = output_of(&mut virsh(["domjobinfo", self.vm()]));
            !said.is_err_and(|said| said.contains("job data missing"))
        };
        is_at_rest() && (mirrors() || !within(LOST, knows_its_job))
    }

    /// The guest is on its own images, for QEMU, for libvirt, and for its next start; no job is at work on it.
    #[track_caller]
    pub fn expect_home(&self) {
        assert_eq!(disks(self.vm(), &[]), self.home, "the live definition");
        self.expect_on_base();
        assert_eq!(monitor(self.vm(), "query-block-jobs"), Value::Array(Vec::new()));
    }

    /// The guest writes to its own images, and is going to after its next start, whatever libvirt shows.
    #[track_caller]
    pub fn expect_on_base(&self) {
        assert_eq!(disks(self.vm(), &["--inactive"]), self.home, "the next start");
        let mut used: Vec<String> = monitor(self.vm(), "query-block")
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|drive| Some(drive["inserted"]["file"].as_str()?.to_owned()))
            .collect();
        let mut images: Vec<String> = self.home.iter().map(|(_, image)| image.clone()).collect();
        used.sort();
        images.sort();
        assert_eq!(used, images, "QEMU");
    }

    /// What an undone run must not leave: away from home, at work, a stopped application, a process, a file.
    #[track_caller]
    pub fn expect_tidy(&self) {
        self.guest.sh(&format!("test ! -e {STOPPED}"));
        self.expect_home();
        self.bench.guest_at_rest(self.lab, self.vm());
        let begin = Instant::now();
        loop {
            let left = helpers(self.vm(), self.lab);
            if left.is_empty() {
                break;
            }
            assert!(begin.elapsed() < AFTERMATH, "processes are left: {left:?}");
            sleep(Duration::from_millis(100));
        }
    }

    /// The next backup undoes what is left of the last one, and is good: what is restored is what the guest had.
    #[track_caller]
    pub fn recovers(&self) {
        let (report, hash) = self.bench.backup_with_hash(self.vm());
        self.expect_alive();
        self.expect_good(&report.archive, &hash);
    }

    /// Nothing is left of earlier runs, and this backup is good.
    #[track_caller]
    pub fn expect_good(&self, archive: &str, hash: &str) {
        self.expect_tidy();
        let restored = self.bench.sha256_of_restored(self.lab, self.vm(), archive, "vda");
        assert_eq!(restored, hash, "{archive}");
    }

    /// File systems are frozen no longer than the watchdog may take.
    #[track_caller]
    fn await_thawed(&self) {
        let begin = Instant::now();
        while !self.agent_is_lost.get() {
            let ask = r#"{"execute":"guest-fsfreeze-status"}"#;
            let said = output_of(&mut virsh([
                "qemu-agent-command",
                self.vm(),
                ask,
                "--timeout",
                "5",
            ]));
            if said.as_deref().is_ok_and(|said| said.contains("thawed")) {
                return;
            }
            assert!(
                begin.elapsed() < AFTERMATH,
                "the guest is frozen, or its agent lost: {said:?}"
            );
            sleep(Duration::from_millis(100));
        }
    }
}

/// The disks of a domain and their images, as libvirt lists them.
fn disks(vm: &str, options: &[&str]) -> Vec<(String, String)> {
    let list = run(virsh(["domblklist", vm]).args(options));
    list.lines()
        .filter_map(|line| line.trim().split_once(char::is_whitespace))
        .map(|(target, image)| (target.to_owned(), image.trim().to_owned()))
        .collect()
}

/// QEMU's answer to a command without arguments.
fn monitor(vm: &str, command: &str) -> Value {
    let ask = format!(r#"{{"execute":"{command}"}}"#);
    let answer = run(&mut virsh(["qemu-monitor-command", vm, &ask]));
    serde_json::from_str::<Value>(&answer).unwrap()["return"].take()
}

/// Command lines of processes that have to do with a VM and are not QEMU.
fn helpers(vm: &str, lab: &Lab) -> Vec<String> {
    let pattern = format!("{vm}|{}", lab.dir().display());
    // It fails if there is none.
    let found =
        output_of(Command::new("pgrep").args(["--full", "--list-full", &pattern])).unwrap_or_default();
    found
        .lines()
        .filter(|line| !line.contains("qemu-system-") && !line.contains("pgrep"))
        .map(str::to_owned)
        .collect()
}

/// Waits until something is so, at most this long; says whether it is.
pub fn within(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        if so() {
            return true;
        }
        if begin.elapsed() > limit {
            return false;
        }
        sleep(Duration::from_millis(50));
    }
}
