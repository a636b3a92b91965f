//! The tools that parse images do not get to know the passphrase of the backups.
#![allow(clippy::unwrap_used)]

mod common;

use std::{ffi::OsString, fs, os::unix::fs::PermissionsExt, process::Command};

use common::{MIB, run};
use strongroom_nbd::{Client, Format, Options, QemuNbd, Serve, Target, create_qcow2};

/// Says that this is the run under watch.
const SPY: &str = "STRONGROOM_TEST_SPY";
const SECRETS: [&str; 5] = [
    "BORG_PASSPHRASE",
    "BORG_PASSCOMMAND",
    "BORG_PASSPHRASE_FD",
    "BORG_NEW_PASSPHRASE",
    "ANY_SERVICES_TOKEN",
];

/// R5.
#[test]
fn tools_are_told_no_secrets() {
    if std::env::var_os(SPY).is_some() {
        return work();
    }
    // A process cannot safely change its own environment: the work is done by this test, run once more.
    let dir = tempfile::tempdir().unwrap();
    let spied = dir.path().join("environments");
    for tool in ["qemu-img", "qemu-nbd"] {
        let real = run("sh", ["-c", &format!("command -v {tool}")]);
        let script = format!(
            "#!/bin/sh\nenv | sed 's/^/{tool} /' >> '{}'\nexec {} \"$@\"\n",
            spied.display(),
            real.trim()
        );
        let path = dir.path().join(tool);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tools_are_told_no_secrets"])
        .env("PATH", path)
        .env(SPY, &spied)
        .envs(SECRETS.map(|name| (name, "a-secret")))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let told = fs::read_to_string(spied).unwrap();
    for tool in ["qemu-img PATH=", "qemu-nbd PATH=", "tunnel PATH="] {
        assert!(told.contains(tool), "{tool} was not seen: {told}");
    }
    assert!(!told.contains("a-secret"), "{told}");
}

fn work() {
    assert!(SECRETS.iter().all(|name| std::env::var_os(name).is_some()));
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    create_qcow2(&image, MIB).unwrap();
    let server = QemuNbd::start(&image, &Serve::read_only(Format::Qcow2)).unwrap();
    server.stop().unwrap();
    // The way to a server on another machine.
    let note = format!("env | sed 's/^/tunnel /' >> '{}'", std::env::var(SPY).unwrap());
    let tunnel = Target::Command {
        command: ["sh", "-c", &note].map(OsString::from).to_vec(),
        place: "nowhere".to_owned(),
        export: String::new(),
    };
    assert!(Client::connect(&tunnel, &Options::plain()).is_err());
}
