//! An account on the hypervisor, made as the program says that the administrator has to make it.

use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_testkit::{Lab, OwnLibvirtd, Sshd, output_of, run};

use super::Bench;

/// What it is called.
pub const ACCOUNT: &str = "strongroom";
/// The one in which jobs are begun.
pub const JOBS: &str = "strongroom-jobs";

/// The hypervisor as the account sees it.
pub struct Account {
    pub sshd: Sshd,
    pub uri: String,
    key: PathBuf,
}

impl Account {
    /// Does what the program says that the administrator has to do, for a key and these arguments.
    pub fn make(
        own: &OwnLibvirtd,
        lab: &Lab,
        bench: &Bench,
        sshd: Sshd,
        key: &Path,
        arguments: &[&str],
    ) -> Self {
        let public = key.with_extension("pub").display().to_string();
        let asked = [&["hypervisor-rights", "--key", &public], arguments].concat();
        let said = bench.json(lab, &asked);
        for command in said["commands"].as_array().unwrap() {
            let command = command.as_str().unwrap();
            if command.contains("systemctl") {
                own.end("TERM");
                own.start();
            } else {
                run(Command::new("sh").args(["-ec", command]));
            }
        }
        let uri = format!("{}&keyfile={}", sshd.libvirt_as(ACCOUNT), key.display());
        let key = key.to_owned();
        Self { sshd, uri, key }
    }

    /// `virsh` may do this.
    #[track_caller]
    pub fn virsh(&self, arguments: &[&str]) -> String {
        run(Command::new("virsh")
            .args(["-q", "-c", &self.uri])
            .args(arguments))
    }

    /// `virsh` may not do this.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) {
        let said = output_of(
            Command::new("virsh")
                .args(["-q", "-c", &self.uri])
                .args(arguments),
        );
        let error = said.expect_err(&format!("{arguments:?} is allowed"));
        let words = ["access denied", "authentication", "not found", "failed to get"];
        assert!(
            words.iter().any(|word| error.to_lowercase().contains(word)),
            "{arguments:?}: {error}"
        );
    }

    /// `ssh`, with these words.
    pub fn ssh(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.ssh_as(ACCOUNT, arguments)
    }

    /// The same with the account for jobs, for one sentence.
    pub fn job(&self, sentence: &str) -> (Option<i32>, String) {
        self.ssh_as(JOBS, &["127.0.0.1", sentence])
    }

    /// `ssh` as either account.
    pub fn ssh_as(&self, account: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(self.sshd.program())
            .args(["-l", account, "-i"])
            .arg(&self.key)
            .args(arguments)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }
}
