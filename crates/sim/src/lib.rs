//! A simulated host: the hypervisor port over a directory of small qcow2 files.
//!
//! There is no libvirt, no QEMU that runs a machine and no root. The images are real, and QEMU's own tools do to them what a
//! QEMU would: `qemu-io` is the guest that writes, `qemu-img` keeps persistent dirty bitmaps, makes overlays and merges them,
//! `qemu-nbd` serves frozen views. What the engine reads and decides upon is therefore what it gets from a real host, in a
//! hundredth of the time. [`conformance`] holds this host and the real one to the same tests.
//!
//! Calls go wrong on demand: see [`Faults`]. Only tests use this crate, so what the simulation itself cannot do panics.

mod agent;
mod backups;
mod chains;
pub mod conformance;
mod definition;
mod domains;
mod elsewhere;
mod faults;
mod guest;
mod image;
mod lab;
mod server;
mod tracking;
mod uses;
mod world;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use strongroom_hypervisor::HypervisorError;

pub use self::faults::{Fault, Faults};
pub use self::guest::Guest;
pub use self::lab::Lab;
use self::world::World;

/// The URI of each simulated host.
pub const URI: &str = "sim:///system";

/// What a call gives.
type Told<T> = Result<T, HypervisorError>;

/// A connection to a host. What the host is lies in files, so that it outlives each process that is connected to it, as a real
/// one does. Clones share their faults.
#[derive(Clone)]
pub struct SimHost {
    directory: PathBuf,
    faults: Arc<Faults>,
}

impl SimHost {
    /// The host in a directory, which is made if it is empty. Its path has to be short: there are sockets in it.
    pub fn open(directory: &Path) -> Self {
        let host = Self {
            directory: directory.to_owned(),
            faults: Arc::default(),
        };
        if !host.path(STATE).exists() {
            World::default().write(&host.path(STATE));
        }
        host
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What goes wrong with calls of this connection.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Ends all processes of the host.
    pub fn end(&self) {
        self.world(|world| world.machines.values_mut().for_each(world::Machine::stop));
    }

    /// Looks at the host, or changes it, as the only one.
    fn world<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        let lock = File::create(self.path("lock")).expect("open the lock");
        flock(&lock, FlockOperation::LockExclusive).expect("lock the host");
        let file = self.path(STATE);
        let before = World::read(&file);
        let mut world = before.clone();
        let done = work(&mut world);
        if world != before {
            world.write(&file);
        }
        done
    }

    /// A call that only looks.
    fn ask<T>(&self, name: &'static str, look: impl FnOnce(&World) -> Told<T>) -> Told<T> {
        self.faults.look(name)?;
        self.world(|world| look(world))
    }

    /// A call that changes something, as the script says.
    fn act<T: Default>(&self, name: &'static str, change: impl Fn(&mut World) -> Told<T>) -> Told<T> {
        self.faults.act(name, || self.world(&change))
    }
}

/// The file that says what there is.
const STATE: &str = "host.json";

/// A failure in words.
fn refused<T>(what: impl Into<String>, message: impl Into<String>) -> Told<T> {
    Err(HypervisorError::Failed {
        what: what.into(),
        message: message.into(),
    })
}
