//! External snapshots in libvirt's XML (`formatsnapshot`).

use strongroom_hypervisor::{Disk, SnapshotDisk};

use crate::tree::Element;
use crate::xml::writable_path;

/// What is written for every overlay.
const FORMAT: &str = "qcow2";

/// Writes a snapshot of these disks for a domain with those. Every disk that is not asked for is excluded by name:
/// left out, libvirt would take a snapshot of it too.
pub fn request(disks: &[SnapshotDisk], domain: &[Disk]) -> Result<String, String> {
    if disks.is_empty() {
        return Err("no disk was asked for".into());
    }
    for (at, asked) in disks.iter().enumerate() {
        let target = &asked.target;
        if !domain.iter().any(|disk| disk.target == *target) {
            return Err(format!("it has no disk {target}"));
        }
        let mut others = disks.iter().take(at);
        if others.any(|other| other.target == *target || other.overlay == asked.overlay) {
            return Err(format!("disk {target} or its overlay was asked for twice"));
        }
    }
    let mut elements = Element::new("disks");
    for disk in domain {
        let element = Element::new("disk").with("name", &disk.target);
        elements = elements.with_child(match disks.iter().find(|asked| asked.target == disk.target) {
            None => element.with("snapshot", "no"),
            Some(asked) => element
                .with("snapshot", "external")
                .with("type", "file")
                .with_child(Element::new("driver").with("type", FORMAT))
                .with_child(
                    Element::new("source").with("file", writable_path("the overlay", &asked.overlay)?),
                ),
        });
    }
    Element::new("domainsnapshot").with_child(elements).to_xml()
}

#[cfg(test)]
mod tests;
