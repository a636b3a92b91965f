//! Calling other programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a command and returns its standard output without the last newline, or a text that
/// names the command, its exit status and its standard error.
pub fn output_of(command: &mut Command) -> Result<String, String> {
    let output: Output = command
        .output()
        .map_err(|e| format!("cannot run {command:?}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?}: {}\n{}", output.status, stderr.trim_end()))
    }
}

/// Runs a command that has to succeed, and returns its standard output without the last newline.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    match output_of(command) {
        Ok(output) => output,
        Err(text) => panic!("{text}"),
    }
}

/// The `virsh` of the system's libvirt, with these arguments.
pub fn virsh<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new("virsh");
    command
        .args(["-q", "-c", "qemu:///system"])
        .args(args)
        .env("LC_ALL", "C");
    command
}

/// Makes an Ed25519 key without passphrase at `path` (the public part beside it, `.pub`), and
/// returns the path of the public key.
pub fn ssh_keygen(path: &Path, comment: &str) -> PathBuf {
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
        .arg(path));
    path.with_extension("pub")
}
