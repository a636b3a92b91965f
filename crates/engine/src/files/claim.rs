//! Who stands in the way of a change to a file. Pure: an [`Inventory`] in, a verdict out.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{Held, Inventory};
use crate::vm::Role;

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
    /// Whether a file may be made or replaced, or changed where it is. Of several reasons against it the gravest is given.
    pub fn check(&self, path: &Path, own: &Own) -> Result<(), InUse> {
        let reasons = self.users_of(path).filter(|held| !own.allows(held));
        let gravity = |held: &&Held| (held.now, matches!(held.role, Role::Below(_)));
        match reasons.max_by_key(gravity) {
            None => Ok(()),
            Some(held) => Err(InUse::by(held, path)),
        }
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
            None => Ok(owner),
        }
    }
}
