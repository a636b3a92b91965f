//! Who stands in the way of a change to a file. Pure: an [`Inventory`] in, a verdict out.

use std::path::{Path, PathBuf};

use strongroom_hypervisor::{Role, Store};
use uuid::Uuid;

use super::identity::Identity;
use super::{Held, Inventory, Unread};

/// The VM on whose behalf a file is changed: while it does not run, its own files may be.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// Its name, and its UUID. A copy, which is yet to come, has neither.
    pub vm: Option<(String, Uuid)>,
    /// The disks that are made anew together with the definition; `None` if its definition stays as it is.
    pub replaced: Option<Vec<String>>,
}

impl Own {
    /// Of a VM that is yet to come: no file is its own.
    pub fn none() -> Self {
        Self::default()
    }

    /// Of a VM whose definition stays.
    pub fn of(name: &str, uuid: Uuid) -> Self {
        Self {
            vm: Some((name.to_owned(), uuid)),
            replaced: None,
        }
    }

    /// Whether this use is no reason to leave the file alone.
    fn allows(&self, held: &Held) -> bool {
        let mine = self
            .vm
            .as_ref()
            .is_some_and(|(name, uuid)| held.uuid == *uuid || held.domain == *name);
        if !mine || held.now {
            return false;
        }
        match (&held.role, &self.replaced) {
            // What is below it goes together with the disk, if that is made anew and nothing else refers to it.
            (Role::Disk(target) | Role::Below(target), Some(replaced)) => replaced.contains(target),
            (Role::Below(_) | Role::Snapshot(_) | Role::SavedMemory, _) => false,
            (Role::Disk(_) | Role::Variables | Role::Other(_), _) => true,
        }
    }
}

/// Why a file is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InUse {
    /// A domain has it open.
    #[error(
        "replace {path}: domain {domain:?} runs on it ({role}), or will when its saved memory is resumed; shut it down first"
    )]
    Now {
        /// The file.
        path: PathBuf,
        /// Who uses it.
        domain: String,
        /// What for.
        role: String,
    },
    /// Another image rests on it.
    #[error(
        "change {path}: it is {role} of domain {domain:?}, whose disk would change with it; take another path with --to, or \
         remove that domain's disk first"
    )]
    Below {
        /// The file.
        path: PathBuf,
        /// Whose image rests on it.
        domain: String,
        /// What for.
        role: String,
    },
    /// A domain that does not run names it.
    #[error(
        "write {path}: it is {role} of domain {domain:?}; take another path with --to, or take it out of that domain first"
    )]
    Named {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        domain: String,
        /// What for.
        role: String,
    },
    /// It is there, and a domain that hangs may be using it.
    #[error(
        "replace or change {path}: domain {domain:?} may use it, and libvirt does not give that domain's definition \
         ({reason}); wait until that VM answers again, or end it with `virsh destroy`, then repeat this"
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The domain of which nothing is known.
        domain: String,
        /// Why, in the hypervisor's words.
        reason: String,
    },
}

/// What a domain of which it is not known what it uses means to a backup of another one: its disks are only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// QEMU has the images of the VM open, and keeps others from writing to them: worth a note.
    Slight,
    /// The VM is shut off, and nothing keeps another one from writing to its images meanwhile: worth a warning.
    Grave,
}

impl InUse {
    fn by(held: &Held, path: &Path) -> Self {
        let (path, domain, role) = (path.to_owned(), held.domain.clone(), held.role.to_string());
        match held.role {
            _ if held.now => Self::Now { path, domain, role },
            Role::Below(_) => Self::Below { path, domain, role },
            _ => Self::Named { path, domain, role },
        }
    }
}

impl Inventory {
    /// Whether a file may be made or replaced, or changed where it is. Of several reasons against it the gravest is given; that
    /// something is not known comes last.
    pub fn check(&self, path: &Path, own: &Own) -> Result<(), InUse> {
        let reasons = self.users_of(path).filter(|held| !own.allows(held));
        let gravity = |held: &&Held| (held.now, matches!(held.role, Role::Below(_)));
        match reasons.max_by_key(gravity) {
            None => self.known(path),
            Some(held) => Err(InUse::by(held, path)),
        }
    }

    /// A domain that uses one of these files, if one does. If none is known to, but what one of them uses is not known, that one
    /// is the error.
    pub fn any_user<'a>(
        &'a self,
        paths: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Option<&'a Held>, &'a Unread> {
        let used = paths.into_iter().find_map(|path| self.users_of(path).next());
        match (used, self.unread.first()) {
            (None, Some(unread)) => Err(unread),
            (used, _) => Ok(used),
        }
    }

    /// Refuses a file that is there while a domain may be using it of which nothing is known. A name that is free is free.
    fn known(&self, path: &Path) -> Result<(), InUse> {
        match self.unread.first().filter(|_| self.is_there(path)) {
            None => Ok(()),
            Some(unread) => Err(InUse::Unknown {
                path: path.to_owned(),
                domain: unread.domain.clone(),
                reason: unread.reason.clone(),
            }),
        }
    }

    /// Where it can be looked at. On another machine nothing is replaced: what is asked about is not there.
    fn is_there(&self, path: &Path) -> bool {
        let identity = Identity::of(&Store::Path(path.to_owned()), self.local);
        !matches!(identity, Identity::Named(_))
    }

    /// The domains of which it is not known whether they write to these disks of a VM, and how much that matters to a backup of
    /// it. `off`: it is shut off.
    pub fn doubts(&self, vm: Uuid, targets: &[&str], off: bool) -> Vec<(&Unread, Doubt)> {
        // On another machine it cannot be seen which images are there.
        let exists = |held: &&Held| !self.local || !matches!(held.identity, Identity::Named(_));
        let asked = |held: &&Held| match &held.role {
            Role::Disk(target) | Role::Below(target) => targets.contains(&target.as_str()),
            _ => false,
        };
        let own = self.held.iter().filter(|held| held.uuid == vm);
        let doubt = if off && own.filter(asked).any(|held| exists(&held)) {
            Doubt::Grave
        } else {
            Doubt::Slight
        };
        let others = self.unread.iter().filter(|unread| unread.uuid != vm);
        others.map(|unread| (unread, doubt)).collect()
    }

    /// The domain whose disk an image is, and the image's format as defined: the VM `preferred` if it has it, else the only
    /// one that has. An image that is below another one, or has another owner beside this one, is refused.
    pub fn owner(&self, path: &Path, preferred: &str) -> Result<Option<&Held>, InUse> {
        let disks = || {
            self.users_of(path)
                .filter(|held| matches!(held.role, Role::Disk(_)))
        };
        let owner = disks()
            .find(|held| held.domain == preferred)
            .or_else(|| disks().next());
        let own = owner.map_or_else(Own::none, |held| Own::of(&held.domain, held.uuid));
        let others = self
            .users_of(path)
            .filter(|held| !held.now || owner.is_none_or(|owner| owner.uuid != held.uuid));
        match others
            .filter(|held| !own.allows(held))
            .max_by_key(|held| held.now)
        {
            Some(held) => Err(InUse::by(held, path)),
            None => self.known(path).map(|()| owner),
        }
    }
}
