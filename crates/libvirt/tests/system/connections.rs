//! Connections: none, lost and found again, to another machine.

use std::io::copy;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{Bitmaps, Hypervisor, HypervisorError, Listener};
use strongroom_libvirt::Libvirt;
use strongroom_nbd::Target;
use strongroom_testkit::Sshd;

use crate::fixture::{Guest, URI, socket_of};

#[test]
fn no_connection() {
    for uri in [
        "qemu+unix:///system?socket=/nonexistent",
        "qemu+ssh://root@127.0.0.1:1/system?no_tty=1",
        "qemu+tcp://127.0.0.1:1/system",
        "nonsense://",
        "no URI at all",
        "qemu:///sys\0tem",
    ] {
        let error = Libvirt::connect(uri).unwrap_err();
        assert!(
            matches!(&error, HypervisorError::Connect { uri: named, .. } if named == uri),
            "{error}"
        );
    }
}

#[test]
fn the_connection_knows_itself() {
    let libvirt = Libvirt::connect(URI).unwrap();
    assert_eq!((libvirt.uri(), libvirt.is_local()), (URI, true));
    assert_eq!(format!("{libvirt:?}"), "Libvirt { uri: \"qemu:///system\", .. }");
    let default = Libvirt::connect("").unwrap();
    assert!(!default.uri().is_empty(), "libvirt's default has a name");
}

#[test]
fn it_is_shared_between_threads() {
    let guest = Guest::define("");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(guest.facts().uuid, guest.uuid));
        }
    });
}

/// Passes connections to libvirtd on, until they are cut.
pub fn proxy(socket: &Path) -> Arc<Mutex<Vec<UnixStream>>> {
    let open = Arc::new(Mutex::new(Vec::new()));
    let listener = UnixListener::bind(socket).unwrap();
    let cut = Arc::clone(&open);
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let daemon = UnixStream::connect("/run/libvirt/libvirt-sock").unwrap();
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), daemon.try_clone().unwrap()),
                (daemon, client.try_clone().unwrap()),
            ] {
                thread::spawn(move || {
                    let _ = copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
            open.lock().unwrap().push(client);
        }
    });
    cut
}

#[test]
fn a_lost_connection_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let open = proxy(&socket);
    let libvirt = Libvirt::connect(&format!("qemu+unix:///system?socket={}", socket.display())).unwrap();
    libvirt.domain_names().unwrap();
    for round in 1..=3 {
        for stream in open.lock().unwrap().drain(..) {
            stream.shutdown(Shutdown::Both).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        // The call that is the first to notice may fail; it has to say why.
        while let Err(error) = libvirt.domain_names() {
            assert!(matches!(error, HypervisorError::Connect { .. }), "{error}");
            assert!(Instant::now() < deadline, "round {round}: {error}");
        }
        assert_eq!(open.lock().unwrap().len(), 1, "one new connection");
    }
}

#[test]
fn another_machine() {
    let guest = Guest::start("");
    let sshd = Sshd::start();
    let uri = format!(
        "{}&no_verify=1&no_tty=1&keyfile={}",
        sshd.libvirt(),
        sshd.key().display()
    );
    let remote = Libvirt::connect(&uri).unwrap();
    assert_eq!((remote.uri(), remote.is_local()), (uri.as_str(), false));
    let facts = remote.domain(&guest.name).unwrap();
    assert_eq!(facts.uuid, guest.uuid);
    assert_eq!(
        facts.disks[0].bitmaps,
        Bitmaps::Unknown,
        "its files are not looked at"
    );
    assert_eq!(facts.disks[0].size, guest.facts().disks[0].size);
    let directory = |libvirt: &Libvirt| socket_of(libvirt, guest.uuid, "x").unwrap();
    assert_eq!(
        directory(&remote),
        directory(&guest.libvirt),
        "rule and directory agree"
    );
    // Sockets beside libvirt's own are reached by the same command.
    let target = remote
        .export(&Listener::Socket("/run/x.sock".into()), "vda")
        .unwrap();
    let Target::Command { command, .. } = target else {
        panic!("{target:?}")
    };
    let ours: Vec<&str> = command.iter().map(|word| word.to_str().unwrap()).collect();
    let (host, calls) = (ours.len() - 2, sshd.calls());
    assert!(
        calls[0].starts_with(&format!("{} 127.0.0.1 ", ours[1..host].join(" "))),
        "libvirt: {calls:?}, we: {ours:?}"
    );
    assert_eq!(ours[host..], ["127.0.0.1", "nc -U '/run/x.sock'"]);
    let job = guest.job(Some("cp"), vec![guest.disk("vda", None, true)]);
    remote.begin_backup(guest.uuid, &job).unwrap();
    remote.end_backup(guest.uuid).unwrap();
    remote.check_checkpoint(guest.uuid, "cp").unwrap();
    remote.delete_checkpoint(guest.uuid, "cp").unwrap();
}
