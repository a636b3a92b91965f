//! From arguments, environment and configuration file to what a command works with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use strongroom_borg::{PassphraseSource, Settings as BorgSettings};
use strongroom_engine::config::{Config, name_problem, uuid_in};
use strongroom_engine::run::context::{Context, Launch, Repositories, Surroundings};
use strongroom_engine::run::event::{Event, Observer};
use strongroom_engine::run::state::StateDirectory;
use strongroom_engine::when::{PointName, When};
use strongroom_hypervisor::Hypervisor as _;
use strongroom_libvirt::Libvirt;
use uuid::Uuid;

use crate::args::Global;
use crate::cmd::thaw_watchdog;
use crate::failure::Failure;
use crate::prompt;
use crate::signals::Signals;
use crate::ui::Ui;

/// What every command needs, made once.
pub struct Settings {
    /// The configuration file's path, whether it exists or not.
    pub path: PathBuf,
    /// How repositories are reached.
    pub repositories: Repositories,
    /// What ctrl-C does.
    pub signals: Signals,
    /// Where output goes.
    pub ui: Arc<Ui>,
    /// The hypervisor's URI as given on the command line.
    pub connect: Option<String>,
}

/// The parts that a [`Context`] borrows.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The hypervisor.
    pub hypervisor: Libvirt,
    /// Our own records.
    pub state: StateDirectory,
    watchdog: Box<Launch>,
}

impl Settings {
    /// Takes the global options and the environment.
    pub fn new(global: &Global, signals: Signals, ui: Arc<Ui>) -> Self {
        let mut borg = BorgSettings::from_env();
        borg.lock_wait = Duration::from_secs(global.lock_wait);
        let heard = Arc::clone(&ui);
        borg.events = Some(Arc::new(move |event| heard.repository(&event)));
        let (asked, heeded) = (Arc::clone(&ui), signals.clone());
        // One question at a time.
        let terminal = Mutex::new(());
        let passphrase = PassphraseSource::from_env()
            .stopped_by(signals.cancel().flag())
            .with_prompt(move |request| {
                let _turn = terminal.lock().unwrap_or_else(PoisonError::into_inner);
                let ask = || {
                    let key = &request.key;
                    if request.new {
                        prompt::new_passphrase(&format!("New passphrase for {key}: "), heeded.cancel())
                    } else {
                        prompt::passphrase(&format!("Passphrase for {key}: "), heeded.cancel())
                    }
                };
                asked.suspended(|| heeded.in_order(ask))
            });
        Self {
            path: global.config.clone().unwrap_or_else(Config::default_path),
            repositories: Repositories {
                settings: borg,
                passphrase,
                cancel: signals.cancel().clone(),
            },
            signals,
            ui,
            connect: global.connect.clone(),
        }
    }

    /// Reads the configuration.
    pub fn config(&self) -> Result<Config, Failure> {
        let config = Config::read(&self.path).map_err(|error| {
            let missing = !self.path.exists();
            let failure = Failure::usage(error);
            if missing {
                failure.hint("`strongroom init --repository … VM` writes one")
            } else {
                failure
            }
        })?;
        Ok(with_names(self.with_uri(config), |_, _| None))
    }

    /// The same, for commands that work with hypervisors anyway: they know the names of VMs that are not on record yet.
    pub fn live_config(&self) -> Result<Config, Failure> {
        let mut connections: BTreeMap<String, Option<Libvirt>> = BTreeMap::new();
        Ok(with_names(self.config()?, |uuid, uri| {
            let connection = connections
                .entry(uri.to_owned())
                .or_insert_with(|| Libvirt::connect(uri).ok());
            Some(connection.as_ref()?.domain(&uuid.to_string()).ok()?.name)
        }))
    }

    /// Applies `--connect`, which is about all VMs.
    pub fn with_uri(&self, mut config: Config) -> Config {
        if let Some(uri) = &self.connect {
            config.hypervisor.clone_from(uri);
            for vm in config.vm.values_mut() {
                vm.hypervisor = None;
            }
        }
        config
    }

