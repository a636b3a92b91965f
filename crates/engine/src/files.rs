//! The one place that knows files: which files, devices and volumes the domains of the host use, and what may therefore be
//! done to a file.
//!
//! Definitions come from the hypervisor ([`strongroom_hypervisor::Uses`]): live and stored ones, those of saved memory and of
//! external snapshots. What images rest on is read from their own headers ([`chain`]), with the format of the top one from the
//! definition. Files are compared by device and inode, block devices by their number, never by the text of a path
//! ([`identity`]). [`claim`] decides, purely, who stands in the way of a change.
//!
//! A domain that hangs lets nothing of its definition be read ([`Unread`]). It may use any file that is there, so none is
//! replaced or changed meanwhile; what is only read, or made under a name that is free, goes on ([`Doubt`]).
//!
//! On another machine only names can be compared: symbolic and hard links there, and images that no definition names, are
//! not seen.

pub mod chain;
pub mod claim;
pub mod define;
pub mod directory;
pub mod identity;
pub mod journal;
pub mod room;
pub mod staged;
pub mod stamp;
pub mod unfinished;

use std::collections::BTreeSet;
use std::path::Path;

use strongroom_hypervisor::{Hypervisor, HypervisorError, Role, Store, User};
use uuid::Uuid;

pub use self::claim::{Doubt, InUse, Own};
use self::identity::Identity;

/// One use of a file by a domain.
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
#[derive(Debug, Clone)]
pub struct Held {
    /// The domain's name.
    pub domain: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// It runs.
    pub active: bool,
    /// What for.
    pub role: Role,
    /// Where it lies, as named.
    pub store: Store,
    /// What tells it from all others.
    pub identity: Identity,
    /// Image format as defined or, below another image, as that image's header says.
    pub format: Option<String>,
    /// The guest can write to it.
    pub writable: bool,
    /// It is meant to be used by several domains.
    pub shareable: bool,
    /// It is in use now, or by memory that is saved.
    pub now: bool,
}

/// A domain of which it is not known what it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The domain's name.
    pub domain: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Why, in the hypervisor's words.
    pub reason: String,
}

/// Everything that the domains of a host use, at one instant.
#[derive(Debug, Default)]
pub struct Inventory {
    local: bool,
    held: Vec<Held>,
    unread: Vec<Unread>,
}

impl Inventory {
    /// Takes stock.
    pub fn take(hypervisor: &dyn Hypervisor) -> Result<Self, HypervisorError> {
        Ok(Self::of(&hypervisor.users()?, hypervisor.is_local()))
    }

    /// What these domains use. `local`: their files are on this machine, and are looked at.
    pub fn of(users: &[User], local: bool) -> Self {
        let mut held = Vec::new();
        for user in users {
            let mut known = BTreeSet::new();
            let mut add = |found: Held| {
                let key = (
                    found.identity.clone(),
                    found.store.clone(),
                    found.now,
                    found.writable,
                    found.role.to_string(),
                );
                if known.insert(key) {
                    held.push(found);
                }
            };
            for one in &user.uses {
                let top = Held {
                    domain: user.name.clone(),
                    uuid: user.uuid,
                    active: user.active,
                    role: one.role.clone(),
                    identity: Identity::of(&one.store, local),
                    store: one.store.clone(),
                    format: one.format.clone(),
                    writable: one.writable,
                    shareable: one.shareable,
                    now: one.now,
                };
                for below in local.then(|| chain::below(one)).into_iter().flatten() {
                    let role = match &one.role {
                        Role::Disk(target) | Role::Below(target) => Role::Below(target.clone()),
                        role => role.clone(),
                    };
                    add(Held {
                        role,
                        identity: Identity::of(&below.store, local),
                        store: below.store,
                        format: below.format,
                        writable: below.writable && one.writable,
                        ..top.clone()
                    });
                }
                // The file behind a loop device is in use, too.
                if let Some(file) = local.then(|| identity::behind(&top.identity)).flatten() {
                    let store = Store::Path(file);
                    add(Held {
                        identity: Identity::of(&store, local),
                        store,
                        ..top.clone()
                    });
                }
                add(top);
            }
        }
        let unread = users.iter().filter_map(|user| {
            Some(Unread {
                domain: user.name.clone(),
                uuid: user.uuid,
                reason: user.unread.clone()?,
            })
        });
        Self {
            local,
            held,
            unread: unread.collect(),
        }
    }

    /// All uses.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// The domains that may use more than is known.
    pub fn unread(&self) -> &[Unread] {
        &self.unread
    }

    /// Who uses what lies at a path of the hypervisor, or would be there.
    pub fn users_of(&self, path: &Path) -> impl Iterator<Item = &Held> {
        let identity = Identity::of(&Store::Path(path.to_owned()), self.local);
        self.held.iter().filter(move |held| held.identity == identity)
    }
}

#[cfg(test)]
mod tests;
