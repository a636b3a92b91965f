//! What unit tests of several modules need.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;

use strongroom_disk::{Extent, RangeSet};

use crate::config::Config;
use crate::run::settings::{Arguments, Settings, VmJob};

/// What holds for a VM of which nothing is said.
pub fn job() -> VmJob {
    let settings = Settings::resolve(&Config::new("/r/{vm}"), &Arguments::default(), |_, _| None);
    (*settings.unwrap().job("web")).clone()
}

/// Runs a program, which has to succeed.
#[track_caller]
pub fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Makes an SSH key without a passphrase, its public part beside it, `.pub`.
#[track_caller]
pub fn ssh_key(path: &Path) {
    let comment = path.file_name().unwrap();
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C"])
        .arg(comment)
        .arg("-f")
        .arg(path));
}

/// The ranges with these offsets and lengths.
pub fn ranges(list: &[(u64, u64)]) -> RangeSet {
    let extent = |&(offset, length): &(u64, u64)| Extent::new(offset, length).unwrap();
    list.iter().map(extent).collect()
}
