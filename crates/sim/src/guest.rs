//! The guest's side of a domain: what it writes, and how it starts, stops and dies.

use std::path::PathBuf;

use uuid::Uuid;

use crate::definition::{Definition, DiskDefinition};
use crate::world::Machine;
use crate::{SimHost, image};

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// A domain of a simulated host, as its guest and its owner see it.
#[derive(Clone)]
pub struct Guest {
    host: SimHost,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
}

impl SimHost {
    /// A domain that is off, with empty disks: target, format (`qcow2` or `raw`), MiB.
    pub fn guest(&self, name: &str, disks: &[(&str, &str, u64)]) -> Guest {
        let directory = self.path(name);
        std::fs::create_dir(&directory).expect("make a directory for images");
        let mut defined = Vec::new();
        for (target, format, mib) in disks {
            let file = directory.join(format!("{target}.{format}"));
            image::create(&file, format, mib * MIB);
            defined.push(DiskDefinition {
                target: (*target).into(),
                device: "disk".into(),
                file: Some(file),
                format: (*format).into(),
                serial: None,
            });
        }
        let uuid = Uuid::new_v4();
        let machine = Machine::new(Definition {
            name: name.into(),
            uuid,
            disks: defined,
            nvram: None,
        });
        self.world(|world| world.machines.insert(uuid, machine));
        self.guest_of(uuid)
    }

    /// A domain that is defined.
    pub fn guest_of(&self, uuid: Uuid) -> Guest {
        let name = self.world(|world| world.machines[&uuid].stored.name.clone());
        Guest {
            host: self.clone(),
            name,
            uuid,
        }
    }
}

impl Guest {
    /// Starts it.
    pub fn start(&self) {
        self.change(Machine::start);
    }

    /// Its guest shuts down.
    pub fn shut_down(&self) {
        self.change(|machine| {
            machine.stop();
            machine.shut_down = true;
        });
    }

    /// Its QEMU is killed: what it knew of changes is lost.
    pub fn kill(&self) {
        self.change(|machine| {
            let images = machine.images();
            machine.stop();
            machine.shut_down = false;
            for (_, image, _) in images.iter().filter(|(_, _, format)| format == "qcow2") {
                image::crash(image);
            }
        });
    }

    /// Gives it an agent.
    pub fn add_agent(&self) {
        self.change(|machine| machine.agent = true);
    }

    /// Its CPUs stand still.
    pub fn pause(&self) {
        self.change(|machine| machine.live.as_mut().expect("it runs").paused = true);
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.host.world(|world| {
            let live = world.machines[&self.uuid].live.as_ref();
            live.is_some_and(|live| live.frozen)
        })
    }

    /// Writes into a disk; panics if it is frozen.
    pub fn write(&self, target: &str, pattern: u8, offset: u64, length: u64) {
        // No view is taken meanwhile.
        self.host.world(|world| {
            let machine = &world.machines[&self.uuid];
            let live = machine.live.as_ref();
            assert!(live.is_none_or(|live| !live.frozen), "a frozen guest writes");
            let (_, image, format) = find(machine, target);
            image::write(&image, &format, pattern, offset, length);
        });
    }

    /// All that is on a disk.
    pub fn content(&self, target: &str) -> Vec<u8> {
        self.host.world(|world| {
            let (_, image, format) = find(&world.machines[&self.uuid], target);
            let raw = self.host.path("content.raw");
            image::flatten(&image, &format, &raw, "raw").expect("read an image");
            let content = std::fs::read(&raw).expect("read an image");
            std::fs::remove_file(raw).expect("remove a copy");
            content
        })
    }

    /// The image that it writes to now, or will after its next start.
    pub fn image(&self, target: &str) -> PathBuf {
        self.host
            .world(|world| find(&world.machines[&self.uuid], target).1)
    }

    fn change(&self, change: impl FnOnce(&mut Machine)) {
        let defined = "it is defined";
        self.host
            .world(|world| change(world.machines.get_mut(&self.uuid).expect(defined)));
    }
}

fn find(machine: &Machine, target: &str) -> (String, PathBuf, String) {
    let mut images = machine.images().into_iter();
    images
        .find(|(of, ..)| of == target)
        .unwrap_or_else(|| panic!("there is no disk {target}"))
}
