//! Writes the definition of a new domain (libvirt's `formatdomain`).

use std::path::Path;

use strongroom_hypervisor::{
    Accelerator, Boot, Channel, Console, Firmware, ImageFormat, LaunchSecurity, Network, NewDisk, NewDomain,
};

use crate::sockets::MAX_SOCKET;
use crate::tree::Element;
use crate::xml::{parse, writable, writable_path};

/// Namespace of what we write into a domain's `<metadata>`.
pub const NAMESPACE: &str = "urn:strongroom:domain:1";

/// Returns the definition. The error says what cannot be written, or does not fit together.
pub fn domain(new: &NewDomain) -> Result<String, String> {
    check(new)?;
    let text = |name: &'static str, text: &str| Element::new(name).with_text(text);
    let kind = match new.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "qemu",
    };
    let cpu = match new.accelerator {
        Accelerator::Kvm => "host-passthrough",
        Accelerator::Tcg => "maximum",
    };
    let off = |name| Element::new(name).with("enabled", "no");
    let domain = Element::new("domain")
        .with("type", kind)
        .with_child(text("name", writable("the name", &new.name)?))
        .with_child(text("uuid", &new.uuid.to_string()))
        .with_child(mark(&new.mark)?)
        // The memory of a guest holds its keys: not in QEMU's core dumps, not merged with other guests' pages.
        .with_child(
            text("memory", &(new.memory / 1024).to_string())
                .with("unit", "KiB")
                .with("dumpCore", "off"),
        )
        .with_child(Element::new("memoryBacking").with_child(Element::new("nosharepages")))
        .with_child(text("vcpu", &new.vcpus.to_string()))
        .with_child(os(new)?)
        .with_child(features(new))
        .with_child(Element::new("cpu").with("mode", cpu))
        .with_child(Element::new("clock").with("offset", "utc"))
        .with_child(text("on_poweroff", "destroy"))
        .with_child(text(
            "on_reboot",
            if new.no_reboot { "destroy" } else { "restart" },
        ))
        .with_child(text("on_crash", "destroy"))
        // A guest that hibernates writes its memory, keys and all, to its swap.
        .with_child(
            Element::new("pm")
                .with_child(off("suspend-to-mem"))
                .with_child(off("suspend-to-disk")),
        )
        .with_child(devices(new)?);
    match new.launch_security {
        None => domain,
        Some(security) => domain.with_child(launch_security(new, security)),
    }
    .to_xml()
}

/// The mark in a definition, if it has one.
pub fn mark_of(xml: &str) -> Result<Option<String>, String> {
    let document = parse(xml, "domain")?;
    let made = document
        .root_element()
        .children()
        .filter(|child| child.has_tag_name("metadata"))
        .flat_map(|metadata| metadata.children())
        .find(|child| child.has_tag_name((NAMESPACE, "made")));
    Ok(made.and_then(|made| made.attribute("by")).map(str::to_owned))
}

