//! The unit that is shipped: what systemd makes of it, and what it must not do to a guest (K5).
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::process::Command;

const UNIT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../dist/systemd/strongroom-backup.service"
);

#[test]
fn a_stop_asks_the_program_alone_and_lets_it_finish() {
    let unit = fs::read_to_string(UNIT).unwrap();
    let value = |name: &str| {
        let mut values = unit
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let value = values.next().unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    };
    assert_eq!(value("KillMode"), "mixed");
    // Or the process that thaws the guest would be killed with the run that it has to outlive.
    assert_eq!(value("SendSIGKILL"), "no");
    assert_eq!(value("TimeoutStopSec"), "1h");
    assert_eq!(value("TimeoutStartSec"), "2d");
    // Stopped before what it needs for the way home.
    for before in ["libvirtd.service", "virtqemud.service", "libvirt-guests.service"] {
        assert!(value("After").contains(before), "{before}");
    }
}

#[test]
fn systemd_understands_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strongroom-backup.service");
    // Neither the program nor its page has to be installed here.
    let unit = fs::read_to_string(UNIT)
        .unwrap()
        .replace("/usr/bin/strongroom", "/bin/true")
        .replace("Documentation=man:strongroom(1)\n", "");
    fs::write(&file, unit).unwrap();
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let about = said
        .lines()
        .filter(|line| line.contains("strongroom-backup.service"));
    assert_eq!(about.collect::<Vec<_>>(), Vec::<&str>::new(), "{said}");
}
