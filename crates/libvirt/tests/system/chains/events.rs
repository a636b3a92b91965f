//! Events, over connections that come and go.

use std::time::Instant;

use strongroom_hypervisor::Chains as _;
use strongroom_libvirt::Libvirt;
use uuid::Uuid;

use super::LONG;
use crate::connections::proxy;
use crate::fixture::Guest;

#[test]
fn events_survive_the_connection() {
    let guest = Guest::start("");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let open = proxy(&socket);
    let libvirt = Libvirt::connect(&format!("qemu+unix:///system?socket={}", socket.display())).unwrap();
    for _ in 0..2 {
        let seen = libvirt.events(guest.uuid);
        // Its end is news for a thread that waits, from libvirt's own thread: nothing is called meanwhile.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| libvirt.await_event(guest.uuid, seen, LONG));
            for stream in open.lock().unwrap().drain(..) {
                stream.shutdown(std::net::Shutdown::Both).unwrap();
            }
            assert!(waiting.join().unwrap() > seen);
        });
        // Opened again, it hears the domain.
        let deadline = Instant::now() + LONG;
        while libvirt.chains(guest.uuid).is_err() {
            assert!(Instant::now() < deadline);
        }
        let seen = libvirt.events(guest.uuid);
        guest.virsh(&["suspend"], &[]);
        assert!(libvirt.await_event(guest.uuid, seen, LONG) > seen);
        guest.virsh(&["resume"], &[]);
    }
}

#[test]
fn the_connection_ends_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let open = proxy(&socket);
    let libvirt = Libvirt::connect(&format!("qemu+unix:///system?socket={}", socket.display())).unwrap();
    libvirt.events(Uuid::from_u128(1));
    drop(libvirt);
    // Registrations hold the connection: given back, its end is seen on the other side.
    let mut stream = open.lock().unwrap().pop().unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut byte = [0];
    let read = std::io::Read::read(&mut stream, &mut byte);
    assert!(matches!(read, Ok(0)) || read.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock));
}
