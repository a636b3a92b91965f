//! The hang matrix, its long part: each party is stopped at each step of a backup, by both methods (R10). Within the patience
//! that `docs/operate/hangs.md` states the program has ended; once the party goes on, the guest is on its own image, without a
//! job, and the next run is good.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A test fails by panicking, and says how far it came.

use std::time::{Duration, Instant};

use strongroom_engine::config::{CaptureMethod, Witness};
use strongroom_testkit::{Lab, output_of};

use crate::common::hangs::{Held, Mount, Ward};

/// How long a run may take that nobody tells to end: the longest patience with a party, for each step of the way home.
const UNTOLD: Duration = Duration::from_mins(8);

/// The steps, by what the program says of them.
const STEPS: [&str; 5] = [
    "looking for leftovers",
    "opening the repository",
    "taking the frozen view",
    "reading",
    "writing the archive",
];

/// Finds a party while a process runs.
type Find = fn(&Ward<'_>, u32) -> Option<u32>;

/// The parties. One that is not there at a step is left out.
const PARTIES: [(&str, Find); 5] = [
    ("borg serve", |_, process| child(process, "serve")),
    ("qemu-nbd", |_, process| child(process, "qemu-nbd")),
    ("libvirtd", |_, _| {
        number("/run/libvirt/libvirtd.pid").or_else(|| number("/run/libvirtd.pid"))
    }),
    ("QEMU", |ward, _| {
        number(&format!("/run/libvirt/qemu/{}.pid", ward.tiny.name))
    }),
    ("the witness", |_, process| child(process, "sleep")),
];

fn child(process: u32, word: &str) -> Option<u32> {
    let found = output_of(std::process::Command::new("pgrep").args(["-P", &process.to_string(), "-f", word]));
    found.ok()?.lines().next()?.trim().parse().ok()
}

fn number(file: &str) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[test]
#[ignore = "takes an hour"]
fn whatever_hangs_the_guest_comes_home() {
    let lab = Lab::new();
    let mut ward = Ward::new(&lab, CaptureMethod::Checkpoint);
    ward.bench.config.limits.repository_s = 5;
    ward.bench.config.limits.answer_s = 20;
    ward.bench.config.witness = Some(Witness {
        file: None,
        command: Some(
            ["sh", "-c", "cat > /dev/null; sleep 0.3"]
                .map(str::to_owned)
                .to_vec(),
        ),
        read_command: None,
    });
    for method in [CaptureMethod::Checkpoint, CaptureMethod::Snapshot] {
        ward.by(method);
        for (party, find) in PARTIES {
            for step in STEPS {
                let running = ward.at(step, &[]);
                let Some(process) = find(&ward, running.id()) else {
                    running.signal("INT");
                    running.end();
                    continue;
                };
                let begin = Instant::now();
                let held = Held::stop(process);
                let said = running.end();
                let took = begin.elapsed();
                drop(held);
                eprintln!(
                    "{method:?}, {party}, {step}: {:?} after {} s",
                    said.code,
                    took.as_secs()
                );
                assert!(took < UNTOLD, "{took:?}: {}", said.err);
                // A step may be over before the party is stopped.
                assert!(matches!(said.code, Some(0 | 1 | 3)), "{}", said.err);
                ward.recovers();
            }
        }
    }
    ward.bench.check(&ward.tiny.name);
}

#[test]
#[ignore = "holds the machine for long if it fails"]
fn records_on_storage_that_hangs_keep_no_run() {
    let lab = Lab::new();
    let mount = Mount::new(&lab);
    let mut ward = Ward::new(&lab, CaptureMethod::Snapshot);
    ward.bench.config.state = Some(mount.place.join("state"));
    ward.bench.config.limits.answer_s = 4;
    let running = ward.at("opening the repository", &[]);
    let held = Held::stop(mount.id());
    Ward::given_up(running, "the storage of the state directory has not answered");
    drop(held);
    ward.bench.config.limits.answer_s = 600;
    ward.bench.config.reader.limit_mib = 0;
    let said = ward.bench.says(&lab, &["backup", &ward.tiny.name]);
    assert!(matches!(said.code, Some(0 | 3)), "{}", said.err);
}
