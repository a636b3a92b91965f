//! Frozen views, each a copy of an image in its job's scratch file, served by a `qemu-nbd` that outlives this process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::{Deserialize, Serialize};
use strongroom_hypervisor::BackupJob;

use crate::image;

/// How long a server may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at one.
const LOOK: Duration = Duration::from_millis(5);

/// A view of a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Target device name, and name of the export.
    pub target: String,
    pub scratch: PathBuf,
    pub socket: PathBuf,
    pid: i32,
}

impl View {
    /// Freezes a view of an image and serves it, with the changes since a bitmap of its.
    pub fn begin(
        target: &str,
        scratch: &Path,
        socket: &Path,
        (image, format): (&Path, &str),
        since: Option<&str>,
    ) -> Result<Self, String> {
        if scratch.exists() {
            return Err(format!("scratch file {} exists already", scratch.display()));
        }
        if image::info(image, format)?.backing_file.is_some() {
            // Bitmaps are in one image, the data in several.
            image::flatten(image, format, scratch, "qcow2")?;
        } else {
            image::copy(image, scratch)?;
        }
        let bitmap = BackupJob::dirty_bitmap(target);
        if let Some(since) = since {
            let actions = ["--add", "--disable", "--merge", since];
            if let Err(error) = image::bitmap(scratch, &actions, &bitmap) {
                let _ = std::fs::remove_file(scratch);
                return Err(format!(
                    "missing or broken bitmap {since:?} for disk {target:?}: {error}"
                ));
            }
        }
        let pid_file = scratch.with_extension("pid");
        let mut command = Command::new("qemu-nbd");
        command
            .args([
                "--fork",
                "--persistent",
                "--shared=0",
                "--read-only",
                "-f",
                format,
            ])
            .arg(format!("--export-name={target}"))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--pid-file={}", pid_file.display()))
            .args(since.map(|_| format!("--bitmap={bitmap}")))
            .arg(scratch);
        image::run(&mut command)?;
        let pid = std::fs::read_to_string(&pid_file).map_err(|error| error.to_string())?;
        let _ = std::fs::remove_file(pid_file);
        Ok(Self {
            target: target.into(),
            scratch: scratch.to_owned(),
            socket: socket.to_owned(),
            pid: pid.trim().parse().map_err(|error| format!("{pid:?}: {error}"))?,
        })
    }

    /// Ends the server, and removes what it served.
    pub fn end(self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let patience = Instant::now() + PATIENCE;
            // As no child of ours, it is gone once it has ended.
            while test_kill_process(pid).is_ok() && !has_ended(self.pid) {
                assert!(Instant::now() < patience, "qemu-nbd {} does not end", self.pid);
                // One that has just begun does not hear the first.
                let _ = kill_process(pid, Signal::TERM);
                std::thread::sleep(LOOK);
            }
        }
        let _ = std::fs::remove_file(self.scratch);
        let _ = std::fs::remove_file(self.socket);
    }
}

/// Whether a process has ended, and only its status has not been collected yet.
fn has_ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.trim_start().starts_with('Z'))
}
