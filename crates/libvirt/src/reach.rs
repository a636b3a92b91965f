//! What a definition reaches on its host: what of it has to be trusted, what the host has to have, and what only one domain can have.

use std::collections::BTreeMap;
use std::path::Path;

use roxmltree::Node;
use strongroom_hypervisor::{Definitions, HypervisorError, Lack};
use uuid::Uuid;
use virt::error::{Error, ErrorNumber};

use crate::connection::{Libvirt, words};
use crate::definition;
use crate::hypervisor::is;
use crate::xml::{child, children, parse, text};

/// Where a distribution keeps QEMU.
const EMULATORS: [&str; 4] = [
    "/usr/bin/qemu",
    "/usr/libexec/qemu",
    "/usr/bin/kvm",
    "/usr/local/bin/qemu-system-",
];
/// Where a distribution keeps firmware.
const FIRMWARE: [&str; 2] = ["/usr/share/", "/usr/lib/"];
/// How names of media end that are meant to be shown to guests.
const MEDIA: [&str; 5] = [".iso", ".img", ".vfd", ".flp", ".ima"];
/// Character devices that lead to a file, device or program of the host.
const OF_THE_HOST: [&str; 3] = ["file", "dev", "pipe"];

impl Definitions for Libvirt {
    fn powers(&self, xml: &str, placed: &[&str]) -> Result<Vec<String>, HypervisorError> {
        powers(xml, placed).map_err(unreadable)
    }

    fn lacks(&self, xml: &str, placed: &[&str]) -> Result<Vec<Lack>, HypervisorError> {
        let document = parse(xml, "domain").map_err(unreadable)?;
        self.lacking(document.root_element(), placed)
    }

    fn conflicts(&self, xml: &str) -> Result<Vec<String>, HypervisorError> {
        let own = definition::read(xml).map_err(unreadable)?;
        let wanted = claims(xml).map_err(unreadable)?;
        let failed = |error: Error| self.failed("read the definitions of the other domains".into(), &error);
        let mut found = Vec::new();
        for other in self.connection()?.list_all_domains(0).map_err(failed)? {
            let (Ok(name), Ok(uuid)) = (other.name(), other.uuid()) else {
                continue;
            };
            if name == own.name && Some(uuid) == own.uuid {
                continue;
            }
            // A domain may go between the list and the question; what cannot be read claims nothing that is known.
            let Ok(theirs) = other.xml_desc(0) else { continue };
            for (claim, words) in claims(&theirs).unwrap_or_default() {
                if wanted.contains_key(&claim) {
                    found.push(format!("{words} is that of domain {name:?}, too"));
                }
            }
        }
        Ok(found)
    }

    fn set_autostart(&self, domain: Uuid, autostart: bool) -> Result<(), HypervisorError> {
        let set = self.handle(domain)?.set_autostart(autostart);
        set.map(drop)
            .map_err(|error| self.failed(format!("have domain {domain} started with its host"), &error))
    }
}

fn unreadable(reason: String) -> HypervisorError {
    HypervisorError::Definition {
        domain: "(stored)".into(),
        reason,
    }
}

fn devices<'a, 'i>(domain: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    children(domain, "devices")
        .flat_map(|devices| devices.children())
        .filter(Node::is_element)
}

fn of<'a>(node: Node<'a, '_>, name: &'static str, key: &str) -> Option<&'a str> {
    children(node, name).find_map(|child| child.attribute(key))
}

/// A text from the definition as it can be shown.
fn shown(text: &str) -> String {
    text.trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

/// What of it acts on the host, or reads from it: nothing that a guest needs for itself.
pub fn powers(xml: &str, placed: &[&str]) -> Result<Vec<String>, String> {
    let document = parse(xml, "domain")?;
    let domain = document.root_element();
    let mut found = Vec::new();
    let mut say = |what: &str, value: &str| found.push(format!("{what} {}", shown(value)).trim().to_owned());
    for element in domain.children().filter(Node::is_element) {
        let tag = element.tag_name();
        match tag.name() {
            name if tag.namespace().is_some() => say("arguments of QEMU:", name),
            "launchSecurity" => say("launchSecurity", element.attribute("type").unwrap_or_default()),
            "bootloader" | "bootloader_args" => say("boot loader", &text(element)),
            "seclabel"
                if element.attribute("type") != Some("dynamic")
                    || element.attribute("relabel") == Some("no") =>
            {
                say("security label", element.attribute("type").unwrap_or("dynamic"));
            }
            "sysinfo" => {
                for entry in element.descendants().filter(|entry| entry.has_attribute("file")) {
                    say(
                        "a file shown to the guest:",
                        entry.attribute("file").unwrap_or_default(),
                    );
                }
            }
            _ => {}
        }
    }
    for os in children(domain, "os") {
        for name in ["kernel", "initrd", "cmdline", "dtb", "shim", "init"] {
            for element in children(os, name) {
                say(name, &text(element));
            }
        }
        for table in children(os, "acpi").flat_map(|acpi| children(acpi, "table")) {
            say("ACPI table", &text(table));
        }
        let firmware = children(os, "loader").map(text);
        let template =
            children(os, "nvram").filter_map(|nvram| nvram.attribute("template").map(str::to_owned));
        for path in firmware.chain(template) {
            let path = path.trim();
            if !path.is_empty() && !is_below(path, &FIRMWARE) {
                say("firmware", path);
            }
        }
    }
    for device in devices(domain) {
        power_of(device, placed, &mut say);
    }
    found.dedup();
    Ok(found)
}

fn is_below(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path.starts_with(place)) && !path.contains("/../")
}