    /// The hypervisor that a new VM has to name in a configuration file that says this.
    pub fn own_hypervisor(&self, file: &Config) -> Option<String> {
        self.connect.clone().filter(|uri| *uri != file.hypervisor)
    }

    /// Connects to the hypervisor and opens the state directory.
    pub fn parts(config: Config) -> Result<Parts, Failure> {
        let hypervisor = Libvirt::connect(&config.hypervisor)
            .map_err(Failure::failed)?
            .with_nbd_tls(config.nbd_tls.clone());
        let state = StateDirectory::open(config.state_directory()).map_err(Failure::failed)?;
        let watchdog = thaw_watchdog::launch(hypervisor.uri());
        Ok(Parts {
            config,
            hypervisor,
            state,
            watchdog,
        })
    }

    /// What the engine works with that needs no hypervisor.
    pub fn here<'a>(&'a self, config: &'a Config, state: &'a StateDirectory) -> Surroundings<'a> {
        Surroundings {
            config,
            state,
            repositories: &self.repositories,
            observer: &*self.ui,
            cancel: self.signals.cancel(),
        }
    }

    /// What the engine works with.
    pub fn context<'a>(&'a self, parts: &'a Parts) -> Context<'a> {
        Context {
            hypervisor: &parts.hypervisor,
            config: &parts.config,
            state: &parts.state,
            repositories: &self.repositories,
            observer: &*self.ui,
            cancel: self.signals.cancel(),
            watchdog: &*parts.watchdog,
        }
    }

    /// The VMs named, or all of the configuration.
    pub fn chosen(config: &Config, named: &[String]) -> Result<Vec<String>, Failure> {
        let mut chosen: Vec<String> = Vec::new();
        for name in named {
            let name = Self::named(config, name)?;
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        }
        if named.is_empty() {
            chosen.extend(config.vm.keys().cloned());
        }
        if chosen.is_empty() {
            return Err(Failure::usage("find a VM in the configuration: there is none")
                .hint("`strongroom init VM` adds one"));
        }
        Ok(chosen)
    }

    /// The name of a VM that may be asked for by its UUID. It need not be configured, but it has to be a name.
    pub fn named(config: &Config, asked: &str) -> Result<String, Failure> {
        if config.vm.contains_key(asked) {
            return Ok(asked.to_owned());
        }
        if let Some(problem) = name_problem(asked) {
            return Err(Failure::usage(format!("find a VM by its name: {problem}")));
        }
        let Some(uuid) = uuid_in(asked) else {
            return Ok(asked.to_owned());
        };
        let configured = config.of_uuid(uuid).map(str::to_owned);
        let recorded = || StateDirectory::at(config.state_directory()).name_of(uuid);
        Ok(configured.or_else(recorded).unwrap_or_else(|| asked.to_owned()))
    }

    /// The restore point that is meant: a configured VM may have an `@` in its name, or be named by its UUID.
    pub fn point(config: &Config, point: &PointName) -> Result<PointName, Failure> {
        let whole = point.to_string();
        if config.vm.contains_key(&whole) {
            return Ok(PointName {
                vm: whole,
                when: When::Latest,
            });
        }
        Ok(PointName {
            vm: Self::named(config, &point.vm)?,
            when: point.when.clone(),
        })
    }
}

/// Puts VMs that are named by UUID under their names: as they are on record, or else as the other source says.
fn with_names(config: Config, mut other: impl FnMut(Uuid, &str) -> Option<String>) -> Config {
    let records = StateDirectory::at(config.state_directory());
    config.by_names(|uuid, uri| records.name_of(uuid).or_else(|| other(uuid, uri)))
}

impl Observer for Ui {
    fn event(&self, event: &Event<'_>) {
        self.engine(event);
    }
}
