//! A whole backup with the rights that `strongroom hypervisor-rights` gives an account, and everything that they have to
//! refuse: a libvirtd, a polkit and an account of the test's own.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;
use std::sync::Mutex;

use strongroom_engine::run::event::Kind;
use strongroom_hypervisor::Hypervisor as _;
use strongroom_libvirt::Libvirt;
use strongroom_nbd::{Client, Options, Target};
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Lab, OwnLibvirtd, Sshd, output_of, polkit, run, virsh};

use crate::common::account::{ACCOUNT, Account, JOBS};
use crate::common::{Bench, Hook, sha256_of_export};

#[test]
fn an_account_can_back_up_the_vms_it_is_for_and_nothing_else() {
    let name = "an_account_can_back_up_the_vms_it_is_for_and_nothing_else";
    let Some(own) = OwnLibvirtd::enter(module_path!(), name) else {
        return;
    };
    let lab = Lab::new();
    polkit::start(&own, lab.dir());
    let guest = lab.guest().root_mib(256).boot();
    let other = lab.guest().named("other").root_mib(64).define();
    let vm = guest.name();
    let mut bench = Bench::new(&lab, &[vm]);
    bench.config.vm.get_mut(vm).unwrap().plaintext = true;
    let sshd = Sshd::start();
    let key = sshd.key();
    let account = Account::make(&own, &lab, &bench, sshd, &key, &[vm]);
    bench.config.hypervisor.clone_from(&account.uri);
    bench.hypervisor = Libvirt::connect(&account.uri).unwrap();
    assert_eq!(
        bench.hypervisor.domain_names().unwrap(),
        [vm],
        "it sees its own only"
    );

    guest.probe("pattern start 5");
    let local = Libvirt::connect(crate::common::URI).unwrap();
    let mut points = Vec::new();
    for mode in [Mode::Full, Mode::Incremental] {
        let hash = Mutex::new(String::new());
        let hook = Hook::new(|event| {
            if let Kind::Captured { exports, .. } = event {
                let run = bench.run_of(vm).unwrap();
                *hash.lock().unwrap() =
                    sha256_of_export(&local.export(&run.listener.unwrap(), "vda").unwrap());
                during(&account, vm, &exports[0].at);
            }
        });
        let report = bench.backup(vm, &hook).unwrap();
        assert_eq!(*hook.warnings.lock().unwrap(), Vec::<String>::new());
        assert_eq!(
            report.manifest.disks[0].mode, mode,
            "{}",
            report.manifest.disks[0].reason
        );
        points.push((report.archive, hash.into_inner().unwrap()));
        guest.probe("write 1");
    }
    for (archive, hash) in &points {
        assert_eq!(bench.sha256_of_restored(&lab, vm, archive, "vda"), *hash);
    }

    secrets(&account, &lab, vm);
    domains(&account, &lab, vm, other.name());
    files(&guest.disk("vda").display().to_string());
    guest.probe("pattern stop");
    guest.probe("verify");
    assert_eq!(
        (guest.state(), other.state()),
        ("running".into(), "shut off".into())
    );
    // What the administrator can do, the administrator can do still.
    run(&mut virsh(["dumpxml", "--security-info", vm]));
}

