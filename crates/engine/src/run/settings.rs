//! Settings, resolved once: the configuration file, the command line and the names on record become values that do not
//! change any more.
//!
//! A command resolves them before it does anything. What is done for a VM gets its [`VmJob`] where it begins, by whatever the
//! VM was asked for; below that, nothing looks a VM up in the configuration again.

mod job;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use strongroom_points::names::is_vm_name;
use uuid::Uuid;

pub use self::job::{HypervisorSettings, Limits, Quiesce, Throttle, VmJob};
use crate::config::{Config, ConfigError, Signing, Witness, uuid_in};

/// What the command line says beside the configuration file.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// The hypervisor of all VMs, whatever the file says.
    pub connect: Option<String>,
    /// How long the backup of a VM may take, in seconds; 0 for no limit.
    pub time_limit: Option<u64>,
    /// The disks that `swap` and `exclude` name are meant as they are now.
    pub disks_confirmed: bool,
}

/// What holds for all VMs, and what holds for each.
#[derive(Debug, Clone)]
pub struct Settings {
    /// libvirt URI of the hypervisor of VMs that name no other.
    pub hypervisor: String,
    /// Where restored disks go on the hypervisor.
    pub images: PathBuf,
    /// Where our own records are kept.
    pub state_directory: PathBuf,
    /// Where templates are kept.
    pub templates_directory: PathBuf,
    /// How many VMs are backed up at the same time.
    pub at_once: usize,
    /// Who signs restore points, and whose signatures are trusted.
    pub signing: Option<Signing>,
    /// Who remembers the newest restore points.
    pub witness: Option<Witness>,
    /// The VMs that the configuration names, under the names by which records and restore points go.
    vms: BTreeMap<String, Arc<VmJob>>,
    /// What holds for VMs that it does not name.
    others: VmJob,
}

impl Settings {
    /// Resolves a configuration. A VM that it names by UUID goes by its name, if `name_of` knows that; it gets the UUID and the
    /// hypervisor's URI.
    pub fn resolve(
        file: &Config,
        arguments: &Arguments,
        mut name_of: impl FnMut(Uuid, &str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let others = VmJob::of_others(file, arguments)?;
        let mut vms: BTreeMap<String, Arc<VmJob>> = BTreeMap::new();
        for (key, vm) in &file.vm {
            let mut job = VmJob::of(&others, file, arguments, key, vm);
            let known = uuid_in(key).and_then(|uuid| name_of(uuid, &job.hypervisor.uri));
            // A VM that is named twice is refused when it is used.
            let free =
                |name: &String| is_vm_name(name) && !file.vm.contains_key(name) && !vms.contains_key(name);
            if let Some(name) = known.filter(free) {
                job.name = name;
            }
            vms.insert(job.name.clone(), Arc::new(job));
        }
        Ok(Self {
            hypervisor: others.hypervisor.uri.clone(),
            images: file.images.clone(),
            state_directory: file.state_directory(),
            templates_directory: file.templates_directory(),
            at_once: file.jobs,
            signing: file.signing.clone(),
            witness: file.witness.clone(),
            vms,
            others,
        })
    }

    /// The names of the VMs that the configuration names.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &String> {
        self.vms.keys()
    }

    /// Whether the configuration names this VM.
    pub fn is_configured(&self, name: &str) -> bool {
        self.vms.contains_key(name)
    }

    /// What holds for a VM of this name, configured or not.
    pub fn job(&self, name: &str) -> Arc<VmJob> {
        self.vms
            .get(name)
            .cloned()
            .unwrap_or_else(|| Arc::new(self.others.called(name)))
    }

    /// What holds for this domain, which was asked for as `asked`: by its name, by its UUID, or as the configuration names it.
    /// An error if the configuration does not name it, or names it twice.
    pub fn job_of(&self, asked: &str, domain: &str, uuid: Uuid) -> Result<Arc<VmJob>, ConfigError> {
        let is_it = |job: &&Arc<VmJob>| match job.uuid {
            Some(own) => own == uuid,
            None => job.name == domain,
        };
        let mut fitting = self.vms.values().filter(is_it);
        match (fitting.next(), fitting.next()) {
            (Some(job), None) => Ok(Arc::clone(job)),
            (Some(one), Some(other)) => Err(ConfigError::Ambiguous(
                domain.to_owned(),
                one.name.clone(),
                other.name.clone(),
            )),
            (None, _) => Err(ConfigError::UnknownVm(asked.to_owned())),
        }
    }

    /// The VM of this UUID, if the configuration names it so.
    pub fn of_uuid(&self, uuid: Uuid) -> Option<&Arc<VmJob>> {
        self.vms.values().find(|job| job.uuid == Some(uuid))
    }

    /// What holds for a VM of this UUID, or else of this name, configured or not.
    pub fn job_with(&self, name: &str, uuid: Option<Uuid>) -> Arc<VmJob> {
        let by_uuid = uuid.and_then(|uuid| self.of_uuid(uuid)).cloned();
        by_uuid.unwrap_or_else(|| self.job(name))
    }

    /// Whether the configuration names any VM by its UUID.
    pub fn has_uuids(&self) -> bool {
        self.vms.values().any(|job| job.uuid.is_some())
    }

    /// All VMs that the configuration names; the one of this UUID goes by the name that it has now.
    pub fn inventory(&self, uuid: Uuid, now: &str) -> Vec<String> {
        let name = |job: &Arc<VmJob>| match job.uuid {
            Some(own) if own == uuid => now.to_owned(),
            _ => job.name.clone(),
        };
        self.vms.values().map(name).collect()
    }

    /// The limits of all VMs.
    pub fn limits(&self) -> &Limits {
        &self.others.limits
    }

    /// The hypervisor of VMs that name no other.
    pub fn default_hypervisor(&self) -> &HypervisorSettings {
        &self.others.hypervisor
    }

    /// These VMs, hypervisor by hypervisor; both in the order in which they are named.
    pub fn by_hypervisor(&self, names: &[String]) -> Vec<(HypervisorSettings, Vec<String>)> {
        let mut groups: Vec<(HypervisorSettings, Vec<String>)> = Vec::new();
        for name in names {
            let hypervisor = self.job(name).hypervisor.clone();
            match groups.iter_mut().find(|(other, _)| *other == hypervisor) {
                Some((_, group)) => group.push(name.clone()),
                None => groups.push((hypervisor, vec![name.clone()])),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests;
