//! The simulated host passes the tests of each implementation of the port.

use std::path::{Path, PathBuf};

use strongroom_hypervisor::Hypervisor;
use strongroom_sim::conformance::Peer;
use strongroom_sim::{Guest, Lab, SimHost};
use uuid::Uuid;

struct Simulated {
    host: SimHost,
    guest: Guest,
    directory: PathBuf,
    _lab: Lab,
}

fn simulated() -> Simulated {
    let lab = Lab::new();
    let host = lab.host();
    let guest = host.guest(
        "conformance",
        &[("vda", "qcow2", 64), ("vdb", "qcow2", 16), ("vdc", "raw", 16)],
    );
    let directory = lab.path(&guest.name);
    Simulated {
        host,
        guest,
        directory,
        _lab: lab,
    }
}

impl Peer for Simulated {
    fn port(&self) -> &dyn Hypervisor {
        &self.host
    }

    fn uuid(&self) -> Uuid {
        self.guest.uuid
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn write(&self, target: &str, pattern: u8, offset: u64, length: u64) {
        self.guest.write(target, pattern, offset, length);
    }

    fn start(&self) {
        self.guest.start();
    }

    fn pause(&self) {
        self.guest.pause();
    }

    fn stop(&self) {
        self.guest.shut_down();
    }

    fn kill(&self) {
        self.guest.kill();
    }
}

strongroom_sim::conformance!(simulated);
