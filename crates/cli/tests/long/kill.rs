//! The kill matrix, its long part: in each way of backing up, at random moments, the program, QEMU, libvirtd and the
//! guest die, the storage fills, the guest's agent hangs; alone and together. The guest is never harmed, and what the
//! next run makes is good. `make test-long` runs it, for `STRONGROOM_LONG_MINUTES` (20), and prints what it counted;
//! `STRONGROOM_LONG_SEED` repeats one run's choices, `STRONGROOM_LONG_ONLY` takes only the faults whose names hold a word.
//!
//! libvirtd is one of its own, so that no other's is killed.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A test fails by panicking; this one reports while it runs.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::deaths::{self, MODES, Mode, Patient, within};
use strongroom_testkit::{Lab, OwnLibvirtd, output_of, run, virsh};
use tempfile::TempDir;

/// What the test is called, for it to be run again beside its own libvirtd.
const NAME: &str = "the_guest_is_never_harmed";
/// The storage that holds the guest's images, in MiB.
const STORAGE: u64 = 1400;
/// A run that lasts longer than this hangs.
const RUN_LIMIT: Duration = Duration::from_mins(4);
/// How long a guest that is asked to may take to shut down, and one whose storage is full to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// The program is killed.
    Program,
    /// The program kills itself at a stop of its journal.
    Stop,
    /// QEMU is killed.
    Qemu,
    /// `virsh destroy`.
    Destroy,
    /// The guest shuts down.
    ShutDown,
    /// The guest is reset.
    Reset,
    /// libvirtd is asked to end, and started again.
    DaemonTerm,
    /// libvirtd is killed, and started again.
    DaemonKill,
    /// The storage with the guest's images, and so the scratch files and overlays, is full.
    Full,
    /// The guest's agent stops answering.
    Hang,
}

/// What goes wrong together, in this order.
const FAULTS: &[(&str, &[Act])] = &[
    ("program killed", &[Act::Program]),
    ("program killed at a stop", &[Act::Stop]),
    ("program killed twice", &[Act::Stop, Act::Stop]),
    ("QEMU killed", &[Act::Qemu]),
    ("domain destroyed", &[Act::Destroy]),
    ("guest shut down", &[Act::ShutDown]),
    ("guest reset", &[Act::Reset]),
    ("libvirtd restarted", &[Act::DaemonTerm]),
    ("libvirtd killed", &[Act::DaemonKill]),
    ("storage full", &[Act::Full]),
    ("agent hangs", &[Act::Hang]),
    ("program and QEMU killed", &[Act::Program, Act::Qemu]),
    ("program killed, domain destroyed", &[Act::Program, Act::Destroy]),
    ("program killed, guest shut down", &[Act::Program, Act::ShutDown]),
    ("program and libvirtd killed", &[Act::Program, Act::DaemonKill]),
    ("libvirtd and program killed", &[Act::DaemonKill, Act::Program]),
    ("program killed, storage full", &[Act::Program, Act::Full]),
    ("agent hangs, program killed", &[Act::Hang, Act::Program]),
];

/// What came of one kind of fault in one mode.
#[derive(Default)]
struct Count {
    tried: u32,
    /// The run was under way when it happened.
    struck: u32,
    /// libvirt was left unusable for jobs until a power cycle; the guest ran on.
    wedged: u32,
    harmed: u32,
    /// The guest is unharmed, but something is left behind or the next backup is not good.
    failed: u32,
}

#[test]
#[ignore = "takes as long as it is told"]
fn the_guest_is_never_harmed() {
    let Some(daemon) = OwnLibvirtd::enter(module_path!(), NAME) else {
        return;
    };
    let minutes = from_environment("STRONGROOM_LONG_MINUTES").unwrap_or(20);
    let seed =
        from_environment("STRONGROOM_LONG_SEED").unwrap_or_else(|| u64::from(std::process::id()) ^ clock());
    eprintln!("{minutes} minutes, STRONGROOM_LONG_SEED={seed}");
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut session = Session {
        daemon,
        random: Random(seed | 1),
        only: std::env::var("STRONGROOM_LONG_ONLY").unwrap_or_default(),
        stops: BTreeMap::new(),
        counts: BTreeMap::new(),
    };
    while Instant::now() < end {
        session.with_one_guest(end);
    }
    let (tried, bad) = session.table();
    assert!(tried > 0);
    assert_eq!(bad, 0, "of {tried}");
}

