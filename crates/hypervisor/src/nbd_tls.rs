//! NBD over TLS, for machines that are not reached over ssh.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where other machines serve disks over TLS, and what to show them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NbdTls {
    /// TCP ports of the hypervisor, one for each VM that is backed up at the same time: the first and the last, with a dash
    /// between, or a single one.
    pub ports: String,
    /// The address of the hypervisor on which QEMU listens.
    pub listen: IpAddr,
    /// A directory with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`, under the names that QEMU and libnbd use.
    pub certificates: PathBuf,
}

impl Default for NbdTls {
    /// From NBD's own port on; all addresses; where libnbd looks.
    fn default() -> Self {
        Self {
            ports: "10809-10824".into(),
            listen: IpAddr::from([0; 4]),
            certificates: "/etc/pki/libnbd".into(),
        }
    }
}

impl NbdTls {
    /// The ports; none if the text is no range.
    pub fn ports(&self) -> Option<RangeInclusive<u16>> {
        let (first, last) = self.ports.split_once('-').unwrap_or((&self.ports, &self.ports));
        let port = |text: &str| text.trim().parse().ok().filter(|port| *port > 0);
        let (first, last) = (port(first)?, port(last)?);
        (first <= last).then_some(first..=last)
    }

    /// Whether the values make sense.
    pub fn check(&self) -> Result<(), String> {
        if self.ports().is_none() {
            return Err(format!(
                "nbd_tls.ports: {:?} is no range such as 10809-10824",
                self.ports
            ));
        }
        if !self.certificates.is_absolute() {
            return Err("nbd_tls.certificates: a path from the root on is needed".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_range() {
        let ports = |text: &str| {
            let settings = NbdTls {
                ports: text.into(),
                ..NbdTls::default()
            };
            settings.ports()
        };
        assert_eq!(ports("10809-10824"), Some(10809..=10824));
        assert_eq!(ports("1 - 2"), Some(1..=2));
        assert_eq!(ports("7"), Some(7..=7));
        for bad in ["", "-", "2-1", "0-1", "1-65536", "1-2-3", "a"] {
            assert_eq!(ports(bad), None, "{bad}");
        }
    }
}
