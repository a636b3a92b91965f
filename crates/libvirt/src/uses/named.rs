//! What a definition names: images of disks and what is below them, firmware, kernels, logs, and what else is a file. Pure.

use roxmltree::Node;
use strongroom_hypervisor::{Role, Store, Use};

use crate::xml::{child, children, parse, text};

/// Most images of one disk that are followed.
const MAX_IMAGES: usize = 256;

/// Everything that a domain's definition names. `now`: it is the live one. The error says what is wrong with it.
pub fn uses(xml: &str, now: bool) -> Result<Vec<Use>, String> {
    let document = parse(xml, "domain")?;
    let domain = document.root_element();
    let mut found = Vec::new();
    let devices = || children(domain, "devices");
    for element in devices().flat_map(|devices| children(devices, "disk")) {
        disk(element, &mut found);
    }
    let mut file = |path: Option<String>, role: Role, writable: bool| {
        let path = path
            .map(|path| path.trim().to_owned())
            .filter(|path| path.starts_with('/'));
        found.extend(path.map(|path| Use {
            store: Store::Path(path.into()),
            role,
            format: None,
            writable,
            shareable: false,
            now,
        }));
    };
    let attribute = |node: Option<Node<'_, '_>>, names: &[&str]| {
        names
            .iter()
            .find_map(|name| node?.attribute(*name))
            .map(str::to_owned)
    };
    for os in children(domain, "os") {
        for (name, what) in [
            ("loader", "its firmware"),
            ("kernel", "its kernel"),
            ("initrd", "its initial RAM disk"),
            ("dtb", "its device tree"),
            ("shim", "its boot loader"),
        ] {
            file(child(os, name).map(text), Role::Other(what), false);
        }
        for variables in children(os, "nvram") {
            file(Some(text(variables)), Role::Variables, true);
            file(
                attribute(child(variables, "source"), &["file", "dev"]),
                Role::Variables,
                true,
            );
        }
        file(attribute(child(os, "varstore"), &["path"]), Role::Variables, true);
        for table in children(os, "acpi").flat_map(|acpi| children(acpi, "table")) {
            file(Some(text(table)), Role::Other("its ACPI table"), false);
        }
    }
    for entry in children(domain, "sysinfo").flat_map(|info| children(info, "entry")) {
        file(
            attribute(Some(entry), &["file"]),
            Role::Other("its firmware configuration"),
            false,
        );
    }
    for device in devices()
        .flat_map(|devices| devices.children())
        .filter(Node::is_element)
    {
        let source = child(device, "source");
        match device.tag_name().name() {
            "serial" | "parallel" | "console" | "channel" => {
                if device.attribute("type") == Some("file") {
                    file(
                        attribute(source, &["path"]),
                        Role::Other("the file of its serial port"),
                        true,
                    );
                }
                file(
                    attribute(child(device, "log"), &["file"]),
                    Role::Other("the log of its serial port"),
                    true,
                );
            }
            "memory" => {
                let path = source.and_then(|source| child(source, "path")).map(text);
                file(path, Role::Other("its persistent memory"), true);
            }
            "pstore" => file(
                child(device, "path").map(text),
                Role::Other("its crash store"),
                true,
            ),
            "tpm" => {
                let state = child(device, "backend").and_then(|backend| child(backend, "source"));
                file(
                    attribute(state, &["path"]),
                    Role::Other("the state of its TPM"),
                    true,
                );
            }
            _ => {}
        }
    }
    for one in &mut found {
        one.now = now;
    }
    Ok(found)
}

/// What each disk of a definition has for its image, by target device name. A drive without a medium is left out.
pub fn tops(xml: &str) -> Result<Vec<(String, Store)>, String> {
    let tops = uses(xml, false)?.into_iter().filter_map(|one| match one.role {
        Role::Disk(target) => Some((target, one.store)),
        _ => None,
    });
    let mut first: Vec<(String, Store)> = Vec::new();
    for (target, store) in tops {
        // What a disk is being copied to comes behind its image.
        if first.iter().all(|(known, _)| *known != target) {
            first.push((target, store));
        }
    }
    Ok(first)
}

