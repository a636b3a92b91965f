//! The hang matrix, its long part: each party is stopped at each step of a backup, by both methods (R10). Within the patience
//! that `docs/operate/hangs.md` states the program has ended; once the party goes on, the guest is on its own image, without a
//! job, and the next run is good.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A test fails by panicking, and says how far it came.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use strongroom_engine::config::{CaptureMethod, Witness};
use strongroom_engine::run::state::StateDirectory;
use strongroom_testkit::{Lab, Sshd, output_of};

use crate::common::hangs::{Held, Mount, Ward};
use crate::common::tiny::with_signing;

/// How long a run may take that is not asked to end: the longest patience with a party, for each step of the way home.
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
type Find = Box<dyn Fn(&Ward<'_>, u32) -> Option<u32>>;

/// The parties of every backup. One that is not there at a step is left out.
fn parties() -> Vec<(&'static str, Find)> {
    let below = |word: &'static str| -> Find { Box::new(move |_, process| child(process, word)) };
    vec![
        ("borg serve", below("serve")),
        ("qemu-nbd", below("qemu-nbd")),
        (
            "libvirtd",
            Box::new(|_, _| number("/run/libvirt/libvirtd.pid").or_else(|| number("/run/libvirtd.pid"))),
        ),
        (
            "QEMU",
            Box::new(|ward, _| number(&format!("/run/libvirt/qemu/{}.pid", ward.tiny.name))),
        ),
        ("ssh-keygen", below("ssh-keygen")),
        ("the witness", below("sleep 0.31")),
    ]
}

/// Some are there for moments only.
fn soon(find: &Find, ward: &Ward<'_>, process: u32) -> Option<u32> {
    let begin = Instant::now();
    loop {
        let found = find(ward, process);
        if found.is_some() || begin.elapsed() > Duration::from_secs(2) {
            return found;
        }
        sleep(Duration::from_millis(20));
    }
}

fn child(process: u32, word: &str) -> Option<u32> {
    newest(&["-n", "-P", &process.to_string(), "-f", word])
}

fn newest(arguments: &[&str]) -> Option<u32> {
    let found = output_of(Command::new("pgrep").args(arguments));
    found.ok()?.trim().parse().ok()
}

fn number(file: &str) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Stops each party at each step, by both methods.
fn matrix(ward: &mut Ward<'_>, parties: &[(&str, Find)]) {
    ward.bench.config.limits.repository_s = 5;
    ward.bench.config.limits.answer_s = 20;
    for method in [CaptureMethod::Checkpoint, CaptureMethod::Snapshot] {
        ward.by(method);
        for (party, find) in parties {
            for step in STEPS {
                let running = ward.at(step, &[]);
                let Some(process) = soon(find, ward, running.id()) else {
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
                ward.backs_up();
            }
        }
    }
}

#[test]
#[ignore = "takes an hour"]
fn whatever_hangs_the_guest_comes_home() {
    let lab = Lab::new();
    let mut ward = Ward::new(&lab, CaptureMethod::Checkpoint);
    with_signing(&lab, &mut ward.bench);
    // Slow enough to be caught at it.
    ward.with_own_keygen("sleep 0.3");
    ward.bench.config.witness = Some(Witness {
        file: None,
        command: Some(
            ["sh", "-c", "cat > /dev/null; sleep 0.31"]
                .map(str::to_owned)
                .to_vec(),
        ),
        read_command: None,
    });
    matrix(&mut ward, &parties());
    ward.recovers();
    ward.bench.check(&ward.tiny.name);
}

#[test]
#[ignore = "takes minutes"]
fn a_server_beyond_ssh_that_hangs_keeps_no_guest() {
    let lab = Lab::new();
    let sshd = Sshd::start();
    let mut ward = Ward::new(&lab, CaptureMethod::Checkpoint);
    let there = ward.over_ssh(&sshd).display().to_string();
    let beyond: Find = Box::new(move |_, _| newest(&["-n", "-f", &format!("{there} serve")]));
    matrix(&mut ward, &[("borg serve beyond ssh", beyond)]);
}

#[test]
#[ignore = "takes minutes"]
fn a_mount_below_the_repository_keeps_no_guest() {
    let lab = Lab::new();
    let mount = Mount::new(&lab);
    let mut ward = Ward::new(&lab, CaptureMethod::Checkpoint);
    ward.bench.config.repository = mount.place.join("{vm}").display().to_string();
    let name = ward.tiny.name.clone();
    ward.bench.add_vm(&name);
    let server = mount.id();
    matrix(&mut ward, &[("the mount", Box::new(move |_, _| Some(server)))]);
    ward.recovers();
}

/// The run ends, although calls of its own hang in the storage of its records; the next one undoes what it had begun.
#[test]
#[ignore = "takes minutes if it fails"]
fn records_on_storage_that_hangs_keep_no_run() {
    let lab = Lab::new();
    let mount = Mount::new(&lab);
    let mut ward = Ward::new(&lab, CaptureMethod::Snapshot);
    ward.bench.config.state = Some(mount.place.join("state"));
    ward.bench.state = StateDirectory::open(mount.place.join("state")).unwrap();
    for step in ["opening the repository", "reading"] {
        ward.bench.config.limits.answer_s = 4;
        let running = ward.at(step, &[]);
        let held = mount.stop_idle();
        Ward::given_up(running, "the storage of the state directory has not answered");
        drop(held);
        ward.bench.config.limits.answer_s = 600;
        ward.recovers();
    }
}
