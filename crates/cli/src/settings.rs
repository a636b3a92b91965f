//! From arguments, environment and configuration file to what a command works with.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use strongroom_borg::{PassphraseSource, Settings as BorgSettings};
use strongroom_engine::config::Config;
use strongroom_engine::context::{Context, Launch, Repositories};
use strongroom_engine::event::{Event, Observer};
use strongroom_engine::state::StateDirectory;
use strongroom_engine::vm::Hypervisor as _;
use strongroom_libvirt::Libvirt;

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
        let passphrase = PassphraseSource::from_env().with_prompt(move |request| {
            let question = format!("Passphrase for {}: ", request.key);
            let _turn = terminal.lock().unwrap_or_else(PoisonError::into_inner);
            let ask = || prompt::passphrase(&question, heeded.cancel());
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
        Ok(self.with_uri(config))
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
        let chosen: Vec<String> = if named.is_empty() {
            config.vm.keys().cloned().collect()
        } else {
            named.to_vec()
        };
        if chosen.is_empty() {
            return Err(Failure::usage("find a VM in the configuration: there is none")
                .hint("`strongroom init VM` adds one"));
        }
        Ok(chosen)
    }
}

impl Observer for Ui {
    fn event(&self, event: &Event<'_>) {
        self.engine(event);
    }
}
