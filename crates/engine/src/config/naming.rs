//! The names of VMs, and what is settled for one of them.
//!
//! A table `[vm.…]` is headed by a VM's name or by its UUID. Settings are looked up once, by whatever the VM was asked for,
//! and go down as one value from there: nothing below looks a VM up again.

use uuid::Uuid;

use super::{Config, ConfigError, Vm};
use crate::names::is_vm_name;

/// The longest name, in bytes: libvirt and our own records add five to make a file's name of it.
const MAX_NAME: usize = 250;

/// What the configuration says about one VM.
#[derive(Debug, Clone, PartialEq)]
pub struct VmSettings {
    /// Its own settings.
    pub vm: Vm,
    /// Its repository's location.
    pub repository: String,
}

impl Config {
    /// What holds for this domain, which was asked for as `asked`: by its name, by its UUID, or as the configuration names it.
    /// An error if the configuration does not name it, or names it twice.
    pub fn settings(&self, asked: &str, domain: &str, uuid: Uuid) -> Result<VmSettings, ConfigError> {
        let is_it = |(key, vm): &(&String, &Vm)| match vm.uuid.or_else(|| uuid_in(key)) {
            Some(own) => own == uuid,
            None => *key == domain,
        };
        let mut fitting = self.vm.iter().filter(is_it);
        match (fitting.next(), fitting.next()) {
            (Some((key, vm)), None) => Ok(VmSettings {
                vm: vm.clone(),
                repository: self.repository_of(key),
            }),
            (Some((one, _)), Some((other, _))) => Err(ConfigError::Ambiguous(
                domain.to_owned(),
                one.clone(),
                other.clone(),
            )),
            (None, _) => Err(ConfigError::UnknownVm(asked.to_owned())),
        }
    }

    /// The same configuration, with the VMs that it names by UUID under their names, as far as `name_of` knows them; it gets the
    /// UUID and the hypervisor's URI. Records, inventories and restore points go by names.
    #[must_use]
    pub fn by_names(mut self, mut name_of: impl FnMut(Uuid, &str) -> Option<String>) -> Self {
        for key in self.vm.keys().cloned().collect::<Vec<_>>() {
            let Some(uuid) = uuid_in(&key) else { continue };
            let name = name_of(uuid, self.hypervisor_of(&key)).filter(|name| is_vm_name(name));
            let repository = self.repository_of(&key);
            // A VM that is named twice is refused when it is used.
            let name = name
                .filter(|name| !self.vm.contains_key(name))
                .unwrap_or_else(|| key.clone());
            if let Some(vm) = self.vm.remove(&key) {
                let vm = Vm {
                    uuid: Some(uuid),
                    repository: Some(repository),
                    ..vm
                };
                self.vm.insert(name, vm);
            }
        }
        self
    }

    /// What to ask the hypervisor for, for a VM of this name: its UUID where the configuration names it so.
    pub fn domain_of(&self, name: &str) -> String {
        let uuid = self.vm.get(name).and_then(|vm| vm.uuid);
        uuid.map_or_else(|| name.to_owned(), |uuid| uuid.to_string())
    }

    /// The VM of this UUID, if the configuration names it so.
    pub fn of_uuid(&self, uuid: Uuid) -> Option<&str> {
        let mut vms = self.vm.iter();
        vms.find(|(key, vm)| vm.uuid.or_else(|| uuid_in(key)) == Some(uuid))
            .map(|(key, _)| key.as_str())
    }
}

/// The UUID that a VM is named by, if it is: written in full, with its dashes.
pub fn uuid_in(name: &str) -> Option<Uuid> {
    (name.len() == 36).then(|| name.parse().ok())?
}

/// Why a VM of this name cannot be protected, if so.
pub fn name_problem(name: &str) -> Option<String> {
    if !is_vm_name(name) {
        return Some(format!(
            "vm.{name:?}: a VM's name has no slash and no leading dot"
        ));
    }
    if name.chars().any(char::is_control) {
        return Some(format!("vm.{name:?}: a VM's name has no control characters"));
    }
    (name.len() > MAX_NAME).then(|| format!("vm.{name}: a VM's name has {MAX_NAME} bytes at most"))
}
