//! Definitions: JSON in place of libvirt's XML. Nothing but an implementation of the port looks into either.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strongroom_hypervisor::{HypervisorError, Retarget, Retargeted};
use uuid::Uuid;

use crate::Told;

/// What a domain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub name: String,
    pub uuid: Uuid,
    pub disks: Vec<DiskDefinition>,
    pub nvram: Option<PathBuf>,
}

/// One disk or drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDefinition {
    pub target: String,
    /// libvirt's `device` attribute.
    pub device: String,
    /// No medium if there is none.
    pub file: Option<PathBuf>,
    pub format: String,
    pub serial: Option<String>,
}

impl Definition {
    pub fn read(text: &str) -> Told<Self> {
        serde_json::from_str(text).map_err(|error| HypervisorError::Definition {
            domain: "(not defined)".into(),
            reason: error.to_string(),
        })
    }

    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a definition is JSON")
    }

    /// As [`Retarget`] says.
    pub fn retarget(mut self, change: &Retarget) -> Retargeted {
        self.name = change.name.clone().unwrap_or(self.name);
        self.uuid = change.uuid.unwrap_or(self.uuid);
        self.nvram = change.nvram.clone().or(self.nvram);
        self.disks
            .retain(|disk| !change.drop_disks.contains(&disk.target));
        // A copy shares no disk with its original.
        let placed = |disk: &DiskDefinition| change.disks.iter().any(|(of, _)| *of == disk.target);
        self.disks
            .retain(|disk| !change.copy || disk.device != "disk" || placed(disk));
        for (target, file) in &change.disks {
            let known = self.disks.iter().position(|disk| disk.target == *target);
            let old = known.map(|at| self.disks.remove(at));
            let new = DiskDefinition {
                target: target.clone(),
                device: old.as_ref().map_or("disk".into(), |disk| disk.device.clone()),
                file: Some(file.clone()),
                format: "qcow2".into(),
                serial: old.and_then(|disk| disk.serial),
            };
            self.disks.insert(known.unwrap_or(self.disks.len()), new);
        }
        for disk in &mut self.disks {
            if change.empty_drives.contains(&disk.target) {
                disk.file = None;
            }
        }
        Retargeted {
            xml: self.text(),
            notes: Vec::new(),
        }
    }
}
