//! libvirt passes the tests of each implementation of the port.

use std::path::Path;

use strongroom_hypervisor::Hypervisor;
use strongroom_sim::conformance::Peer;
use uuid::Uuid;

use crate::fixture::Guest;

fn real() -> Guest {
    Guest::define("")
}

impl Peer for Guest {
    fn port(&self) -> &dyn Hypervisor {
        &self.libvirt
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn directory(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, target: &str, pattern: u8, offset: u64, length: u64) {
        Guest::write(self, target, pattern, &offset.to_string(), &length.to_string());
    }

    fn start(&self) {
        self.virsh(&["start"], &[]);
    }

    fn pause(&self) {
        self.virsh(&["suspend"], &[]);
    }

    fn stop(&self) {
        self.virsh(&["destroy"], &[]);
    }

    fn kill(&self) {
        Guest::kill(self);
    }
}

strongroom_sim::conformance!(real);
