//! Where a server is and what to ask it for.

use std::{
    ffi::{CString, OsString},
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::Error,
    sys::{Place, Tls},
    tunnel::Tunnel,
};

/// The longest path of a socket: `sun_path` has 108 bytes, the last of which is NUL (unix(7)).
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// An export of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A socket on this host.
    Unix {
        /// Its path, at most 107 bytes.
        path: PathBuf,
        /// The name of the export.
        export: String,
    },
    /// A server in the network.
    Tcp {
        /// Name or address.
        host: String,
        /// Port, 10809 by custom.
        port: u16,
        /// The name of the export.
        export: String,
        /// Demand TLS; without it, everything is in the clear.
        tls: Option<TlsSettings>,
    },
    /// A server behind a command, which connects its standard input and output to it (`ssh HOST nc -U SOCKET`).
    Command {
        /// Program and arguments.
        command: Vec<OsString>,
        /// Where that leads, for messages.
        place: String,
        /// The name of the export.
        export: String,
    },
    /// `nbd://`, `nbds://`, `nbd+unix://`, …, as the NBD project's URI specification has it. The form with `nbds`
    /// demands TLS; local files named in a URI are not used.
    Uri(String),
}

/// TLS with certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// A directory with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` if the server wants to know us.
    pub certificates: PathBuf,
    /// Check the server's certificate and name. False means: an attacker on the way can read and alter the disk.
    pub verify: bool,
}

/// What to ask a server for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ask for `base:allocation`, the knowledge of holes.
    pub allocation: bool,
    /// Ask for these dirty bitmaps of QEMU (`qemu:dirty-bitmap:NAME`).
    pub dirty_bitmaps: Vec<String>,
    /// How long connecting, and how long any single command apart from pipelined ones may take.
    pub timeout: Duration,
}

impl Default for Options {
    /// Allocation, no bitmap, 30 seconds.
    fn default() -> Self {
        Self {
            allocation: true,
            dirty_bitmaps: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }
}

impl Options {
    /// Bytes and nothing else.
    pub fn plain() -> Self {
        Self {
            allocation: false,
            ..Self::default()
        }
    }

    /// The default and one dirty bitmap.
    pub fn with_bitmap(name: impl Into<String>) -> Self {
        Self {
            dirty_bitmaps: vec![name.into()],
            ..Self::default()
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path, export } => write!(f, "export {export:?} at {}", path.display()),
            Self::Tcp {
                host, port, export, ..
            } => write!(f, "export {export:?} at {host}:{port}"),
            Self::Command { place, export, .. } => write!(f, "export {export:?} at {place}"),
            Self::Uri(uri) => f.write_str(uri),
        }
    }
}

/// A target in the words of the library; the export's name is in the URI if it is not given.
pub(crate) struct Parts {
    pub(crate) place: Place,
    pub(crate) export: Option<CString>,
    pub(crate) tls: Tls,
    /// What has to live as long as the connection.
    pub(crate) tunnel: Option<Tunnel>,
}

impl Target {
    pub(crate) fn parts(&self) -> Result<Parts, Error> {
        Ok(match self {
            Self::Command { command, export, .. } => {
                let export = Some(c_string("export name", export)?);
                let (tunnel, socket) = Tunnel::start(command).map_err(|error| Error::Connect {
                    target: self.to_string(),
                    reason: error.to_string(),
                })?;
                Parts {
                    place: Place::Socket(socket),
                    export,
                    tls: Tls::Off,
                    tunnel: Some(tunnel),
                }
            }
            Self::Unix { path, export } => Parts {
                place: Place::Unix(socket_path(path)?),
                export: Some(c_string("export name", export)?),
                tls: Tls::Off,
                tunnel: None,
            },
            Self::Tcp {
                host,
                port,
                export,
                tls,
            } => Parts {
                place: Place::Tcp {
                    host: c_string("host name", host)?,
                    port: c_string("port", &port.to_string())?,
                },
                export: Some(c_string("export name", export)?),
                tls: match tls {
                    None => Tls::Off,
                    Some(TlsSettings { certificates, verify }) => Tls::On {
                        certificates: c_path(certificates)?,
                        verify: *verify,
                    },
                },
                tunnel: None,
            },
            Self::Uri(uri) => Parts {
                place: Place::Uri(c_string("URI", uri)?),
                export: None,
                tls: Tls::ByUri,
                tunnel: None,
            },
        })
    }
}

pub(crate) fn c_string(what: &'static str, value: &str) -> Result<CString, Error> {
    CString::new(value).map_err(|_| Error::Unusable {
        what,
        value: value.to_owned(),
    })
}

fn c_path(path: &Path) -> Result<CString, Error> {
    let value = || path.display().to_string();
    CString::new(path.to_owned().into_os_string().into_vec()).map_err(|_| Error::Unusable {
        what: "path",
        value: value(),
    })
}

fn socket_path(path: &Path) -> Result<CString, Error> {
    if path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
        let what = "socket path (over 107 bytes)";
        return Err(Error::Unusable {
            what,
            value: path.display().to_string(),
        });
    }
    c_path(path)
}
