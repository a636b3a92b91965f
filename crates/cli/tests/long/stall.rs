//! What a guest feels of a backup, measured from inside it: how long its own durable writes take and how long its CPU stands
//! still, in the moment of the switch and while its disks are read, with both methods, idle and under write load; beside a
//! control in the same run, in which nothing happens for as long. `make bench-stall` runs it, prints a table, and writes what it
//! measured to `target/stall.json`; `STRONGROOM_STALL_ROUNDS` (25) is how often each is done.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // Whatever goes wrong ends it; it is there to print.

use std::path::Path;
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{Bench, Hook};
use serde_json::{Value, json};
use strongroom_engine::config::CaptureMethod;
use strongroom_engine::run::event::{Kind, Step};
use strongroom_testkit::{Format, Lab, OwnLibvirtd, ProbePort};

/// Pause between two writes of the guest that are measured, in milliseconds.
const PAUSE: u32 = 2;
/// The write load, in MiB a second, each flushed.
const LOAD: u32 = 20;
/// A disk that cannot keep track of changes, so that each run reads all of it, in MiB.
const READ: u64 = 256;

/// What the guest measured in windows of one kind.
#[derive(Default)]
struct Felt {
    /// How long each write took, in microseconds, over all windows.
    writes: Vec<u64>,
    /// The slowest write of each window.
    worst: Vec<u64>,
    /// The longest time that the CPU stood still in each window.
    gaps: Vec<u64>,
    /// How long the windows were, in microseconds.
    lengths: Vec<u64>,
}

impl Felt {
    fn add(&mut self, stats: &Value, length: Duration) {
        assert_eq!(stats["errors"], 0, "a write of the guest failed: {stats}");
        let samples = stats["samples_us"].as_array().unwrap();
        self.writes
            .extend(samples.iter().map(|sample| sample.as_u64().unwrap()));
        self.worst.push(match samples.len() {
            // A window in which no write ended is one in which one took at least as long.
            0 => length.as_micros() as u64,
            _ => stats["max_us"].as_u64().unwrap(),
        });
        self.gaps.push(stats["max_gap_us"].as_u64().unwrap());
        self.lengths.push(length.as_micros() as u64);
    }

    fn document(&self) -> Value {
        json!({
            "windows": self.worst.len(),
            "length_us": spread(&self.lengths),
            "writes": self.writes.len(),
            "write_us": spread(&self.writes),
            "worst_write_us": spread(&self.worst),
            "longest_pause_us": spread(&self.gaps),
        })
    }
}

/// What was measured for one way of backing up.
#[derive(Default)]
struct Measured {
    /// From before the call that holds the disks still until after it.
    switch: Felt,
    /// While they are read, until the guest is on its own images without a job again.
    reading: Felt,
    /// How long the calls took, as restore points have it on record.
    stalls: Vec<u64>,
}

impl Measured {
    fn document(&self) -> Value {
        json!({
            "switch": self.switch.document(),
            "reading": self.reading.document(),
            "stall_us": spread(&self.stalls),
        })
    }
}

fn spread(values: &[u64]) -> Value {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
    json!({ "p50": at(50), "p90": at(90), "p99": at(99), "max": sorted.last() })
}

/// Does one thing and takes what the guest felt meanwhile.
struct Watch<'a> {
    probe: &'a ProbePort,
    begun: Mutex<Instant>,
}

impl Watch<'_> {
    fn begin(&self) {
        self.probe.ask("stats reset");
        *self.begun.lock().unwrap() = Instant::now();
    }

    fn end(&self, felt: &mut Felt) {
        let length = self.begun.lock().unwrap().elapsed();
        felt.add(&self.probe.ask("stats samples"), length);
    }

    /// A backup. The windows are between what the engine reports; its work waits while the guest is asked.
    fn backup(&self, bench: &Bench, vm: &str, measured: &mut Measured) {
        let shared = Mutex::new(measured);
        let hook = Hook::new(|event| match event {
            Kind::Step { step: Step::Capture } => self.begin(),
            Kind::Captured { .. } => {
                self.end(&mut shared.lock().unwrap().switch);
                self.begin();
            }
            Kind::Step { step: Step::Seal } => self.end(&mut shared.lock().unwrap().reading),
            _ => {}
        });
        let report = bench.backup(vm, &hook).unwrap();
        shared.into_inner().unwrap().stalls.push(report.manifest.stall_us);
    }

    /// Nothing, for as long as the last backup took.
    fn control(&self, like: &Measured, control: &mut Measured) {
        for (like, felt) in [
            (&like.switch, &mut control.switch),
            (&like.reading, &mut control.reading),
        ] {
            self.begin();
            sleep(Duration::from_micros(*like.lengths.last().unwrap()));
            self.end(felt);
        }
    }
}

