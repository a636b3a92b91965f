//! The hang matrix, its short part: the repository's server here or beyond ssh, the storage below it, QEMU, or what signs hangs
//! (R10). The guest is brought home, the program ends, and the next run is good. `long/hang.rs` is the long part; of the guest's
//! agent it is `quiesce.rs` that tells.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use strongroom_engine::config::{CaptureMethod, Level, Quiesce, Witness};
use strongroom_testkit::{Lab, Sshd, run};

use crate::common::hangs::{Held, Mount, PATIENCE, Ward, spy};
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

    // And nothing is done.
    ward.bench.config.limits.repository_s = 2;
    let running = ward.at("reading", &[]);
    let held = serve(running.id());
    ward.undone(running, "no sign of life for 2 s");
    drop(held);
    ward.bench.config.limits.repository_s = 3600;
    ward.recovers();
}

/// The server beyond ssh hangs; ssh itself, and the network, are as they should be.
#[test]
fn a_repository_over_ssh_that_hangs_keeps_no_guest() {
    let lab = Lab::new();
    let sshd = Sshd::start();
    let mut ward = Ward::new(&lab, CaptureMethod::Checkpoint);
    let there = ward.over_ssh(&sshd).display().to_string();
    for method in [CaptureMethod::Checkpoint, CaptureMethod::Snapshot] {
        ward.by(method);
        let running = ward.at("reading", &[]);
        let server: u32 = run(Command::new("pgrep").args(["-f", &format!("{there} serve")]))
            .lines()
            .last()
            .unwrap()
            .parse()
            .unwrap();
        let held = Held::stop(server);
        sleep(Duration::from_secs(1));
        running.signal("INT");
        ward.undone(running, "interrupted");
        drop(held);
        // Its client is gone: it lets go of the repository, and ends.
        let begin = Instant::now();
        while Path::new(&format!("/proc/{server}")).exists() {
            assert!(begin.elapsed() < PATIENCE, "the server stays");
            sleep(Duration::from_millis(50));
        }
        ward.backs_up();
    }
    // And nothing is done.
    ward.bench.config.limits.repository_s = 2;
    let running = ward.at("reading", &[]);
    let held = Held::stop(
        run(Command::new("pgrep").args(["-n", "-f", &format!("{there} serve")]))
            .parse()
            .unwrap(),
    );
    ward.undone(running, "no sign of life for 2 s");
    drop(held);
}

/// The guest is home before anything is signed, and the run ends when it is told to.
#[test]
fn a_signing_tool_that_hangs_keeps_no_guest() {
    let lab = Lab::new();
    let mut ward = Ward::new(&lab, CaptureMethod::Checkpoint);
    with_signing(&lab, &mut ward.bench);
    let hang = ward.with_own_keygen("");
    let seen = hang.with_extension("seen");
    for method in [CaptureMethod::Checkpoint, CaptureMethod::Snapshot] {
        ward.by(method);
        let mut running = ward.at("reading", &[]);
        std::fs::write(&hang, "").unwrap();
        running.wait_for("writing the archive");
        let begin = Instant::now();
        while !seen.exists() {
            assert!(begin.elapsed() < PATIENCE, "nothing is signed");
            sleep(Duration::from_millis(50));
        }
        ward.on_its_image();
        running.signal("INT");
        ward.undone(running, "interrupted");
        for file in [&hang, &seen] {
            std::fs::remove_file(file).unwrap();
        }
        ward.recovers();
    }
}

/// A guest on an overlay whose QEMU hangs: what cannot be undone now is undone by the next run.
#[test]
fn a_qemu_that_hangs_keeps_no_overlay() {
    let lab = Lab::new();
    let mut ward = Ward::new(&lab, CaptureMethod::Snapshot);
    ward.bench.config.limits.answer_s = 4;
    let qemu = std::fs::read_to_string(format!("/run/libvirt/qemu/{}.pid", ward.tiny.name)).unwrap();
    let running = ward.at("reading", &[]);
    let held = Held::stop(qemu.trim().parse().unwrap());
    Ward::given_up(running, "get an answer from the hypervisor within");
    drop(held);
    ward.bench.config.limits.answer_s = 600;
    ward.recovers();
    ward.bench.check(&ward.tiny.name);
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
        let real = run(Command::new("sh").args(["-c", &format!("command -v {name}")]));
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
