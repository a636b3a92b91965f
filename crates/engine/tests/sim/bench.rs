//! An engine with a simulated host, stock Borg and records in one directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strongroom_base::cancel::Cancel;
use strongroom_borg::PassphraseSource;
use strongroom_engine::backup::{self, BackupError, Outcome, Report};
use strongroom_engine::config::{CaptureMethod, Config, Vm};
use strongroom_engine::restore::{self, ImageFormat, RestoreError};
use strongroom_engine::run::context::Context;
use strongroom_engine::run::event::{Event, Kind, Observer};
use strongroom_engine::run::settings::{Arguments, Settings};
use strongroom_engine::run::state::StateDirectory;
use strongroom_hypervisor::{Chains as _, Hypervisor as _};
use strongroom_points::store::{Encryption, Repositories};
use strongroom_sim::{Guest, Lab, SimHost};
use strongroom_testkit::Borg;

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// How many benches work side by side where most of the time is patience.
pub const AT_ONCE: usize = 4;

/// The VM.
pub const VM: &str = "web";

/// A host with one VM, and a repository for it.
pub struct Bench {
    pub lab: Lab,
    pub engine: Engine,
    pub guest: Guest,
    pub borg: Borg,
}

/// What can be made anew over the same directory: another process.
pub struct Engine {
    pub config: Config,
    pub host: SimHost,
    pub state: StateDirectory,
    pub repositories: Repositories,
    pub cancel: Cancel,
}

impl Bench {
    /// A VM that runs, with `vda` (qcow2, 12 MiB) and `vdb` (raw, 4 MiB), both with something on them.
    pub fn new(method: CaptureMethod) -> Self {
        let lab = Lab::new();
        let borg = Borg::packaged();
        let guest = lab.host().guest(VM, &[("vda", "qcow2", 12), ("vdb", "raw", 4)]);
        guest.start();
        guest.write("vda", 0x11, 0, MIB);
        guest.write("vda", 0x12, 5 * MIB, 3 * MIB);
        guest.write("vdb", 0x13, MIB, MIB);
        let engine = Engine::open(lab.directory(), borg.base(), method);
        let location = engine.config.repository_of(VM);
        let repositories = &engine.repositories;
        repositories.create(&location, Encryption::STANDARD).unwrap();
        Self {
            lab,
            engine,
            guest,
            borg,
        }
    }

    /// Has the guest write what no other call of this does.
    pub fn change(&self, pattern: u8) {
        self.guest.write("vda", pattern, 2 * MIB, 64 << 10);
        self.guest.write("vdb", pattern, 3 * MIB, 64 << 10);
    }

    /// What the guest has on both disks.
    pub fn content(&self) -> [Vec<u8>; 2] {
        ["vda", "vdb"].map(|target| self.guest.content(target))
    }

    /// What a restore point has on both disks.
    #[track_caller]
    pub fn restored(&self, when: &str) -> [Vec<u8>; 2] {
        let to = tempfile::tempdir_in(self.lab.directory()).unwrap();
        let request = restore::Request {
            disks: ["vda", "vdb"].map(str::to_owned).to_vec(),
            to: Some(to.path().to_owned()),
            format: ImageFormat::Raw,
            ..request(when)
        };
        let report = self.engine.restore(&request).unwrap();
        let [vda, vdb] = &report.disks[..] else {
            panic!("{:?}", report.disks)
        };
        [vda, vdb].map(|disk| std::fs::read(&disk.path).unwrap())
    }

