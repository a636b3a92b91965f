//! VMs of another machine without ssh: libvirt and NBD over TLS, with certificates on both sides.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use strongroom_engine::run::event::Kind;
use strongroom_hypervisor::Hypervisor as _;
use strongroom_hypervisor::NbdTls;
use strongroom_libvirt::Libvirt;
use strongroom_nbd::{Client, Options, Target, TlsSettings};
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Format, Lab, OwnLibvirtd, Sshd, certificates, run, sha256_of_raw, virsh};

use crate::common::checks::sha256_at_rest;
use crate::common::running::Running;
use crate::common::tiny::{MIB, Tiny, noise};
use crate::common::{Bench, Hook};

/// A port and the one behind it, both free.
fn two_ports() -> u16 {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).ok();
    (0..100)
        .find_map(|_| {
            let port = free(0)?.local_addr().unwrap().port();
            free(port.checked_add(1)?)?;
            Some(port)
        })
        .unwrap()
}

/// A directory with certificates that everybody can read, under QEMU's names and libvirt's.
fn keys(lab: &Lab, name: &str) -> PathBuf {
    let directory = lab.path(name);
    std::fs::create_dir(&directory).unwrap();
    certificates(&directory);
    for (file, libvirts) in [
        ("ca-cert.pem", "cacert.pem"),
        ("client-cert.pem", "clientcert.pem"),
        ("client-key.pem", "clientkey.pem"),
        ("server-key.pem", "serverkey.pem"),
    ] {
        let path = directory.join(file);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&path, directory.join(libvirts)).unwrap();
    }
    directory
}

fn connect(bench: &mut Bench, uri: &str) {
    uri.clone_into(&mut bench.config.hypervisor);
    bench.hypervisor = Libvirt::connect(uri)
        .unwrap()
        .with_nbd_tls(bench.config.nbd_tls.clone());
}

/// Whether a client with these certificates gets to see an export.
fn sees(port: u16, certificates: Option<&Path>) -> bool {
    let target = Target::Tcp {
        host: "localhost".into(),
        port,
        export: "vda".into(),
        tls: certificates.map(|directory| TlsSettings {
            certificates: directory.to_owned(),
            verify: true,
        }),
    };
    Client::connect(&target, &Options::plain()).is_ok()
}

