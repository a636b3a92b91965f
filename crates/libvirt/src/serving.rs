//! Where a backup job's exports are served, and how a client on this machine reaches them.
//!
//! At a socket in the domain's own directory: here as it is, on another machine behind ssh. Or, where that was asked for or there
//! is nothing but TLS (`qemu+tls://`), at a TCP port of the hypervisor, with TLS and certificates on both sides: QEMU asks
//! for the client's unless `backup_tls_x509_verify` in libvirt's `qemu.conf` says otherwise, and its own has to
//! bear the host name in the URI.

use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use strongroom_hypervisor::{HypervisorError, Listener, NbdTls};
use strongroom_nbd::{Target, TlsSettings};
use uuid::Uuid;

use crate::connection::Libvirt;
use crate::uri::Uri;
use crate::{sockets, ssh};

/// How long a port may take to answer before it counts as closed by a firewall.
const PROBE: Duration = Duration::from_secs(5);
/// What has to be in the directory with certificates (libnbd's `nbd_set_tls_certificates`).
const FILES: [&str; 3] = ["ca-cert.pem", "client-cert.pem", "client-key.pem"];

impl Libvirt {
    pub(crate) fn listener_of(&self, domain: Uuid, name: &str) -> Result<Listener, HypervisorError> {
        let fail = |message| HypervisorError::Failed {
            what: format!("find a place for the exports of domain {domain}"),
            message,
        };
        let uri = Uri::parse(&self.reported).unwrap_or_default();
        let Some(tls) = self.tls(&uri) else {
            let listener = Listener::Socket(self.socket_directory(domain)?.join(name));
            // One that cannot be reached from here is a reason not to begin.
            self.export_at(&listener, "")?;
            return Ok(listener);
        };
        has_certificates(&tls.certificates).map_err(fail)?;
        let mut given = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let others: Vec<u16> = given
            .iter()
            .filter(|(other, _)| **other != domain)
            .map(|(_, port)| *port)
            .collect();
        let port = free_port(&uri.host, &tls, &others).map_err(fail)?;
        given.insert(domain, port);
        Ok(Listener::Tls {
            address: tls.listen.to_string(),
            port,
        })
    }

    pub(crate) fn export_at(&self, listener: &Listener, export: &str) -> Result<Target, HypervisorError> {
        let export = export.to_owned();
        let uri = Uri::parse(&self.reported).unwrap_or_default();
        let path = match listener {
            Listener::Socket(path) => path.clone(),
            Listener::Tls { port, .. } => {
                let settings = TlsSettings {
                    certificates: self.tls(&uri).unwrap_or_default().certificates,
                    verify: true,
                };
                return Ok(Target::Tcp {
                    host: uri.host,
                    port: *port,
                    export,
                    tls: Some(settings),
                });
            }
        };
        if self.local() {
            return Ok(Target::Unix { path, export });
        }
        let command = ssh::to_socket(&uri, &path).map_err(|message| HypervisorError::Failed {
            what: "reach a disk's export".into(),
            message,
        })?;
        Ok(Target::Command {
            command,
            place: format!("{} on {}", path.display(), uri.host),
            export,
        })
    }

    /// The settings for TLS, if disks of the machine are reached in that way. A URI with a host and no transport means TLS
    /// to libvirt.
    fn tls(&self, uri: &Uri) -> Option<NbdTls> {
        if uri.host.is_empty() {
            return None;
        }
        let only = matches!(uri.transport.as_str(), "tls" | "");
        self.nbd_tls.clone().or_else(|| only.then(NbdTls::default))
    }

    fn socket_directory(&self, domain: Uuid) -> Result<std::path::PathBuf, HypervisorError> {
        let handle = self.handle(domain)?;
        let what = || format!("find the directory for sockets of domain {domain}");
        let fail = |message| HypervisorError::Failed {
            what: what(),
            message,
        };
        let name = handle.name().map_err(|error| self.failed(what(), &error))?;
        let id = handle
            .id()
            .ok_or_else(|| fail("the domain does not run".into()))?;
        sockets::directory(&self.reported, self.local(), id, &name).map_err(fail)
    }
}

fn has_certificates(directory: &Path) -> Result<(), String> {
    let missing = FILES.iter().find(|file| !directory.join(file).is_file());
    missing.map_or(Ok(()), |file| {
        Err(format!(
            "NBD over TLS needs {} (and {}): `certificates` in [nbd_tls] names their directory",
            directory.join(file).display(),
            FILES.join(", ")
        ))
    })
}

/// A port at which no program answers yet, and that no other job here has been given, as long as there is another.
fn free_port(host: &str, tls: &NbdTls, others: &[u16]) -> Result<u16, String> {
    let ports = tls.ports().ok_or("nbd_tls.ports: no range")?;
    let (later, first): (Vec<u16>, Vec<u16>) = ports.partition(|port| others.contains(port));
    for port in first.into_iter().chain(later) {
        if !answers(host, port)? {
            return Ok(port);
        }
    }
    Err(format!(
        "all ports of {host} from {} are in use: more VMs at a time than `ports` in [nbd_tls] allows?",
        tls.ports
    ))
}

fn answers(host: &str, port: u16) -> Result<bool, String> {
    let addresses = (host, port).to_socket_addrs();
    for address in addresses.map_err(|error| format!("look {host} up: {error}"))? {
        match TcpStream::connect_timeout(&address, PROBE) {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => {
                return Err(format!(
                    "port {port} of {host} cannot be reached: {error}; `ports` in [nbd_tls] have to be open in its firewall"
                ));
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_that_answers_is_not_taken() {
        let listening = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let taken = listening.local_addr().unwrap().port();
        let settings = |ports: String| NbdTls {
            ports,
            ..NbdTls::default()
        };
        let next = taken.checked_add(1).unwrap();
        let both = settings(format!("{taken}-{next}"));
        assert_eq!(free_port("127.0.0.1", &both, &[]), Ok(next));
        assert_eq!(
            free_port("127.0.0.1", &both, &[next]),
            Ok(next),
            "its owner may be done with it"
        );
        let refused = free_port("127.0.0.1", &settings(taken.to_string()), &[]).unwrap_err();
        assert!(refused.contains("are in use"), "{refused}");
    }

    #[test]
    fn certificates_are_looked_for_before_anything_is_begun() {
        let directory = tempfile::tempdir().unwrap();
        for file in FILES {
            let refused = has_certificates(directory.path()).unwrap_err();
            assert!(refused.contains(&format!("/{file} (and")), "{refused}");
            std::fs::write(directory.path().join(file), "").unwrap();
        }
        has_certificates(directory.path()).unwrap();
    }
}
