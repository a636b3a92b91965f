//! What every command works with: the hypervisor, the settings, the records, the way to a repository.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use strongroom_base::cancel::Cancel;
use strongroom_hypervisor::Hypervisor;
use strongroom_points::store::Repositories;
use strongroom_points::trust::{Doubt, Grounds, Log};
use uuid::Uuid;

use crate::run::event::{Code, Event, Kind, Observer};
use crate::run::settings::Settings;
use crate::run::state::StateDirectory;

/// The surroundings of a command.
#[derive(Clone)]
pub struct Context<'a> {
    /// The VM that the work is about, if it is about one.
    pub vm: Option<&'a str>,
    /// The host that runs the VMs.
    pub hypervisor: &'a dyn Hypervisor,
    /// The domain on that host in which this program runs, if it does.
    pub own_domain: Option<&'a str>,
    /// The settings.
    pub settings: Arc<Settings>,
    /// Our own records.
    pub state: &'a StateDirectory,
    /// How repositories are reached.
    pub repositories: &'a Repositories,
    /// Who hears of what happens.
    pub observer: &'a dyn Observer,
    /// Asks long work to stop.
    pub cancel: &'a Cancel,
    /// How the thaw watchdog is started.
    pub watchdog: &'a Launch,
}

/// What a command works with that looks at repositories alone, and needs no hypervisor.
#[derive(Clone)]
pub struct Surroundings<'a> {
    /// The VM that the work is about, if it is about one.
    pub vm: Option<&'a str>,
    /// The settings.
    pub settings: Arc<Settings>,
    /// Our own records.
    pub state: &'a StateDirectory,
    /// How repositories are reached.
    pub repositories: &'a Repositories,
    /// Who hears of what happens.
    pub observer: &'a dyn Observer,
    /// Asks long work to stop.
    pub cancel: &'a Cancel,
}

impl Surroundings<'_> {
    /// What trust rests on.
    pub fn grounds(&self) -> Grounds<'_> {
        Grounds {
            signing: self.settings.signing.as_ref(),
            witness: self.settings.witness.as_ref(),
            records: self.state.path(),
            log: self,
            cancel: self.cancel,
        }
    }

    /// Reports that something is not as it should be.
    pub fn warn(&self, code: Code, text: impl Into<String>) {
        self.report(Kind::warning(code, text));
    }

    /// Reports what has happened.
    pub fn report(&self, kind: Kind<'_>) {
        self.observer.event(&Event::now(self.vm, kind));
    }
}

impl Log for Surroundings<'_> {
    fn warn(&self, doubt: Doubt, text: String) {
        self.report(Kind::warning(doubt.into(), text));
    }

    fn note(&self, text: String) {
        self.report(Kind::note(text));
    }
}

/// The command that starts a [`crate::capture::watchdog`] process for a domain that may be frozen for so long.
pub type Launch = dyn Fn(Uuid, Duration) -> Command + Sync;

impl<'a> Context<'a> {
    /// All but the hypervisor.
    pub fn here(&self) -> Surroundings<'a> {
        Surroundings {
            vm: self.vm,
            settings: Arc::clone(&self.settings),
            state: self.state,
            repositories: self.repositories,
            observer: self.observer,
            cancel: self.cancel,
        }
    }
}

impl Context<'_> {
    /// The same for one VM: what is reported is about it.
    pub fn about<'b>(&'b self, vm: &'b str) -> Context<'b> {
        Context {
            vm: Some(vm),
            ..self.clone()
        }
    }

    /// Reports what has happened.
    pub fn report(&self, kind: Kind<'_>) {
        self.observer.event(&Event::now(self.vm, kind));
    }

    /// Does a part of the work that may take no longer than this, with a context of its own.
    pub fn within<T>(&self, limit: Option<Duration>, part: impl FnOnce(&Context<'_>) -> T) -> T {
        let own = self.cancel.within(limit);
        let repositories = Repositories {
            cancel: own.cancel.clone(),
            ..self.repositories.clone()
        };
        part(&Context {
            repositories: &repositories,
            cancel: &own.cancel,
            ..self.clone()
        })
    }

    /// A guest that QEMU has stopped because the storage of its scratch file or overlay was full runs on. To be asked for
    /// whenever those are gone, however that came: the one who removed them may have died before this.
    pub fn resume_stopped(&self, domain: Uuid) {
        match self.hypervisor.resume_after_io_error(domain) {
            Ok(false) => {}
            Ok(true) => {
                self.warn(Code::GuestWasStopped, "the guest was stopped because its storage was full; what had filled it is gone, it runs on");
            }
            Err(error) => self.warn(
                Code::GuestMayBeStopped,
                format!("the guest may be stopped because its storage was full: failed to {error}"),
            ),
        }
    }

    /// Reports that something is not as it should be.
    pub fn warn(&self, code: Code, text: impl Into<String>) {
        self.report(Kind::warning(code, text));
    }

    /// Reports something worth knowing.
    pub fn note(&self, text: impl Into<String>) {
        self.report(Kind::note(text));
    }
}
