//! Several VMs at the same time: one that fails or hangs is one VM without a backup, and all that was begun can be undone.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::hangs::Held;
use crate::common::running::{Running, Said, signal};
use crate::common::tiny::{MIB, Tiny, noise};
use crate::common::{Bench, names};
use strongroom_testkit::{Lab, output_of, run, virsh};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// VMs without a guest to speak of, but with QEMU, and an engine that knows them.
fn scene(lab: &Lab, names: &[&str]) -> (Bench, Vec<Tiny>) {
    let tiny: Vec<Tiny> = names.iter().map(|name| Tiny::define(lab, name)).collect();
    for (seed, one) in tiny.iter().enumerate() {
        one.set("vda", &noise(seed as u64, 10 * MIB));
        run(&mut virsh(["start", &one.name]));
    }
    let vms: Vec<&str> = tiny.iter().map(|one| one.name.as_str()).collect();
    (Bench::new(lab, &vms), tiny)
}

#[test]
fn vms_are_backed_up_side_by_side_and_undone_together() {
    let lab = Lab::new();
    let (mut bench, tiny) = scene(&lab, &["one", "two", "three"]);
    let open = |bench: &Bench| {
        let is_open = |one: &&Tiny| bench.run_of(&one.name).is_some();
        tiny.iter().filter(is_open).count()
    };
    // Slow enough to be caught at it.
    bench.config.reader.limit_mib = 1;
    bench.config.jobs = 2;
    let two_at_work = |arguments: &[&str]| {
        let mut program = bench.program(&lab);
        let running = Running::start(program.args(["--json", "backup", "--all"]).args(arguments));
        let begin = Instant::now();
        while open(&bench) < 2 {
            assert!(begin.elapsed() < PATIENCE, "no two runs at the same time");
            sleep(Duration::from_millis(50));
        }
        running
    };
    let expect_undone = |said: &Said, why: &str| {
        let document = said.json();
        let backups = document["backups"].as_array().unwrap();
        let told: Vec<_> = backups.iter().map(|one| one["vm"].as_str().unwrap()).collect();
        // The order of the configuration, which is that of the names.
        let mut all: Vec<_> = tiny.iter().map(|one| one.name.as_str()).collect();
        all.sort_unstable();
        assert_eq!(told, all, "{document}");
        for one in backups {
            assert!(one["error"].as_str().unwrap().contains(why), "{document}");
        }
        for one in &tiny {
            assert_eq!(bench.at_rest(&lab, &one.name), Vec::<String>::new());
        }
    };
    let running = two_at_work(&[]);
    // The disk serves the guests first.
    let priority = run(Command::new("ionice").args(["-p", &running.id().to_string()]));
    assert_eq!(priority, "best-effort: prio 7");
    assert!(!children(running.id(), "serve").is_empty(), "borg serve runs");
    expect_undone(&running.interrupt(), "interrupted");

    let said = two_at_work(&["--time-limit", "2"]).end();
    said.expect(1, &["the time limit of 2 s for a run is over"]);
    expect_undone(&said, "the time limit of 2 s for a run is over");

    bench.config.reader.limit_mib = 0;
    // One that fails does not keep the others from their turn.
    let lost = bench.repository(&tiny[1].name);
    let aside = lab.path("aside");
    std::fs::rename(&lost, &aside).unwrap();
    let said = bench.says(&lab, &["backup", "--all", "--jobs", "3"]);
    said.expect(1, &[&format!("back up {}: ", tiny[1].name)]);
    std::fs::rename(&aside, &lost).unwrap();
    for (one, archives) in tiny.iter().zip([1, 0, 1]) {
        assert_eq!(bench.at_rest(&lab, &one.name).len(), archives, "{}", one.name);
        // Each line says which VM it is about.
        let about = said.err.lines().filter(|line| line.contains(&one.name)).count();
        assert!(about > 0, "{}", said.err);
    }
    let said = bench.says(&lab, &["--json", "backup", "--all", "--jobs", "3"]);
    said.expect(0, &[]);
    let done = said.json()["backups"].as_array().unwrap().clone();
    assert_eq!(done.len(), 3);
    for one in &done {
        assert!(one["backup"]["archive"].is_string(), "{one}");
        assert_eq!(one["warnings"], serde_json::json!([]), "{one}");
    }
    for one in &tiny {
        bench.check(&one.name);
    }
}

