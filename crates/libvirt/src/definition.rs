//! Reads a domain definition (libvirt's `formatdomain`): only what a backup or a restore decides by.

use std::path::PathBuf;

use roxmltree::Node;
use strongroom_hypervisor::names::is_target;
use strongroom_hypervisor::{Bitmaps, Disk, DiskSource};
use uuid::Uuid;

use crate::identity;
use crate::xml::{child, children, only_child, parse, text};

/// What one definition says.
#[derive(Debug)]
pub struct Definition {
    /// Name, never empty.
    pub name: String,
    /// UUID; a definition that was never defined may have none.
    pub uuid: Option<Uuid>,
    /// Disks in order; sizes and bitmaps are not known from a definition.
    pub disks: Vec<Disk>,
    /// UEFI variable store.
    pub nvram: Option<PathBuf>,
    /// An emulated TPM is there.
    pub has_tpm: bool,
    /// The type of `<launchSecurity>`.
    pub launch_security: Option<String>,
    /// Devices that a server does not need, in words.
    pub extras: Vec<String>,
}

/// Reads a definition. The error says what is wrong with it.
pub fn read(xml: &str) -> Result<Definition, String> {
    let document = parse(xml, "domain")?;
    let domain = document.root_element();
    let name = only_child(domain, "name")?
        .map(text)
        .filter(|name| !name.is_empty())
        .ok_or("it has no name")?;
    let uuid = match only_child(domain, "uuid")?.map(text) {
        None => None,
        Some(text) => Some(
            text.trim()
                .parse()
                .map_err(|_| format!("{text:?} is not a UUID"))?,
        ),
    };
    let mut disks: Vec<Disk> = Vec::new();
    for element in children(domain, "devices").flat_map(|devices| children(devices, "disk")) {
        let disk = disk(element)?;
        if disks.iter().any(|other| other.target == disk.target) {
            return Err(format!("it has more than one disk {}", disk.target));
        }
        disks.push(disk);
    }
    let has_tpm = children(domain, "devices")
        .flat_map(|devices| children(devices, "tpm"))
        .flat_map(|tpm| children(tpm, "backend"))
        .any(|backend| backend.attribute("type") == Some("emulator"));
    let nvram = child(domain, "os")
        .and_then(|os| child(os, "nvram"))
        .and_then(nvram);
    Ok(Definition {
        name,
        uuid,
        disks,
        nvram,
        has_tpm,
        launch_security: child(domain, "launchSecurity")
            .and_then(|security| security.attribute("type"))
            .map(str::to_owned),
        extras: extras(domain),
    })
}

/// Checks that a target device name is one, by the rule of archives and restores.
pub fn check_target(target: &str) -> Result<(), String> {
    if is_target(target) {
        return Ok(());
    }
    Err(format!("{target:?} is not a disk's target device name"))
}

fn disk(element: Node<'_, '_>) -> Result<Disk, String> {
    let target = only_child(element, "target")?
        .and_then(|target| target.attribute("dev"))
        .ok_or("it has a disk without a target")?;
    check_target(target)?;
    let serial = child(element, "serial")
        .map(text)
        .filter(|serial| !serial.is_empty());
    Ok(Disk {
        target: target.to_owned(),
        device: element.attribute("device").unwrap_or("disk").to_owned(),
        source: source(element),
        // libvirt takes a disk without a format as raw; it never probes by default.
        format: child(element, "driver")
            .and_then(|driver| driver.attribute("type"))
            .unwrap_or("raw")
            .to_owned(),
        serial,
        read_only: child(element, "readonly").is_some(),
        discard: child(element, "driver").and_then(|driver| driver.attribute("discard")) == Some("unmap"),
        size: None,
        bitmaps: Bitmaps::Unknown,
        // Of the source in newer definitions, of the disk in older ones.
        encrypted: [Some(element), child(element, "source")]
            .into_iter()
            .flatten()
            .any(|place| child(place, "encryption").is_some()),
        transient: child(element, "transient").is_some(),
        shared: child(element, "shareable").is_some(),
        identity: identity::read(element),
    })
}

/// Ways in and out beyond disks, network and consoles. A definition that libvirt has taken names them all.
fn extras(domain: Node<'_, '_>) -> Vec<String> {
    let mut found = Vec::new();
    let plain = |text: &str| {
        text.chars()
            .filter(char::is_ascii_graphic)
            .take(64)
            .collect::<String>()
    };
    let devices = || children(domain, "devices").flat_map(|devices| devices.children());
    for device in devices().filter(Node::is_element) {
        let kind = plain(
            device
                .attribute("type")
                .or(device.attribute("mode"))
                .unwrap_or_default(),
        );
        match device.tag_name().name() {
            "graphics" => {
                let listen = device.attribute("listen").map(plain);
                let at = listen.map_or_else(String::new, |listen| format!(" on {listen}"));
                found.push(format!("a screen ({kind}){at}"));
            }
            "channel" if kind == "spicevmc" || kind == "qemu-vdagent" => {
                found.push(format!("a shared clipboard ({kind})"));
            }
            "redirdev" => found.push("USB redirection".into()),
            "filesystem" => found.push("a directory of the host".into()),
            "hostdev" => found.push(format!("a device of the host ({kind})")),
            "shmem" => found.push("memory shared with others".into()),
            "memballoon" if device.attribute("model") != Some("none") => found.push("a balloon".into()),
            "controller" if kind == "usb" && device.attribute("model") != Some("none") => {
                found.push("a USB controller".into());
            }
            _ => {}
        }
    }
    found.dedup();
    found
}

fn source(disk: Node<'_, '_>) -> DiskSource {
    let path = |attribute| {
        let value = child(disk, "source").and_then(|source| source.attribute(attribute));
        value.filter(|path| !path.is_empty()).map(PathBuf::from)
    };
    match disk.attribute("type").unwrap_or("file") {
        "file" => path("file").map_or(DiskSource::None, DiskSource::File),
        "block" => path("dev").map_or(DiskSource::None, DiskSource::Block),
        "volume" => {
            let place = child(disk, "source");
            let name = |attribute| {
                place
                    .and_then(|place| place.attribute(attribute))
                    .map(str::to_owned)
            };
            match (name("pool"), name("volume")) {
                (Some(pool), Some(volume)) => DiskSource::Volume { pool, volume },
                _ => DiskSource::None,
            }
        }
        // A drive without a medium keeps the type that the last one had.
        _ if child(disk, "source").is_none() => DiskSource::None,
        other => DiskSource::Other(other.to_owned()),
    }
}

/// Old definitions name the variable store as text, newer ones may as a source.
fn nvram(element: Node<'_, '_>) -> Option<PathBuf> {
    let plain = text(element);
    let source = child(element, "source");
    let path = match plain.trim() {
        "" => source.and_then(|source| source.attribute("file").or(source.attribute("dev")))?,
        path => path,
    };
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests;
