//! The hang matrix, its short part: the repository's server, or the storage below it, hangs (R10). The
//! guest is brought home, the program ends, and the next run is good. `long/hang.rs` is the long part.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::os::unix::fs::PermissionsExt as _;
use std::thread::sleep;
use std::time::Duration;

use strongroom_engine::config::{CaptureMethod, Level, Quiesce, Witness};
use strongroom_testkit::{Lab, run};

use crate::common::hangs::{Held, Mount, Ward, spy};
use crate::common::running::child_of;
use crate::common::tiny::{MIB, with_signing};

#[test]
fn a_repository_that_hangs_keeps_no_guest() {
    let lab = Lab::new();
    let mut ward = Ward::new(&lab, CaptureMethod::Checkpoint);
    let serve = |process| Held::stop(child_of(process, "serve"));
    // Ctrl-C, with a job.
    let running = ward.at("reading", &[]);
    let held = serve(running.id());
    sleep(Duration::from_secs(1));
    running.signal("INT");
    ward.undone(running, "interrupted");
    drop(held);
    ward.recovers();

    ward.by(CaptureMethod::Snapshot);
    // A closed terminal, with an overlay. It is one word, not two.
    let running = ward.at("reading", &[]);
    let held = serve(running.id());
    sleep(Duration::from_secs(1));
    for name in ["HUP", "TERM", "HUP"] {
        running.signal(name);
    }
    sleep(Duration::from_millis(500));
    running.signal("HUP");
    ward.undone(running, "interrupted");
    drop(held);

    // The time limit of a run.
    let running = ward.at("reading", &["--time-limit", "15"]);
    let held = serve(running.id());
    ward.undone(running, "the time limit of 15 s");
    drop(held);

    // An overlay that grows.
    ward.bench.config.limits.scratch_mib = 1;
    let running = ward.at("reading", &[]);
    let held = serve(running.id());
    ward.tiny.write("vda", 0x5a, 0, 4 * MIB);
    ward.undone(running, "has grown beyond 1 MiB");
    drop(held);
    ward.bench.config.limits.scratch_mib = 0;

    // And nobody does anything.
    ward.bench.config.limits.repository_s = 2;
    let running = ward.at("reading", &[]);
    let held = serve(running.id());
    ward.undone(running, "no sign of life for 2 s");
    drop(held);
    ward.bench.config.limits.repository_s = 3600;
    ward.recovers();
}

#[test]
fn storage_that_hangs_keeps_no_guest() {
    let lab = Lab::new();
    let mount = Mount::new(&lab);
    let mut ward = Ward::new(&lab, CaptureMethod::Snapshot);
    ward.bench.config.repository = mount.place.join("{vm}").display().to_string();
    let name = ward.tiny.name.clone();
    ward.bench.add_vm(&name);
    ward.by(CaptureMethod::Snapshot);
    let running = ward.at("reading", &[]);
    sleep(Duration::from_secs(1));
    let held = Held::stop(mount.id());
    sleep(Duration::from_secs(1));
    running.signal("TERM");
    ward.undone(running, "interrupted");
    drop(held);
    ward.recovers();
}

/// R5.
#[test]
fn children_are_told_what_they_need() {
    let lab = Lab::new();
    let mut ward = Ward::new(&lab, CaptureMethod::Snapshot);
    with_signing(&lab, &mut ward.bench);
    let (spies, log) = (lab.path("spies"), lab.path("environments"));
    std::fs::create_dir(&spies).unwrap();
    std::fs::set_permissions(&spies, std::fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["borg", "ssh-keygen", "qemu-nbd", "qemu-img", "ionice"] {
        let real = run(std::process::Command::new("sh").args(["-c", &format!("command -v {name}")]));
        spy(&spies, name, &log, &format!("exec '{real}' \"$@\""));
    }
    spy(&spies, "witness", &log, "cat > /dev/null");
    spy(&spies, "ssh", &log, "exit 1");
    ward.bench.config.witness = Some(Witness {
        file: None,
        command: Some(vec![spies.join("witness").display().to_string()]),
        read_command: None,
    });
    let name = ward.tiny.name.clone();
    ward.bench.config.vm.get_mut(&name).unwrap().quiesce = Quiesce {
        level: Level::Application,
        pre: Some("true".into()),
        ssh: Some("nowhere".into()),
        ..Quiesce::default()
    };
    let path = format!("{}:{}", spies.display(), std::env::var("PATH").unwrap());
    let mut program = ward.bench.program(&lab);
    program
        .args(["backup", &name])
        .env("PATH", path)
        .env("STRONGROOM_SSH", spies.join("ssh"))
        .env("ANY_SERVICES_TOKEN", "a-sentinel")
        .env("BORG_NEW_PASSPHRASE", "a-sentinel")
        .env("SSH_AUTH_SOCK", "/nonexistent/agent");
    let said = crate::common::running::Said::of(&mut program);
    assert!(matches!(said.code, Some(0 | 3)), "{}", said.err);
    let told = std::fs::read_to_string(log).unwrap();
    for name in [
        "borg",
        "ssh-keygen",
        "qemu-nbd",
        "qemu-img",
        "ionice",
        "witness",
        "ssh",
    ] {
        assert!(
            told.contains(&format!("{name} PATH=")),
            "{name} was not seen: {}\n{told}",
            said.err
        );
    }
    for line in told.lines() {
        let (name, variable) = line.split_once(' ').unwrap_or((line, ""));
        assert!(!line.contains("a-sentinel"), "{line}");
        assert!(!variable.starts_with("BORG_PASS"), "{line}");
        assert!(name == "borg" || !variable.starts_with("BORG_"), "{line}");
        let wants_keys = ["borg", "ssh-keygen", "witness", "ssh"].contains(&name);
        assert!(wants_keys || !variable.starts_with("SSH_"), "{line}");
    }
}
