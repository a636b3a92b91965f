//! From arguments, environment and configuration file to what a command works with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use strongroom_engine::config::{Config, ConfigError, name_problem, uuid_in};
use strongroom_engine::run::context::{Context, Launch, Surroundings};
use strongroom_engine::run::settings::{self as resolved, Arguments, HypervisorSettings, Limits};
use strongroom_engine::run::state::StateDirectory;
use strongroom_hypervisor::{Hypervisor as _, HypervisorError, Timed};
use strongroom_libvirt::Libvirt;
use strongroom_points::catalog::Catalog;
use strongroom_points::selector::{PointName, Selector};
use strongroom_points::store::{Access, Repositories};
use uuid::Uuid;

use crate::args::Global;
use crate::cmd::thaw_watchdog;
use crate::failure::Failure;
use crate::prompt;
use crate::signals::Signals;
use crate::ui::Ui;
use crate::unanswered;

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
    /// What the command line says beside the configuration.
    pub arguments: Arguments,
}

/// The parts that a [`Context`] borrows.
pub struct Parts {
    /// What holds for all VMs, and for each.
    pub settings: Arc<resolved::Settings>,
    /// The hypervisor.
    pub hypervisor: Arc<Timed<Libvirt>>,
    own_domain: Option<String>,
    /// Our own records.
    pub state: StateDirectory,
    watchdog: Box<Launch>,
}

impl Settings {
    /// Takes the global options and the environment.
    pub fn new(global: &Global, signals: Signals, ui: Arc<Ui>) -> Self {
        let heard = Arc::clone(&ui);
        let (asked, heeded) = (Arc::clone(&ui), signals.clone());
        // One question at a time.
        let terminal = Mutex::new(());
        let repositories = Repositories::from_env(signals.cancel())
            .waiting(Duration::from_secs(global.lock_wait))
            .heard_by(move |event| heard.repository(event))
            .asking(move |question| {
                let _turn = terminal.lock().unwrap_or_else(PoisonError::into_inner);
                let ask = || {
                    let key = question.key;
                    if question.new {
                        prompt::new_passphrase(&format!("New passphrase for {key}: "), heeded.cancel())
                    } else {
                        prompt::passphrase(&format!("Passphrase for {key}: "), heeded.cancel())
                    }
                };
                asked.suspended(|| heeded.in_order(ask))
            });
        Self {
            path: global.config.clone().unwrap_or_else(Config::default_path),
            repositories,
            signals,
            ui,
            arguments: Arguments {
                connect: global.connect.clone(),
                ..Arguments::default()
            },
        }
    }

    /// Reads the configuration, and resolves what holds for this call.
    pub fn resolve(&self) -> Result<Arc<resolved::Settings>, Failure> {
        resolved_as(&self.file()?, &self.arguments, |_, _| None)
    }

    /// The same, for commands that work with hypervisors anyway: they know the names of VMs that are not on record yet.
    pub fn resolve_live(&self) -> Result<Arc<resolved::Settings>, Failure> {
        self.resolve_live_with(&self.arguments)
    }

    /// The same, with these arguments.
    pub fn resolve_live_with(&self, arguments: &Arguments) -> Result<Arc<resolved::Settings>, Failure> {
        let file = self.file()?;
        resolved_as(&file, arguments, self.in_hypervisors(&file))
    }

    /// The same, for commands that read repositories: on a machine without records, these know the names.
    pub fn resolve_stored(&self) -> Result<Arc<resolved::Settings>, Failure> {
        let known = self.resolve()?;
        resolved_as(&self.file()?, &self.arguments, |uuid, _| {
            self.in_repository(&known, uuid)
        })
    }

    /// The same, for a restore, which works with hypervisors as well.
    pub fn resolve_stored_live(&self) -> Result<Arc<resolved::Settings>, Failure> {
        let (file, known) = (self.file()?, self.resolve()?);
        let mut defined = self.in_hypervisors(&file);
        resolved_as(&file, &self.arguments, |uuid, uri| {
            defined(uuid, uri).or_else(|| self.in_repository(&known, uuid))
        })
    }

    /// Asks hypervisors for the names of VMs, over one connection each.
    fn in_hypervisors(&self, file: &Config) -> impl FnMut(Uuid, &str) -> Option<String> {
        let limit = Limits::from(&file.limits).answer;
        let ui = Arc::clone(&self.ui);
        let mut connections: BTreeMap<String, Option<Arc<Timed<Libvirt>>>> = BTreeMap::new();
        move |uuid, uri| {
            let connection = connections.entry(uri.to_owned()).or_insert_with(|| {
                let connected = Arc::new(Timed::new(Libvirt::connect(uri).ok()?));
                unanswered::watch(&connected, limit, &ui);
                Some(connected)
            });
            Some(connection.as_ref()?.domain(&uuid.to_string()).ok()?.name)
        }
    }

    /// What the newest restore point of a VM calls it.
    fn in_repository(&self, known: &resolved::Settings, uuid: Uuid) -> Option<String> {
        let location = &known.of_uuid(uuid)?.repository;
        let mut repository = self.repositories.open_as_it_is(location, Access::Read).ok()?;
        let catalog = Catalog::read(&mut repository).ok()?;
        repository.close().ok()?;
        catalog.name_of(uuid).map(str::to_owned)
    }

    /// What holds with a configuration that is not in the file yet. VMs go by what it names them.
    pub fn resolve_draft(&self, file: &Config) -> Result<Arc<resolved::Settings>, Failure> {
        let found = resolved::Settings::resolve(file, &self.arguments, |_, _| None);
        found.map(Arc::new).map_err(Failure::usage)
    }