#[test]
#[ignore = "measures for minutes"]
fn the_stall() {
    // Whatever others do with the system's libvirtd is not measured.
    let Some(_daemon) = OwnLibvirtd::enter(module_path!(), "the_stall") else {
        return;
    };
    let rounds: u32 = std::env::var("STRONGROOM_STALL_ROUNDS").map_or(25, |text| text.parse().unwrap());
    let lab = Lab::new();
    let guest = lab.guest().root_mib(768).disk(Format::Raw, READ).boot();
    let mut bench = Bench::new(&lab, &[guest.name()]);
    guest.sh(&format!(
        "dd if=/dev/urandom of=/dev/vdc bs=1M count={READ} 2>/dev/null; sync"
    ));
    let probe = guest.probe_port();
    // Once around, so that what is written later has its place in the image.
    guest.probe("load start 60");
    sleep(Duration::from_secs(8));
    guest.probe("load stop");
    guest.probe(&format!("pattern start {PAUSE}"));
    let watch = Watch {
        probe: &probe,
        begun: Mutex::new(Instant::now()),
    };
    let mut documents = serde_json::Map::new();
    for (name, load) in [("idle", 0), ("load", LOAD)] {
        if load > 0 {
            guest.probe(&format!("load start {load}"));
        }
        let mut control = Measured::default();
        let mut methods =
            [CaptureMethod::Checkpoint, CaptureMethod::Snapshot].map(|method| (method, Measured::default()));
        for (method, _) in &methods {
            // The first one of all reads everything.
            use_method(&mut bench, *method);
            watch.backup(&bench, guest.name(), &mut Measured::default());
        }
        for _ in 0..rounds {
            for (method, measured) in &mut methods {
                use_method(&mut bench, *method);
                watch.backup(&bench, guest.name(), measured);
                watch.control(measured, &mut control);
            }
        }
        if load > 0 {
            guest.probe("load stop");
        }
        let [(_, checkpoint), (_, snapshot)] = methods;
        documents.insert(
            name.into(),
            json!({
                "control": control.document(),
                "checkpoint": checkpoint.document(),
                "snapshot": snapshot.document(),
            }),
        );
    }
    guest.probe("verify");
    let document = json!({ "rounds": rounds, "load_mib_s": LOAD, "read_mib": READ, "guest": documents });
    table(&document);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/stall.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, format!("{document:#}\n")).unwrap();
    println!("\n{}", file.display());
}

fn use_method(bench: &mut Bench, method: CaptureMethod) {
    for vm in bench.config.vm.values_mut() {
        vm.method = method;
    }
}

fn table(document: &Value) {
    println!(
        "{:<6}{:<12}{:<9}{:>10} {:>24} {:>24} {:>24}",
        "", "", "", "length ms", "write p50/p99/max ms", "worst write p50/p99 ms", "longest pause p50/p99 ms"
    );
    let ms = |value: &Value| format!("{:.1}", value.as_f64().unwrap_or(f64::NAN) / 1000.0);
    for load in ["idle", "load"] {
        for method in ["control", "checkpoint", "snapshot"] {
            for window in ["switch", "reading"] {
                let felt = &document["guest"][load][method][window];
                let of = |what: &str, parts: &[&str]| {
                    let parts: Vec<String> = parts.iter().map(|part| ms(&felt[what][part])).collect();
                    parts.join(" / ")
                };
                println!(
                    "{load:<6}{method:<12}{window:<9}{:>10} {:>24} {:>24} {:>24}",
                    of("length_us", &["p50"]),
                    of("write_us", &["p50", "p99", "max"]),
                    of("worst_write_us", &["p50", "p99"]),
                    of("longest_pause_us", &["p50", "p99"]),
                );
            }
        }
        for method in ["checkpoint", "snapshot"] {
            let stall = &document["guest"][load][method]["stall_us"];
            println!(
                "{load:<6}{method:<12}call     p50 {} ms, p99 {} ms",
                ms(&stall["p50"]),
                ms(&stall["p99"])
            );
        }
    }
}
