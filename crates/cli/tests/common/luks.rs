//! LUKS volumes in files, made by the real cryptsetup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_testkit::run;

/// Has cryptsetup do something with a key in a file; it has to work.
#[track_caller]
fn cryptsetup(arguments: &[&str], volume: &Path, key: &Path, rest: &[&Path]) {
    let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    run(Command::new("cryptsetup")
        .args(arguments)
        .args(cheap)
        .arg("--key-file")
        .arg(key)
        .arg(volume)
        .args(rest));
}

/// A file with a passphrase.
pub fn key(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(format!("{name}.key"));
    fs::write(&path, name).unwrap();
    path
}

/// Makes a volume of a file, whose content beyond the header stays: what stands there is the ciphertext.
pub fn format(volume: &Path, key: &Path, options: &[&str]) {
    cryptsetup(&[&["luksFormat", "-q"], options].concat(), volume, key, &[]);
}

/// Gives a volume another passphrase in place of the old one.
pub fn change_key(volume: &Path, old: &Path, new: &Path) {
    cryptsetup(&["luksChangeKey", "-q"], volume, old, &[new]);
}

/// Whether a passphrase opens a volume.
pub fn opens(volume: &Path, key: &Path) -> bool {
    Command::new("cryptsetup")
        .args(["open", "--test-passphrase", "--key-file"])
        .arg(key)
        .arg(volume)
        .output()
        .unwrap()
        .status
        .success()
}
