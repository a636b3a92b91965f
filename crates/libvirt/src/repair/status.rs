//! What libvirtd keeps of a running domain between its lives (`/run/libvirt/qemu/NAME.xml`), and the one change that is made
//! to it.
//!
//! The format is libvirt's own and not documented: a `<domstatus>` with the live `<domain>` in it (`virDomainObjFormat`,
//! `qemuDomainObjPrivateXMLFormat`). A disk whose active commit was being ended has its overlay as `<source>`, the chain below as
//! `<backingStore>`, and the base, with the names of QEMU's block nodes, as `<source>` of its `<mirror>`. That `<source>` is
//! what the disk's own has to become, and the other two go.

use std::path::{Path, PathBuf};

use crate::retarget::target;
use crate::tree::Element;
use crate::xml::{child, children, parse};

/// A disk to put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wedged {
    /// Target device name.
    pub target: String,
    /// The overlay that libvirt believes the guest to be on.
    pub overlay: PathBuf,
    /// The image that it is on.
    pub base: PathBuf,
}

/// Returns the text with these disks on their bases. The error says what is not as it has to be; then nothing is to be
/// changed. Whatever else is in the text stays.
pub fn rewrite(xml: &str, disks: &[Wedged]) -> Result<String, String> {
    check(xml, disks)?;
    let mut status = Element::parse(xml)?;
    let mut changed = 0;
    for domain in status.elements_mut("domain") {
        for devices in domain.elements_mut("devices") {
            for disk in devices.elements_mut("disk") {
                if disks
                    .iter()
                    .any(|wedged| Some(&wedged.target) == target(disk).as_ref())
                {
                    put_right(disk)?;
                    changed += 1;
                }
            }
        }
    }
    // What it remembers of the job itself, in newer versions.
    for jobs in status.elements_mut("blockjobs") {
        jobs.drop_elements(|job| {
            job.elements("disk").any(|disk| {
                disks
                    .iter()
                    .any(|wedged| disk.attribute("dst").as_ref() == Some(&wedged.target))
            })
        });
    }
    if changed != disks.len() {
        return Err(format!("{changed} disks were found instead of {}", disks.len()));
    }
    let result = status.to_xml()?;
    parse(&result, "domstatus")?;
    Ok(result)
}

/// Makes sure that each disk shows the job that it is said to show.
fn check(xml: &str, disks: &[Wedged]) -> Result<(), String> {
    let document = parse(xml, "domstatus")?;
    for wedged in disks {
        let name = &wedged.target;
        let mut found = children(document.root_element(), "domain")
            .flat_map(|domain| children(domain, "devices"))
            .flat_map(|devices| children(devices, "disk"))
            .filter(|disk| child(*disk, "target").and_then(|target| target.attribute("dev")) == Some(name));
        let (Some(disk), None) = (found.next(), found.next()) else {
            return Err(format!("it does not have exactly one disk {name}"));
        };
        let image = |node| {
            let source = child(node, "source")?;
            source
                .attribute("file")
                .or(source.attribute("dev"))
                .map(Path::new)
        };
        let mirror = child(disk, "mirror").ok_or_else(|| format!("disk {name} shows no block job"))?;
        if mirror.attribute("job") != Some("active-commit") {
            return Err(format!("the block job of disk {name} is not an active commit"));
        }
        if image(disk) != Some(&wedged.overlay) || image(mirror) != Some(&wedged.base) {
            return Err(format!(
                "the block job of disk {name} does not lead from {} to {}",
                wedged.overlay.display(),
                wedged.base.display()
            ));
        }
        if child(mirror, "format")
            .and_then(|format| format.attribute("type"))
            .is_none()
        {
            return Err(format!("the block job of disk {name} does not name its format"));
        }
    }
    Ok(())
}

fn put_right(disk: &mut Element) -> Result<(), String> {
    let mut mirror = disk.take_element("mirror").ok_or("it shows no block job")?;
    let source = mirror
        .take_element("source")
        .ok_or("its block job has no source")?;
    let format = mirror
        .elements("format")
        .find_map(|format| format.attribute("type"))
        .ok_or("its block job has no format")?;
    let kind = mirror.attribute("type").unwrap_or_else(|| "file".into());
    disk.edit_attributes(&[("type", Some(&kind))])?;
    disk.replace_element(source);
    for driver in disk.elements_mut("driver") {
        driver.edit_attributes(&[("type", Some(&format))])?;
    }
    disk.drop_elements(|child| matches!(child.name(), "mirror" | "backingStore"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "<domstatus state='running' reason='booted' pid='7'>
  <monitor path='/m' type='unix'/>
  <blockjobs active='yes'><blockjob name='commit-vda-libvirt-3-format' type='active-commit'><disk dst='vda'/></blockjob></blockjobs>
  <domain type='qemu' id='1'>
    <name>a&amp;b</name>
    <devices>
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2' cache='none'/>
        <source file='/i/vda.overlay' index='3'><privateData><nodenames><nodename type='format' name='libvirt-3-format'/></nodenames></privateData></source>
        <backingStore type='file' index='1'><format type='raw'/><source file='/i/vda.raw'/><backingStore/></backingStore>
        <mirror type='file' job='active-commit' ready='pivot'>
          <format type='raw'/>
          <source file='/i/vda.raw' index='1'><privateData><nodenames><nodename type='format' name='libvirt-1-format'/></nodenames></privateData></source>
        </mirror>
        <target dev='vda' bus='virtio'/>
      </disk>
      <disk type='file' device='disk'><driver type='qcow2'/><source file='/i/vdb.qcow2'/><target dev='vdb'/></disk>
    </devices>
  </domain>
</domstatus>";

    fn wedged(target: &str, overlay: &str, base: &str) -> Wedged {
        Wedged {
            target: target.into(),
            overlay: overlay.into(),
            base: base.into(),
        }
    }

    #[test]
    fn the_disk_is_on_the_source_of_its_job_and_the_rest_stays() {
        let result = rewrite(STATUS, &[wedged("vda", "/i/vda.overlay", "/i/vda.raw")]).unwrap();
        for gone in ["mirror", "backingStore", "overlay", "libvirt-3", "<blockjob "] {
            assert!(!result.contains(gone), "{gone}: {result}");
        }
        for kept in [
            "libvirt-1-format",
            "file='/i/vda.raw' index='1'",
            "a&amp;b",
            "cache=\"none\"",
            "type=\"raw\"",
            "/i/vdb.qcow2",
            "<monitor path='/m' type='unix'/>",
        ] {
            assert!(result.contains(kept), "{kept}: {result}");
        }
    }

    #[test]
    fn anything_else_than_that_job_is_left_alone() {
        let right = wedged("vda", "/i/vda.overlay", "/i/vda.raw");
        for (xml, disk) in [
            (STATUS.to_owned(), wedged("vda", "/i/other", "/i/vda.raw")),
            (STATUS.to_owned(), wedged("vda", "/i/vda.overlay", "/i/other")),
            (STATUS.to_owned(), wedged("vdb", "/i/vdb.qcow2", "/i/vda.raw")),
            (STATUS.to_owned(), wedged("vdz", "/i/vda.overlay", "/i/vda.raw")),
            (
                STATUS.replace("active-commit' ready", "copy' ready"),
                right.clone(),
            ),
            (STATUS.replace("domstatus", "domain"), right.clone()),
            (STATUS.replace("dev='vdb'", "dev='vda'"), right),
        ] {
            assert!(rewrite(&xml, &[disk]).is_err(), "{xml}");
        }
    }
}
