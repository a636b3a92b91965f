//! Images that belong to more than one VM: what one guest writes, the other one has not expected. Pure.

use strongroom_hypervisor::Role;
use uuid::Uuid;

use super::{Finding, Level};
use crate::files::{Held, Inventory};

/// What of one VM's images others have, too: one finding for each disk and other VM.
pub fn findings(inventory: &Inventory, vm: Uuid) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for own in inventory.held().iter().filter(|held| held.uuid == vm) {
        let Role::Disk(target) = &own.role else { continue };
        for other in inventory.held() {
            if other.uuid == vm || other.identity != own.identity {
                continue;
            }
            let finding = compare(target, own, other);
            findings.extend(finding.filter(|new| {
                findings
                    .iter()
                    .all(|known| (known.code, &known.disk, &known.text) != (new.code, &new.disk, &new.text))
            }));
        }
    }
    findings
}

fn compare(target: &str, own: &Held, other: &Held) -> Option<Finding> {
    let finding = |code, level, text| {
        Some(Finding {
            code,
            level,
            disk: Some(target.to_owned()),
            text,
        })
    };
    let (role, domain) = (other.role.to_string().replacen("its ", "", 1), &other.domain);
    match other.role {
        Role::Disk(_) if own.writable && other.writable => {
            if own.shareable && other.shareable {
                let text = format!("its image is {role} of VM {domain}, too; both have it as shareable");
                return finding("shared-image", Level::Note, text);
            }
            let text = format!(
                "its image is {role} of VM {domain}, too: when both write to it, its file systems are destroyed"
            );
            finding("shared-image", Level::Warning, text)
        }
        Role::Below(_) if own.writable => {
            let text = format!(
                "its image is {role} of VM {domain}: what this VM writes changes that disk, so that both are damaged"
            );
            let level = if own.active { Level::Warning } else { Level::Note };
            finding("backing-image", level, text)
        }
        _ => None,
    }
}
