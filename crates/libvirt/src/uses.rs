//! Which files the domains of the host use ([`Uses`]): every definition that libvirt has of every domain.
//!
//! That is the live one, the stored one, the one that saved memory resumes with, and what external snapshots refer to.
//! `named` reads them; volumes are resolved to their paths by `volumes`.
//!
//! libvirt gives no definition of a domain, not even the stored one, while a job holds it whose QEMU does not answer: each
//! question is refused after half a minute. Such a domain is told of after the first one, with what it uses left open.

pub mod named;

use std::path::PathBuf;

use strongroom_hypervisor::{Disk, HypervisorError, Role, Store, Use, User, Uses};
use virt::connect::Connect;
use virt::domain::Domain as Handle;
use virt::error::{Error, ErrorNumber};
use virt::sys::{VIR_DOMAIN_SNAPSHOT_LIST_EXTERNAL, VIR_DOMAIN_XML_INACTIVE};

use crate::connection::Libvirt;
use crate::definition;
use crate::hypervisor::{is, is_busy};
use crate::{connection, sys, volumes};

/// Where the driver for system domains saves memory.
const SAVED: &str = "/var/lib/libvirt/qemu/save";

impl Uses for Libvirt {
    fn users(&self) -> Result<Vec<User>, HypervisorError> {
        let connection = self.connection()?;
        let domains = connection
            .list_all_domains(0)
            .map_err(|error| self.failed("list domains".into(), &error))?;
        let mut users = Vec::new();
        for handle in domains {
            match self.user(&connection, &handle) {
                Ok(user) => users.push(user),
                // It went away, or is not this account's to see.
                Err(Unread::Libvirt(error))
                    if is(&error, ErrorNumber::NoDomain) || is(&error, ErrorNumber::AccessDenied) => {}
                Err(Unread::Libvirt(error)) => {
                    return Err(self.failed("read which files a domain uses".into(), &error));
                }
                Err(Unread::Definition(domain, reason)) => {
                    return Err(HypervisorError::Definition { domain, reason });
                }
            }
        }
        Ok(users)
    }

    fn disks_in(&self, xml: &str) -> Result<Vec<Disk>, HypervisorError> {
        let definition = definition::read(xml).map_err(|reason| HypervisorError::Definition {
            domain: "(not defined)".into(),
            reason,
        })?;
        let mut disks = definition.disks;
        self.resolve(&mut disks)?;
        Ok(disks)
    }
}

/// Why a domain's files are not known.
enum Unread {
    Libvirt(Error),
    Definition(String, String),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Self {
        Self::Libvirt(error)
    }
}

impl Libvirt {
    fn user(&self, connection: &Connect, handle: &Handle) -> Result<User, Unread> {
        let (name, uuid, active) = (handle.name()?, handle.uuid()?, handle.is_active()?);
        let (uses, unread) = match self.uses(connection, handle, &name, active) {
            Ok(uses) => (uses, None),
            Err(Unread::Libvirt(error)) if is_busy(&error) => (Vec::new(), Some(connection::words(&error))),
            Err(error) => return Err(error),
        };
        Ok(User {
            name,
            uuid,
            active,
            uses,
            unread,
        })
    }

    fn uses(
        &self,
        connection: &Connect,
        handle: &Handle,
        name: &str,
        active: bool,
    ) -> Result<Vec<Use>, Unread> {
        let bad = |reason| Unread::Definition(name.to_owned(), reason);
        let saved = handle.has_managed_save(0)?;
        let mut uses = Vec::new();
        if active {
            uses.extend(named::uses(&handle.xml_desc(0)?, true).map_err(bad)?);
        }
        // What is defined for the next start is what saved memory is resumed with, unless it says otherwise.
        uses.extend(named::uses(&handle.xml_desc(VIR_DOMAIN_XML_INACTIVE)?, saved).map_err(bad)?);
        if saved {
            uses.extend(self.saved_memory(name));
            if let Ok(xml) = sys::managed_save_xml(handle) {
                uses.extend(named::uses(&xml, true).map_err(bad)?);
            }
        }
        // A driver without snapshots has none.
        for snapshot in handle
            .list_all_snapshots(VIR_DOMAIN_SNAPSHOT_LIST_EXTERNAL)
            .unwrap_or_default()
        {
            uses.extend(named::snapshot(&snapshot.xml_desc(0)?, &snapshot.name()?).map_err(bad)?);
        }
        for one in &mut uses {
            if let Store::Volume { pool, volume } = &one.store
                && let Ok(Some(place)) = volumes::find(connection, pool, volume)
            {
                one.store = place.store;
            }
        }
        Ok(uses)
    }

    fn saved_memory(&self, name: &str) -> Option<Use> {
        self.reported.ends_with("/system").then(|| Use {
            store: Store::Path(PathBuf::from(format!("{SAVED}/{name}.save"))),
            role: Role::SavedMemory,
            format: None,
            writable: false,
            shareable: false,
            now: true,
        })
    }
}
