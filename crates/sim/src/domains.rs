//! Domains: found, described, defined; what is asked of the whole host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_hypervisor::{
    BackupJob, BadBitmap, Domain, Hypervisor, HypervisorError, Listener, Requests, Retarget, Retargeted,
    RunningJob,
};
use strongroom_nbd::Target;
use uuid::Uuid;

use crate::definition::Definition;
use crate::world::{Machine, World, describe};
use crate::{SimHost, Told, URI, refused};

impl Hypervisor for SimHost {
    fn uri(&self) -> &str {
        URI
    }

    fn is_local(&self) -> bool {
        true
    }

    fn domain_names(&self) -> Told<Vec<String>> {
        self.ask("domain_names", |world| {
            let mut names: Vec<String> = world.machines.values().map(|of| of.stored.name.clone()).collect();
            names.sort();
            Ok(names)
        })
    }

    fn domain(&self, name_or_uuid: &str) -> Told<Domain> {
        self.ask("domain", |world| {
            let mut machines = world.machines.values();
            let named = machines.find(|machine| machine.stored.name == name_or_uuid);
            let by_uuid = || world.machines.get(&name_or_uuid.parse().ok()?);
            let found = named.or_else(by_uuid);
            let machine =
                found.ok_or_else(|| HypervisorError::NoSuchDomain(name_or_uuid.into(), URI.into()))?;
            Ok(facts(machine))
        })
    }

    fn snapshot_names(&self, domain: Uuid) -> Told<Vec<String>> {
        // Snapshots are taken without being kept on record.
        self.ask("snapshot_names", |world| {
            world.machine(domain).map(|_| Vec::new())
        })
    }

    fn checkpoints(&self, domain: Uuid) -> Told<Vec<String>> {
        self.ask("checkpoints", |world| {
            let known = &world.machine(domain)?.checkpoints;
            Ok(known.iter().map(|(name, _)| name.clone()).collect())
        })
    }

    fn check_checkpoint(&self, domain: Uuid, name: &str) -> Told<Vec<BadBitmap>> {
        self.ask("check_checkpoint", |world| {
            world.machine(domain)?.check_checkpoint(name)
        })
    }

    fn create_checkpoint(&self, domain: Uuid, name: &str, targets: &[String]) -> Told<()> {
        self.act("create_checkpoint", |world| {
            world.live(domain, "create a checkpoint")?;
            world.machine_mut(domain)?.create_checkpoint(name, targets)
        })
    }

    fn delete_checkpoint(&self, domain: Uuid, name: &str) -> Told<()> {
        self.act("delete_checkpoint", |world| {
            world.machine_mut(domain)?.delete_checkpoint(name)
        })
    }

    fn lacks_backup_jobs(&self, domain: Uuid) -> Told<Option<String>> {
        self.ask("lacks_backup_jobs", |world| world.machine(domain).map(|_| None))
    }

    fn begin_backup(&self, domain: Uuid, job: &BackupJob) -> Told<Duration> {
        self.act("begin_backup", |world| {
            world.live(domain, "start a backup job")?;
            world.machine_mut(domain)?.begin_backup(job)?;
            Ok(Duration::from_millis(1))
        })
    }

    fn backup_job(&self, domain: Uuid) -> Told<Option<RunningJob>> {
        self.ask("backup_job", |world| {
            let live = world.machine(domain)?.live.as_ref();
            Ok(live.and_then(|live| live.job.as_ref()).map(|job| RunningJob {
                socket: job.listener.socket().map(Path::to_owned),
                scratch: job.views.iter().map(|view| view.scratch.clone()).collect(),
            }))
        })
    }

    fn end_backup(&self, domain: Uuid) -> Told<()> {
        self.act("end_backup", |world| {
            let job = world
                .machine_mut(domain)?
                .live
                .as_mut()
                .and_then(|live| live.job.take());
            if let Some(job) = job {
                job.end();
            }
            Ok(())
        })
    }

    fn requests(&self, domain: Uuid, targets: &[&str]) -> Told<Vec<Requests>> {
        self.ask("requests", |world| {
            world.machine(domain)?;
            Ok(vec![Requests::default(); targets.len() * 3])
        })
    }

