//! A copy beside its original claims nothing that only one domain can have.
//!
//! What the hypervisor can choose by itself is left to it; what has no substitute is left out. Each change is a line for the
//! report.

use crate::tree::Element;

/// Devices with a character device behind them.
const CHARACTER: [&str; 6] = [
    "serial",
    "parallel",
    "console",
    "channel",
    "redirdev",
    "smartcard",
];
/// Kinds of network interfaces that only one domain can have: a device, or a socket, of its own.
const INTERFACES: [&str; 6] = ["hostdev", "vhostuser", "vdpa", "server", "udp", "vds"];
/// Models of confinement whose labels keep domains apart.
const CONFINING: [&str; 2] = ["selinux", "apparmor"];
/// What in an argument of QEMU's names something outside the guest.
const OUTSIDE: [&str; 8] = ["/", "socket", "host", "port", "cid", "mac=", "file", "mdev"];

/// Takes claims away. `keeps_nvram` says that the UEFI variable store has a place of its own.
pub fn unshare(domain: &mut Element, keeps_nvram: bool) -> Result<Vec<String>, String> {
    let mut notes = Vec::new();
    for devices in domain.elements_mut("devices") {
        let mut failed = None;
        devices.retain_elements(|device| match treat(device, &mut notes) {
            Ok(keep) => keep,
            Err(error) => {
                failed = Some(error);
                true
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
    }
    if !keeps_nvram {
        for nvram in domain.elements_mut("os").flat_map(|os| os.elements_mut("nvram")) {
            if nvram.has_content() {
                notes.push("its UEFI variable store is made anew".into());
                nvram.edit_attributes(&[("type", None)])?;
                nvram.clear();
            }
        }
    }
    domain.retain_elements(|element| {
        let of = |key| element.attribute(key).unwrap_or_default();
        match element.name() {
            "seclabel" if of("type") == "static" && CONFINING.contains(&of("model").as_str()) => {
                notes.push(format!("its static security label ({}) is left out", of("model")));
                false
            }
            "qemu:commandline" | "qemu:override" if names_outside(element) => {
                notes.push(format!(
                    "<{}> is left out: it may name what the original has; `virsh edit` puts back what is needed",
                    element.name()
                ));
                false
            }
            _ => true,
        }
    });
    Ok(notes)
}

/// Whether an attribute anywhere in it may name something outside the guest.
fn names_outside(element: &Element) -> bool {
    let value = element.attribute("value").unwrap_or_default();
    OUTSIDE.iter().any(|word| value.contains(word)) || element.all_elements().any(names_outside)
}

/// Changes one device. False leaves it out.
fn treat(device: &mut Element, notes: &mut Vec<String>) -> Result<bool, String> {
    let name = device.name().to_owned();
    let kind = device.attribute("type").unwrap_or_default();
    let mut out = |what: String| {
        notes.push(format!("{what} is left out"));
        Ok(false)
    };
    match name.as_str() {
        "hostdev" => out(format!(
            "a device of the host ({})",
            device.attribute("type").unwrap_or(kind)
        )),
        "lease" => out("a lease".into()),
        "shmem" => out("memory shared with others".into()),
        "pstore" => out("a store for crash dumps".into()),
        "memory"
            if device
                .elements("source")
                .any(|source| source.elements("path").next().is_some()) =>
        {
            out("memory kept in a file or device of the host".into())
        }
        "input" if ["passthrough", "evdev"].contains(&kind.as_str()) => {
            out("an input device of the host".into())
        }
        "filesystem" if !has(device, "readonly") || has_socket(device) => {
            out("a directory of the host".into())
        }
        "interface" if INTERFACES.contains(&kind.as_str()) => out(format!("a network interface ({kind})")),
        "interface"
            if kind == "direct" && attribute(device, "source", "mode").as_deref() == Some("passthrough") =>
        {
            out("a network interface (direct, passthrough)".into())
        }
        "interface" => interface(device, notes).map(|()| true),
        "tpm" => Ok(tpm(device, notes)),
        "graphics" => graphics(device, &kind, notes).map(|()| true),
        "vsock" => vsock(device, notes).map(|()| true),
        "audio" if kind == "file" => {
            notes.push("its sound goes nowhere instead of into a file".into());
            device.edit_attributes(&[("type", Some("none")), ("path", None)])?;
            Ok(true)
        }
        "smartcard" if device.attribute("mode").as_deref() == Some("host") => {
            out("a smart card of the host".into())
        }
        character if CHARACTER.contains(&character) => character_device(device, &name, &kind, notes),
        _ => Ok(true),
    }
}

fn has(element: &Element, child: &str) -> bool {
    element.elements(child).next().is_some()
}

fn attribute(element: &Element, child: &str, key: &str) -> Option<String> {
    element.elements(child).find_map(|child| child.attribute(key))
}

fn has_socket(filesystem: &Element) -> bool {
    attribute(filesystem, "source", "socket").is_some()
}

/// A new address, and names for it that the hypervisor chooses.
fn interface(device: &mut Element, notes: &mut Vec<String>) -> Result<(), String> {
    device.drop_elements(|child| child.name() == "mac");
    if let Some(name) = attribute(device, "target", "dev").filter(|name| !name.starts_with("vnet")) {
        notes.push(format!(
            "its network interface is no longer called {name} on the host"
        ));
    }
    device.drop_elements(|child| child.name() == "target");
    for source in device.elements_mut("source") {
        if source.attribute("portid").is_some() {
            source.edit_attributes(&[("portid", None)])?;
        }
    }
    for port in device
        .elements_mut("virtualport")
        .flat_map(|port| port.elements_mut("parameters"))
    {
        if port.attribute("interfaceid").is_some() || port.attribute("instanceid").is_some() {
            notes.push("its virtual port gets an id of its own".into());
            port.edit_attributes(&[("interfaceid", None), ("instanceid", None)])?;
        }
    }
    Ok(())
}

/// An emulated one with its state at a place of its own; others are left out.
fn tpm(device: &mut Element, notes: &mut Vec<String>) -> bool {
    let kind = attribute(device, "backend", "type").unwrap_or_default();
    if kind != "emulator" {
        notes.push(format!("a TPM of the host ({kind}) is left out"));
        return false;
    }
    for backend in device.elements_mut("backend") {
        if has(backend, "source") {
            notes.push("the state of its TPM lies where libvirt keeps it".into());
            backend.drop_elements(|child| child.name() == "source");
        }
    }
    true
}

/// Ports and sockets that libvirt chooses.
fn graphics(device: &mut Element, kind: &str, notes: &mut Vec<String>) -> Result<(), String> {
    let fixed = |key: &str| {
        let value = device.attribute(key);
        value.is_some_and(|value| value != "-1" && value != "0")
    };
    let auto = device.attribute("autoport").as_deref() == Some("yes");
    if !auto && ["port", "tlsPort", "websocket"].into_iter().any(fixed) {
        notes.push(format!("the port of its screen ({kind}) is chosen by libvirt"));
        let socket = device.attribute("websocket").map(|_| "-1");
        device.edit_attributes(&[
            ("port", Some("-1")),
            ("tlsPort", None),
            ("websocket", socket),
            ("autoport", Some("yes")),
        ])?;
    } else if auto && device.attribute("websocket").is_some_and(|port| port != "-1") {
        notes.push(format!(
            "the websocket port of its screen ({kind}) is chosen by libvirt"
        ));
        device.edit_attributes(&[("websocket", Some("-1"))])?;
    }
    let mut socket = device.attribute("socket").is_some();
    for listen in device.elements_mut("listen") {
        if listen.attribute("socket").is_some() {
            socket = true;
            listen.edit_attributes(&[("socket", None)])?;
        }
    }
    if socket {
        notes.push(format!("the socket of its screen ({kind}) is chosen by libvirt"));
        device.edit_attributes(&[("socket", None)])?;
    }
    Ok(())
}

fn vsock(device: &mut Element, notes: &mut Vec<String>) -> Result<(), String> {
    for cid in device.elements_mut("cid") {
        if cid.attribute("auto").as_deref() != Some("yes") {
            notes.push("the number of its vsock is chosen by libvirt".into());
            cid.edit_attributes(&[("auto", Some("yes")), ("address", None)])?;
        }
    }
    Ok(())
}

/// What waits for others, or writes to a file, at a fixed place becomes a terminal, or a socket that libvirt places.
fn character_device(
    device: &mut Element,
    name: &str,
    kind: &str,
    notes: &mut Vec<String>,
) -> Result<bool, String> {
    if let Some(file) = attribute(device, "log", "file") {
        notes.push(format!("its {name} is not logged to {file}"));
        device.drop_elements(|child| child.name() == "log");
    }
    let connects = attribute(device, "source", "mode").as_deref() == Some("connect");
    let at = attribute(device, "source", "path")
        .or_else(|| attribute(device, "source", "service").map(|port| format!("port {port}")))
        .filter(|path| !path.is_empty());
    let claims = match kind {
        "unix" | "tcp" => !connects && at.is_some(),
        "file" | "dev" | "pipe" | "udp" => true,
        _ => false,
    };
    if !claims {
        return Ok(true);
    }
    let at = at.unwrap_or_default();
    match name {
        "serial" | "parallel" | "console" => {
            notes.push(format!("its {name} is a terminal instead of {kind} {at}"));
            device.edit_attributes(&[("type", Some("pty"))])?;
        }
        "channel" => {
            notes.push(format!(
                "its channel has a socket that libvirt places instead of {kind} {at}"
            ));
            device.edit_attributes(&[("type", Some("unix"))])?;
        }
        _ => {
            notes.push(format!("its {name} at {kind} {at} is left out"));
            return Ok(false);
        }
    }
    device.drop_elements(|child| ["source", "protocol"].contains(&child.name()));
    Ok(true)
}