/// While an export is open: it takes no writes, and nothing beside it can be reached.
fn during(account: &Account, vm: &str, export: &Target) {
    let mut client = Client::connect(export, &Options::default()).unwrap();
    assert!(client.read_only());
    client.write_at(0, &[1; 4096]).unwrap_err();
    let Target::Command { command, .. } = export else {
        panic!("{export:?}")
    };
    let asked = command.last().unwrap().to_str().unwrap();
    let socket = asked.split('\'').nth(1).unwrap();
    let directory = socket.rsplit_once('/').unwrap().0;
    assert!(directory.contains(&vm[..10]), "{directory}");
    let monitor = format!("nc -U '{directory}/monitor.sock'");
    for asked in [
        monitor.as_str(),
        "nc -U '/run/libvirt/libvirt-sock'",
        "nc -U '/run/dbus/system_bus_socket'",
        "id",
        "sh -c id",
        "cat /etc/passwd",
        "",
    ] {
        let (code, said) = account.ssh(&["127.0.0.1", asked]);
        assert_eq!(code, Some(126), "{asked}: {said}");
        assert!(said.contains("refused"), "{asked}: {said}");
    }
    // Neither a shell on a terminal, nor files, nor any port or socket forwarded.
    let (code, said) = account.ssh(&["-tt", "127.0.0.1"]);
    assert!(
        code != Some(0) && said.contains("PTY allocation request failed"),
        "{said}"
    );
    let (code, said) = account.ssh(&["-s", "127.0.0.1", "sftp"]);
    assert_ne!(code, Some(0), "{said}");
    let (code, said) = account.ssh(&["-W", "127.0.0.1:22", "127.0.0.1"]);
    assert!(code != Some(0) && said.contains("prohibited"), "{said}");
    let here = tempfile::tempdir().unwrap();
    let near = here.path().join("near");
    let forward = format!("{}:{directory}/monitor.sock", near.display());
    let mut ssh = Command::new(account.sshd.program())
        .args(["-l", ACCOUNT, "-N", "-L", &forward, "127.0.0.1"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while !near.exists() && begun.elapsed().as_secs() < 20 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut greeting = Vec::new();
    if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&near) {
        let _ = std::io::Read::read_to_end(&mut stream, &mut greeting);
    }
    ssh.kill().unwrap();
    ssh.wait().unwrap();
    assert_eq!(String::from_utf8_lossy(&greeting), "", "QEMU's monitor");
}

/// No secret of a definition or of libvirt's can be read.
fn secrets(account: &Account, lab: &Lab, vm: &str) {
    let file = lab.path("secret.xml");
    let uuid = &uuid::Uuid::new_v4().to_string();
    let xml = format!("<secret ephemeral='no' private='no'><uuid>{uuid}</uuid></secret>");
    std::fs::write(&file, xml).unwrap();
    run(virsh(["secret-define"]).arg(&file));
    run(&mut virsh(["secret-set-value", uuid, "--base64", "c2VjcmV0"]));
    account.refused(&["secret-get-value", uuid]);
    account.refused(&["dumpxml", "--security-info", vm]);
    let listed = output_of(Command::new("virsh").args(["-q", "-c", &account.uri, "secret-list"]));
    assert!(listed.is_err() || !listed.unwrap().contains(uuid));
    run(&mut virsh(["secret-undefine", uuid]));
}

/// Domains cannot be made, changed, ended or looked into, and others cannot even be seen.
fn domains(account: &Account, lab: &Lab, vm: &str, other: &str) {
    let file = lab.path("new.xml");
    let xml = run(&mut virsh(["dumpxml", "--inactive", other]));
    std::fs::write(&file, xml.replace(other, &lab.name("new"))).unwrap();
    let file = file.display().to_string();
    let disk = lab.path("disk.xml").display().to_string();
    let image = lab.path("attached.raw").display().to_string();
    run(Command::new("truncate").args(["-s", "1M", &image]));
    let xml = format!("<disk type='file'><source file='{image}'/><target dev='vdx' bus='virtio'/></disk>");
    std::fs::write(&disk, xml).unwrap();
    let saved = lab.path("memory").display().to_string();
    for refused in [
        &["define", &file][..],
        &["create", &file],
        &["destroy", vm],
        &["shutdown", vm],
        &["reset", vm],
        &["undefine", vm],
        &["save", vm, &saved],
        &["dump", vm, &saved],
        &["setmem", vm, "131072"],
        &["attach-device", vm, &disk],
        &["qemu-monitor-command", vm, r#"{"execute":"query-status"}"#],
        &["qemu-agent-command", vm, r#"{"execute":"guest-ping"}"#],
        &["set-user-password", vm, "root", "x"],
        &["snapshot-create-as", vm, "s", "--disk-only"],
        &["screenshot", vm],
        &["start", other],
        &["dumpxml", other],
        &["checkpoint-list", other],
        &["undefine", other],
        &["pool-define-as", "sr-test", "dir", "--target", "/etc"],
        &["vol-list", "default"],
    ] {
        account.refused(refused);
    }
    let names = run(&mut virsh(["list", "--all", "--name"]));
    assert!(!names.contains(&lab.name("new")), "{names}");
}

/// As a user of the system the account cannot write images, even if it came by a shell.
fn files(image: &str) {
    for place in [
        image,
        "/etc/libvirt/libvirtd.conf",
        "/etc/polkit-1/rules.d/40-strongroom.rules",
    ] {
        let shell = format!("echo x >>'{place}'");
        let said = output_of(Command::new("su").args([ACCOUNT, "-s", "/bin/sh", "-c", &shell]));
        assert!(said.is_err(), "{place} can be written");
    }
    let keys = format!("/home/{ACCOUNT}/.ssh/authorized_keys");
    let shell = format!("echo x >>{keys} || mv {keys} {keys}.old || rm -f {keys}");
    assert!(output_of(Command::new("su").args([ACCOUNT, "-s", "/bin/sh", "-c", &shell])).is_err());
    // Nor can either account make a link, a file or a directory where the scripts and keys are.
    for account in [ACCOUNT, JOBS] {
        for place in ["", "/.ssh"] {
            let home = format!("/home/{account}{place}");
            let shell =
                format!("ln -s /etc {home}/l || mkdir {home}/d || echo x >{home}/f || chmod 777 {home}");
            assert!(output_of(Command::new("su").args([account, "-s", "/bin/sh", "-c", &shell])).is_err());
        }
    }
}
