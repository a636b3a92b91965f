//! Which files the domains use, and what definitions ask of the host: little here.

use strongroom_hypervisor::{Definitions, Disk, Lack, Role, Store, Use, User, Uses};
use uuid::Uuid;

use crate::definition::Definition;
use crate::world::{Machine, describe};
use crate::{SimHost, Told};

impl Uses for SimHost {
    fn users(&self) -> Told<Vec<User>> {
        self.ask("users", |world| Ok(world.machines.values().map(user).collect()))
    }

    fn disks_in(&self, xml: &str) -> Told<Vec<Disk>> {
        let definition = Definition::read(xml)?;
        let disks = definition.disks.iter();
        Ok(disks
            .map(|disk| {
                let image = disk.file.as_deref().map(|file| (file, disk.format.as_str()));
                describe(disk, image)
            })
            .collect())
    }
}

fn user(machine: &Machine) -> User {
    let mut uses = Vec::new();
    for disk in machine.live.iter().flat_map(|live| &live.disks) {
        for (depth, (path, format)) in disk.chain.iter().enumerate() {
            let target = disk.defined.target.clone();
            uses.push(Use {
                store: Store::Path(path.clone()),
                role: if depth == 0 {
                    Role::Disk(target)
                } else {
                    Role::Below(target)
                },
                format: Some(format.clone()),
                writable: depth == 0 && disk.defined.device != "cdrom",
                shareable: false,
                now: true,
            });
        }
    }
    for disk in &machine.stored.disks {
        uses.extend(disk.file.clone().map(|file| Use {
            store: Store::Path(file),
            role: Role::Disk(disk.target.clone()),
            format: Some(disk.format.clone()),
            writable: disk.device != "cdrom",
            shareable: false,
            now: false,
        }));
    }
    uses.extend(machine.stored.nvram.clone().map(|file| Use {
        store: Store::Path(file),
        role: Role::Variables,
        format: None,
        writable: true,
        shareable: false,
        now: machine.live.is_some(),
    }));
    User {
        name: machine.stored.name.clone(),
        uuid: machine.stored.uuid,
        active: machine.live.is_some(),
        uses,
        unread: None,
    }
}

impl Definitions for SimHost {
    fn powers(&self, xml: &str, _: &[&str]) -> Told<Vec<String>> {
        Definition::read(xml).map(|_| Vec::new())
    }

    fn lacks(&self, xml: &str, placed: &[&str]) -> Told<Vec<Lack>> {
        let definition = Definition::read(xml)?;
        let gone = definition.disks.iter().filter(|disk| {
            let placed = placed.contains(&disk.target.as_str());
            !placed && disk.file.as_ref().is_some_and(|file| !file.exists())
        });
        Ok(gone
            .map(|disk| Lack {
                what: format!("the image of {} is gone", disk.target),
                medium: (disk.device == "cdrom").then(|| disk.target.clone()),
                fatal: false,
            })
            .collect())
    }

    fn conflicts(&self, xml: &str) -> Told<Vec<String>> {
        Definition::read(xml).map(|_| Vec::new())
    }

    fn set_autostart(&self, domain: Uuid, autostart: bool) -> Told<()> {
        self.act("set_autostart", |world| {
            world.machine_mut(domain)?.autostart = autostart;
            Ok(())
        })
    }
}
