//! Rewrites a domain definition for another place, name or identity, and keeps all the rest of it as it was.

mod copy;

use std::path::{Path, PathBuf};

use strongroom_hypervisor::{Bitmaps, Disk, DiskSource, Identity, Retarget, Retargeted};
use uuid::Uuid;

use crate::definition::{self, Definition};
use crate::tree::Element;
use crate::xml::{writable, writable_path};

/// What is written for a disk that becomes a file.
const FORMAT: &str = "qcow2";

/// Children of a disk that belong to its old source, or that a qcow2 file cannot have (`shareable` wants raw).
const OF_THE_SOURCE: [&str; 5] = ["backingStore", "mirror", "auth", "encryption", "shareable"];

/// Returns the changed definition. The error says what cannot be done.
///
/// Done twice, it changes nothing the second time. The result has been read back: it says what was asked.
pub fn rewrite(xml: &str, change: &Retarget) -> Result<Retargeted, String> {
    let before = definition::read(xml)?;
    let asked = &change.drop_disks;
    let change = &Retarget {
        drop_disks: left_out(&before, change),
        ..change.clone()
    };
    let wanted = wanted(&before, change)?;
    let mut domain = Element::parse(xml)?;
    if let Some(name) = &change.name {
        domain.replace_element(Element::new("name").with_text(writable("the new name", name)?));
    }
    if let Some(uuid) = change.uuid {
        set_uuid(&mut domain, uuid);
    }
    if let Some(genid) = change.genid {
        for element in domain.elements_mut("genid") {
            element.set_text(&genid.to_string());
        }
    }
    for devices in domain.elements_mut("devices") {
        devices.drop_elements(|device| match target(device) {
            Some(target) => change.drop_disks.contains(&target),
            None => false,
        });
        for disk in devices.elements_mut("disk") {
            let target = target(disk);
            if let Some((_, file)) = change
                .disks
                .iter()
                .find(|(name, _)| Some(name) == target.as_ref())
            {
                to_file(disk, writable_path("the new place of a disk", file)?)?;
            } else if target.is_some_and(|target| change.empty_drives.contains(&target)) {
                disk.drop_elements(|child| child.name() == "source" || OF_THE_SOURCE.contains(&child.name()));
            }
        }
    }
    if let Some(devices) = domain.elements_mut("devices").next() {
        for (target, file) in lacking(&before, change) {
            let mut disk = Element::new("disk")
                .with("device", "disk")
                .with_child(Element::new("target").with("dev", target));
            to_file(&mut disk, writable_path("the new place of a disk", file)?)?;
            devices.push(disk);
        }
    }
    if let Some(nvram) = &change.nvram {
        let path = writable_path("the new place of the UEFI variable store", nvram)?;
        for nvram in domain.elements_mut("os").flat_map(|os| os.elements_mut("nvram")) {
            nvram.edit_attributes(&[("type", None)])?;
            nvram.set_text(path);
        }
    }
    let mut notes = Vec::new();
    if change.copy {
        let dropped = change.drop_disks.iter().filter(|target| !asked.contains(target));
        notes.extend(dropped.map(|target| format!("disk {target}, which is the original's, is left out")));
        notes.extend(copy::unshare(&mut domain, change.nvram.is_some())?);
    }
    let xml = domain.to_xml()?;
    if facts(definition::read(&xml)?) != wanted {
        return Err("it is written in a way that cannot be changed safely".into());
    }
    Ok(Retargeted { xml, notes })
}

/// What is compared between the definition as asked for and as read back.
pub type Facts = (String, Option<Uuid>, Vec<DiskFacts>, Option<PathBuf>, bool);
type DiskFacts = (String, String, DiskSource, String, Option<String>, bool);

/// What a backup or a restore decides by, comparable.
pub fn facts(definition: Definition) -> Facts {
    let disk = |disk: Disk| {
        (
            disk.target,
            disk.device,
            disk.source,
            disk.format,
            disk.serial,
            disk.read_only,
        )
    };
    let disks = definition.disks.into_iter().map(disk).collect();
    (
        definition.name,
        definition.uuid,
        disks,
        definition.nvram,
        definition.has_tpm,
    )
}

/// The disks to leave out: those that are asked for, and in a copy those that the original writes to.
fn left_out(before: &Definition, change: &Retarget) -> Vec<String> {
    let shared = before.disks.iter().filter(|disk| {
        let placed = change.disks.iter().any(|(target, _)| *target == disk.target);
        let read_only = disk.read_only || disk.device == "cdrom" || disk.source == DiskSource::None;
        let emptied = change.empty_drives.contains(&disk.target);
        change.copy && !placed && !read_only && !emptied
    });
    let shared = shared.map(|disk| disk.target.clone());
    let mut all: Vec<String> = change.drop_disks.iter().cloned().chain(shared).collect();
    all.sort();
    all.dedup();
    all
}