/// The children of a process that have this word in their command line.
fn children(process: u32, word: &str) -> Vec<u32> {
    let found = output_of(Command::new("pgrep").args(["-P", &process.to_string(), "-f", word]));
    let found = found.unwrap_or_default();
    found.lines().map(|id| id.trim().parse().unwrap()).collect()
}

#[test]
fn a_qemu_that_hangs_holds_up_one_vm() {
    let lab = Lab::new();
    let (mut bench, tiny) = scene(&lab, &["a", "b", "c"]);
    bench.config.limits.answer_s = 4;
    let pid: u32 = std::fs::read_to_string(format!("/run/libvirt/qemu/{}.pid", tiny[1].name))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    signal(pid, "STOP");
    let clock = Instant::now();
    let said = bench.says(&lab, &["--json", "backup", "--all"]);
    let took = clock.elapsed();
    signal(pid, "CONT");
    said.expect(
        1,
        &[
            "get an answer from the hypervisor within",
            &tiny[1].name,
            "hint: ",
        ],
    );
    assert!(took < PATIENCE, "{took:?}");
    let document = said.json();
    let error = |at: usize| document["backups"][at]["error"].is_string();
    assert_eq!([error(0), error(1), error(2)], [false, true, false], "{document}");
    // It goes on, and is backed up as if nothing had been.
    bench.config.limits.answer_s = 600;
    let again = bench.says(&lab, &["backup", &tiny[1].name]);
    assert!(matches!(again.code, Some(0 | 3)), "{again:?}");
    for one in &tiny {
        assert_eq!(bench.at_rest(&lab, &one.name).len(), 1);
    }
}

/// What is not a backup waits for no longer either, and says so: also in JSON.
#[test]
fn a_qemu_that_hangs_ends_what_waits_for_it() {
    let lab = Lab::new();
    let (mut bench, tiny) = scene(&lab, &["a"]);
    bench.config.limits.answer_s = 3;
    let vm = &tiny[0].name;
    let pid = std::fs::read_to_string(format!("/run/libvirt/qemu/{vm}.pid")).unwrap();
    for command in ["audit", "status", "recover"] {
        let held = Held::stop(pid.trim().parse().unwrap());
        let clock = Instant::now();
        let said = Said::of(bench.program(&lab).args(["--json", command, vm]));
        let took = clock.elapsed();
        drop(held);
        said.expect(1, &["get an answer from the hypervisor within", "hint: "]);
        let document = said.json();
        assert!(
            document["error"].as_str().unwrap().contains("the hypervisor"),
            "{command}: {document}"
        );
        assert!(took < PATIENCE, "{command}: {took:?}");
    }
}

#[test]
fn helpers_have_the_priority_of_the_run() {
    let lab = Lab::new();
    let (mut bench, tiny) = scene(&lab, &["one"]);
    for vm in bench.config.vm.values_mut() {
        vm.method = strongroom_engine::config::CaptureMethod::Snapshot;
    }
    bench.config.reader.limit_mib = 1;
    let mut program = bench.program(&lab);
    let running = Running::start(program.args(["backup", &tiny[0].name]));
    let begin = Instant::now();
    let helper = loop {
        if let Some(helper) = children(running.id(), "qemu-nbd").pop() {
            break helper;
        }
        assert!(begin.elapsed() < PATIENCE, "no qemu-nbd");
        sleep(Duration::from_millis(50));
    };
    let priority = run(Command::new("ionice").args(["-p", &helper.to_string()]));
    assert_eq!(priority, "best-effort: prio 7");
    running.interrupt();
    let files = names(lab.dir());
    assert!(!files.iter().any(|name| name.ends_with(".overlay")), "{files:?}");
}
