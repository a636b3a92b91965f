//! What ctrl-C does where there is nothing to undo, and what a second one does.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::running::Running;

/// A program that leaves a mark when it runs, and then does what the script says.
fn script(directory: &Path, name: &str, then: &str) {
    let path = directory.join(name);
    let text = format!(
        "#!/bin/sh\ntouch {}\n{then}\n",
        directory.join("started").display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The program, with this hypervisor, and with the programs in the directory before all others.
fn program(directory: &Path, hypervisor: &str, arguments: &[&str]) -> Command {
    let place = directory.display();
    let config = format!(
        "hypervisor = {hypervisor:?}\nrepository = '{place}/{{vm}}'\nstate = '{place}/state'\n[vm.test]\n"
    );
    let file = directory.join("strongroom.toml");
    fs::write(&file, config).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    program
        .args(arguments)
        .env("STRONGROOM_CONFIG", file)
        .env("PATH", format!("{place}:{}", std::env::var("PATH").unwrap()))
        .env("BORG_BASE_DIR", directory.join("base"))
        .env("BORG_PASSPHRASE", "secret")
        .env_remove("BORG_REPO");
    program
}

/// Starts the program, and waits until it waits for the script.
fn start(directory: &Path, program: &mut Command) -> Running {
    let running = Running::start(program);
    let clock = Instant::now();
    while !directory.join("started").exists() {
        assert!(
            clock.elapsed() < Duration::from_secs(20),
            "the script does not start"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    running
}

#[test]
fn the_first_one_ends_a_command_that_has_begun_nothing() {
    for command in ["list", "show", "status", "backup", "restore"] {
        let directory = tempfile::tempdir().unwrap();
        // A repository or a hypervisor that does not answer, until its input ends.
        script(directory.path(), "borg", "exec cat > /dev/null");
        script(directory.path(), "hang", "exec cat > /dev/null");
        let hang = format!(
            "qemu+ext:///system?command={}",
            directory.path().join("hang").display()
        );
        let running = start(
            directory.path(),
            &mut program(directory.path(), &hang, &[command, "test"]),
        );
        let clock = Instant::now();
        running.signal("INT");
        let said = running.end();
        assert_eq!(said.code, None, "{command}: {}", said.err);
        assert!(
            clock.elapsed() < Duration::from_secs(2),
            "{command}: {:?}",
            clock.elapsed()
        );
    }
}

#[test]
fn the_second_one_ends_whatever_does_not_heed_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let real = String::from_utf8(
        Command::new("sh")
            .args(["-c", "command -v borg"])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    let then = format!(
        "case $1 in init) touch {}; trap '' TERM; exec sleep 10 ;; *) exec {} \"$@\" ;; esac",
        directory.path().join("making").display(),
        real.trim()
    );
    script(directory.path(), "borg", &then);
    let mut program = program(directory.path(), "test:///default", &["init", "test"]);
    let running = start(directory.path(), &mut program);
    while !directory.path().join("making").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal("TERM");
    std::thread::sleep(Duration::from_millis(500));
    let clock = Instant::now();
    running.signal("INT");
    let said = running.end();
    assert_eq!(said.code, Some(130), "{}", said.err);
    assert!(clock.elapsed() < Duration::from_secs(2), "{:?}", clock.elapsed());
}

/// R10: stock Borg that makes a repository, and ssh-keygen that makes a key, end with the work.
#[test]
fn the_first_one_ends_what_others_do_for_it() {
    for (name, hangs, arguments) in [
        (
            "borg",
            "case $1 in init) ;; *) exec \"$real\" \"$@\" ;; esac",
            &["init", "test"][..],
        ),
        ("ssh-keygen", "", &["init", "--signing-key", "key", "test"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let real = Command::new("sh")
            .args(["-c", &format!("command -v {name}")])
            .output()
            .unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        let making = directory.path().join("making");
        let then = format!(
            "real={}\n{hangs}\ntouch {}; exec sleep 600",
            real.trim(),
            making.display()
        );
        script(directory.path(), name, &then);
        let mut program = program(directory.path(), "test:///default", arguments);
        let running = start(directory.path(), program.current_dir(directory.path()));
        let clock = Instant::now();
        while !making.exists() {
            assert!(clock.elapsed() < Duration::from_secs(20), "{name} is not called");
            std::thread::sleep(Duration::from_millis(10));
        }
        running.signal("TERM");
        let clock = Instant::now();
        let said = running.end();
        assert_eq!(said.code, Some(1), "{name}: {}", said.err);
        assert!(said.err.contains("interrupted"), "{name}: {}", said.err);
        assert!(
            clock.elapsed() < Duration::from_secs(20),
            "{name}: {:?}",
            clock.elapsed()
        );
    }
}