struct Session {
    daemon: OwnLibvirtd,
    random: Random,
    only: String,
    /// How many stops a run has in a mode, as far as that is known.
    stops: BTreeMap<&'static str, u64>,
    counts: BTreeMap<(usize, &'static str), Count>,
}

impl Session {
    /// Goes on with one guest until it is harmed or the time is over.
    fn with_one_guest(&mut self, end: Instant) {
        let lab = Lab::new();
        let _storage = Storage::under(&lab);
        let mut patient = Patient::new(&lab, 208);
        patient.bench.config.limits.free_mib = 16;
        // Once around, so that what is written from then on has its place in the image.
        patient.guest.probe("load start 60");
        sleep(Duration::from_secs(5));
        patient.guest.probe("load stop");
        patient.recovers();
        let clock = Instant::now();
        assert_eq!(Run::start(&patient).end(), "the run ended with 0");
        let typical = clock.elapsed().as_millis() as u64;
        let mut faults: Vec<(usize, Mode)> = Vec::new();
        while Instant::now() < end {
            if faults.is_empty() {
                faults = (0..FAULTS.len())
                    .filter(|fault| FAULTS[*fault].0.contains(&self.only))
                    .flat_map(|fault| MODES.iter().map(move |mode| (fault, *mode)))
                    .collect();
                self.random.shuffle(&mut faults);
            }
            let Some((fault, mode)) = faults.pop() else { break };
            if !self.one(&mut patient, typical, fault, mode) {
                break;
            }
        }
        // Anything that still has to do with it would outlive the storage.
        let _ = output_of(&mut virsh(["destroy", patient.vm()]));
    }

    /// One fault, and everything that has to hold afterwards. Says whether all of it does.
    fn one(&mut self, patient: &mut Patient<'_>, typical: u64, fault: usize, mode: Mode) -> bool {
        let (name, acts) = FAULTS[fault];
        patient.set_mode(mode);
        let stops = *self.stops.entry(mode.name).or_insert(32);
        let mut below = |limit| self.random.below(limit);
        patient.bench.config.reader.limit_mib = [0, 24][below(2) as usize];
        patient.bench.config.limits.free_mib = [0, 16][below(2) as usize];
        let trial = Trial {
            acts,
            late: below(typical + typical / 4),
            gap: below(400),
            stop: 1 + below(stops) as usize,
            offline_first: below(2) == 0,
            load: [0, 4][below(2) as usize],
        };
        eprintln!("{}: {name}, {trial}", mode.name);
        let clock = Instant::now();
        let mut found = Found::default();
        let outcome = catch_unwind(AssertUnwindSafe(|| trial.run(patient, &self.daemon, &mut found)));
        if let Some(over) = found.over {
            self.stops.insert(mode.name, over as u64);
        }
        let count = self.counts.entry((fault, mode.name)).or_default();
        count.tried += 1;
        count.struck += u32::from(found.struck);
        count.wedged += u32::from(found.wedged);
        match &outcome {
            Ok(()) => eprintln!("  {}; good after {:.1?}", found.run, clock.elapsed()),
            Err(panic) => {
                count.harmed += u32::from(!found.guest_is_well);
                count.failed += u32::from(found.guest_is_well);
                let what = if found.guest_is_well { "FAILED" } else { "HARMED" };
                eprintln!("  {}; {what}: {}", found.run, words(&**panic));
            }
        }
        outcome.is_ok()
    }

    /// Prints what was counted; returns how many were tried and how many went wrong.
    fn table(&self) -> (u32, u32) {
        let line = "-".repeat(96);
        eprintln!(
            "\n{:<36}{:<22}{:>6}{:>8}{:>8}{:>8}{:>8}",
            "fault", "mode", "tried", "struck", "wedged", "harmed", "failed"
        );
        eprintln!("{line}");
        let mut sum = Count::default();
        for ((fault, mode), count) in &self.counts {
            let name = FAULTS[*fault].0;
            print_count(name, mode, count);
            sum.tried += count.tried;
            sum.struck += count.struck;
            sum.wedged += count.wedged;
            sum.harmed += count.harmed;
            sum.failed += count.failed;
        }
        eprintln!("{line}");
        print_count("all", "", &sum);
        (sum.tried, sum.harmed + sum.failed)
    }
}

fn print_count(name: &str, mode: &str, count: &Count) {
    eprintln!(
        "{name:<36}{mode:<22}{:>6}{:>8}{:>8}{:>8}{:>8}",
        count.tried, count.struck, count.wedged, count.harmed, count.failed
    );
}

/// What is known of a trial while it goes on.
#[derive(Default)]
struct Found {
    /// A run was under way.
    struck: bool,
    wedged: bool,
    /// A run did not come to this stop.
    over: Option<usize>,
    /// Nothing that fails from now on is the guest's harm.
    guest_is_well: bool,
    /// How the run ended.
    run: String,
}

/// One fault that is about to happen.
struct Trial {
    acts: &'static [Act],
    /// Milliseconds from the start of the run to the first act.
    late: u64,
    /// Milliseconds between two acts.
    gap: u64,
    /// The stop at which a run kills itself.
    stop: usize,
    /// Whether a guest that is off is backed up before it is started.
    offline_first: bool,
    /// MiB that the guest writes each second, beside its pattern.
    load: u64,
}

impl fmt::Display for Trial {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            late,
            gap,
            stop,
            load,
            ..
        } = self;
        write!(out, "{late} ms in, {gap} ms between, stop {stop}, load {load}")
    }
}

