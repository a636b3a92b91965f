//! The tools that parse images do not get to know the passphrase of the backups.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use common::{MIB, run};
use strongroom_nbd::{Format, QemuNbd, Serve, create_qcow2};

/// Where the tools' environments are written to.
const SPY: &str = "STRONGROOM_TEST_SPY";
const SECRETS: [&str; 4] = [
    "BORG_PASSPHRASE",
    "BORG_PASSCOMMAND",
    "BORG_PASSPHRASE_FD",
    "BORG_NEW_PASSPHRASE",
];

#[test]
fn tools_are_told_no_secrets() {
    if std::env::var_os(SPY).is_some() {
        return work();
    }
    // A process cannot safely change its own environment: the work is done by this test, run once more.
    let dir = tempfile::tempdir().unwrap();
    for tool in ["qemu-img", "qemu-nbd"] {
        let real = run("sh", ["-c", &format!("command -v {tool}")]);
        let script = format!(
            "#!/bin/sh\nenv | sed 's/^/{tool} /' >> \"${SPY}\"\nexec {} \"$@\"\n",
            real.trim()
        );
        let path = dir.path().join(tool);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let spied = dir.path().join("environments");
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
    for tool in ["qemu-img PATH=", "qemu-nbd PATH="] {
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
}
