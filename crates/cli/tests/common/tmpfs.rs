//! A file system of its own, small enough to fill.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_testkit::run;

/// A mounted tmpfs. Dropped, it is taken away with all that is on it. Its size costs nothing; Borg wants to see half a
/// GiB free.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one of so many MiB at a path, which is made.
    #[track_caller]
    pub fn new(path: PathBuf, mib: u64) -> Self {
        fs::create_dir(&path).unwrap();
        let options = format!("size={mib}m,mode=755");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path));
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Changes a mount option: `ro`, `rw`.
    #[track_caller]
    pub fn remount(&self, option: &str) {
        run(Command::new("mount")
            .args(["-o", &format!("remount,{option}")])
            .arg(&self.0));
    }

    /// Leaves so many MiB free, until the file that this gives is removed.
    #[track_caller]
    pub fn fill(&self, leave_mib: u64) -> PathBuf {
        let free = run(Command::new("df").args(["--output=avail", "-k"]).arg(&self.0));
        let free: u64 = free.split_whitespace().last().unwrap().parse().unwrap();
        let ballast = self.0.join("ballast");
        File::create(&ballast).unwrap();
        let length = format!("{}K", free - leave_mib * 1024);
        run(Command::new("fallocate").args(["-l", &length]).arg(&ballast));
        ballast
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