fn power_of(device: Node<'_, '_>, placed: &[&str], say: &mut impl FnMut(&str, &str)) {
    let kind = device.attribute("type").unwrap_or_default();
    match device.tag_name().name() {
        "emulator" if !is_below(text(device).trim(), &EMULATORS) => say("emulator", &text(device)),
        "hostdev" => say("a device of the host:", kind),
        "filesystem" => say(
            "a directory of the host:",
            of(device, "source", "dir").unwrap_or(kind),
        ),
        "shmem" => say(
            "memory shared with others:",
            device.attribute("name").unwrap_or_default(),
        ),
        "tpm" if of(device, "backend", "type") != Some("emulator") => {
            say(
                "a TPM of the host:",
                of(device, "backend", "type").unwrap_or_default(),
            );
        }
        "input" if ["passthrough", "evdev"].contains(&kind) => say("an input device of the host:", kind),
        "smartcard" if device.attribute("mode") == Some("host") => say("a smart card of the host", ""),
        "audio" if kind == "file" => say("sound into", device.attribute("path").unwrap_or_default()),
        "rng" => {
            for backend in children(device, "backend") {
                let path = text(backend);
                let usual = ["/dev/urandom", "/dev/random", "/dev/hwrng", ""].contains(&path.trim());
                if backend.attribute("model") == Some("random") && !usual {
                    say("random numbers from", &path);
                }
            }
        }
        "interface" => {
            for script in ["script", "downscript"] {
                for element in children(device, script) {
                    say(
                        "a script of a network interface:",
                        element.attribute("path").unwrap_or_default(),
                    );
                }
            }
            if ["hostdev", "vdpa"].contains(&kind) {
                say("a network device of the host:", kind);
            }
        }
        "memory" => {
            for path in children(device, "source").flat_map(|source| children(source, "path")) {
                say("memory kept in", &text(path));
            }
        }
        "pstore" => say("a store for crash dumps", ""),
        "disk" => {
            let target = of(device, "target", "dev").unwrap_or_default();
            let source = child(device, "source");
            if placed.contains(&target) || source.is_none() {
                return;
            }
            let path = source.and_then(|source| source.attribute("file"));
            let medium =
                path.is_some_and(|path| MEDIA.iter().any(|end| path.to_ascii_lowercase().ends_with(end)));
            let volume = kind == "volume" && child(device, "readonly").is_some();
            if !medium && !volume {
                let named = path
                    .or_else(|| source.and_then(|source| source.attribute("dev")))
                    .unwrap_or(kind);
                say(&format!("disk {target}:"), named);
            }
        }
        "serial" | "parallel" | "console" | "channel" if OF_THE_HOST.contains(&kind) => {
            say(
                "a port that leads to",
                of(device, "source", "path").unwrap_or(kind),
            );
        }
        _ => {}
    }
    if let Some(log) = of(device, "log", "file") {
        say("a log in", log);
    }
}

/// What only one domain can have at a time: its kind and its name, and words for it.
pub fn claims(xml: &str) -> Result<BTreeMap<(&'static str, String), String>, String> {
    let document = parse(xml, "domain")?;
    let domain = document.root_element();
    let mut found = BTreeMap::new();
    let mut claim = |kind: &'static str, key: Option<String>| {
        if let Some(key) = key.filter(|key| !key.is_empty()) {
            let words = format!("{kind} {}", shown(&key));
            found.insert((kind, key), words);
        }
    };
    let own = |value: Option<&str>| value.map(str::to_owned);
    if let Some(nvram) = child(domain, "os").and_then(|os| child(os, "nvram")) {
        claim("the UEFI variable store", Some(text(nvram).trim().to_owned()));
    }
    for device in devices(domain) {
        let kind = device.attribute("type").unwrap_or_default();
        match device.tag_name().name() {
            "interface" => {
                claim(
                    "the MAC address",
                    own(of(device, "mac", "address")).map(|mac| mac.to_lowercase()),
                );
                let name = of(device, "target", "dev").filter(|name| !name.starts_with("vnet"));
                claim("the network device", own(name));
            }
            "graphics" if device.attribute("autoport") != Some("yes") => {
                let port = device
                    .attribute("port")
                    .filter(|port| *port != "-1" && *port != "0");
                claim("the screen's port", own(port));
            }
            "vsock" if of(device, "cid", "auto") != Some("yes") => {
                claim("the vsock number", own(of(device, "cid", "address")));
            }
            "hostdev" => {
                let source = child(device, "source");
                let address = source.and_then(|source| child(source, "address"));
                let key = address.map(|address| {
                    let mut parts: Vec<String> = address
                        .attributes()
                        .map(|part| format!("{}={}", part.name(), part.value()))
                        .collect();
                    parts.sort();
                    parts.join(" ")
                });
                claim("the host's device", key);
            }
            "serial" | "parallel" | "console" | "channel" => {
                let connects = of(device, "source", "mode") == Some("connect");
                if ["unix", "file", "dev", "pipe"].contains(&kind) && !connects {
                    claim("the port at", own(of(device, "source", "path")));
                }
                if kind == "tcp" && !connects {
                    claim("the port number", own(of(device, "source", "service")));
                }
                claim("the log", own(of(device, "log", "file")));
            }
            _ => {}
        }
    }
    Ok(found)
}