/// What an external snapshot refers to: its overlays, the images that they were put on, and memory.
pub fn snapshot(xml: &str, name: &str) -> Result<Vec<Use>, String> {
    let document = parse(xml, "domainsnapshot")?;
    let root = document.root_element();
    let external = |node: &Node<'_, '_>| node.attribute("snapshot") == Some("external");
    let own: Vec<_> = children(root, "disks")
        .flat_map(|disks| children(disks, "disk"))
        .filter(external)
        .collect();
    let mut found = Vec::new();
    for disk in &own {
        image(*disk, Role::Snapshot(name.to_owned()), false, &mut found);
    }
    for element in children(root, "domain")
        .flat_map(|domain| children(domain, "devices"))
        .flat_map(|devices| children(devices, "disk"))
    {
        let target = child(element, "target").and_then(|target| target.attribute("dev"));
        if own.iter().any(|disk| disk.attribute("name") == target) {
            disk(element, &mut found);
        }
    }
    let memory = children(root, "memory").find(external);
    found.extend(
        memory
            .and_then(|memory| memory.attribute("file"))
            .map(|file| Use {
                store: Store::Path(file.into()),
                role: Role::Other(""),
                format: None,
                writable: false,
                shareable: false,
                now: false,
            }),
    );
    for one in &mut found {
        one.role = Role::Snapshot(name.to_owned());
        one.writable = false;
    }
    Ok(found)
}

/// A disk's image, what lies below it, and what it is being copied to.
fn disk(element: Node<'_, '_>, found: &mut Vec<Use>) {
    let target = child(element, "target").and_then(|target| target.attribute("dev"));
    let target = target.unwrap_or("?").to_owned();
    let writable = child(element, "readonly").is_none() && element.attribute("device") != Some("cdrom");
    let before = found.len();
    image(element, Role::Disk(target.clone()), writable, found);
    if let Some(top) = found.get_mut(before..).and_then(<[Use]>::last_mut) {
        top.shareable = child(element, "shareable").is_some();
    }
    for mirror in children(element, "mirror") {
        image(mirror, Role::Disk(target.clone()), writable, found);
    }
    let mut layer = child(element, "backingStore");
    for _ in 0..MAX_IMAGES {
        let Some(below) = layer else { break };
        image(below, Role::Below(target.clone()), false, found);
        layer = child(below, "backingStore");
    }
}

/// An image as an element names it, and the file that holds its data, if that is another one.
fn image(element: Node<'_, '_>, role: Role, writable: bool, found: &mut Vec<Use>) {
    let Some(source) = child(element, "source") else {
        return;
    };
    let Some(store) = store(element.attribute("type").unwrap_or("file"), source) else {
        return;
    };
    // Of the top image the driver says it, of others an element of its own. libvirt takes a disk without a format as raw.
    let format = child(element, "driver")
        .or_else(|| child(element, "format"))
        .and_then(|place| place.attribute("type"));
    if let Some(data) = child(source, "dataStore") {
        let role = match &role {
            Role::Disk(target) => Role::Below(target.clone()),
            role => role.clone(),
        };
        image(data, role, writable, found);
    }
    found.push(Use {
        store,
        role,
        format: Some(format.unwrap_or("raw").to_owned()),
        writable,
        shareable: false,
        now: false,
    });
}

