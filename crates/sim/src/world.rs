//! What is on the host: domains, what they run with, and what is known of their checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strongroom_hypervisor::{Bitmaps, Disk, DiskSource, HypervisorError, Identity, Listener, RunState};
use uuid::Uuid;

use crate::definition::{Definition, DiskDefinition};
use crate::server::View;
use crate::{Told, URI, image};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct World {
    pub machines: BTreeMap<Uuid, Machine>,
}

/// A domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// What the next start uses.
    pub stored: Definition,
    /// What it runs with.
    pub live: Option<Live>,
    /// Name and targets, oldest first.
    pub checkpoints: Vec<(String, Vec<String>)>,
    pub autostart: bool,
    /// It is off because its guest shut down.
    pub shut_down: bool,
    /// The guest has an agent.
    pub agent: bool,
    pub events: u64,
}

/// A domain's process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Its CPUs stand still.
    pub paused: bool,
    pub disks: Vec<LiveDisk>,
    pub job: Option<Job>,
    pub frozen: bool,
}

/// A disk in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveDisk {
    pub defined: DiskDefinition,
    /// Its images with their formats; the guest writes to the first.
    pub chain: Vec<(PathBuf, String)>,
    /// A commit of the first into the second is ready.
    pub committing: bool,
}

/// A backup job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub listener: Listener,
    pub views: Vec<View>,
}

impl World {
    pub fn read(file: &Path) -> Self {
        let text = std::fs::read(file).expect("read what is on the host");
        serde_json::from_slice(&text).expect("understand what is on the host")
    }

    pub fn write(&self, file: &Path) {
        let text = serde_json::to_vec(self).expect("the host is JSON");
        let new = file.with_extension("new");
        std::fs::write(&new, text).expect("write what is on the host");
        std::fs::rename(new, file).expect("write what is on the host");
    }

    pub fn machine(&self, domain: Uuid) -> Told<&Machine> {
        self.machines
            .get(&domain)
            .ok_or_else(|| HypervisorError::NoSuchDomain(domain.to_string(), URI.into()))
    }

    pub fn machine_mut(&mut self, domain: Uuid) -> Told<&mut Machine> {
        self.machines
            .get_mut(&domain)
            .ok_or_else(|| HypervisorError::NoSuchDomain(domain.to_string(), URI.into()))
    }

    /// The process of a domain that runs.
    pub fn live(&mut self, domain: Uuid, what: &str) -> Told<&mut Live> {
        let machine = self.machine_mut(domain)?;
        machine.live.as_mut().ok_or_else(|| HypervisorError::Failed {
            what: what.into(),
            message: "domain is not running".into(),
        })
    }
}

impl Machine {
    /// One that is off.
    pub fn new(stored: Definition) -> Self {
        Self {
            stored,
            live: None,
            checkpoints: Vec::new(),
            autostart: false,
            shut_down: true,
            agent: false,
            events: 0,
        }
    }

    pub fn state(&self) -> RunState {
        match &self.live {
            None => RunState::ShutOff,
            Some(live) if live.paused => RunState::Paused,
            Some(_) => RunState::Running,
        }
    }

    /// The images that a guest writes to, or will, by target.
    pub fn images(&self) -> Vec<(String, PathBuf, String)> {
        let stored = |disk: &DiskDefinition| {
            let file = disk.file.clone()?;
            Some((disk.target.clone(), file, disk.format.clone()))
        };
        match &self.live {
            None => self.stored.disks.iter().filter_map(stored).collect(),
            Some(live) => live
                .disks
                .iter()
                .filter_map(|disk| {
                    let (file, format) = disk.chain.first()?;
                    Some((disk.defined.target.clone(), file.clone(), format.clone()))
                })
                .collect(),
        }
    }

    /// Starts it with what is stored.
    pub fn start(&mut self) {
        let disks = self.stored.disks.iter().map(|defined| LiveDisk {
            chain: defined
                .file
                .as_deref()
                .map_or_else(Vec::new, |file| chain(file, &defined.format)),
            defined: defined.clone(),
            committing: false,
        });
        self.live = Some(Live {
            paused: false,
            disks: disks.collect(),
            job: None,
            frozen: false,
        });
        self.events += 1;
    }

    /// Its process ends, and its backup job with it.
    pub fn stop(&mut self) {
        if let Some(job) = self.live.take().and_then(|live| live.job) {
            job.end();
        }
        self.events += 1;
    }
}

impl Job {
    /// Ends the servers and removes the scratch files.
    pub fn end(self) {
        for view in self.views {
            view.end();
        }
    }
}

/// An image and those below it, as their headers say.
pub fn chain(file: &Path, format: &str) -> Vec<(PathBuf, String)> {
    let mut images = vec![(file.to_owned(), format.to_owned())];
    while let Some((image, format)) = images.last()
        && let Ok(info) = image::info(image, format)
        && let Some(below) = info.backing_file
    {
        let below = image.parent().unwrap_or(Path::new("/")).join(below);
        images.push((below, info.backing_format.unwrap_or_else(|| "raw".into())));
    }
    images
}

/// A disk as the port describes it.
pub fn describe(defined: &DiskDefinition, image: Option<(&Path, &str)>) -> Disk {
    let format = image.map_or(defined.format.as_str(), |(_, format)| format);
    let mut identity = Identity {
        source: image.map(|(path, _)| path.display().to_string()),
        serial: defined.serial.clone(),
        ..Identity::default()
    };
    if let Some((path, _)) = image {
        identity.look(path);
    }
    let info = image.and_then(|(path, format)| image::info(path, format).ok());
    Disk {
        target: defined.target.clone(),
        device: defined.device.clone(),
        source: image.map_or(DiskSource::None, |(path, _)| DiskSource::File(path.to_owned())),
        format: format.to_owned(),
        serial: defined.serial.clone(),
        read_only: defined.device == "cdrom",
        discard: true,
        size: info.as_ref().map(|info| info.virtual_size),
        bitmaps: match (format, info.and_then(|info| info.compat)) {
            ("qcow2", Some(compat)) if compat == "0.10" => {
                Bitmaps::Unsupported("qcow2 version 2 has no place for a dirty bitmap".into())
            }
            ("qcow2", _) => Bitmaps::Supported,
            (other, _) => Bitmaps::Unsupported(format!("{other} has no place for a dirty bitmap")),
        },
        encrypted: false,
        transient: false,
        shared: false,
        identity,
    }
}