    /// In this case, nothing of a run is left: no job, no overlay, no file; no checkpoint but the one on record; nothing is open.
    #[track_caller]
    pub fn at_rest(&self, case: &str) {
        let (host, uuid) = (self.lab.host(), self.guest.uuid);
        let records = self.engine.state.peek(uuid).unwrap();
        let committed = records.and_then(|records| {
            assert_eq!(records.run, None, "{case}: a run is open");
            records.committed.map(|committed| committed.checkpoint)
        });
        assert_eq!(host.backup_job(uuid).unwrap(), None, "{case}");
        let checkpoints = host.checkpoints(uuid).unwrap();
        assert_eq!(checkpoints, committed.into_iter().collect::<Vec<_>>(), "{case}");
        for chain in host.chains(uuid).unwrap() {
            // One image, that of the disk, in every view that there is.
            let [image] = &chain.inactive[..] else {
                panic!("{case}: {chain:?}")
            };
            assert!(
                image.extension().is_some_and(|of| of != "overlay"),
                "{case}: {chain:?}"
            );
            assert_eq!((&chain.live, chain.job_in_qemu), (&chain.qemu, false), "{case}");
            assert!(chain.qemu.iter().all(|own| own == image), "{case}: {chain:?}");
        }
        let mut files = names(&self.lab.path(VM));
        files.sort();
        assert_eq!(files, ["vda.qcow2", "vdb.raw"], "{case}");
        assert!(
            !names(self.lab.directory())
                .iter()
                .any(|name| name.starts_with("sr-"))
        );
    }

    /// The names of the archives, as stock Borg tells them; it has to get the repository to itself.
    pub fn archives(&self) -> Vec<String> {
        let repository = self.engine.config.repository_of(VM);
        self.borg.run(["with-lock", &repository, "true"]);
        let listed = self.borg.run(["list", "--short", &repository]);
        listed.lines().map(str::to_owned).collect()
    }

    /// Stock Borg finds nothing wrong with the repository.
    pub fn check(&self) {
        self.borg.run(["check", &self.engine.config.repository_of(VM)]);
    }
}

impl Engine {
    /// The engine of a lab's directory.
    pub fn open(directory: &Path, borg: &Path, method: CaptureMethod) -> Self {
        let mut config = Config::new(directory.join("repo-{vm}").display().to_string());
        config.images = directory.join("images");
        config.state = Some(directory.join("state"));
        config.compression = "lz4".into();
        let vm = Vm {
            method,
            ..Vm::default()
        };
        config.vm.insert(VM.into(), vm);
        let borg = Borg::sharing(borg);
        let environment = borg.environment();
        let (_, passphrase) = environment
            .iter()
            .find(|(name, _)| *name == "BORG_PASSPHRASE")
            .unwrap();
        let passphrase = strongroom_borg::Passphrase::new(passphrase.to_str().unwrap().to_owned());
        let cancel = Cancel::new();
        Self {
            host: SimHost::open(directory),
            state: StateDirectory::open(config.state_directory()).unwrap(),
            config,
            repositories: Repositories {
                settings: strongroom_borg::Settings {
                    lock_wait: Duration::from_secs(10),
                    ..strongroom_borg::Settings::from_env()
                }
                .with_base_dir(borg.base()),
                passphrase: PassphraseSource::fixed(passphrase),
                cancel: cancel.clone(),
            },
            cancel,
        }
    }

    /// What the engine works with.
    pub fn context<'a>(&'a self, observer: &'a dyn Observer) -> Context<'a> {
        let settings = Settings::resolve(&self.config, &Arguments::default(), |_, _| None);
        Context {
            vm: None,
            hypervisor: &self.host,
            own_domain: None,
            settings: Arc::new(settings.unwrap()),
            state: &self.state,
            repositories: &self.repositories,
            observer,
            cancel: &self.cancel,
            watchdog: &|_, _| unreachable!("no guest is frozen"),
        }
    }

    /// Backs the VM up.
    pub fn backup(&self, observer: &dyn Observer) -> Result<Report, BackupError> {
        match backup::run(&self.context(observer), VM, backup::Request::default())? {
            Outcome::Done(report) => Ok(*report),
            Outcome::Planned(_) => unreachable!("not a dry run"),
        }
    }

    /// Restores.
    pub fn restore(&self, request: &restore::Request) -> Result<restore::Report, RestoreError> {
        match restore::run(&self.context(&()), request)? {
            restore::Outcome::Done(report) => Ok(report),
            restore::Outcome::Planned(_) => unreachable!("not a dry run"),
        }
    }
}

/// A restore of everything to where it was.
pub fn request(when: &str) -> restore::Request {
    restore::Request {
        point: format!("{VM}@{when}").parse().unwrap(),
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

/// The names in a directory.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let path = |entry: std::io::Result<std::fs::DirEntry>| -> PathBuf { entry.unwrap().path() };
    entries
        .map(|entry| path(entry).file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}