impl Trial {
    fn run(&self, patient: &mut Patient<'_>, daemon: &OwnLibvirtd, found: &mut Found) {
        if self.load > 0 {
            patient.guest.probe(&format!("load start {}", self.load));
        }
        if self.has(Act::Stop) {
            for _ in self.acts {
                let died = patient.dies_at(self.stop);
                found.struck |= died.is_some();
                if died.is_none() {
                    found.over = Some(self.stop);
                }
                found.run = died.unwrap_or_else(|| "the run was over".into());
            }
        } else {
            self.strike(patient, daemon, found);
        }
        patient.bench.config.reader.limit_mib = 0;
        self.mend(patient);
        if patient.is_wedged() {
            found.wedged = true;
            wedged(patient, daemon);
        }
        if patient.guest.state() == "paused" && patient.bench.run_of(patient.vm()).is_none() {
            // No run of ours stopped it, or could have resumed it: there was no room for what it wrote itself.
            run(&mut virsh(["resume", patient.vm()]));
        }
        let next = patient.bench.try_backup_with_hash(patient.vm());
        patient.expect_alive();
        patient.expect_on_base();
        found.guest_is_well = true;
        let (report, hash) = next.unwrap();
        patient.expect_good(&report.archive, &hash);
        if self.load > 0 {
            patient.guest.probe("load stop");
        }
        patient.finds_its_agent();
    }

    fn has(&self, act: Act) -> bool {
        self.acts.contains(&act)
    }

    /// Starts a run and does to it, and around it, what is to be done; then gives it the time that it needs.
    fn strike(&self, patient: &Patient<'_>, daemon: &OwnLibvirtd, found: &mut Found) {
        if self.has(Act::Hang) && self.stop.is_multiple_of(2) {
            hang(patient);
        }
        let mut backup = Run::start(patient);
        let mut goes_on = false;
        sleep(Duration::from_millis(self.late));
        for act in self.acts {
            found.struck |= backup.is_under_way();
            match act {
                Act::Stop => {}
                Act::Program => backup.kill(),
                Act::Qemu => patient.guest.kill(),
                Act::Destroy => patient.guest.destroy(),
                // A guest that is frozen, or down already, does not obey.
                Act::ShutDown => drop(output_of(&mut virsh([
                    "shutdown",
                    patient.vm(),
                    "--mode=agent,acpi",
                ]))),
                Act::Reset => drop(run(&mut virsh(["reset", patient.vm()]))),
                Act::DaemonTerm => {
                    daemon.end("TERM");
                    daemon.start();
                }
                Act::DaemonKill => {
                    daemon.end("KILL");
                    sleep(Duration::from_millis(self.gap));
                    daemon.start();
                }
                Act::Full => goes_on = fill(patient, &mut backup),
                Act::Hang => hang(patient),
            }
            sleep(Duration::from_millis(self.gap));
        }
        found.run = backup.end();
        // It has outlived the shortage, and with it the guest's stop.
        assert!(
            !goes_on || patient.guest.state() == "running",
            "the guest was left stopped"
        );
    }

    /// The cause is over: the guest is started again where it went down, its agent obeys again.
    fn mend(&self, patient: &Patient<'_>) {
        if self.has(Act::Hang) {
            patient.guest.sh("kill -CONT $(pidof qemu-ga)");
        }
        if self.has(Act::ShutDown) && !within(PATIENCE, || patient.guest.state() == "shut off") {
            patient.guest.destroy();
        }
        if patient.guest.state() == "shut off" {
            if self.offline_first {
                Run::start(patient).end();
            }
            patient.boots();
            if self.load > 0 {
                patient.guest.probe(&format!("load start {}", self.load));
            }
        } else if self.has(Act::Reset) {
            patient.was_reset();
        }
    }
}

