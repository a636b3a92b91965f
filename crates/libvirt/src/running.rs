//! The definition of a running domain with the disks that it runs with. Pure.
//!
//! A disk can be attached to a running domain alone, or to its stored definition alone, or have another image in each. A
//! restore point holds the disks that run; the definition beside them has to be theirs. All else of it is the stored
//! definition's, byte by byte: what libvirt puts into a live one (aliases, resolved CPU models, ports of the moment) is not
//! for another start.

use std::collections::BTreeMap;

use strongroom_hypervisor::{Difference, Disk, Store};

use crate::definition;
use crate::retarget::target;
use crate::tree::Element;
use crate::uses::named;

/// What of a live disk is of this moment, or is read from the image again at the next start.
const OF_THE_MOMENT: [&str; 3] = ["alias", "backingStore", "mirror"];

/// Controllers that a disk can be attached to, and may have come with.
const OF_DISKS: [&str; 5] = ["scsi", "sata", "ide", "fdc", "nvme"];

/// The definition that fits a running domain's disks.
#[derive(Debug)]
pub struct Running {
    /// The changed definition; nothing where the stored one fits.
    pub xml: Option<String>,
    /// What differs.
    pub differences: Vec<Difference>,
}

/// Compares the stored definition with the live one. The error says what cannot be read or done.
pub fn definition(stored: &str, live: &str) -> Result<Running, String> {
    let (before, now) = (Disks::of(stored)?, Disks::of(live)?);
    let differences = before.compare(&now);
    if differences.is_empty() {
        return Ok(Running {
            xml: None,
            differences,
        });
    }
    let differs = |name: &str| differences.iter().any(|difference| difference.target == name);
    let mut domain = Element::parse(stored)?;
    let mut running = Element::parse(live)?;
    let devices = domain.elements_mut("devices").next().ok_or("it has no devices")?;
    let mut addresses = BTreeMap::new();
    for mut disk in devices.take_elements("disk") {
        match target(&disk).filter(|target| differs(target)) {
            None => devices.push(disk),
            Some(target) => {
                let bus = bus(&disk);
                addresses.insert((target, bus), disk.take_element("address"));
            }
        }
    }
    for part in running.elements_mut("devices") {
        for mut controller in part.take_elements("controller") {
            let id = |element: &Element| (element.attribute("type"), element.attribute("index"));
            let kind = controller.attribute("type").unwrap_or_default();
            if OF_DISKS.contains(&kind.as_str())
                && devices
                    .elements("controller")
                    .all(|known| id(known) != id(&controller))
            {
                controller.drop_elements(|child| matches!(child.name(), "alias" | "address"));
                devices.push(controller);
            }
        }
        for mut disk in part.take_elements("disk") {
            let Some(target) = target(&disk).filter(|target| differs(target)) else {
                continue;
            };
            if before.find(&target).is_none() && disk.elements("readonly").next().is_some() {
                // A CD-ROM drive or a disk that was hot-added: the restore point holds nothing for it.
                continue;
            }
            disk.drop_elements(|child| OF_THE_MOMENT.contains(&child.name()));
            for source in disk.elements_mut("source") {
                source.edit_attributes(&[("index", None)])?;
            }
            // Where the stored definition has the place of a disk, it stays. Of one that was attached to the running domain the
            // slot may be promised to another device.
            match addresses.remove(&(target, bus(&disk))).flatten() {
                Some(address) => disk.replace_element(address),
                None => disk.drop_elements(|child| {
                    child.name() == "address" && child.attribute("type").as_deref() != Some("drive")
                }),
            }
            devices.push(disk);
        }
    }
    let xml = domain.to_xml()?;
    if Disks::of(&xml)?.compare(&now).iter().any(|left| !left.medium) {
        return Err("its disks are written in a way that cannot be changed safely".into());
    }
    Ok(Running {
        xml: Some(xml),
        differences,
    })
}

fn bus(disk: &Element) -> Option<String> {
    disk.elements("target").next()?.attribute("bus")
}

/// The disks of one definition, and what they name.
struct Disks(Vec<(Disk, Option<Store>)>);

impl Disks {
    fn of(xml: &str) -> Result<Self, String> {
        let stores: BTreeMap<String, Store> = named::tops(xml)?.into_iter().collect();
        let disks = definition::read(xml)?.disks.into_iter();
        let with_store = |disk: Disk| {
            let store = stores.get(&disk.target).cloned();
            (disk, store)
        };
        Ok(Self(disks.map(with_store).collect()))
    }

    fn find(&self, target: &str) -> Option<&(Disk, Option<Store>)> {
        self.0.iter().find(|(disk, _)| disk.target == target)
    }

