//! Stock Borg, kept apart from that of the user who runs the tests.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::run::run;

/// A stock `borg` with configuration, keys, caches and security records in a directory of its own.
pub struct Borg {
    program: PathBuf,
    base: PathBuf,
    _owned: Option<TempDir>,
}

impl Borg {
    /// The packaged `borg`.
    pub fn packaged() -> Self {
        Self::at(Path::new("borg"))
    }

    /// Another `borg` program.
    pub fn at(program: &Path) -> Self {
        let base = tempfile::Builder::new()
            .prefix("sr-borg-")
            .tempdir()
            .expect("make a directory for Borg");
        Self {
            program: program.to_owned(),
            base: base.path().to_owned(),
            _owned: Some(base),
        }
    }

    /// The packaged `borg` in another one's directory, which has to outlive this.
    pub fn sharing(base: &Path) -> Self {
        Self {
            program: PathBuf::from("borg"),
            base: base.to_owned(),
            _owned: None,
        }
    }

    /// What `BORG_BASE_DIR` is.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The variables that every process must get that shares this Borg's keys and caches.
    pub fn environment(&self) -> Vec<(&'static str, &OsStr)> {
        vec![
            ("BORG_BASE_DIR", self.base.as_os_str()),
            ("BORG_PASSPHRASE", OsStr::new("correct horse battery staple")),
            ("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", OsStr::new("no")),
            ("BORG_RELOCATED_REPO_ACCESS_IS_OK", OsStr::new("no")),
        ]
    }

    /// A call of this Borg, with that environment and a passphrase.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(self.environment()).env("LC_ALL", "C.UTF-8");
        command
    }

    /// Calls this Borg; it has to succeed without a warning. Returns its standard output.
    #[track_caller]
    pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> String {
        run(self.command().args(args))
    }
}