#[test]
fn vms_of_another_machine_are_backed_up_over_tls() {
    let Some(mut daemon) =
        OwnLibvirtd::enter(module_path!(), "vms_of_another_machine_are_backed_up_over_tls")
    else {
        return;
    };
    let lab = Lab::new();
    let trusted = keys(&lab, "pki");
    let port = two_ports();
    daemon.listen(&trusted, port);
    let uri = format!("qemu+tls://localhost:{port}/system?pkipath={}", trusted.display());

    let (one, two) = (Tiny::define(&lab, "one"), Tiny::define(&lab, "two"));
    for (tiny, seed) in [(&one, 1), (&two, 2)] {
        tiny.set("vda", &noise(seed, 6 * MIB));
        run(virsh(["start", &tiny.name]).arg("--paused"));
    }
    let mut bench = Bench::new(&lab, &[&one.name, &two.name]);
    for vm in bench.config.vm.values_mut() {
        vm.plaintext = true;
    }
    let first = two_ports();
    let settings = NbdTls {
        ports: format!("{first}-{}", first + 1),
        listen: "127.0.0.1".parse().unwrap(),
        certificates: trusted.clone(),
    };

    // Without certificates nothing is begun.
    bench.config.hypervisor.clone_from(&uri);
    bench.config.nbd_tls = Some(NbdTls {
        certificates: lab.path("nowhere"),
        ..settings.clone()
    });
    bench
        .says(&lab, &["backup", &one.name])
        .expect(1, &["/nowhere/ca-cert.pem", "[nbd_tls]"]);
    // With others' it ends with the reason, and with nothing left behind.
    bench.config.nbd_tls = Some(NbdTls {
        certificates: keys(&lab, "others"),
        ..settings.clone()
    });
    connect(&mut bench, &uri);
    bench
        .says(&lab, &["backup", &one.name])
        .expect(1, &["vda", "localhost"]);
    bench.guest_at_rest(&lab, &one.name);
    bench.config.nbd_tls = Some(settings);
    connect(&mut bench, &uri);

    // Two at a time, each at a port of its own, which shows nothing to others.
    let ports = Mutex::new(Vec::new());
    let port_of = |event: &Kind<'_>| {
        if let Kind::Captured { exports, .. } = event {
            let Target::Tcp {
                port, tls: Some(_), ..
            } = exports[0].at
            else {
                panic!("{exports:?}");
            };
            ports.lock().unwrap().push(port);
            return Some(port);
        }
        None
    };
    let watch = Hook::new(|event| _ = port_of(event));
    let hook = Hook::new(|event| {
        let Some(port) = port_of(event) else { return };
        assert!(sees(port, Some(&trusted)));
        for stranger in [
            None,
            Some(lab.path("others")),
            Some(only_authority(&lab, &trusted)),
        ] {
            assert!(!sees(port, stranger.as_deref()), "{stranger:?}");
        }
        bench.backup(&two.name, &watch).unwrap();
    });
    let full = bench.backup(&one.name, &hook).unwrap();
    assert_eq!(*ports.lock().unwrap(), [first, first + 1]);
    let mut points = vec![(full, sha256_of_raw_at_rest(&lab, &one.name))];

    // Incremental, from a port that no other program has.
    let taken = TcpListener::bind(("127.0.0.1", first)).unwrap();
    one.write("vda", 7, MIB, MIB);
    let next = bench.backup(&one.name, &watch).unwrap();
    assert_eq!(ports.lock().unwrap().last(), Some(&(first + 1)));
    let disk = &next.manifest.disks[0];
    assert_eq!(disk.mode, Mode::Incremental, "{}", disk.reason);
    points.push((next, sha256_of_raw_at_rest(&lab, &one.name)));
    let other = TcpListener::bind(("127.0.0.1", first + 1)).unwrap();
    bench
        .says(&lab, &["backup", &one.name])
        .expect(1, &["are in use", "[nbd_tls]"]);
    bench.guest_at_rest(&lab, &one.name);
    drop((taken, other));

    // A run that dies leaves its job, which the next one knows by its scratch files.
    bench.config.reader.limit_mib = 1;
    one.write("vda", 8, 0, 6 * MIB);
    let mut program = bench.program(&lab);
    let mut dying = Running::start(program.args(["-v", "backup", &one.name]));
    dying.wait_for("frozen view taken");
    dying.signal("KILL");
    dying.end();
    let run = bench.run_of(&one.name).unwrap();
    assert!(run.listener.as_ref().unwrap().socket().is_none(), "{run:?}");
    assert!(
        bench
            .hypervisor
            .backup_job(bench.hypervisor.domain(&one.name).unwrap().uuid)
            .unwrap()
            .is_some()
    );
    bench.config.reader.limit_mib = 0;
    bench
        .says(&lab, &["recover", &one.name])
        .expect(3, &["was interrupted"]);
    bench.guest_at_rest(&lab, &one.name);

    // The same with control over ssh.
    let sshd = Sshd::start();
    connect(&mut bench, &sshd.libvirt());
    let last = bench.backup(&one.name, &watch).unwrap();
    points.push((last, sha256_of_raw_at_rest(&lab, &one.name)));
    let file = lab.path("restored.qcow2");
    for (report, hash) in &points {
        let point = format!("{}@{}", one.name, report.archive);
        let to = ["restore", &point, "--disk", "vda", "--to", file.to_str().unwrap()];
        bench.says(&lab, &to).expect(0, &[]);
        assert_eq!(sha256_of_raw(&file, Format::Qcow2), *hash, "{}", report.archive);
        std::fs::remove_file(&file).unwrap();
    }
    assert_ne!(points[0].1, points[1].1);
    assert_ne!(points[1].1, points[2].1);
}

/// What a paused VM has on its disk, by a job of the host's own.
fn sha256_of_raw_at_rest(lab: &Lab, vm: &str) -> String {
    sha256_at_rest(lab, &Libvirt::connect(crate::common::URI).unwrap(), vm)
}

/// The certificates of a client that knows the authority, and that it does not know.
fn only_authority(lab: &Lab, trusted: &Path) -> PathBuf {
    let directory = lab.path("only-authority");
    std::fs::create_dir(&directory).unwrap();
    std::fs::copy(trusted.join("ca-cert.pem"), directory.join("ca-cert.pem")).unwrap();
    directory
}
