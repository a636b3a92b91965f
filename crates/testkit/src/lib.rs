//! Real peers for Strongroom's tests: libvirt guests under QEMU, an `sshd` on loopback, stock Borg.
//!
//! Nothing in here is a mock, and nothing stays behind: a [`Lab`] owns a directory and all
//! libvirt domains that bear its name, and removes both when dropped, however the test ends.
//! What a killed test run has left is removed by the next one.
//!
//! Only tests use this crate, so whatever goes wrong panics and says why.
//!
//! ```no_run
//! use strongroom_testkit::Lab;
//!
//! let lab = Lab::new();
//! let guest = lab.guest().boot();
//! let file = guest.probe("write 8")["file"].as_str().unwrap().to_owned();
//! guest.probe("pattern start 5");
//! // … back up, destroy, restore as `lab.name("restored")` …
//! let restored = lab.open(&lab.name("restored"));
//! restored.boot();
//! restored.probe("verify");
//! ```

mod borg;
mod certificates;
mod daemon;
mod disk;
mod lab;
mod other;
mod patience;
pub mod polkit;
mod probe;
mod run;
mod sshd;
mod xml;

pub use borg::Borg;
pub use certificates::certificates;
pub use daemon::OwnLibvirtd;
pub use disk::{Format, create_disk, sha256_of_raw};
pub use lab::Lab;
pub use lab::guest::{GuestBuilder, ProbePort, TestGuest};
pub use other::OtherHost;
pub use patience::patience;
pub use run::{output_of, run, ssh_keygen, virsh};
pub use sshd::Sshd;
