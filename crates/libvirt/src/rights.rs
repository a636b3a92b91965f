//! What an account on a hypervisor has to be allowed so that another machine can back up its VMs, and no more.
//!
//! The key is let in as two accounts of one purpose each, and sshd, which lets it in, is all that changes between them:
//!
//! | account | the key may | libvirt lets it | because |
//! |---|---|---|---|
//! | `NAME` | talk to libvirt, and read the exports of backups that are under way | look at listed VMs (`domain.getattr`, `domain.read`) | planning; each step is looked at after it is done |
//! | `NAME-jobs` | say one of six sentences | begin and end backup jobs of listed VMs, and all else that these rights are good for | libvirt has no narrower ones |
//!
//! An account that may begin a backup job (`domain.checkpoint`, `domain.block-write`) may name files that libvirt writes, and
//! addresses that QEMU listens on. One that may end one (`domain.write`) may talk to QEMU's monitor. So the account that may do
//! this is one in which nothing runs but a script of the administrator's: it takes words, checks each, and composes what libvirt
//! is given ([`words`]). polkit tells the accounts apart by their user, which no process can choose: a command line it could.
//!
//! Three files for each hypervisor, then ([`Rights::commands`]): a polkit rule, which libvirt asks about each call
//! (`access_drivers = ["polkit"]`, <https://libvirt.org/aclpolkit.html>), and for either account a script and the line of
//! `authorized_keys` that runs it, whatever the client asks for. Pure text: nothing is done here.
//!
//! Deliberately not among the rights of `NAME`: `domain.read-secure`, which is the passwords in a definition.

mod commands;
pub mod old;
mod polkit;
#[cfg(test)]
mod tests;
pub mod words;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use strongroom_hypervisor::names::{is_plain, is_plain_char};

/// An account, and what it may back up.
#[derive(Debug, Clone)]
pub struct Rights {
    /// The account on the hypervisor; the other one is [`jobs_account`].
    pub account: String,
    /// Group that may enter the directories in which QEMU makes its sockets.
    pub group: String,
    /// The VMs.
    pub vms: Vec<String>,
    /// The public key that is let in, as in `id_ed25519.pub`.
    pub key: String,
    /// A storage pool whose files may be read: the one with the UEFI variables.
    pub pool: Option<String>,
    /// The VM that makes the backups, if it is one of this hypervisor's: exports may be attached to it, read-only.
    pub own: Option<String>,
    /// Where the scratch files of disks go that are no files.
    pub images: PathBuf,
    /// Where exports may be served over TLS; nowhere if not said.
    pub nbd_tls: Option<(IpAddr, RangeInclusive<u16>)>,
}

/// The account in which jobs are begun and ended.
pub fn jobs_account(account: &str) -> String {
    format!("{account}-jobs")
}

/// How the directories begin in which QEMU makes its sockets.
const SOCKETS: &str = "/var/lib/libvirt/qemu/domain-";

/// Whether `virsh` could take a name for a number or a UUID of some other VM.
fn is_ambiguous(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_digit() || b == b'+') || uuid::Uuid::parse_str(name).is_ok()
}

impl Rights {
    /// Whether the names can be written into rules and scripts as they are, and the key is one.
    pub fn check(&self) -> Result<(), String> {
        if self.vms.is_empty() {
            return Err("name the VMs that may be backed up".into());
        }
        let names = self
            .vms
            .iter()
            .chain([&self.account, &self.group])
            .chain(&self.pool)
            .chain(&self.own);
        if let Some(odd) = names.into_iter().find(|name| !is_plain(name)) {
            return Err(format!(
                "{odd:?}: only letters, digits and ._+- can be in a name that rules are made for"
            ));
        }
        if let Some(odd) = self.vms.iter().chain(&self.own).find(|name| is_ambiguous(name)) {
            return Err(format!(
                "{odd:?} can be the number or the UUID of another VM: rename it (`virsh domrename`)"
            ));
        }
        let images = self.images.to_str().unwrap_or_default();
        if !images.starts_with('/') || !images.chars().all(|c| is_plain_char(c) || c == '/') {
            return Err(format!(
                "{}: a path from the root on, of letters, digits and ._+-/, is needed for scratch files",
                self.images.display()
            ));
        }
        let words: Vec<&str> = self.key.split_whitespace().collect();
        let kind = words.first().copied().unwrap_or_default();
        let base64 = |text: &&str| {
            text.len() > 40
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
        };
        if !(kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-"))
            || !words.get(1).is_some_and(base64)
            || self.key.trim().lines().count() != 1
            || self.key.trim().contains(char::is_control)
        {
            return Err("the key is not a public SSH key on one line".into());
        }
        Ok(())
    }
}
