//! Reads what the host can give to a new domain: libvirt's capabilities (`formatcaps`) and domain capabilities
//! (`formatdomaincaps`).

use roxmltree::Node;
use strongroom_hypervisor::Support;

use crate::xml::{child, children, parse, text};

/// Whether a host has KVM for x86-64 guests, from its capabilities.
pub fn kvm(capabilities: &str) -> Result<Support, String> {
    let document = parse(capabilities, "capabilities")?;
    let mut arches = children(document.root_element(), "guest")
        .flat_map(|guest| children(guest, "arch"))
        .filter(|arch| arch.attribute("name") == Some("x86_64"))
        .peekable();
    if arches.peek().is_none() {
        return Ok(Support::No("its libvirt knows no x86_64 guests".into()));
    }
    let mut domains = arches.flat_map(|arch| children(arch, "domain"));
    Ok(if domains.any(|domain| domain.attribute("type") == Some("kvm")) {
        Support::Yes
    } else {
        Support::No("its libvirt offers no domain type kvm for x86_64 guests".into())
    })
}

/// What domain capabilities say of one machine type.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    /// UEFI firmware.
    pub uefi: Support,
    /// UEFI firmware with Secure Boot.
    pub secure_boot: Support,
    /// An emulated TPM 2.0.
    pub tpm: Support,
    /// SEV.
    pub sev: Support,
    /// SEV-SNP.
    pub sev_snp: Support,
}

/// Reads domain capabilities.
pub fn machine(capabilities: &str) -> Result<Machine, String> {
    let document = parse(capabilities, "domainCapabilities")?;
    let root = document.root_element();
    let named = |name| child(root, name).map(text).unwrap_or_default();
    let machine = format!("{} with {}", named("machine"), named("domain"));
    let either = |yes: bool, lacks: &str| {
        if yes {
            Support::Yes
        } else {
            Support::No(format!("its libvirt offers {lacks} for {machine}"))
        }
    };
    let os = child(root, "os");
    let uefi = os.is_some_and(|os| has(os, "firmware", "efi"));
    let secure = os
        .and_then(|os| child(os, "loader"))
        .is_some_and(|loader| has(loader, "secure", "yes"));
    let tpm = child(root, "devices")
        .and_then(|devices| child(devices, "tpm"))
        .is_some_and(|tpm| {
            supported(tpm) && has(tpm, "backendModel", "emulator") && has(tpm, "backendVersion", "2.0")
        });
    let features = child(root, "features");
    let security = features.and_then(|features| child(features, "launchSecurity"));
    // Before libvirt 10.5 there is only `<sev>`, which is about plain SEV.
    let sev = match security {
        Some(security) => supported(security) && has(security, "sectype", "sev"),
        None => features
            .and_then(|features| child(features, "sev"))
            .is_some_and(supported),
    };
    let sev_snp = security.is_some_and(|security| supported(security) && has(security, "sectype", "sev-snp"));
    Ok(Machine {
        uefi: either(uefi, "no UEFI firmware"),
        secure_boot: either(uefi && secure, "no firmware with Secure Boot"),
        tpm: either(tpm, "no emulated TPM 2.0 (swtpm)"),
        sev: either(sev, "no launch security sev"),
        sev_snp: either(sev_snp, "no launch security sev-snp"),
    })
}

fn supported(element: Node<'_, '_>) -> bool {
    element.attribute("supported") == Some("yes")
}

/// Whether an `<enum name='…'>` of the element holds a value.
fn has(element: Node<'_, '_>, name: &str, value: &str) -> bool {
    children(element, "enum")
        .filter(|list| list.attribute("name") == Some(name))
        .flat_map(|list| children(list, "value"))
        .any(|found| text(found) == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libvirt 11.3 writes it, on a host with SEV-SNP.
    const SNP: &str = "<domainCapabilities><domain>kvm</domain><machine>pc-q35-10.0</machine><os supported='yes'>
        <enum name='firmware'><value>efi</value></enum><loader supported='yes'><enum name='secure'><value>yes</value>
        <value>no</value></enum></loader></os><devices><tpm supported='yes'><enum name='backendModel'>
        <value>emulator</value></enum><enum name='backendVersion'><value>1.2</value><value>2.0</value></enum></tpm>
        </devices><features><sev supported='yes'><cbitpos>51</cbitpos></sev><launchSecurity supported='yes'>
        <enum name='sectype'><value>sev</value><value>sev-snp</value></enum></launchSecurity></features>
        </domainCapabilities>";

    fn no(what: &str) -> Support {
        Support::No(format!("its libvirt offers {what} for pc-q35-10.0 with kvm"))
    }

    #[test]
    fn a_host_with_everything() {
        let yes = || Support::Yes;
        let everything = Machine {
            uefi: yes(),
            secure_boot: yes(),
            tpm: yes(),
            sev: yes(),
            sev_snp: yes(),
        };
        assert_eq!(machine(SNP).unwrap(), everything);
    }

    #[test]
    fn each_thing_can_be_missing() {
        let without = |part: &str, by: &str| {
            assert!(SNP.contains(part));
            machine(&SNP.replace(part, by)).unwrap()
        };
        let found = without("<value>efi</value>", "");
        assert_eq!(
            (found.uefi, found.secure_boot),
            (no("no UEFI firmware"), no("no firmware with Secure Boot"))
        );
        let found = without("<value>yes</value>", "");
        assert_eq!(
            (found.uefi, found.secure_boot),
            (Support::Yes, no("no firmware with Secure Boot"))
        );
        let found = without("<value>2.0</value>", "");
        assert_eq!(found.tpm, no("no emulated TPM 2.0 (swtpm)"));
        let found = without("<value>sev-snp</value>", "");
        assert_eq!(
            (found.sev, found.sev_snp),
            (Support::Yes, no("no launch security sev-snp"))
        );
        let found = without(
            "<launchSecurity supported='yes'>",
            "<launchSecurity supported='no'>",
        );
        assert_eq!(found.sev, no("no launch security sev"));
    }

    #[test]
    fn an_old_libvirt_knows_sev_alone() {
        let old = SNP
            .replace("launchSecurity", "somethingElse")
            .replace("<cbitpos>", "<enum name='sectype'/><cbitpos>");
        let found = machine(&old).unwrap();
        assert_eq!(
            (found.sev, found.sev_snp),
            (Support::Yes, no("no launch security sev-snp"))
        );
        let found = machine(&old.replace("sev supported='yes'", "sev supported='no'")).unwrap();
        assert_eq!(found.sev, no("no launch security sev"));
    }

    #[test]
    fn kvm_is_offered_or_not() {
        let with = "<capabilities><guest><os_type>hvm</os_type><arch name='i686'><domain type='kvm'/></arch></guest>
            <guest><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>";
        assert_eq!(kvm(with).unwrap(), Support::Yes);
        let without = with.replace(
            "<domain type='qemu'/><domain type='kvm'/>",
            "<domain type='qemu'/>",
        );
        assert!(matches!(kvm(&without).unwrap(), Support::No(why) if why.contains("no domain type kvm")));
        assert!(
            matches!(kvm("<capabilities/>").unwrap(), Support::No(why) if why.contains("no x86_64 guests"))
        );
    }
}
