//! What is served, seen by tools that are not ours.

use std::process::{Command, Output};

use strongroom_hypervisor::BackupJob;
use strongroom_nbd::Target;

/// An export at a socket, as an NBD URI.
pub fn uri(target: &Target) -> String {
    let Target::Unix { path, export } = target else {
        panic!("not at a socket: {target:?}")
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte);
    let path: String = path
        .to_str()
        .expect("a path in UTF-8")
        .bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    format!("nbd+unix:///{export}?socket={path}")
}

/// Offsets and lengths of what has changed, as the export tells.
pub fn dirty(target: &Target) -> Vec<(u64, u64)> {
    let Target::Unix { export, .. } = target else {
        panic!("not at a socket: {target:?}")
    };
    let context = format!("--map=qemu:dirty-bitmap:{}", BackupJob::dirty_bitmap(export));
    let map = said(Command::new("nbdinfo").arg(context).arg(uri(target)));
    let mut extents = Vec::new();
    for line in map.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [offset, length, flags, _] = fields[..] else {
            panic!("{line}")
        };
        if flags == "1" {
            extents.push((
                offset.parse().expect("an offset"),
                length.parse().expect("a length"),
            ));
        }
    }
    extents
}

/// Whether an export holds that byte in the whole range.
pub fn holds(target: &Target, pattern: u8, offset: u64, length: u64) -> bool {
    let read = format!("read -P {pattern} {offset} {length}");
    let output = Command::new("qemu-io")
        .args(["-r", "-f", "raw", "-c", &read])
        .arg(uri(target))
        .output()
        .expect("run qemu-io");
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("verification failed")
}

/// Whether there is such an export.
pub fn is_served(target: &Target) -> bool {
    let output = Command::new("nbdinfo").arg(uri(target)).output();
    output.expect("run nbdinfo").status.success()
}

/// SHA-256 of everything in an export.
pub fn sha256(target: &Target) -> String {
    let line = format!("nbdcopy '{}' - | sha256sum", uri(target));
    let hash = said(Command::new("bash").args(["-o", "pipefail", "-c", &line]));
    hash.split_whitespace().next().expect("a hash").into()
}

fn said(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("run a tool");
    assert!(
        status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&stderr)
    );
    String::from_utf8(stdout).expect("text")
}
