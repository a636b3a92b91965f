//! The domain XML of the test guest.

use std::fmt::Write;
use std::path::Path;

use crate::disk::Format;

/// More PCI Express ports than its devices need: what is attached later takes one each.
const SPARE_PORTS: usize = 12;

/// One disk of a guest.
pub struct Disk {
    pub target: String,
    pub file: String,
    pub format: Format,
    pub serial: String,
}

/// Everything that differs between two test guests.
pub struct Domain<'a> {
    pub name: &'a str,
    pub dir: &'a Path,
    pub memory_mib: u64,
    pub disks: &'a [Disk],
    pub cache: &'a str,
    pub agent: bool,
    pub network: bool,
}

/// The path of the log of a domain's serial port.
pub fn serial_path(dir: &Path, name: &str) -> String {
    format!("{}/{name}.serial", dir.display())
}

impl Domain<'_> {
    /// The XML to define. The channels name no socket: libvirt then gives each domain its own.
    pub fn xml(&self) -> String {
        let dir = self.dir.display();
        let mut disks = String::new();
        for disk in self.disks {
            // Writing to a String cannot fail.
            let _ = write!(
                disks,
                "
    <disk type='file' device='disk'>
      <driver name='qemu' type='{}' cache='{}' discard='unmap'/>
      <source file='{}'/>
      <target dev='{}' bus='virtio'/>
      <serial>{}</serial>
    </disk>",
                disk.format.driver(),
                self.cache,
                disk.file,
                disk.target,
                disk.serial,
            );
        }
        let agent = if self.agent {
            "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        } else {
            ""
        };
        let network = if self.network {
            format!(
                "<interface type='user'><model type='virtio'/></interface>\
                 <controller type='pci' index='0' model='pcie-root'/>{}",
                "<controller type='pci' model='pcie-root-port'/>".repeat(SPARE_PORTS)
            )
        } else {
            String::new()
        };
        format!(
            "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{dir}/vmlinuz</kernel>
    <initrd>{dir}/initrd</initrd>
    <cmdline>console=ttyS0 quiet panic=-1</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>{disks}
    {agent}{network}
    <channel type='unix'><target type='virtio' name='org.strongroom.probe'/></channel>
    <serial type='file'><source path='{serial}'/></serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
  </devices>
</domain>
",
            name = self.name,
            memory = self.memory_mib,
            serial = serial_path(self.dir, self.name),
        )
    }
}

/// The text between the first `before` and the next `after` that follows it.
pub fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

/// The socket of the probe's channel in the XML of a running domain.
pub fn probe_socket(xml: &str) -> Option<&str> {
    xml.split("<channel ")
        .find(|channel| channel.contains("name='org.strongroom.probe'"))
        .and_then(|channel| between(channel, "path='", "'"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_probe_is_found_beside_the_agent() {
        let xml = "<channel type='unix'><source mode='bind' path='/a'/><target name='org.qemu.guest_agent.0'/></channel>
            <channel type='unix'><source mode='bind' path='/b'/><target name='org.strongroom.probe'/></channel>";
        assert_eq!(super::probe_socket(xml), Some("/b"));
        assert_eq!(super::probe_socket("<domain/>"), None);
    }
}