fn check(new: &NewDomain) -> Result<(), String> {
    if new.name.contains('/') || new.name.trim().is_empty() {
        return Err(format!("{:?} cannot be the name of a domain", new.name));
    }
    if new.memory < 1 << 20 || new.memory > 1 << 46 {
        return Err(format!(
            "{} bytes of memory are not between 1 MiB and 64 TiB",
            new.memory
        ));
    }
    if !(1..=1024).contains(&new.vcpus) {
        return Err(format!("{} virtual processors are not 1 to 1024", new.vcpus));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    if new.machine.is_empty() || !new.machine.bytes().all(plain) {
        return Err(format!("{:?} is not a machine type", new.machine));
    }
    for (at, disk) in new.disks.iter().enumerate() {
        let others = new.disks.iter().take(at);
        if others.clone().any(|other| other.target == disk.target) {
            return Err(format!("disk {} is there twice", disk.target));
        }
        if disk.serial.is_some() && others.clone().any(|other| other.serial == disk.serial) {
            return Err(format!(
                "disk {} has the serial number of another disk",
                disk.target
            ));
        }
    }
    for (at, channel) in new.channels.iter().enumerate() {
        if new
            .channels
            .iter()
            .take(at)
            .any(|other| other.name == channel.name)
        {
            return Err(format!("channel {:?} is there twice", channel.name));
        }
    }
    if new.firmware == Firmware::Bios && new.variables.is_some() {
        return Err("a BIOS has no UEFI variables".into());
    }
    if new.extras.clipboard && !new.extras.graphics {
        return Err("a clipboard is shared through a screen: it needs graphics".into());
    }
    if new.launch_security.is_some() {
        check_launch_security(new)?;
    }
    Ok(())
}

/// libvirt's page on launch security, and QEMU's `docs/system/i386/amd-memory-encryption.rst`.
fn check_launch_security(new: &NewDomain) -> Result<(), String> {
    if new.accelerator != Accelerator::Kvm {
        return Err("encrypted memory needs KVM".into());
    }
    match new.firmware {
        Firmware::Uefi => {}
        Firmware::Bios => return Err("encrypted memory needs UEFI firmware".into()),
        Firmware::SecureBoot => {
            return Err(
                "Secure Boot needs system management mode, which encrypted memory rules out; the measurement takes its place"
                    .into(),
            );
        }
    }
    if new.variables.is_some() {
        return Err("encrypted memory needs firmware that keeps no variables: they are not measured".into());
    }
    Ok(())
}

fn mark(mark: &str) -> Result<Element, String> {
    let made = Element::new("strongroom:made")
        .with("xmlns:strongroom", NAMESPACE)
        .with("by", writable("the mark", mark)?);
    Ok(Element::new("metadata").with_child(made))
}

fn os(new: &NewDomain) -> Result<Element, String> {
    let mut os = Element::new("os");
    if new.firmware != Firmware::Bios {
        os = os.with("firmware", "efi");
    }
    os = os.with_child(
        Element::new("type")
            .with("arch", "x86_64")
            .with("machine", &new.machine)
            .with_text("hvm"),
    );
    let feature = |name: &str, enabled: bool| {
        Element::new("feature")
            .with("enabled", if enabled { "yes" } else { "no" })
            .with("name", name)
    };
    let features = match (new.firmware, &new.variables) {
        (Firmware::Bios, _) => None,
        (Firmware::Uefi, _) => Some(Element::new("firmware").with_child(feature("secure-boot", false))),
        // Of its own keys only its owner knows: libvirt chooses by the template, which is not used.
        (Firmware::SecureBoot, Some(_)) => {
            Some(Element::new("firmware").with_child(feature("secure-boot", true)))
        }
        (Firmware::SecureBoot, None) => Some(
            Element::new("firmware")
                .with_child(feature("enrolled-keys", true))
                .with_child(feature("secure-boot", true)),
        ),
    };
    if let Some(features) = features {
        os = os.with_child(features);
    }
    if new.firmware == Firmware::SecureBoot {
        os = os.with_child(Element::new("loader").with("secure", "yes"));
    }
    if new.launch_security.is_some() {
        os = os.with_child(Element::new("loader").with("stateless", "yes"));
    }
    if let Some(variables) = &new.variables {
        let path = writable_path("the UEFI variable store", variables)?;
        os = os.with_child(Element::new("nvram").with_text(path));
    }
    Ok(match &new.boot {
        Boot::Disk => os.with_child(Element::new("boot").with("dev", "hd")),
        Boot::Kernel {
            kernel,
            initrd,
            cmdline,
        } => os
            .with_child(Element::new("kernel").with_text(writable_path("the kernel", kernel)?))
            .with_child(Element::new("initrd").with_text(writable_path("the initramfs", initrd)?))
            .with_child(Element::new("cmdline").with_text(writable("the kernel's command line", cmdline)?)),
    })
}

fn features(new: &NewDomain) -> Element {
    let state = |name: &'static str, state: &str| Element::new(name).with("state", state);
    let features = Element::new("features")
        .with_child(Element::new("acpi"))
        .with_child(state("vmport", "off"));
    if new.firmware == Firmware::SecureBoot {
        features.with_child(state("smm", "on"))
    } else if new.launch_security.is_some() {
        features.with_child(state("smm", "off"))
    } else {
        features
    }
}

fn devices(new: &NewDomain) -> Result<Element, String> {
    let mut all = Vec::new();
    for new_disk in &new.disks {
        all.push(disk(new_disk, new.launch_security.is_some())?);
    }
    all.push(
        Element::new("controller")
            .with("type", "usb")
            .with("model", if new.extras.usb { "qemu-xhci" } else { "none" }),
    );
    if new.spare_ports > 0 {
        let port = |model| {
            Element::new("controller")
                .with("type", "pci")
                .with("model", model)
        };
        all.push(port("pcie-root").with("index", "0"));
        all.extend((0..new.spare_ports).map(|_| port("pcie-root-port")));
    }
    all.extend(interface(new)?);
    all.extend(console(&new.console)?);
    for asked in &new.channels {
        all.push(channel(asked)?);
    }
    if new.tpm {
        let backend = Element::new("backend")
            .with("type", "emulator")
            .with("version", "2.0");
        all.push(Element::new("tpm").with("model", "tpm-crb").with_child(backend));
    }
    all.extend(screen(new));
    if new.watchdog {
        all.push(
            Element::new("watchdog")
                .with("model", "i6300esb")
                .with("action", "poweroff"),
        );
    }
    let random = Element::new("backend")
        .with("model", "random")
        .with_text("/dev/urandom");
    let rng = Element::new("rng").with("model", "virtio").with_child(random);
    all.push(shielded(rng, new.launch_security.is_some()));
    let balloon = if new.extras.balloon { "virtio" } else { "none" };
    all.push(Element::new("memballoon").with("model", balloon));
    Ok(all.into_iter().fold(Element::new("devices"), Element::with_child))
}

/// Encrypted memory: the device goes through bounce buffers that the guest shows it.
fn shielded(device: Element, encrypted: bool) -> Element {
    if encrypted {
        device.with_child(Element::new("driver").with("iommu", "on"))
    } else {
        device
    }
}

fn disk(disk: &NewDisk, encrypted: bool) -> Result<Element, String> {
    let target = disk.target.as_bytes();
    if !matches!(target, [b'v', b'd', b'a'..=b'z']) {
        return Err(format!(
            "{:?} is not the target of a virtio disk (vda to vdz)",
            disk.target
        ));
    }
    let format = match disk.format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
    };
    let mut driver = Element::new("driver")
        .with("name", "qemu")
        .with("type", format)
        .with("discard", if disk.discard { "unmap" } else { "ignore" });
    if encrypted {
        driver = driver.with("iommu", "on");
    }
    let mut element = Element::new("disk")
        .with("type", "file")
        .with("device", "disk")
        .with_child(driver)
        .with_child(Element::new("source").with("file", writable_path("the image of a disk", &disk.file)?))
        .with_child(
            Element::new("target")
                .with("dev", &disk.target)
                .with("bus", "virtio"),
        );
    if let Some(serial) = &disk.serial {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
        if !(1..=20).contains(&serial.len()) || !serial.bytes().all(plain) {
            return Err(format!(
                "{serial:?} cannot be a disk's serial number: 1 to 20 letters, digits and _.+-"
            ));
        }
        element = element.with_child(Element::new("serial").with_text(serial));
    }
    if disk.read_only {
        element = element.with_child(Element::new("readonly"));
    }
    Ok(element)
}

