//! What has to hold between two runs, whatever happened in the one before.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use strongroom_engine::backup::{BackupError, Report};
use strongroom_engine::restore::{self, ImageFormat, Outcome, Request};
use strongroom_engine::run::event::Kind;
use strongroom_hypervisor::{BackupJob, Hypervisor as _, JobDisk, Listener};
use strongroom_libvirt::Libvirt;
use strongroom_points::manifest::Manifest;
use strongroom_testkit::{Format, Lab, run, sha256_of_raw, virsh};
use uuid::Uuid;

use super::running::Said;
use super::{Bench, Hook, names, sha256_of_export};

impl Bench {
    /// Runs the program to its end.
    pub fn says(&self, lab: &Lab, arguments: &[&str]) -> Said {
        Said::of(self.program(lab).args(arguments))
    }

    /// The domain runs no backup job; it has no checkpoint but the one on record; no scratch file, draft or socket lies
    /// about; no run is open; the repository is not locked. Returns the names of the archives.
    #[track_caller]
    pub fn at_rest(&self, lab: &Lab, vm: &str) -> Vec<String> {
        self.guest_at_rest(lab, vm);
        self.archives(vm)
    }

    /// The same, without a look at the repository.
    #[track_caller]
    pub fn guest_at_rest(&self, lab: &Lab, vm: &str) {
        let domain = self.hypervisor.domain(vm).unwrap();
        let records = self.state.peek(domain.uuid).unwrap();
        let committed = records.and_then(|records| {
            assert_eq!(records.run, None, "a run is still open");
            records.committed.map(|committed| committed.checkpoint)
        });
        if domain.state.is_active() {
            let job = run(&mut virsh(["domjobinfo", vm]));
            assert_eq!(job.split_whitespace().last(), Some("None"), "{job}");
            let checkpoints = run(&mut virsh(["checkpoint-list", "--name", vm]));
            assert_eq!(
                checkpoints.split_whitespace().collect::<Vec<_>>(),
                committed.iter().collect::<Vec<_>>()
            );
            let local = Libvirt::connect(super::URI).unwrap();
            let sockets = names(socket_of(&local, domain.uuid, "x").parent().unwrap());
            assert!(!sockets.iter().any(|name| name.starts_with("sr-")), "{sockets:?}");
        }
        let left = |name: &String| {
            ["scratch", "overlay"].iter().any(|kind| name.contains(kind)) || name.starts_with(".strongroom-")
        };
        let files = names(lab.dir());
        assert!(!files.iter().any(left), "{files:?}");
    }

    /// The names of the archives, as stock Borg tells them; it has to get the repository to itself.
    #[track_caller]
    pub fn archives(&self, vm: &str) -> Vec<String> {
        let repository = self.repository(vm).display().to_string();
        self.borg.run(["with-lock", &repository, "true"]);
        let listed = self.borg.run(["list", "--short", &repository]);
        assert!(!Path::new(&repository).join("lock.exclusive").exists());
        listed.lines().map(str::to_owned).collect()
    }

    /// Stock Borg finds nothing wrong with the repository.
    #[track_caller]
    pub fn check(&self, vm: &str) {
        self.borg
            .run(["check", &self.repository(vm).display().to_string()]);
    }

    /// Backs up, and takes the SHA-256 of `vda` through the frozen view: what the restore point has to be.
    #[track_caller]
    pub fn backup_with_hash(&self, vm: &str) -> (Report, String) {
        self.try_backup_with_hash(vm).unwrap()
    }

    /// The same, where it may fail.
    pub fn try_backup_with_hash(&self, vm: &str) -> Result<(Report, String), BackupError> {
        let hash = Mutex::new(String::new());
        let hook = Hook::new(|event| {
            if let Kind::Captured { exports, .. } = event {
                let vda = exports.iter().find(|export| export.target == "vda").unwrap();
                *hash.lock().unwrap() = sha256_of_export(&vda.at);
            }
        });
        let report = self.backup(vm, &hook)?;
        Ok((report, hash.into_inner().unwrap()))
    }

    /// SHA-256 of what a restored disk holds.
    #[track_caller]
    pub fn sha256_of_restored(&self, lab: &Lab, vm: &str, archive: &str, disk: &str) -> String {
        let file = lab.path("compared.qcow2");
        let request = Request {
            disks: vec![disk.to_owned()],
            to: Some(file.clone()),
            ..request(vm, archive)
        };
        let restored = restore::run(&self.context(&()), &request).unwrap();
        assert!(matches!(restored, Outcome::Done(_)));
        let hash = sha256_of_raw(&file, Format::Qcow2);
        std::fs::remove_file(file).unwrap();
        hash
    }

    /// The manifest of a restore point, as the program shows it.
    #[track_caller]
    pub fn manifest(&self, lab: &Lab, point: &str) -> Manifest {
        let shown = self.json(lab, &["show", point]);
        serde_json::from_value(shown["manifest"].clone()).unwrap()
    }
}

/// A restore of everything to where it was.
pub fn request(vm: &str, when: &str) -> Request {
    Request {
        point: format!("{vm}@{when}").parse().unwrap(),
        rename: None,
        disks: Vec::new(),
        to: None,
        onto: None,
        format: ImageFormat::Qcow2,
        overwrite: false,
        keep_going: false,
        unsigned: false,
        own_headers: false,
        allow_rollback: false,
        headers: None,
        tight: false,
        trust_definition: true,
        dry_run: false,
    }
}

/// Every file below a directory with its size and time: nothing was changed if it is the same as before.
pub fn fingerprint(directory: &Path) -> String {
    let list = ["-type", "f", "-printf", "%P %s %T@\n"];
    let mut lines: Vec<String> = run(Command::new("find").arg(directory).args(list))
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines.join("\n")
}

/// SHA-256 of what a guest that is paused has on its disk, by a job of the host's own.
#[track_caller]
pub fn sha256_at_rest(lab: &Lab, local: &Libvirt, vm: &str) -> String {
    let domain = local.domain(vm).unwrap();
    let listener = Listener::Socket(socket_of(local, domain.uuid, "reference.sock"));
    begin_job(lab, local, vm, &listener);
    let hash = sha256_of_export(&local.export(&listener, "vda").unwrap());
    local.end_backup(domain.uuid).unwrap();
    hash
}

/// Where a socket of this name would be.
pub fn socket_of(local: &Libvirt, domain: Uuid, name: &str) -> PathBuf {
    let listener = local.listener(domain, name).unwrap();
    listener.socket().unwrap().to_owned()
}

/// Begins a job of the host's own, of `vda` in full.
#[track_caller]
pub fn begin_job(lab: &Lab, local: &Libvirt, vm: &str, listener: &Listener) {
    let disk = JobDisk {
        target: "vda".into(),
        scratch: lab.path("reference.scratch"),
        since: None,
        checkpoint: false,
    };
    let job = BackupJob {
        disks: vec![disk],
        checkpoint: None,
        listener: listener.clone(),
    };
    local.begin_backup(local.domain(vm).unwrap().uuid, &job).unwrap();
}
