//! Which VMs have to be there: those of the configuration, those that the newest restore point of all lists, and those
//! that is remembered: older inventories, the witness, our own records. The last ones until it is acknowledged that they
//! were given up.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use strongroom_points::names::is_vm_name;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::trust::chain::Head;
use strongroom_points::trust::ledger::Ledger;

use super::Surroundings;
use crate::run::state::{StateDirectory, StateError};

/// Which VMs inventories list: each with the newest one that does, by its instant and its archive.
#[derive(Debug, Default)]
pub struct Inventories(BTreeMap<String, (Timestamp, String)>);

impl Inventories {
    /// Takes note of a restore point's inventory. Only who is trusted says which VMs there have to be.
    pub fn add(&mut self, point: &RestorePoint) {
        let manifest = &point.manifest;
        for vm in manifest.inventory.iter().chain([&manifest.vm.name]) {
            self.lists(vm, manifest.captured, &point.name());
        }
    }

    fn lists(&mut self, vm: &str, at: Timestamp, archive: &str) {
        let newest = self.0.entry(vm.to_owned()).or_default();
        if newest.0 < at || newest.1.is_empty() {
            *newest = (at, archive.to_owned());
        }
    }

    fn merge(&mut self, other: &Self) {
        for (vm, (at, archive)) in &other.0 {
            self.lists(vm, *at, archive);
        }
    }

    /// Whether the newest inventory of all lists a VM.
    fn newest_lists(&self, vm: &str) -> bool {
        let newest = self.0.values().map(|(at, _)| at).max();
        self.0.get(vm).is_some_and(|(at, _)| Some(at) == newest)
    }
}

/// All VMs that are known.
#[derive(Debug, Default)]
pub struct Roster {
    configured: BTreeSet<String>,
    inventories: Inventories,
    /// The newest record of each VM, here or at the witness.
    recorded: BTreeMap<String, Timestamp>,
}

impl Roster {
    /// The VMs that are known before any repository has been opened.
    pub fn new<'a>(
        configured: impl IntoIterator<Item = String>,
        heads: impl IntoIterator<Item = &'a Head>,
    ) -> Self {
        let mut recorded = BTreeMap::new();
        for head in heads {
            let newest = recorded.entry(head.vm.clone()).or_insert(head.committed);
            *newest = head.committed.max(*newest);
        }
        Self {
            configured: configured.into_iter().collect(),
            inventories: Inventories::default(),
            recorded,
        }
    }

    /// Takes note of what a VM's restore points list.
    pub fn learn(&mut self, inventories: &Inventories) {
        self.inventories.merge(inventories);
    }

    fn all(&self) -> BTreeSet<&String> {
        let all = self.configured.iter();
        all.chain(self.inventories.0.keys())
            .chain(self.recorded.keys())
            .collect()
    }

    /// The VMs that have to be looked at, apart from those that are `done`.
    pub fn due(&self, state: &StateDirectory, done: &BTreeSet<String>) -> Vec<String> {
        let due = self.all().into_iter().filter(|vm| {
            !done.contains(*vm) && (self.configured.contains(*vm) || !self.is_given_up(state, vm))
        });
        due.cloned().collect()
    }

    /// The VMs that were not looked at because they were given up: all but those that are `done`.
    pub fn given_up(&self, done: &BTreeSet<String>) -> Vec<String> {
        let all = self.all().into_iter();
        all.filter(|vm| !done.contains(*vm)).cloned().collect()
    }

    fn is_listed(&self, vm: &str) -> bool {
        self.configured.contains(vm) || self.inventories.newest_lists(vm)
    }

    /// Whether a VM was given up after everything that is known of it. Records that cannot be read do not say so.
    fn is_given_up(&self, state: &StateDirectory, vm: &str) -> bool {
        let given_up = Ledger::open(state.path(), vm)
            .ok()
            .and_then(|ledger| ledger.given_up());
        let listed = self.inventories.0.get(vm).map(|(at, _)| at);
        let newest = listed.into_iter().chain(self.recorded.get(vm)).max();
        given_up.as_ref() >= newest
    }

    /// What is to be said of a VM that is known from somewhere, but backed up no more.
    pub fn note(&self, vm: &str) -> Option<String> {
        if self.is_listed(vm) {
            return None;
        }
        let since = match self.inventories.0.get(vm) {
            Some((at, archive)) => {
                let day = at.strftime("%Y-%m-%d %H:%M");
                format!("the last inventory that lists it is that of {archive} ({day} UTC)")
            }
            None => "no inventory lists it, only a record here or at the witness".into(),
        };
        Some(format!(
            "it has dropped out of the configuration, so it is not backed up any more: {since}; if it was given up: \
             `strongroom verify {vm} --acknowledge`"
        ))
    }
}

/// The newest record of each VM in our own records.
pub fn remembered(here: &Surroundings<'_>) -> Result<Vec<Head>, StateError> {
    let vms = Ledger::vms(here.state.path())?;
    Ok(vms.into_iter().filter(|head| is_vm_name(&head.vm)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_inventory_is_that_of_the_newest_restore_point_of_all() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut web = Inventories::default();
        for (vm, second) in [("web", 1), ("db", 1), ("old", 1), ("web", 5), ("db", 5)] {
            web.lists(vm, at(second), "web-1");
        }
        let mut db = Inventories::default();
        for vm in ["web", "db", "new"] {
            db.lists(vm, at(7), "db-1");
        }
        db.merge(&web);
        let listed = |vm| db.newest_lists(vm);
        assert!(listed("web") && listed("db") && listed("new"));
        assert!(!listed("old") && !listed("never"));
        assert_eq!(db.0["old"], (at(1), "web-1".into()));
    }

    #[test]
    fn a_vm_that_was_given_up_is_looked_for_as_soon_as_it_is_heard_of_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let give_up = |vm, second| {
            Ledger::open(state.path(), vm)
                .unwrap()
                .give_up(at(second))
                .unwrap();
        };
        let roster = |configured: &[&str], listed: &[(&str, i64)], recorded: &[(&str, i64)]| {
            let mut inventories = Inventories::default();
            for (vm, second) in listed {
                inventories.lists(vm, at(*second), "web-1");
            }
            let recorded = recorded.iter();
            Roster {
                configured: configured.iter().map(|vm| (*vm).to_owned()).collect(),
                inventories,
                recorded: recorded
                    .map(|(vm, second)| ((*vm).to_owned(), at(*second)))
                    .collect(),
            }
        };
        let due = |roster: &Roster| roster.due(&state, &BTreeSet::new());
        let all = roster(&["web"], &[("web", 5), ("db", 5)], &[("old", 3), ("web", 5)]);
        assert_eq!(due(&all), ["db", "old", "web"]);
        assert_eq!(all.given_up(&["web".to_owned()].into()), ["db", "old"]);
        // Also one that the newest inventory of all lists: there may never be a newer one. What is configured never is.
        for vm in ["web", "db", "old"] {
            give_up(vm, 6);
        }
        assert_eq!(due(&all), ["web"]);
        assert_eq!(due(&roster(&[], &[("db", 7)], &[])), ["db"]);
        assert_eq!(due(&roster(&[], &[], &[("old", 7), ("db", 6)])), ["old"]);
        // Records that cannot be read excuse nothing.
        std::fs::write(directory.path().join("trust/db.json"), "{").unwrap();
        assert_eq!(due(&all), ["db", "web"]);
    }
}