fn hang(patient: &Patient<'_>) {
    patient.guest.sh("kill -STOP $(pidof qemu-ga)");
}

/// Leaves next to no room for a while. Says whether the run goes on afterwards.
fn fill(patient: &Patient<'_>, backup: &mut Run) -> bool {
    let ballast = patient.lab.path("ballast");
    let free = run(Command::new("df")
        .args(["--output=avail", "-B1M"])
        .arg(patient.lab.dir()));
    let free: u64 = free.lines().last().unwrap().trim().parse().unwrap();
    let length = format!("{}M", free.saturating_sub(1).max(1));
    // It may lose the race for the last bytes.
    let _ = output_of(Command::new("fallocate").args(["-l", &length]).arg(&ballast));
    let under_way = backup.is_under_way();
    let stopped = || patient.guest.state() == "paused";
    within(PATIENCE / 3, || stopped() || under_way != backup.is_under_way());
    fs::remove_file(ballast).unwrap();
    backup.is_under_way()
}

/// libvirt has lost track of a job. The guest runs on, on its base and sure to start from it; the program says what
/// is the matter, and a power cycle clears it.
fn wedged(patient: &Patient<'_>, daemon: &OwnLibvirtd) {
    patient.expect_alive();
    let next = patient.bench.says(patient.lab, &["backup", patient.vm()]);
    assert_eq!(next.code, Some(1), "{}", next.err);
    assert!(next.err.contains("shut off"), "{}", next.err);
    patient.expect_on_base();
    patient.expect_alive();
    patient.guest.destroy();
    daemon.end("TERM");
    daemon.start();
    patient.boots();
}

/// The program, backing up.
struct Run {
    child: Child,
    said: PathBuf,
}

impl Run {
    fn start(patient: &Patient<'_>) -> Self {
        let said = patient.lab.path("said");
        let mut program = patient.bench.program(patient.lab);
        program.args(["-v", "backup", patient.vm()]);
        program.stdin(Stdio::null()).stdout(Stdio::null());
        let child = program.stderr(File::create(&said).unwrap()).spawn().unwrap();
        Self { child, said }
    }

    fn is_under_way(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills it, unless it is over.
    fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Waits for its end, and says how that was.
    fn end(mut self) -> String {
        let ended = within(RUN_LIMIT, || !self.is_under_way());
        let said = fs::read_to_string(&self.said).unwrap();
        assert!(ended, "the run hangs: {said}");
        assert!(!said.contains("panicked"), "{said}");
        match self.child.wait().unwrap().code() {
            None => "the run was killed".into(),
            Some(0) => "the run ended with 0".into(),
            Some(code) => {
                let last = said.lines().rfind(|line| line.contains(": ")).unwrap_or_default();
                format!("the run ended with {code} ({last})")
            }
        }
    }
}

/// A file system of its own for a lab's directory, with the repository and the records kept out of it.
struct Storage {
    directory: PathBuf,
    _elsewhere: TempDir,
}

impl Storage {
    fn under(lab: &Lab) -> Self {
        let beside = |suffix: &str| {
            let mut name = lab.dir().file_name().unwrap().to_owned();
            name.push(suffix);
            tempfile::Builder::new()
                .prefix(&name)
                .tempdir_in("/var/tmp")
                .unwrap()
        };
        let elsewhere = beside("-kept");
        let image = elsewhere.path().join("storage");
        File::create(&image).unwrap().set_len(STORAGE << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(lab.dir()));
        run(Command::new("chmod").arg("755").arg(lab.dir()));
        let repository = format!("repo-{}", lab.name("guest"));
        for kept in [repository.as_str(), "state"] {
            let (from, to) = (elsewhere.path().join(kept), lab.path(kept));
            fs::create_dir(&from).unwrap();
            fs::create_dir(&to).unwrap();
            run(Command::new("mount").arg("--bind").args([from, to]));
        }
        Self {
            directory: lab.dir().to_owned(),
            _elsewhere: elsewhere,
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // Detached at once, gone when nothing uses it any more.
        let _ = Command::new("umount")
            .args(["--recursive", "--lazy"])
            .arg(&self.directory)
            .status();
    }
}

/// The xorshift64* generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|error| panic!("{name}={value}: {error}")),
    )
}

/// Different each time.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no words")
        .to_owned()
}

#[test]
#[ignore = "started by the other test, to die"]
fn victim() {
    deaths::victim();
}