    /// The configuration file, as written.
    fn file(&self) -> Result<Config, Failure> {
        Config::read(&self.path).map_err(|error| {
            let missing = matches!(error, ConfigError::Read { .. }) && !self.path.exists();
            let failure = Failure::usage(error);
            if missing {
                failure.hint("`strongroom init --repository … VM` writes one")
            } else {
                failure
            }
        })
    }

    /// The hypervisor that a new VM has to name in a configuration file that says this.
    pub fn own_hypervisor(&self, file: &Config) -> Option<String> {
        let connect = self.arguments.connect.clone();
        connect.filter(|uri| *uri != file.hypervisor)
    }

    /// Connects to a hypervisor. A call that gets no answer ends the command.
    pub fn hypervisor(
        &self,
        settings: &resolved::Settings,
        hypervisor: &HypervisorSettings,
    ) -> Result<Arc<Timed<Libvirt>>, Failure> {
        let connected = Arc::new(Timed::new(connect(hypervisor).map_err(Failure::failed)?));
        unanswered::watch(&connected, settings.limits().answer, &self.ui);
        Ok(connected)
    }

    /// The same, and opens the state directory.
    pub fn parts(
        &self,
        settings: &Arc<resolved::Settings>,
        hypervisor: &HypervisorSettings,
    ) -> Result<Parts, Failure> {
        let own_domain = hypervisor.own_domain.clone();
        let hypervisor = self.hypervisor(settings, hypervisor)?;
        let state = StateDirectory::open(&settings.state_directory).map_err(Failure::failed)?;
        let watchdog = thaw_watchdog::launch(hypervisor.uri());
        Ok(Parts {
            settings: Arc::clone(settings),
            hypervisor,
            own_domain,
            state,
            watchdog,
        })
    }

    /// What the engine works with that needs no hypervisor.
    pub fn here<'a>(
        &'a self,
        settings: &Arc<resolved::Settings>,
        state: &'a StateDirectory,
    ) -> Surroundings<'a> {
        Surroundings {
            vm: None,
            settings: Arc::clone(settings),
            state,
            repositories: &self.repositories,
            observer: &*self.ui,
            cancel: self.signals.cancel(),
        }
    }

    /// What the engine works with.
    pub fn context<'a>(&'a self, parts: &'a Parts) -> Context<'a> {
        Context {
            vm: None,
            hypervisor: &*parts.hypervisor,
            own_domain: parts.own_domain.as_deref(),
            settings: Arc::clone(&parts.settings),
            state: &parts.state,
            repositories: &self.repositories,
            observer: &*self.ui,
            cancel: self.signals.cancel(),
            watchdog: &*parts.watchdog,
        }
    }

    /// The VMs named, or all of the configuration.
    pub fn chosen(settings: &resolved::Settings, named: &[String]) -> Result<Vec<String>, Failure> {
        let mut chosen: Vec<String> = Vec::new();
        for name in named {
            let name = Self::named(settings, name)?;
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        }
        if named.is_empty() {
            chosen.extend(settings.names().cloned());
        }
        if chosen.is_empty() {
            return Err(Failure::usage("find a VM in the configuration: there is none")
                .hint("`strongroom init VM` adds one"));
        }
        Ok(chosen)
    }

    /// The name of a VM that may be asked for by its UUID. It need not be configured, but it has to be a name.
    pub fn named(settings: &resolved::Settings, asked: &str) -> Result<String, Failure> {
        if settings.is_configured(asked) {
            return Ok(asked.to_owned());
        }
        if let Some(problem) = name_problem(asked) {
            return Err(Failure::usage(format!("find a VM by its name: {problem}")));
        }
        let Some(uuid) = uuid_in(asked) else {
            return Ok(asked.to_owned());
        };
        let configured = settings.of_uuid(uuid).map(|job| job.name.clone());
        let recorded = || StateDirectory::at(&settings.state_directory).name_of(uuid);
        Ok(configured.or_else(recorded).unwrap_or_else(|| asked.to_owned()))
    }

    /// The restore point that is meant: a configured VM may have an `@` in its name, or be named by its UUID.
    pub fn point(settings: &resolved::Settings, point: &PointName) -> Result<PointName, Failure> {
        let whole = point.to_string();
        if settings.is_configured(&whole) {
            return Ok(PointName {
                vm: whole,
                when: Selector::Latest,
            });
        }
        Ok(PointName {
            vm: Self::named(settings, &point.vm)?,
            when: point.when.clone(),
        })
    }
}

/// VMs that are named by UUID go by their names: as they are on record, or else as the other source says.
fn resolved_as(
    file: &Config,
    arguments: &Arguments,
    mut other: impl FnMut(Uuid, &str) -> Option<String>,
) -> Result<Arc<resolved::Settings>, Failure> {
    let records = StateDirectory::at(file.state_directory());
    let name_of = |uuid: Uuid, uri: &str| records.name_of(uuid).or_else(|| other(uuid, uri));
    let found = resolved::Settings::resolve(file, arguments, name_of);
    found.map(Arc::new).map_err(Failure::usage)
}

/// Connects to a hypervisor.
pub fn connect(hypervisor: &HypervisorSettings) -> Result<Libvirt, HypervisorError> {
    let connection = Libvirt::connect(&hypervisor.uri)?;
    Ok(connection.with_nbd_tls(hypervisor.nbd_tls.clone()))
}
