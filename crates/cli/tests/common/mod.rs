//! What the tests with virtual machines share: a configured engine over real libvirt, real Borg, real QEMU.
#![allow(dead_code, clippy::unwrap_used)] // Each test binary uses its own part of it, and fails by panicking.

pub mod account;
pub mod checks;
pub mod deaths;
pub mod hangs;
pub mod luks;
pub mod pool;
pub mod running;
pub mod segments;
pub mod template;
pub mod terminal;
pub mod tiny;
pub mod tmpfs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use strongroom_base::cancel::Cancel;
use strongroom_borg::{PassphraseSource, Settings};
use strongroom_engine::backup::{self, BackupError, Outcome, Report};
use strongroom_engine::config::{Config, Vm};
use strongroom_engine::run::context::Context;
use strongroom_engine::run::event::{Event, Kind, Observer};
use strongroom_engine::run::settings::{self, Arguments};
use strongroom_engine::run::state::{Run, StateDirectory};
use strongroom_hypervisor::Hypervisor as _;
use strongroom_libvirt::Libvirt;
use strongroom_points::store::{Encryption, Repositories};
use strongroom_testkit::{Borg, Lab};
use uuid::Uuid;

/// The passphrase of [`Borg`]'s environment.
pub const URI: &str = "qemu:///system";

/// An engine with repositories, records and images inside a lab's directory.
pub struct Bench {
    pub borg: Borg,
    pub config: Config,
    pub hypervisor: Libvirt,
    pub state: StateDirectory,
    pub repositories: Repositories,
    pub cancel: Cancel,
}

impl Bench {
    /// For these VMs; makes their repositories.
    pub fn new(lab: &Lab, vms: &[&str]) -> Self {
        let borg = Borg::packaged();
        let mut config = Config::new(lab.path("repo-{vm}").display().to_string());
        lab.dir().clone_into(&mut config.images);
        config.state = Some(lab.path("state"));
        config.compression = "lz4".into();
        for vm in vms {
            config.vm.insert((*vm).to_owned(), Vm::default());
        }
        let bench = Self::open(config, borg);
        for vm in vms {
            bench
                .repositories
                .create(&bench.config.repository_of(vm), Encryption::STANDARD)
                .unwrap();
        }
        bench
    }

    /// For what exists already: in another process than the one that made it.
    pub fn open(config: Config, borg: Borg) -> Self {
        let settings = Settings {
            lock_wait: Duration::from_secs(2),
            ..Settings::from_env()
        }
        .with_base_dir(borg.base());
        let passphrase = PassphraseSource::fixed(strongroom_borg::Passphrase::new(borg_passphrase(&borg)));
        let cancel = Cancel::new();
        let repositories = Repositories {
            settings,
            passphrase,
            cancel: cancel.clone(),
        };
        Self {
            borg,
            state: StateDirectory::open(config.state_directory()).unwrap(),
            config,
            hypervisor: Libvirt::connect(URI).unwrap(),
            repositories,
            cancel,
        }
    }

    /// Another machine with this configuration, and with nothing of what the first one knows.
    pub fn elsewhere(&self, state: &Path) -> Self {
        let borg = Borg::packaged();
        let mut config = self.config.clone();
        config.state = Some(state.to_owned());
        let settings = self.repositories.settings.clone().with_base_dir(borg.base());
        Self {
            state: StateDirectory::open(state).unwrap(),
            config,
            hypervisor: Libvirt::connect(URI).unwrap(),
            repositories: Repositories {
                settings,
                ..self.repositories.clone()
            },
            cancel: self.cancel.clone(),
            borg,
        }
    }

    /// One more VM, with a repository.
    pub fn add_vm(&mut self, vm: &str) {
        self.config.vm.insert(vm.to_owned(), Vm::default());
        self.repositories
            .create(&self.config.repository_of(vm), Encryption::STANDARD)
            .unwrap();
    }

    /// Has Borg forget how new the repositories were that it has seen.
    pub fn forget_replay(&self) {
        for place in [".config/borg/security", ".cache/borg"] {
            let _ = std::fs::remove_dir_all(self.borg.base().join(place));
        }
    }

