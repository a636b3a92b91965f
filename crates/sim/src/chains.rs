//! External snapshots and commits. What QEMU, the live and the stored definition say is one here; a commit is ready at once, and
//! is done by the pivot.

use std::path::Path;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{BlockJob, BlockJobState, Chain, Chains, Overlay, Repair, SnapshotDisk};
use uuid::Uuid;

use crate::world::{self, LiveDisk, Machine};
use crate::{SimHost, Told, image, refused};

/// Between two looks for an event.
const LOOK: Duration = Duration::from_millis(5);

impl Chains for SimHost {
    fn chains(&self, domain: Uuid) -> Told<Vec<Chain>> {
        self.ask("chains", |world| Ok(chains(world.machine(domain)?)))
    }

    fn take_snapshot(&self, domain: Uuid, disks: &[SnapshotDisk]) -> Told<Duration> {
        self.act("take_snapshot", |world| {
            let what = "take a snapshot";
            let live = world.live(domain, what)?;
            if live.job.is_some() {
                return refused(what, "a backup job is under way");
            }
            // All or none.
            for asked in disks {
                let Some(disk) = live.disks.iter().find(|disk| disk.defined.target == asked.target) else {
                    return refused(what, format!("there is no disk {:?}", asked.target));
                };
                if asked.overlay.exists() || disk.committing || disk.chain.is_empty() {
                    return refused(what, format!("{} cannot be made", asked.overlay.display()));
                }
            }
            for asked in disks {
                let of = |disk: &&mut LiveDisk| disk.defined.target == asked.target;
                let machine = world.machine_mut(domain)?;
                let live = machine.live.iter_mut().flat_map(|live| &mut live.disks);
                for disk in live.filter(of) {
                    let (base, format) = &disk.chain[0];
                    image::overlay(&asked.overlay, base, format).or_else(|error| refused(what, error))?;
                    disk.chain.insert(0, (asked.overlay.clone(), "qcow2".into()));
                }
                store(machine, &asked.target, &asked.overlay, "qcow2");
            }
            Ok(Duration::from_millis(1))
        })
    }

    fn start_commit(&self, domain: Uuid, target: &str, overlay: &Path, base: &Path, _: u64) -> Told<()> {
        self.act("start_commit", |world| {
            let what = "start a commit";
            let machine = world.machine_mut(domain)?;
            let disk = disk(machine, target, what)?;
            let is = |at: usize, image: &Path| disk.chain.get(at).is_some_and(|(path, _)| path == image);
            if disk.committing || !is(0, overlay) || !is(1, base) {
                return refused(what, format!("disk {target} is not on {}", overlay.display()));
            }
            disk.committing = true;
            machine.events += 1;
            Ok(())
        })
    }

    fn pivot(&self, domain: Uuid, target: &str) -> Told<()> {
        self.act("pivot", |world| {
            let what = "pivot";
            let machine = world.machine_mut(domain)?;
            let disk = disk(machine, target, what)?;
            if !disk.committing {
                return refused(what, format!("no commit of disk {target} is ready"));
            }
            merge(machine, target, what)
        })
    }

    fn set_inactive_image(&self, domain: Uuid, target: &str, image: &Path, format: &str) -> Told<()> {
        self.act("set_inactive_image", |world| {
            store(world.machine_mut(domain)?, target, image, format);
            Ok(())
        })
    }

    fn events(&self, domain: Uuid) -> u64 {
        self.world(|world| world.machines.get(&domain).map_or(0, |machine| machine.events))
    }

    fn await_event(&self, domain: Uuid, seen: u64, at_most: Duration) -> u64 {
        let patience = Instant::now() + at_most;
        loop {
            let events = self.events(domain);
            if events > seen || Instant::now() >= patience {
                return events;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Repair for SimHost {
    fn commit_behind_libvirt(&self, domain: Uuid, target: &str, overlay: &Path, _: &Path) -> Told<()> {
        self.act("commit_behind_libvirt", |world| {
            let what = "commit by the monitor";
            let machine = world.machine_mut(domain)?;
            let disk = disk(machine, target, what)?;
            if disk.chain.first().is_none_or(|(path, _)| path != overlay) {
                return refused(what, format!("disk {target} is not on {}", overlay.display()));
            }
            merge(machine, target, what)
        })
    }

    fn repair_status(&self, _: Uuid, _: &[Overlay]) -> Told<()> {
        // Nothing is ever shown here that is not so.
        self.act("repair_status", |_| Ok(()))
    }
}

fn chains(machine: &Machine) -> Vec<Chain> {
    let paths = |chain: Vec<(std::path::PathBuf, String)>| chain.into_iter().map(|(path, _)| path).collect();
    let live = |target: &str| {
        let disks = machine.live.as_ref().map(|live| &live.disks);
        disks.and_then(|disks| disks.iter().find(|disk| disk.defined.target == target))
    };
    let drives = machine.stored.disks.iter().filter(|disk| disk.device == "disk");
    drives
        .map(|stored| {
            let disk = live(&stored.target);
            let images: Vec<_> = paths(disk.map_or_else(Vec::new, |disk| disk.chain.clone()));
            let committing = disk.is_some_and(|disk| disk.committing);
            Chain {
                target: stored.target.clone(),
                job: committing.then(|| BlockJob {
                    kind: "active-commit".into(),
                    to: images.get(1).cloned(),
                    state: BlockJobState::Ready,
                }),
                job_in_qemu: committing,
                qemu: images.clone(),
                live: images,
                inactive: stored
                    .file
                    .as_deref()
                    .map_or_else(Vec::new, |file| paths(world::chain(file, &stored.format))),
            }
        })
        .collect()
}

fn disk<'a>(machine: &'a mut Machine, target: &str, what: &str) -> Told<&'a mut LiveDisk> {
    let disks = machine.live.as_mut().map(|live| &mut live.disks);
    let found = disks.and_then(|disks| disks.iter_mut().find(|disk| disk.defined.target == target));
    match found {
        Some(disk) => Ok(disk),
        None => refused(what, format!("no disk {target} is in use")),
    }
}

/// Merges a disk's first image into its second, and has the guest on that one.
fn merge(machine: &mut Machine, target: &str, what: &str) -> Told<()> {
    let disk = disk(machine, target, what)?;
    image::commit(&disk.chain[0].0).or_else(|error| refused(what, error))?;
    disk.chain.remove(0);
    disk.committing = false;
    let (base, format) = disk.chain[0].clone();
    store(machine, target, &base, &format);
    machine.events += 1;
    Ok(())
}

/// Has the next start use an image.
fn store(machine: &mut Machine, target: &str, image: &Path, format: &str) {
    let mut disks = machine.stored.disks.iter_mut();
    if let Some(disk) = disks.find(|disk| disk.target == target) {
        disk.file = Some(image.to_owned());
        format.clone_into(&mut disk.format);
    }
}
