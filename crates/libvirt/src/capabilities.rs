//! What a host can do with domains of a kind (libvirt's `formatdomaincaps`).

use crate::xml::{child, children, parse, text};

/// Emulator, architecture, machine and type of a domain, in the order in which libvirt wants to be asked.
pub fn machine(xml: &str) -> Result<[Option<String>; 4], String> {
    let document = parse(xml, "domain")?;
    let domain = document.root_element();
    let kind = child(domain, "os").and_then(|os| child(os, "type"));
    let of_kind = |name| kind.and_then(|kind| kind.attribute(name)).map(str::to_owned);
    let emulator = children(domain, "devices").find_map(|devices| child(devices, "emulator"));
    Ok([
        emulator.map(|emulator| text(emulator).trim().to_owned()),
        of_kind("arch"),
        of_kind("machine"),
        domain.attribute("type").map(str::to_owned),
    ])
}

/// Why no backup job can run there, if so. A libvirt that is too old to have them does not know the word.
pub fn lacks_backup_jobs(xml: &str) -> Result<Option<String>, String> {
    let document = parse(xml, "domainCapabilities")?;
    let features = child(document.root_element(), "features");
    let backup = features.and_then(|features| child(features, "backup"));
    Ok(match backup.and_then(|backup| backup.attribute("supported")) {
        Some("yes") => None,
        Some(_) => Some("libvirt says that its QEMU has no backup jobs".into()),
        None => Some("its libvirt knows no backup jobs".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_told_as_far_as_it_is_known() {
        let xml = "<domain type='kvm'><os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>
                   <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>";
        let [emulator, arch, machine, kind] = machine(xml).unwrap();
        assert_eq!(emulator.as_deref(), Some("/usr/bin/qemu-system-x86_64"));
        assert_eq!(arch.as_deref(), Some("x86_64"));
        assert_eq!(machine.as_deref(), Some("pc-q35-10.0"));
        assert_eq!(kind.as_deref(), Some("kvm"));
        assert_eq!(super::machine("<domain/>").unwrap(), [None, None, None, None]);
    }

    #[test]
    fn only_a_plain_yes_is_one() {
        let said = |features: &str| {
            lacks_backup_jobs(&format!(
                "<domainCapabilities><path>/usr/bin/qemu</path>{features}</domainCapabilities>"
            ))
            .unwrap()
        };
        assert_eq!(said("<features><backup supported='yes'/></features>"), None);
        for no in [
            "<features><backup supported='no'/></features>",
            "<features><gic supported='no'/></features>",
            "",
        ] {
            assert!(said(no).is_some(), "{no}");
        }
        assert!(lacks_backup_jobs("<domain/>").is_err());
    }
}