    /// What the configuration says as it is now.
    pub fn settings(&self) -> Arc<settings::Settings> {
        let settings = settings::Settings::resolve(&self.config, &Arguments::default(), |_, _| None);
        Arc::new(settings.unwrap())
    }

    /// What the engine works with.
    pub fn context<'a>(&'a self, observer: &'a dyn Observer) -> Context<'a> {
        Context {
            vm: None,
            hypervisor: &self.hypervisor,
            own_domain: self.config.own_domain.as_deref(),
            settings: self.settings(),
            state: &self.state,
            repositories: &self.repositories,
            observer,
            cancel: &self.cancel,
            watchdog: &watchdog,
        }
    }

    /// Backs up a VM.
    pub fn backup(&self, vm: &str, observer: &dyn Observer) -> Result<Report, BackupError> {
        match backup::run(&self.context(observer), vm, backup::Request::default())? {
            Outcome::Done(report) => Ok(*report),
            Outcome::Planned(_) => unreachable!("not a dry run"),
        }
    }

    /// The run of a VM that is on record as not over.
    pub fn run_of(&self, vm: &str) -> Option<Run> {
        let domain = self.hypervisor.domain(vm).unwrap();
        self.state.peek(domain.uuid).unwrap()?.run
    }

    /// The repository of a VM.
    pub fn repository(&self, vm: &str) -> PathBuf {
        self.config.repository_of(vm).into()
    }

    /// A file with this configuration.
    pub fn config_file(&self, lab: &Lab) -> PathBuf {
        let path = lab.path("strongroom.toml");
        std::fs::write(&path, self.config.to_toml()).unwrap();
        path
    }

    /// The program, with this configuration and this Borg's environment.
    pub fn strongroom(&self, lab: &Lab, arguments: &[&str]) -> Output {
        self.program(lab).args(arguments).output().unwrap()
    }

    /// The program, ready for arguments.
    pub fn program(&self, lab: &Lab) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        program
            .envs(self.borg.environment())
            .env("STRONGROOM_CONFIG", self.config_file(lab));
        program
    }

    /// The program's JSON document; it has to succeed.
    pub fn json(&self, lab: &Lab, arguments: &[&str]) -> Value {
        let output = self.program(lab).arg("--json").args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// The watchdog is the program's, also of an engine that is part of a test.
fn watchdog(domain: Uuid, budget: Duration) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command
        .args(["--connect", URI, "thaw-watchdog", &domain.to_string()])
        .args(["--budget-ms", &budget.as_millis().to_string()]);
    command
}

fn borg_passphrase(borg: &Borg) -> String {
    let environment = borg.environment();
    let found = environment
        .iter()
        .find(|(name, _)| *name == "BORG_PASSPHRASE")
        .unwrap();
    found.1.to_str().unwrap().to_owned()
}

/// An observer that calls a function, and keeps the warnings.
pub struct Hook<F> {
    pub warnings: Mutex<Vec<String>>,
    each: F,
}

impl<F: Fn(&Kind<'_>) + Send + Sync> Hook<F> {
    pub fn new(each: F) -> Self {
        Self {
            warnings: Mutex::default(),
            each,
        }
    }
}

impl<F: Fn(&Kind<'_>) + Send + Sync> Observer for Hook<F> {
    fn event(&self, event: &Event<'_>) {
        if let Kind::Warning { text, .. } = &event.kind {
            self.warnings.lock().unwrap().push(text.clone());
        }
        (self.each)(&event.kind);
    }
}

/// SHA-256 of everything that an NBD export holds, read by libnbd's own tool: not by the code under test.
pub fn sha256_of_export(target: &strongroom_nbd::Target) -> String {
    let strongroom_nbd::Target::Unix { path, export } = target else {
        panic!("not a unix socket: {target:?}")
    };
    let line = format!(
        "nbdcopy 'nbd+unix:///{export}?socket={}' - | sha256sum",
        path.display()
    );
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", &line])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

/// The names of the files in a directory.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