    fn resume_after_io_error(&self, domain: Uuid) -> Told<bool> {
        self.ask("resume_after_io_error", |world| {
            world.machine(domain).map(|_| false)
        })
    }

    fn listener(&self, domain: Uuid, name: &str) -> Told<Listener> {
        self.ask("listener", |world| {
            world.machine(domain)?;
            Ok(Listener::Socket(self.path(name)))
        })
    }

    fn export(&self, listener: &Listener, export: &str) -> Told<Target> {
        // Each view has a server, and so a socket, of its own.
        let socket = listener.socket().map(Path::to_owned).unwrap_or_default();
        Ok(Target::Unix {
            path: view_socket(&socket, export),
            export: export.into(),
        })
    }

    fn stopped_by_io_error(&self, domain: Uuid) -> Told<bool> {
        self.ask("stopped_by_io_error", |world| {
            world.machine(domain).map(|_| false)
        })
    }

    fn tpm_directory(&self, domain: Uuid) -> PathBuf {
        self.path("tpm").join(domain.to_string())
    }

    fn retarget(&self, xml: &str, change: &Retarget) -> Told<Retargeted> {
        Ok(Definition::read(xml)?.retarget(change))
    }

    fn check_definable(&self, xml: &str, replace: bool) -> Told<()> {
        self.ask("check_definable", |world| {
            check_definable(world, &Definition::read(xml)?, replace)
        })
    }

    fn define(&self, xml: &str, replace: bool) -> Told<Uuid> {
        self.act("define", |world| {
            let new = Definition::read(xml)?;
            check_definable(world, &new, replace)?;
            let uuid = new.uuid;
            match world.machines.get_mut(&uuid) {
                Some(machine) => machine.stored = new,
                None => {
                    world.machines.insert(uuid, Machine::new(new));
                }
            }
            Ok(uuid)
        })
    }
}

/// Where the view of a disk is served, of a job that is served there.
pub fn view_socket(listener: &Path, target: &str) -> PathBuf {
    let mut path = listener.as_os_str().to_owned();
    path.push(format!(".{target}"));
    path.into()
}

fn check_definable(world: &World, new: &Definition, replace: bool) -> Told<()> {
    let named = world
        .machines
        .values()
        .find(|machine| machine.stored.name == new.name);
    let same = world.machines.get(&new.uuid);
    for (found, kind) in [(named, "name"), (same, "UUID")] {
        let Some(found) = found else { continue };
        if !replace || (&found.stored.name, found.stored.uuid) != (&new.name, new.uuid) {
            return Err(HypervisorError::Exists(new.name.clone(), kind));
        }
        if found.live.is_some() {
            return refused(
                format!("define domain {:?}", new.name),
                "the domain of that name runs",
            );
        }
    }
    Ok(())
}

fn facts(machine: &Machine) -> Domain {
    let stored = &machine.stored;
    let disks = match &machine.live {
        None => stored
            .disks
            .iter()
            .map(|disk| {
                let image = disk.file.as_deref().map(|file| (file, disk.format.as_str()));
                describe(disk, image)
            })
            .collect(),
        Some(live) => live
            .disks
            .iter()
            .map(|disk| {
                let image = disk.chain.first();
                describe(
                    &disk.defined,
                    image.map(|(file, format)| (file.as_path(), format.as_str())),
                )
            })
            .collect(),
    };
    let job = machine.live.as_ref().and_then(|live| live.job.as_ref());
    Domain {
        name: stored.name.clone(),
        uuid: stored.uuid,
        state: machine.state(),
        disks,
        xml: stored.text(),
        differences: Vec::new(),
        nvram: stored.nvram.clone(),
        saved: false,
        autostart: machine.autostart,
        shut_down: machine.live.is_none() && machine.shut_down,
        away: false,
        has_tpm: false,
        memory_encryption: None,
        extras: Vec::new(),
        busy: job.map(|_| "a backup job is under way".into()),
        snapshots: Vec::new(),
        internal_snapshots: Vec::new(),
    }
}
