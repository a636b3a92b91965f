//! Where the exports of a backup job are served.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the NBD server of a backup job listens on the hypervisor. In the journal a socket is a string, as it always was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Listener {
    /// A unix socket; its directory must be writable for QEMU's user.
    Socket(PathBuf),
    /// TCP, with TLS and nothing else: QEMU shows its certificate and asks for the client's.
    Tls {
        /// The address on which the hypervisor listens; `0.0.0.0` for all.
        address: String,
        /// The port there.
        port: u16,
    },
}

impl Listener {
    /// The socket's path, where it is one.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Socket(path) => Some(path),
            Self::Tls { .. } => None,
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(out, "socket {}", path.display()),
            Self::Tls { address, port } => write!(out, "port {port} of {address}"),
        }
    }
}