fn store(kind: &str, source: Node<'_, '_>) -> Option<Store> {
    let named = |name| source.attribute(name).filter(|value| !value.is_empty());
    let path = |name| named(name).map(|path| Store::Path(path.into()));
    match kind {
        "file" => path("file"),
        "block" | "vhostvdpa" => path("dev"),
        "dir" => path("dir"),
        "vhostuser" => path("path"),
        "volume" => Some(Store::Volume {
            pool: named("pool")?.to_owned(),
            volume: named("volume")?.to_owned(),
        }),
        "network" => {
            let hosts = children(source, "host")
                .filter_map(|host| host.attribute("name").or(host.attribute("socket")));
            let hosts: Vec<_> = hosts.collect();
            let (protocol, name) = (named("protocol")?, named("name").unwrap_or_default());
            Some(Store::Elsewhere(match hosts.as_slice() {
                [] => format!("{protocol}:{name}"),
                hosts => format!("{protocol}:{name} at {}", hosts.join(", ")),
            }))
        }
        other => {
            let mut all: Vec<_> = source
                .attributes()
                .filter(|attribute| attribute.name() != "index")
                .map(|attribute| format!("{}={}", attribute.name(), attribute.value()))
                .collect();
            all.sort_unstable();
            Some(Store::Elsewhere(format!("{other}:{}", all.join(","))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(uses: &[Use]) -> Vec<String> {
        let one = |one: &Use| {
            let kind = [(one.writable, " rw"), (one.now, " now")];
            let kind: String = kind.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
            format!("{} {}{kind}", one.store, one.role)
        };
        let mut words: Vec<String> = uses.iter().map(one).collect();
        words.sort_unstable();
        words
    }

    #[test]
    fn everything_that_is_a_file_is_named() {
        let server = include_str!("../../tests/fixtures/server.xml");
        let named = words(&uses(server, true).unwrap());
        for wanted in [
            "/images/over & lay.qcow2 its disk vda rw now",
            "/images/base.qcow2 an image below its disk vda now",
            // It is committed into.
            "/images/base.qcow2 its disk vda rw now",
            "/dev/mapper/lun its disk sdb rw now",
            "rbd:pool/image at mon1 its disk vdc rw now",
            "volume data of storage pool default its disk nvme0n1 rw now",
            "/images/install.iso its disk sdc now",
            "/images/plain its disk hda rw now",
            "/usr/share/OVMF/OVMF_CODE_4M.fd its firmware now",
            "/var/lib/libvirt/qemu/nvram/mail_VARS.fd its UEFI variables rw now",
        ] {
            assert!(named.iter().any(|found| found == wanted), "{wanted}: {named:#?}");
        }
    }

    #[test]
    fn rarer_files_are_named_too() {
        let xml = "<domain><name>x</name><os><kernel>/k</kernel><initrd>/i</initrd><nvram type='file'><source file='/v'/>
            </nvram></os><devices><disk type='file' device='floppy'><source file='/f.img'/><target dev='fda'/></disk>
            <disk type='file'><driver type='qcow2'/><source file='/meta'><dataStore type='file'><format type='raw'/>
            <source file='/data'/></dataStore></source><target dev='vda'/></disk>
            <disk type='nvme'><source type='pci' namespace='1' managed='yes'/><target dev='vdb'/></disk>
            <serial type='file'><source path='/log/serial'/></serial><console type='pty'><log file='/log/console'/></console>
            <memory model='nvdimm'><source><path>/pmem</path></source></memory>
            <tpm model='tpm-crb'><backend type='emulator'><source type='file' path='/tpm'/></backend></tpm>
            </devices></domain>";
        let expected = [
            "/data an image below its disk vda rw",
            "/f.img its disk fda rw",
            "/i its initial RAM disk",
            "/k its kernel",
            "/log/console the log of its serial port rw",
            "/log/serial the file of its serial port rw",
            "/meta its disk vda rw",
            "/pmem its persistent memory rw",
            "/tpm the state of its TPM rw",
            "/v its UEFI variables rw",
            "nvme:managed=yes,namespace=1,type=pci its disk vdb rw",
        ];
        assert_eq!(words(&uses(xml, false).unwrap()), expected);
    }

    #[test]
    fn a_snapshot_refers_to_overlays_bases_and_memory() {
        let xml = "<domainsnapshot><name>s</name><memory snapshot='external' file='/mem'/><disks>
            <disk name='vda' snapshot='external'><driver type='qcow2'/><source file='/over'/></disk>
            <disk name='vdb' snapshot='internal'/></disks>
            <domain><devices><disk type='file'><driver type='qcow2'/><source file='/base'/><target dev='vda'/></disk>
            <disk type='file'><source file='/other'/><target dev='vdb'/></disk></devices></domain></domainsnapshot>";
        let expected = [
            "/base a part of its snapshot \"s\"",
            "/mem a part of its snapshot \"s\"",
            "/over a part of its snapshot \"s\"",
        ];
        assert_eq!(words(&snapshot(xml, "s").unwrap()), expected);
    }
}
