//! The lock of a repository, as stock Borg takes it.
//!
//! `lock.exclusive/` is a directory with one file, named after its holder. It is held while the repository is
//! written to, or for an instant while `lock.roster` is changed, which lists who reads and who writes. Borg 1.2.4 and
//! later make the directory under another name, with the file in it, and rename it: that fails while the other is not
//! empty. There is no heartbeat: holders of the same host whose process is gone are removed by the next who asks.

mod held;
mod holder;
mod roster;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use holder::host_id;

use crate::error::Doing as _;
use crate::files::{Create, Directory, temporary};
use crate::{Error, Result};
use held::Held;
use holder::Holder;
use roster::Roster;

const DIR: &str = "lock.exclusive";
/// How often a lock is asked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long beyond the wait stale holders are removed without a pause.
const GRACE: Duration = Duration::from_secs(5);
/// How long a reader waits for the instant in which it may leave the roster.
const LEAVE: Duration = Duration::from_secs(30);

/// How long a lock is waited for.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    /// Longest time; zero asks once.
    pub wait: Duration,
    /// Set by others to end the wait.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Patience {
    /// Sleeps a little, unless the time is up or the wait cancelled.
    fn pause(&self, since: Instant) -> Result<bool> {
        if self
            .cancel
            .as_ref()
            .is_some_and(|cancel| cancel.load(Ordering::Relaxed))
        {
            return Err(Error::Cancelled);
        }
        let left = self.wait.saturating_sub(since.elapsed());
        std::thread::sleep(left.min(PAUSE));
        Ok(!left.is_zero())
    }
}

/// A lock that is held, until it is dropped.
pub(crate) struct Lock {
    door: Door,
    exclusive: bool,
    /// No second handle of this process, which Borg's names do not tell apart.
    _held: Held,
}

impl Lock {
    /// Takes the lock.
    pub(crate) fn take(
        directory: Arc<dyn Directory>,
        host: &str,
        exclusive: bool,
        patience: &Patience,
    ) -> Result<Self> {
        let since = Instant::now();
        let identity = directory.identity().doing("examine", "the repository")?;
        let held = loop {
            match Held::take(identity) {
                Some(held) => break held,
                None if patience.pause(since)? => {}
                None => {
                    let holders = vec!["this process".to_owned()];
                    return Err(Error::Locked { holders });
                }
            }
        };
        let door = Door {
            directory,
            me: Holder::this_process(host),
        };
        loop {
            door.close(patience, since)?;
            let entered = door.enter(exclusive);
            if !exclusive || !matches!(entered, Ok(true)) {
                door.open();
            }
            if entered? {
                return Ok(Self {
                    door,
                    exclusive,
                    _held: held,
                });
            }
            if !patience.pause(since)? {
                let holders = door.roster()?.shared.iter().map(ToString::to_string).collect();
                return Err(Error::Locked { holders });
            }
        }
    }

    /// True if the lock is exclusive, and nothing has broken it meanwhile.
    pub(crate) fn is_exclusive(&self) -> bool {
        let file = format!("{DIR}/{}", self.door.me);
        self.exclusive && self.door.directory.open(&file).is_ok()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let patience = Patience {
            wait: LEAVE,
            cancel: None,
        };
        let ours = if self.exclusive {
            // Another may have broken it and taken its place.
            self.is_exclusive()
        } else {
            self.door.close(&patience, Instant::now()).is_ok()
        };
        if !ours {
            // An entry that stays on the roster is stale as soon as this process has ended.
            return;
        }
        if let Ok(roster) = self.door.roster() {
            let _ = roster.save(&*self.door.directory);
        }
        self.door.open();
    }
}

/// `lock.exclusive` and what is behind it.
struct Door {
    directory: Arc<dyn Directory>,
    me: Holder,
}

impl Door {
    /// Takes `lock.exclusive`.
    fn close(&self, patience: &Patience, since: Instant) -> Result<()> {
        let temporary = temporary(DIR, '.');
        let file = format!("{temporary}/{}", self.me);
        self.directory.make_dir(&temporary).doing("create", &temporary)?;
        let closed = self
            .directory
            .create(&file, Create::New)
            .doing("create", &file)
            .and_then(|_| self.move_in(&temporary, patience, since));
        if closed.is_err() {
            let _ = self.directory.unlink(&file);
            let _ = self.directory.remove_dir(&temporary);
        }
        closed
    }

    fn move_in(&self, temporary: &str, patience: &Patience, since: Instant) -> Result<()> {
        loop {
            match self.directory.rename(temporary, DIR) {
                Ok(()) => return Ok(()),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
                    ) => {}
                Err(error) => return Err(error).doing("rename", temporary),
            }
            // A stale one that was removed is no reason to wait, but for those that come again and again.
            let free = self.remove_stale()? && since.elapsed() < patience.wait + GRACE;
            if !free && !patience.pause(since)? {
                let holders = self.directory.names(DIR).unwrap_or_default();
                return Err(Error::Locked { holders });
            }
        }
    }

    /// Removes holders whose process is gone. True if the lock may be free now.
    fn remove_stale(&self) -> Result<bool> {
        let names = match self.directory.names(DIR).doing("list", DIR) {
            Err(error) if error.is_absent() => return Ok(true),
            other => other?,
        };
        for name in names {
            // A name that is none of Borg's is for a human to judge.
            if Holder::parse(&name).is_none_or(|holder| holder.may_live(&self.me)) {
                return Ok(false);
            }
            let path = format!("{DIR}/{name}");
            match self.directory.unlink(&path).doing("remove", &path) {
                Err(error) if !error.is_absent() => return Err(error),
                _ => {}
            }
        }
        Ok(self.directory.remove_dir(DIR).is_ok())
    }

    /// Puts us on the roster; `false` if there are readers and we want to be alone.
    fn enter(&self, exclusive: bool) -> Result<bool> {
        let mut roster = self.roster()?;
        if exclusive && !roster.shared.is_empty() {
            return Ok(false);
        }
        let list = if exclusive {
            &mut roster.exclusive
        } else {
            &mut roster.shared
        };
        list.push(self.me.clone());
        roster.save(&*self.directory)?;
        Ok(true)
    }

    /// All others on the roster whose process may live.
    fn roster(&self) -> Result<Roster> {
        let mut roster = Roster::load(&*self.directory)?;
        roster.exclusive.retain(|holder| holder.may_live(&self.me));
        roster.shared.retain(|holder| holder.may_live(&self.me));
        Ok(roster)
    }

    /// Gives `lock.exclusive` back.
    fn open(&self) {
        let _ = self.directory.unlink(&format!("{DIR}/{}", self.me));
        let _ = self.directory.remove_dir(DIR);
    }
}

/// What is readable survives a round trip.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = Roster::parse(bytes);
    if let Some(holder) = std::str::from_utf8(bytes).ok().and_then(Holder::parse) {
        assert_eq!(Holder::parse(&holder.to_string()).as_ref(), Some(&holder));
    }
}

#[cfg(test)]
mod tests;
