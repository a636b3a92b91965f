//! The chains of images in a domain definition: `<source>`, `<backingStore>` and `<mirror>` of its disks.

use std::path::PathBuf;

use roxmltree::Node;
use strongroom_hypervisor::{BlockJob, BlockJobState};

use crate::definition::check_target;
use crate::xml::{child, children, only_child, parse};

/// Most images of one disk that are followed.
pub const MAX_IMAGES: usize = 256;

/// One image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it lies.
    pub path: PathBuf,
    /// It is a block device, not a file.
    pub block: bool,
}

/// What a definition says about one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChain {
    /// Target device name.
    pub target: String,
    /// libvirt's name for the device (`<alias>`), only in a live definition.
    pub alias: Option<String>,
    /// Its images, the one that is written to first. Empty where it is something else.
    pub images: Vec<Image>,
    /// The block job on it, only in a live definition.
    pub job: Option<BlockJob>,
}

impl DiskChain {
    /// Where its images lie.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.images.iter().map(|image| image.path.clone()).collect()
    }
}

/// Reads the disks of a definition, CD-ROM and floppy drives left out. The error says what is wrong with it.
pub fn read(xml: &str) -> Result<Vec<DiskChain>, String> {
    let document = parse(xml, "domain")?;
    let mut chains: Vec<DiskChain> = Vec::new();
    for disk in children(document.root_element(), "devices").flat_map(|devices| children(devices, "disk")) {
        if matches!(disk.attribute("device"), Some("cdrom" | "floppy")) {
            continue;
        }
        let target = only_child(disk, "target")?
            .and_then(|target| target.attribute("dev"))
            .ok_or("it has a disk without a target")?;
        check_target(target)?;
        if chains.iter().any(|other| other.target == target) {
            return Err(format!("it has more than one disk {target}"));
        }
        chains.push(DiskChain {
            target: target.to_owned(),
            alias: child(disk, "alias")
                .and_then(|alias| alias.attribute("name"))
                .map(Into::into),
            images: images(disk)?,
            job: child(disk, "mirror").map(job),
        });
    }
    Ok(chains)
}

fn images(disk: Node<'_, '_>) -> Result<Vec<Image>, String> {
    let mut images = Vec::new();
    let mut at = Some(disk);
    while let Some(element) = at {
        let Some(image) = image(element) else { break };
        if images.len() == MAX_IMAGES {
            return Err(format!("it has a disk of more than {MAX_IMAGES} images"));
        }
        images.push(image);
        at = child(element, "backingStore");
    }
    Ok(images)
}

/// Where the bytes of a disk, a backing store or a mirror lie, if that has a path. The end of a chain is an element
/// without a source.
fn image(element: Node<'_, '_>) -> Option<Image> {
    let (attribute, block) = match element.attribute("type").unwrap_or("file") {
        "file" => ("file", false),
        "block" => ("dev", true),
        _ => return None,
    };
    let path = child(element, "source")?.attribute(attribute)?;
    let path = Some(path).filter(|path| !path.is_empty()).map(PathBuf::from)?;
    Some(Image { path, block })
}

fn job(mirror: Node<'_, '_>) -> BlockJob {
    BlockJob {
        // The attribute came with the second kind of job; before it there were only copies.
        kind: mirror.attribute("job").unwrap_or("copy").to_owned(),
        to: image(mirror).map(|image| image.path),
        state: match mirror.attribute("ready") {
            Some("yes") => BlockJobState::Ready,
            Some("pivot") => BlockJobState::Pivoting,
            Some("abort") => BlockJobState::Aborting,
            _ => BlockJobState::Copying,
        },
    }
}

#[cfg(test)]
mod tests;