fn wanted(before: &Definition, change: &Retarget) -> Result<Facts, String> {
    let mut disks = Vec::new();
    for (target, _) in &change.disks {
        definition::check_target(target)?;
        if change.drop_disks.contains(target) {
            return Err(format!("disk {target} cannot be both placed and taken out"));
        }
    }
    for disk in before
        .disks
        .iter()
        .filter(|disk| !change.drop_disks.contains(&disk.target))
    {
        let mut disk = disk.clone();
        if let Some((_, file)) = change.disks.iter().find(|(target, _)| *target == disk.target) {
            disk.source = DiskSource::File(file.clone());
            FORMAT.clone_into(&mut disk.format);
            if disk.device == "lun" {
                "disk".clone_into(&mut disk.device);
            }
        } else if change.empty_drives.contains(&disk.target) {
            disk.source = DiskSource::None;
        }
        disks.push(disk);
    }
    disks.extend(lacking(before, change).map(|(target, file)| added(target, file)));
    if change.nvram.is_some() && before.nvram.is_none() {
        return Err("it has no UEFI variable store".into());
    }
    Ok(facts(Definition {
        name: change.name.clone().unwrap_or_else(|| before.name.clone()),
        uuid: change.uuid.or(before.uuid),
        disks,
        nvram: change
            .nvram
            .clone()
            .or_else(|| before.nvram.clone().filter(|_| !change.copy)),
        has_tpm: before.has_tpm,
        launch_security: before.launch_security.clone(),
        extras: before.extras.clone(),
    }))
}

/// Disks that the definition lacks. libvirt gives them a bus that fits their name.
fn lacking<'a>(
    before: &'a Definition,
    change: &'a Retarget,
) -> impl Iterator<Item = (&'a str, &'a Path)> + use<'a> {
    let known = |target: &str| before.disks.iter().any(|disk| disk.target == target);
    let new = change.disks.iter().filter(move |(target, _)| !known(target));
    new.map(|(target, file)| (target.as_str(), file.as_path()))
}

fn added(target: &str, file: &Path) -> Disk {
    Disk {
        target: target.to_owned(),
        device: "disk".into(),
        source: DiskSource::File(file.to_owned()),
        format: FORMAT.into(),
        serial: None,
        read_only: false,
        discard: false,
        size: None,
        bitmaps: Bitmaps::Unknown,
        encrypted: false,
        transient: false,
        shared: false,
        identity: Identity::default(),
    }
}

/// Sets the UUID, also where the domain repeats it as that of its mainboard: libvirt refuses the two to differ.
fn set_uuid(domain: &mut Element, uuid: Uuid) {
    let text = uuid.to_string();
    domain.replace_element(Element::new("uuid").with_text(&text));
    for system in domain
        .elements_mut("sysinfo")
        .flat_map(|sysinfo| sysinfo.elements_mut("system"))
    {
        for entry in system.elements_mut("entry") {
            if entry.attribute("name").as_deref() == Some("uuid") {
                entry.set_text(&text);
            }
        }
    }
}

/// The target of a disk element; `None` for other elements.
pub fn target(element: &Element) -> Option<String> {
    if element.name() != "disk" {
        return None;
    }
    element.elements("target").next()?.attribute("dev")
}

/// Makes a disk a qcow2 file of its own; how it is attached, cached and identified stays.
fn to_file(disk: &mut Element, file: &str) -> Result<(), String> {
    // `lun`, `rawio` and `sgio` pass SCSI commands to a real device.
    let mut attributes = vec![("type", Some("file")), ("rawio", None), ("sgio", None)];
    if disk.attribute("device").as_deref() == Some("lun") {
        attributes.push(("device", Some("disk")));
    }
    disk.edit_attributes(&attributes)?;
    let mut driver = disk
        .take_element("driver")
        .unwrap_or_else(|| Element::new("driver"));
    driver.edit_attributes(&[("name", Some("qemu")), ("type", Some(FORMAT))])?;
    disk.replace_element(driver);
    disk.replace_element(Element::new("source").with("file", file));
    disk.drop_elements(|child| OF_THE_SOURCE.contains(&child.name()));
    Ok(())
}

#[cfg(test)]
mod tests;
