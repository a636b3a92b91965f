//! Making domains and taking away what was made, behind the port.

use strongroom_hypervisor::{Creation, Host, Hypervisor, HypervisorError, NewDomain, Support};
use uuid::Uuid;
use virt::domain::Domain as Handle;
use virt::error::{Error, ErrorNumber};
use virt::sys::{
    VIR_DOMAIN_START_AUTODESTROY, VIR_DOMAIN_UNDEFINE_MANAGED_SAVE, VIR_DOMAIN_UNDEFINE_NVRAM,
    VIR_DOMAIN_XML_INACTIVE,
};

use crate::connection::{Libvirt, words};
use crate::hypervisor::is;
use crate::{compose, host, sys};

/// The machine type that new domains have, and whose capabilities are asked for.
const MACHINE: &str = "q35";

impl Creation for Libvirt {
    fn compose(&self, new: &NewDomain) -> Result<String, HypervisorError> {
        compose::domain(new).map_err(|message| HypervisorError::Failed {
            what: format!("write the definition of domain {:?}", new.name),
            message,
        })
    }

    fn host(&self) -> Result<Host, HypervisorError> {
        let what = || "read what the host can give".to_owned();
        let failed = |error: Error| self.failed(what(), &error);
        let bad = |message| HypervisorError::Failed {
            what: what(),
            message,
        };
        let connection = self.connection()?;
        let kvm = host::kvm(&connection.capabilities().map_err(failed)?).map_err(bad)?;
        let kind = if kvm.is_yes() { "kvm" } else { "qemu" };
        let capabilities = connection
            .domain_capabilities(None, Some("x86_64"), Some(MACHINE), Some(kind), 0)
            .map_err(failed)?;
        let mut machine = host::machine(&capabilities).map_err(bad)?;
        // Domain capabilities know no reasons; the call that describes a host's SEV does.
        if [&machine.sev, &machine.sev_snp].iter().any(|sev| !sev.is_yes())
            && let Err(error) = sys::check_sev(&connection)
        {
            for sev in [&mut machine.sev, &mut machine.sev_snp] {
                if let Support::No(why) = sev {
                    *why = format!("{why}: {}", words(&error));
                }
            }
        }
        Ok(Host {
            kvm,
            uefi: machine.uefi,
            secure_boot: machine.secure_boot,
            tpm: machine.tpm,
            sev: machine.sev,
            sev_snp: machine.sev_snp,
        })
    }

    fn run_throwaway(&self, xml: &str) -> Result<Uuid, HypervisorError> {
        self.check_definable(xml, false)?;
        let started = self
            .connection()?
            .create_domain_xml(xml, VIR_DOMAIN_START_AUTODESTROY)
            .and_then(|domain| domain.uuid());
        started.map_err(|error| self.failed("start a throwaway domain".into(), &error))
    }

    fn start(&self, domain: Uuid, mark: &str) -> Result<(), HypervisorError> {
        let handle = self.handle(domain)?;
        self.check_mark(domain, &handle, mark)?;
        if self.is_active(&handle)? {
            return Ok(());
        }
        handle
            .create()
            .map_err(|error| self.failed(format!("start domain {domain}"), &error))
    }

    fn destroy(&self, domain: Uuid, mark: &str) -> Result<(), HypervisorError> {
        let Some(handle) = self.marked(domain, mark)? else {
            return Ok(());
        };
        match handle.destroy() {
            // Of a domain that went away meanwhile libvirt says that it does not run, or that there is none.
            Err(error) if !is_gone(&error) => {
                if self.found_active(domain)? {
                    return Err(self.failed(format!("turn off domain {domain}"), &error));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn undefine(&self, domain: Uuid, mark: &str) -> Result<(), HypervisorError> {
        let Some(handle) = self.marked(domain, mark)? else {
            return Ok(());
        };
        let what = || format!("remove domain {domain}");
        if self.is_active(&handle)? {
            return Err(HypervisorError::Failed {
                what: what(),
                message: "it runs".into(),
            });
        }
        let flags = VIR_DOMAIN_UNDEFINE_NVRAM | VIR_DOMAIN_UNDEFINE_MANAGED_SAVE;
        match handle.undefine_flags(flags) {
            Err(error) if !is_gone(&error) => Err(self.failed(what(), &error)),
            _ => Ok(()),
        }
    }
}

impl Libvirt {
    /// A domain with that mark; `None` if there is no domain of that UUID.
    fn marked(&self, domain: Uuid, mark: &str) -> Result<Option<Handle>, HypervisorError> {
        let handle = match self.handle(domain) {
            Err(HypervisorError::NoSuchDomain(..)) => return Ok(None),
            handle => handle?,
        };
        match self.check_mark(domain, &handle, mark) {
            // It went away meanwhile.
            Err(_) if matches!(self.handle(domain), Err(HypervisorError::NoSuchDomain(..))) => Ok(None),
            checked => checked.map(|()| Some(handle)),
        }
    }

    fn check_mark(&self, domain: Uuid, handle: &Handle, mark: &str) -> Result<(), HypervisorError> {
        let what = || format!("make sure that domain {domain} is the one that was made here");
        let xml = handle
            .xml_desc(VIR_DOMAIN_XML_INACTIVE)
            .map_err(|error| self.failed(what(), &error))?;
        let message = match compose::mark_of(&xml) {
            Ok(Some(found)) if found == mark => return Ok(()),
            Ok(Some(found)) => format!("it bears the mark {found:?} instead of {mark:?}"),
            Ok(None) => "it bears no mark".into(),
            Err(reason) => reason,
        };
        Err(HypervisorError::Failed {
            what: what(),
            message,
        })
    }

    fn found_active(&self, domain: Uuid) -> Result<bool, HypervisorError> {
        match self.handle(domain) {
            Err(HypervisorError::NoSuchDomain(..)) => Ok(false),
            handle => self.is_active(&handle?),
        }
    }
}

fn is_gone(error: &Error) -> bool {
    is(error, ErrorNumber::NoDomain)
}
