//! The part of the port that looks at definitions which are to be defined, and keeps what lies beside them.

use uuid::Uuid;

use crate::HypervisorError;

/// Something that a definition needs and its host does not have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Lack {
    /// What, and what can be done, in words.
    pub what: String,
    /// The removable drive (target device name) whose medium is gone: it can be ejected.
    pub medium: Option<String>,
    /// It cannot be defined without.
    pub fatal: bool,
}

/// Definitions that are to be defined.
pub trait Definitions {
    /// What of a definition acts on the host, or reads from it, beyond what a guest needs for itself: in words. The disks named
    /// are restored, and have places of their own. Pure.
    fn powers(&self, xml: &str, placed: &[&str]) -> Result<Vec<String>, HypervisorError>;

    /// What a definition needs and the host does not have. The disks named are restored.
    fn lacks(&self, xml: &str, placed: &[&str]) -> Result<Vec<Lack>, HypervisorError>;

    /// What only one domain can have at a time and others have, too: addresses, ports, devices; in words.
    fn conflicts(&self, xml: &str) -> Result<Vec<String>, HypervisorError>;

    /// Has a domain started with its host, or not.
    fn set_autostart(&self, domain: Uuid, autostart: bool) -> Result<(), HypervisorError>;
}