impl Libvirt {
    /// What of the definition this host does not have.
    fn lacking(&self, domain: Node<'_, '_>, placed: &[&str]) -> Result<Vec<Lack>, HypervisorError> {
        let connection = self.connection()?;
        let mut found = Vec::new();
        let unknown = |error: Error| self.failed("look for what a definition needs".into(), &error);
        let mut lacks = |what: String, medium: Option<&str>, fatal| {
            let medium = medium.map(str::to_owned);
            if !found.iter().any(|lack: &Lack| lack.what == what) {
                found.push(Lack { what, medium, fatal });
            }
        };
        let kind = child(domain, "os").and_then(|os| child(os, "type"));
        if let Some(kind) = kind {
            let emulator = children(domain, "devices")
                .find_map(|devices| child(devices, "emulator"))
                .map(text);
            let asked = connection.domain_capabilities(
                emulator.as_deref().map(str::trim).filter(|path| !path.is_empty()),
                kind.attribute("arch"),
                kind.attribute("machine"),
                domain.attribute("type"),
                0,
            );
            // Who may not ask, or cannot, finds out when it is defined.
            let unanswered =
                |error: &Error| is(error, ErrorNumber::AccessDenied) || is(error, ErrorNumber::NoSupport);
            if let Some(error) = asked.err().filter(|error| !unanswered(error)) {
                lacks(
                    format!("it cannot run a machine like this: {}", words(&error)),
                    None,
                    true,
                );
            }
        }
        for device in devices(domain) {
            let kind = device.attribute("type").unwrap_or_default();
            match (device.tag_name().name(), kind) {
                ("interface", "network") => {
                    let name = of(device, "source", "network").unwrap_or_default();
                    match connection.lookup_network_by_name(name) {
                        Err(error) if is(&error, ErrorNumber::NoNetwork) => lacks(
                            format!(
                                "there is no network {name:?}: make it, or choose another one (`virsh edit`)"
                            ),
                            None,
                            false,
                        ),
                        Err(error) => return Err(unknown(error)),
                        Ok(_) => {}
                    }
                }
                ("interface", "bridge" | "direct") if self.local() => {
                    let key = if kind == "bridge" { "bridge" } else { "dev" };
                    let name = of(device, "source", key).unwrap_or_default();
                    let plain = !name.is_empty() && !name.contains('/');
                    if plain && !Path::new("/sys/class/net").join(name).exists() {
                        lacks(
                            format!(
                                "there is no network device {name:?}: make it, or choose another one (`virsh edit`)"
                            ),
                            None,
                            false,
                        );
                    }
                }
                ("disk", _) => {
                    let target = of(device, "target", "dev").unwrap_or_default();
                    if placed.contains(&target) {
                        continue;
                    }
                    let removable =
                        ["cdrom", "floppy"].contains(&device.attribute("device").unwrap_or_default());
                    let medium = Some(target).filter(|_| removable);
                    let path = of(device, "source", "file").or(of(device, "source", "dev"));
                    if let (true, Some(path), "file" | "block" | "") = (self.local(), path, kind)
                        && !Path::new(path).exists()
                    {
                        lacks(
                            format!("{} of disk {target} is not there", shown(path)),
                            medium,
                            false,
                        );
                    }
                    if let Some(pool) = of(device, "source", "pool") {
                        let volume = of(device, "source", "volume").unwrap_or_default();
                        let there = connection
                            .lookup_storage_pool_by_name(pool)
                            .and_then(|pool| pool.lookup_storage_vol_by_name(volume));
                        if there.is_err() {
                            lacks(
                                format!("volume {volume:?} of pool {pool:?} of disk {target} is not there"),
                                medium,
                                false,
                            );
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