    /// How the disks that run (`now`) differ from these, which are stored.
    fn compare(&self, now: &Self) -> Vec<Difference> {
        let difference = |disk: &Disk, what: String| Difference {
            target: disk.target.clone(),
            medium: disk.read_only || matches!(disk.device.as_str(), "cdrom" | "floppy"),
            what,
        };
        let mut found = Vec::new();
        for (disk, store) in &now.0 {
            let Some((stored, before)) = self.find(&disk.target) else {
                let what = "it is attached to the running domain only: the next start is without it, unless it is \
                            attached with `--config`, too";
                found.push(difference(disk, what.into()));
                continue;
            };
            if disk.transient && stored.transient {
                // It runs with an overlay that goes when the domain does: the next start has the image below again.
                continue;
            }
            let facts = |disk: &Disk, store: &Option<Store>| {
                (
                    disk.device.clone(),
                    store.clone(),
                    // Without a medium there is no format.
                    store.as_ref().map(|_| disk.format.clone()),
                    disk.serial.clone(),
                    disk.read_only,
                )
            };
            if facts(disk, store) == facts(stored, before) {
                continue;
            }
            let words = |disk: &Disk, store: &Option<Store>| match store {
                None => "no medium".to_owned(),
                Some(store) => format!("{store} ({})", disk.format),
            };
            let (has, has_not) = (words(disk, store), words(stored, before));
            let what = if has == has_not {
                format!("the running domain has {has} in another way than the stored definition")
            } else {
                format!("the running domain has {has}, the stored definition {has_not} for the next start")
            };
            found.push(difference(disk, what));
        }
        for (disk, _) in &self.0 {
            if now.find(&disk.target).is_none() {
                let what = "it is in the stored definition only, for the next start: it is not backed up yet";
                found.push(difference(disk, what.into()));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(devices: &str) -> String {
        format!("<domain><name>a</name>\n <memory>7</memory><devices>{devices}<video/></devices></domain>")
    }

    const VDA: &str = "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/a'/><target dev='vda' bus='virtio'/>\
        <address type='pci' slot='0x04'/></disk>";
    const LIVE: &str = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a' index='2'/>\
        <backingStore/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/><address type='pci' slot='0x04'/></disk>";

    #[test]
    fn what_runs_as_it_is_stored_changes_no_byte() {
        let running = definition(&domain(VDA), &domain(LIVE)).unwrap();
        assert!(running.xml.is_none() && running.differences.is_empty());
    }

    /// A18: the overlay of a transient disk is of this run, and no definition's.
    #[test]
    fn the_overlay_of_a_transient_disk_is_no_difference() {
        let disk = |image: &str| {
            domain(&format!(
                "<disk type='file'><source file='{image}'/><target dev='vda' bus='virtio'/><transient/></disk>"
            ))
        };
        let running = definition(&disk("/a"), &disk("/a.TRANSIENT-a")).unwrap();
        assert!(running.xml.is_none() && running.differences.is_empty());
    }

    /// A4: what is attached to the running domain alone is in its definition, and what is stored alone is not.
    #[test]
    fn disks_that_run_take_the_place_of_those_that_are_stored() {
        let pending = "<disk type='file'><source file='/pending'/><target dev='vdc' bus='virtio'/></disk>";
        let plugged = "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/b' index='3'/>\
            <target dev='sdb' bus='scsi'/><alias name='x'/><address type='drive' controller='1'/></disk>\
            <disk type='file' device='disk'><source file='/c'/><target dev='vdb'/><address type='pci' slot='0x05'/></disk>\
            <controller type='scsi' index='1' model='virtio-scsi'><alias name='scsi1'/><address type='pci'/></controller>";
        let stored = domain(&format!("{VDA}{pending}"));
        let running = definition(&stored, &domain(&format!("{LIVE}{plugged}"))).unwrap();
        let xml = running.xml.unwrap();
        assert!(xml.contains(VDA), "{xml}");
        for gone in ["pending", "alias", "index='3'", "index=\"3\"", "0x05"] {
            assert!(!xml.contains(gone), "{gone}: {xml}");
        }
        for there in [
            "/b",
            "<address type='drive' controller='1'/>",
            "virtio-scsi",
            "<memory>7</memory>",
        ] {
            assert!(xml.contains(there), "{there}: {xml}");
        }
        let mut targets: Vec<_> = running
            .differences
            .iter()
            .map(|one| one.target.as_str())
            .collect();
        targets.sort_unstable();
        assert_eq!(targets, ["sdb", "vdb", "vdc"]);
        // Once more, nothing differs.
        assert!(
            definition(&xml, &domain(&format!("{LIVE}{plugged}")))
                .unwrap()
                .differences
                .is_empty()
        );
    }

    /// A4: another image in the same place. The place stays.
    #[test]
    fn the_image_that_runs_is_the_one_that_counts() {
        let other = LIVE.replace("/a", "/other").replace("0x04", "0x09");
        let running = definition(&domain(VDA), &domain(&other)).unwrap();
        let xml = running.xml.unwrap();
        assert!(
            xml.contains("/other") && xml.contains("0x04") && !xml.contains("0x09"),
            "{xml}"
        );
        assert_eq!(
            running.differences[0].what,
            "the running domain has /other (qcow2), the stored definition /a (qcow2) for the next start"
        );
        // Network storage is compared by name.
        let network = |name: &str| {
            domain(&format!(
                "<disk type='network'><source protocol='rbd' name='{name}'/><target dev='vda'/></disk>"
            ))
        };
        assert_eq!(
            definition(&network("p/a"), &network("p/b"))
                .unwrap()
                .differences
                .len(),
            1
        );
    }

    #[test]
    fn a_medium_is_only_a_medium() {
        let drive = |source: &str| {
            domain(&format!(
                "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>{source}<target dev='sda'/><readonly/></disk>"
            ))
        };
        let running = definition(&drive("<source file='/x.iso'/>"), &drive("")).unwrap();
        assert!(running.differences[0].medium);
        assert!(!running.xml.unwrap().contains("x.iso"));
    }
}
