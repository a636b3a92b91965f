//! How repositories are reached, opened and made.

use std::sync::Arc;
use std::time::Duration;

use strongroom_base::cancel::Cancel;
use strongroom_borg as client;

use super::convert;
use super::opened::Opened;
use super::settings::{Encryption, Passphrase};
use crate::store::{Access, Event, Repository, Result, StoreError};

/// Between two looks at whether the work is cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// How repositories are reached and opened.
#[derive(Clone)]
pub struct Repositories {
    /// Programs, directories and time limits of the client.
    pub settings: client::Settings,
    /// Where the passphrase comes from.
    pub passphrase: client::PassphraseSource,
    /// Ends connections once it is set: a call that waits for a lock or for a dead network would not notice otherwise.
    pub cancel: Cancel,
}

/// A question for a passphrase.
pub struct Question<'a> {
    /// Of which key: the location of the repository or of the key file.
    pub key: &'a str,
    /// It is chosen now: ask twice, and take no empty one.
    pub new: bool,
}

impl Repositories {
    /// As the environment says, in stock Borg's variables.
    pub fn from_env(cancel: &Cancel) -> Self {
        Self {
            settings: client::Settings::from_env(),
            passphrase: client::PassphraseSource::from_env().stopped_by(cancel.flag()),
            cancel: cancel.clone(),
        }
    }

    /// How long a server waits for a repository's lock.
    #[must_use]
    pub fn waiting(mut self, lock_wait: Duration) -> Self {
        self.settings.lock_wait = lock_wait;
        self
    }

    /// How long a server may give no sign of life; nothing for ever.
    #[must_use]
    pub fn patient(mut self, patience: Option<Duration>) -> Self {
        self.settings.patience = patience;
        self
    }

    /// Who hears what servers and the client say.
    #[must_use]
    pub fn heard_by(mut self, hear: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.settings.events = Some(Arc::new(move |event| {
            if let Some(event) = convert::event(event) {
                hear(&event);
            }
        }));
        self
    }

    /// Who answers where the environment has no passphrase. Nothing is said where there is no terminal.
    #[must_use]
    pub fn asking(
        mut self,
        ask: impl Fn(&Question<'_>) -> Option<Passphrase> + Send + Sync + 'static,
    ) -> Self {
        self.passphrase = self.passphrase.with_prompt(move |request| {
            let question = Question {
                key: &request.key,
                new: request.new,
            };
            ask(&question).map(|Passphrase(passphrase)| passphrase)
        });
        self
    }

    /// Opens the repository at a location as Borg writes it. One on storage that cannot be written is read without a
    /// lock.
    pub fn open(&self, location: &str, access: Access) -> Result<Repository> {
        let location: client::Location = location.parse().map_err(StoreError::from)?;
        match self.open_with(&location, access) {
            Err(client::Error::LockFailed { message }) if access == Access::Read => {
                if let Some(events) = &self.settings.events {
                    events(client::Event::Log {
                        level: client::Level::Info,
                        message: format!("it is read without a lock: {message}"),
                    });
                }
                Ok(handle(self.open_with(&location, Access::ReadWithoutLock)?))
            }
            opened => Ok(handle(opened?)),
        }
    }

    /// The same for reading, also where it is in an older state than was seen before: [`Repository::replayed`] tells.
    pub fn open_as_it_is(&self, location: &str, access: Access) -> Result<Repository> {
        let mut tolerant = self.clone();
        tolerant.settings.accept_replay = true;
        tolerant.open(location, access)
    }

    fn open_with(
        &self,
        location: &client::Location,
        access: Access,
    ) -> Result<client::Repository, client::Error> {
        let access = match access {
            Access::Read => client::Access::Read,
            Access::ReadWithoutLock => client::Access::ReadWithoutLock,
            Access::Write => client::Access::Write,
        };
        let transport = client::Transport::spawn(location, &self.settings)?;
        self.watch(transport.canceller());
        client::Repository::open_over(transport, location, access, &self.settings, &self.passphrase)
    }

    /// Makes a new, empty repository.
    pub fn create(&self, location: &str, Encryption(encryption): Encryption) -> Result<()> {
        let location: client::Location = location.parse().map_err(StoreError::from)?;
        client::Repository::create(&location, encryption, &self.settings, &self.passphrase)?;
        Ok(())
    }

    /// Closes a connection when the work is cancelled.
    fn watch(&self, connection: client::Canceller) {
        let cancel = self.cancel.clone();
        std::thread::spawn(move || {
            while !connection.is_over() {
                if cancel.is_cancelled() {
                    return connection.cancel();
                }
                std::thread::sleep(LOOK);
            }
        });
    }
}

/// A handle of an open repository.
fn handle(repository: client::Repository) -> Repository {
    Repository::new(Box::new(Opened::new(repository)))
}
