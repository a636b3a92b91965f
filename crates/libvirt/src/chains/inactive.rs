//! Rewrites which image a disk has in the inactive definition, and keeps all the rest of it as it was.
//!
//! libvirt writes a `<backingStore>` into the definition when it takes a snapshot. It goes away with the change:
//! libvirt then reads the chain from the image, whereas a remaining one would make the base its own backing file.

use std::path::Path;

use strongroom_hypervisor::DiskSource;

use crate::definition::{self, Definition};
use crate::retarget::{facts, target};
use crate::tree::Element;
use crate::xml::writable_path;

/// Parts of a source that are of that one image.
const OF_THE_IMAGE: [&str; 2] = ["encryption", "slices"];

/// Returns the changed definition, or nothing where it says that already. The error says what cannot be done.
///
/// `block` tells that the image is a block device. The result has been read back: it says what was asked.
pub fn rewrite(
    xml: &str,
    disk: &str,
    image: &Path,
    block: bool,
    format: &str,
) -> Result<Option<String>, String> {
    let before = definition::read(xml)?;
    let wanted = facts(wanted(definition::read(xml)?, disk, image, block, format)?);
    let mut domain = Element::parse(xml)?;
    let mut changes = facts(before) != wanted;
    for devices in domain.elements_mut("devices") {
        for element in devices.elements_mut("disk") {
            if target(element).as_deref() == Some(disk) {
                changes |= element.elements("backingStore").next().is_some();
                set_image(element, writable_path("the image", image)?, block, format)?;
            }
        }
    }
    if !changes {
        return Ok(None);
    }
    let result = domain.to_xml()?;
    if facts(definition::read(&result)?) != wanted {
        return Err("it is written in a way that cannot be changed safely".into());
    }
    Ok(Some(result))
}

fn wanted(
    mut before: Definition,
    target: &str,
    image: &Path,
    block: bool,
    format: &str,
) -> Result<Definition, String> {
    if format.is_empty() || !format.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(format!("{format:?} is not an image format"));
    }
    let disk = before
        .disks
        .iter_mut()
        .find(|disk| disk.target == target)
        .ok_or_else(|| format!("it has no disk {target}"))?;
    match disk.source {
        DiskSource::File(_) | DiskSource::Block(_) => {}
        DiskSource::Volume { .. } | DiskSource::Other(_) | DiskSource::None => {
            return Err(format!("disk {target} is neither a file nor a block device"));
        }
    }
    disk.source = if block {
        DiskSource::Block(image.into())
    } else {
        DiskSource::File(image.into())
    };
    format.clone_into(&mut disk.format);
    Ok(before)
}

fn set_image(disk: &mut Element, image: &str, block: bool, format: &str) -> Result<(), String> {
    let own = |element: &Element| {
        OF_THE_IMAGE
            .iter()
            .any(|name| element.elements(name).next().is_some())
    };
    let mut source = disk.take_element("source").ok_or("its disk has no source")?;
    if own(disk) || own(&source) {
        return Err("its disk is encrypted or a part of an image".into());
    }
    let (kind, path, other) = if block {
        ("block", "dev", "file")
    } else {
        ("file", "file", "dev")
    };
    disk.edit_attributes(&[("type", Some(kind))])?;
    source.edit_attributes(&[(path, Some(image)), (other, None)])?;
    disk.replace_element(source);
    let mut driver = disk
        .take_element("driver")
        .unwrap_or_else(|| Element::new("driver").with("name", "qemu"));
    driver.edit_attributes(&[("type", Some(format))])?;
    disk.replace_element(driver);
    disk.drop_elements(|child| child.name() == "backingStore");
    Ok(())
}

#[cfg(test)]
mod tests;
