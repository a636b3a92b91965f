//! Repositories on storage that cannot be written.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::process::Command;

use crate::common::running::Said;
use crate::common::tmpfs::Tmpfs;
use strongroom_testkit::Borg;

#[test]
fn a_repository_on_read_only_storage_is_read_without_a_lock_and_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let media = Tmpfs::new(directory.path().join("media"), 1024);
    let borg = Borg::packaged();
    let repository = media.path().join("test");
    let place = repository.to_str().unwrap();
    borg.run(["init", "--encryption", "repokey-blake2", place]);
    borg.run(["create", &format!("{place}::notes"), "/etc/hostname"]);
    media.remount("ro");

    let config = directory.path().join("strongroom.toml");
    let text = format!(
        "hypervisor = 'test:///default'\nrepository = '{}/{{vm}}'\nstate = '{}/state'\n[vm.test]\n",
        media.path().display(),
        directory.path().display()
    );
    fs::write(&config, text).unwrap();
    let strongroom = |arguments: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        program
            .args(arguments)
            .envs(borg.environment())
            .env("STRONGROOM_CONFIG", &config);
        Said::of(&mut program)
    };
    strongroom(&["-v", "list"]).expect(0, &["without a lock", "notes was not made by strongroom"]);
    strongroom(&["backup", "test"]).expect(1, &["the repository cannot be locked"]);
    media.remount("rw");
    strongroom(&["-v", "list"]).expect(0, &["notes was not made by strongroom"]);
}