fn interface(new: &NewDomain) -> Result<Option<Element>, String> {
    let source = |kind: &str, name: &str| -> Result<Element, String> {
        let source = Element::new("source").with(
            if kind == "bridge" { "bridge" } else { "network" },
            writable("the network", name)?,
        );
        Ok(Element::new("interface").with("type", kind).with_child(source))
    };
    let interface = match &new.network {
        Network::None => return Ok(None),
        Network::User => Element::new("interface").with("type", "user"),
        Network::Libvirt(name) => source("network", name)?,
        Network::Bridge(name) => source("bridge", name)?,
    };
    let interface = interface.with_child(Element::new("model").with("type", "virtio"));
    Ok(Some(shielded(interface, new.launch_security.is_some())))
}

fn console(console: &Console) -> Result<Option<Element>, String> {
    let (kind, source) = match console {
        Console::None => return Ok(None),
        Console::Terminal => ("pty", None),
        Console::File(path) => (
            "file",
            Some(Element::new("source").with("path", writable_path("the console's file", path)?)),
        ),
        Console::Socket(path) => ("unix", Some(socket("the console's socket", path)?)),
    };
    // libvirt adds the `<console>` that mirrors it.
    let mut serial = Element::new("serial").with("type", kind);
    if let Some(source) = source {
        serial = serial.with_child(source);
    }
    let target = Element::new("target")
        .with("type", "isa-serial")
        .with("port", "0");
    Ok(Some(serial.with_child(target)))
}

fn channel(channel: &Channel) -> Result<Element, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if channel.name.is_empty() || channel.name.len() > 64 || !channel.name.bytes().all(plain) {
        return Err(format!("{:?} is not the name of a channel", channel.name));
    }
    let mut element = Element::new("channel").with("type", "unix");
    if let Some(path) = &channel.socket {
        element = element.with_child(socket("the socket of a channel", path)?);
    }
    Ok(element.with_child(
        Element::new("target")
            .with("type", "virtio")
            .with("name", &channel.name),
    ))
}

fn socket(what: &str, path: &Path) -> Result<Element, String> {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET {
        return Err(format!(
            "{what} {} has {length} bytes, more than {MAX_SOCKET}",
            path.display()
        ));
    }
    Ok(Element::new("source")
        .with("mode", "bind")
        .with("path", writable_path(what, path)?))
}

fn screen(new: &NewDomain) -> Vec<Element> {
    if !new.extras.graphics {
        return vec![Element::new("video").with_child(Element::new("model").with("type", "none"))];
    }
    let mut screen = vec![
        Element::new("graphics")
            .with("type", "vnc")
            .with("autoport", "yes")
            .with("listen", "127.0.0.1"),
        Element::new("video").with_child(Element::new("model").with("type", "virtio")),
    ];
    if new.extras.clipboard {
        let clipboard = Element::new("clipboard").with("copypaste", "yes");
        screen.push(
            Element::new("channel")
                .with("type", "qemu-vdagent")
                .with_child(Element::new("source").with_child(clipboard))
                .with_child(
                    Element::new("target")
                        .with("type", "virtio")
                        .with("name", "com.redhat.spice.0"),
                ),
        );
    }
    screen
}

fn launch_security(new: &NewDomain, security: LaunchSecurity) -> Element {
    let mut element = Element::new("launchSecurity").with("type", security.name());
    // Kernel, initramfs and command line then are part of the measurement.
    if matches!(new.boot, Boot::Kernel { .. }) {
        element = element.with("kernelHashes", "yes");
    }
    element.with_child(Element::new("policy").with_text(&format!("{:#06x}", security.policy())))
}

#[cfg(test)]
mod tests;
