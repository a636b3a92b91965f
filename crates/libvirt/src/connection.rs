//! A connection to a libvirt daemon: opened, kept alive, opened again.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use strongroom_hypervisor::{HypervisorError, NbdTls};
use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error;

use crate::events::Events;
use crate::ssh;
use crate::sys::Subscription;
use crate::uri::Uri;

/// Seconds between keep-alive messages to a remote daemon, and how many may go unanswered: half a minute. Calls that wait for
/// it fail then.
const KEEP_ALIVE: (i32, u32) = (5, 6);

/// The same for the daemon of this machine, which may be as busy as the machine is: a minute.
const KEEP_ALIVE_HERE: (i32, u32) = (10, 6);

/// How long a daemon may take to answer.
const CONNECT: Duration = Duration::from_secs(30);

/// libvirt, over one connection.
pub struct Libvirt {
    /// As configured; libvirt's own idea of it where nothing was configured.
    pub(crate) uri: String,
    /// As libvirt reports it, with aliases and defaults resolved.
    pub(crate) reported: String,
    configured: String,
    link: Mutex<Link>,
    pub(crate) events: Arc<Events>,
    /// How disks are reached over TLS, if that was said.
    pub(crate) nbd_tls: Option<NbdTls>,
    /// The account's rights were found to be those of version 0.1.0.
    old_rights: AtomicBool,
    /// The ports that domains have been given last.
    pub(crate) ports: Mutex<HashMap<Uuid, u16>>,
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
            nbd_tls: None,
            old_rights: AtomicBool::new(false),
            ports: Mutex::default(),
        })
    }

    /// The same; disks of another machine are read over NBD with TLS if there are settings for it.
    #[must_use]
    pub fn with_nbd_tls(self, settings: Option<NbdTls>) -> Self {
        Self {
            nbd_tls: settings,
            ..self
        }
    }

    /// The connection, opened again if it was lost; with a registration for events once they are wanted.
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
                // What happened meanwhile was not heard.
                self.events.count_all();
            }
        }
        Ok(link.connection.clone())
    }

    pub(crate) fn has_old_rights(&self) {
        self.old_rights.store(true, Ordering::Relaxed);
    }

    /// What the hypervisor's administrator ought to do, as far as the calls until now have shown.
    pub(crate) fn wanted(&self) -> Option<String> {
        self.old_rights.load(Ordering::Relaxed).then(|| {
            format!(
                "the account on {} has the rights of version 0.1.0, with which its key can do harm there: have its administrator \
                 run the `rights.sh` that `strongroom hypervisor-rights` makes now",
                self.uri
            )
        })
    }

    /// Whether the paths in definitions are paths on this machine: see [`Uri::is_local`].
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
    let connection = within_deadline(uri)?;
    let remote = connection.uri().is_ok_and(|uri| !is_local(&uri));
    let (seconds, count) = if remote { KEEP_ALIVE } else { KEEP_ALIVE_HERE };
    // One that cannot keep alive says so with an error; the connection works all the same.
    let _ = connection.set_keep_alive(seconds, count);
    Ok(connection)
}

/// Connects, within a deadline. libvirt waits for a daemon that hangs, or for ssh, which waits for TCP, as long as it takes: a
/// thread does that, and is left behind if need be.
fn within_deadline(uri: &str) -> Result<Connect, HypervisorError> {
    let target = ssh::with_program(uri);
    let (sender, opened) = channel();
    std::thread::spawn(move || {
        // The caller may not be waiting any longer: then the connection is closed at once.
        let _ = sender.send(Connect::open(Some(&target)));
    });
    match opened.recv_timeout(CONNECT) {
        Ok(opened) => opened.map_err(|error| connect_error(uri, &error)),
        Err(_) => Err(HypervisorError::Connect {
            uri: uri.to_owned(),
            message: format!("no answer within {} s", CONNECT.as_secs()),
        }),
    }
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
    Uri::parse(uri).is_some_and(|uri| uri.is_local())
}
