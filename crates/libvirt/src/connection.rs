//! A connection to a libvirt daemon: opened, kept alive, opened again.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use strongroom_engine::vm::HypervisorError;
use virt::connect::Connect;
use virt::error::Error;

use crate::events::Events;
use crate::sys::Subscription;

/// Seconds between keep-alive messages to a remote daemon, and how many may go unanswered: half a minute.
const KEEP_ALIVE: (i32, u32) = (5, 6);

/// libvirt, over one connection.
pub struct Libvirt {
    /// As configured; libvirt's own idea of it where nothing was configured.
    pub(crate) uri: String,
    /// As libvirt reports it, with aliases and defaults resolved.
    pub(crate) reported: String,
    configured: String,
    link: Mutex<Link>,
    pub(crate) events: Arc<Events>,
}

/// The connection of the moment, and what is registered on it.
struct Link {
    /// Before the connection, so that it is taken back first.
    subscription: Option<Subscription>,
    connection: Connect,
}

impl Libvirt {
    /// Connects. `uri` is written as libvirt writes it (`qemu:///system`, `qemu+ssh://root@host/system`); empty
    /// means libvirt's default, which `LIBVIRT_DEFAULT_URI` and its `libvirt.conf` decide.
    ///
    /// The first call starts one thread for the process, on which libvirt sends its keep-alive messages, and stops
    /// libvirt from printing errors. The connection is not read-only: the definition's secrets are read, too.
    pub fn connect(uri: &str) -> Result<Self, HypervisorError> {
        let connection = open(uri)?;
        let reported = connection.uri().map_err(|error| connect_error(uri, &error))?;
        let shown = if uri.is_empty() {
            reported.clone()
        } else {
            uri.to_owned()
        };
        let configured = uri.to_owned();
        Ok(Self {
            uri: shown,
            reported,
            configured,
            link: Mutex::new(Link {
                subscription: None,
                connection,
            }),
            events: Arc::default(),
        })
    }

    /// The connection, opened again if it was lost; with a registration for events once anybody wants them.
    pub(crate) fn connection(&self) -> Result<Connect, HypervisorError> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if !link.connection.is_alive().unwrap_or(false) {
            let connection = open(&self.configured)?;
            link.subscription = None;
            link.connection = connection;
        }
        if link.subscription.is_none() && self.events.wanted() {
            // Without events there is only waiting, for which there is always a limit: no reason to fail.
            link.subscription = Subscription::new(&link.connection, &self.events).ok();
            if link.subscription.is_some() {
                // What happened while nobody listened was not heard.
                self.events.count_all();
            }
        }
        Ok(link.connection.clone())
    }

    /// Whether the paths in definitions are paths on this machine.
    ///
    /// Any host name counts as another machine, even `localhost`: a tunnel may begin there. So does a command
    /// (`+ext`), which may lead anywhere.
    pub(crate) fn local(&self) -> bool {
        is_local(&self.reported)
    }

    /// An error of libvirt in words; a lost connection is told apart from a refused call.
    pub(crate) fn failed(&self, what: String, error: &Error) -> HypervisorError {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if link.connection.is_alive().unwrap_or(false) {
            HypervisorError::Failed {
                what,
                message: words(error),
            }
        } else {
            connect_error(&self.uri, error)
        }
    }
}

impl fmt::Debug for Libvirt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Libvirt")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

fn open(uri: &str) -> Result<Connect, HypervisorError> {
    if uri.contains('\0') {
        let message = "the URI contains a NUL character".to_owned();
        return Err(HypervisorError::Connect {
            uri: uri.to_owned(),
            message,
        });
    }
    start_events().map_err(|error| connect_error(uri, &error))?;
    let connection = Connect::open(Some(uri)).map_err(|error| connect_error(uri, &error))?;
    let remote = connection.uri().is_ok_and(|uri| !is_local(&uri));
    if remote {
        // A daemon that cannot keep alive says so with an error; the connection works all the same.
        let _ = connection.set_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1);
    }
    Ok(connection)
}

fn connect_error(uri: &str, error: &Error) -> HypervisorError {
    HypervisorError::Connect {
        uri: uri.to_owned(),
        message: words(error),
    }
}

/// libvirt's message on one line, fit for a terminal.
pub(crate) fn words(error: &Error) -> String {
    let lines: Vec<&str> = error
        .message()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ").replace(char::is_control, " ")
}

/// Starts libvirt's event loop once per process. It has to be there before the first connection.
fn start_events() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), Error>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl()?;
            // Without the thread, connections work but are not kept alive: no reason to fail.
            let _ = std::thread::Builder::new()
                .name("libvirt-events".into())
                .spawn(|| {
                    loop {
                        if virt::event::event_run_default_impl().is_err() {
                            std::thread::sleep(Duration::from_millis(100));
                        }
                    }
                });
            Ok(())
        })
        .clone()
}

fn is_local(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return false;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    host.is_empty() && !scheme.ends_with("+ext")
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn locality_is_read_from_the_uri() {
        for uri in [
            "qemu:///system",
            "qemu:///session",
            "qemu+unix:///system?socket=/run/x",
            "test:///default",
        ] {
            assert!(is_local(uri), "{uri}");
        }
        for uri in [
            "qemu+ssh://root@host/system",
            "qemu+ssh://host:2222/system?keyfile=/k",
            "qemu+tls://[::1]/system",
            "qemu+tcp://localhost/system",
            "qemu://host/system",
            "qemu+ext:///system?command=/bin/proxy",
            "",
            "host",
        ] {
            assert!(!is_local(uri), "{uri}");
        }
    }
}
