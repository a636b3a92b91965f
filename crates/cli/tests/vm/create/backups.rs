//! The VM that backs up its neighbours, made by the program: it does so by itself, and with keys of its own.

use std::fs;
use std::process::Command;

use strongroom_libvirt::Libvirt;
use strongroom_testkit::{Format, Sshd, output_of, run, sha256_of_raw, ssh_keygen, virsh};

use super::PATIENCE;
use super::bench::{Bench, SMALL, Tang};
use crate::common::URI;
use crate::common::checks::sha256_at_rest;
use crate::common::running::Said;

/// Where a guest in QEMU's own network finds the host's loopback.
const HOST: &str = "10.0.2.2";

#[test]
fn a_backup_vm_is_made_with_keys_of_its_own_and_backs_up_by_itself() {
    let making = Bench::new();
    let lab = &making.lab;
    let (sshd, tang) = (Sshd::start(), Tang::start(&lab.path("tang")));
    let operator = ssh_keygen(&lab.path("operator"), "operator");
    let guest = lab.guest().root_mib(256).swap_mib(0).boot();
    let (vm, port) = (guest.name(), sshd.port());
    // A store of the test's own: the template holds the program that is tested.
    let file = lab.path("strongroom.toml");
    let shared = making.templates.base();
    fs::create_dir(lab.path("templates")).unwrap();
    std::os::unix::fs::symlink(&shared, lab.path("templates/base")).unwrap();
    let config = fs::read_to_string(&file).unwrap();
    let store = shared.parent().unwrap().display().to_string();
    let config = config.replace(&store, &lab.path("templates").display().to_string());
    fs::write(&file, format!("{config}\n[vm.{vm}]\n")).unwrap();
    fs::write(lab.path("advertisement"), tang.advertisement()).unwrap();
    fs::write(lab.path("hosts"), sshd.known_hosts(HOST)).unwrap();
    let create = |template: &str| {
        let mut program = making.program(&["--json", "backup-vm", "create", &making.name("backup")]);
        program
            .args([
                "--template",
                template,
                "--size",
                "3G",
                "--network",
                "user",
                "--virt-type",
                "qemu",
            ])
            .args(["--unlock", &format!("tang:{}", tang.url_in_guest())])
            .args([
                "--tang-advertisement",
                lab.path("advertisement").to_str().unwrap(),
            ])
            .arg(format!("--tang-thumbprint={}", tang.thumbprint()))
            .args(["--recovery-to", operator.to_str().unwrap()])
            .args([
                "--repo",
                &format!("ssh://root@{HOST}:{port}{}/repo-{{vm}}", lab.dir().display()),
            ])
            .args(["--hypervisor", &format!("qemu+ssh://root@{HOST}:{port}/system")])
            .args([
                "--known-hosts",
                lab.path("hosts").to_str().unwrap(),
                "--vm",
                vm,
                "--start",
            ])
            .args(SMALL);
        Said::of(&mut program)
    };
    create("base").expect(2, &["it has no borgbackup", "backup-vm template"]);
    let built = Said::of(
        making
            .program(&["backup-vm", "template"])
            .env("STRONGROOM_GUEST", making.templates.program()),
    );
    built.expect(0, &[]);
    let made = create("backup");
    made.expect(0, &[]);
    let made = &made.json()["created"];
    let (key, xml) = (made["ssh_key"].as_str().unwrap(), making.xml("backup"));
    assert!(xml.matches("model='pcie-root-port'").count() >= 12, "{xml}");
    sshd.let_in(key);
    let passphrase = run(Command::new("age")
        .args(["--decrypt", "-i"])
        .arg(operator.with_extension(""))
        .arg(made["passphrase"].as_str().unwrap()));

    making.wait_for_agent("backup", PATIENCE);
    let inside = |command: &str| making.inside("backup", command);
    assert_eq!(inside("cat /etc/strongroom/passphrase"), passphrase);
    assert!(inside("cat /root/.ssh/id_ed25519.pub").starts_with(key));
    let modes = "stat -c %a /etc/strongroom /etc/strongroom/* /root/.ssh/id_ed25519 | sort -u";
    assert_eq!(
        inside(modes).split_whitespace().collect::<Vec<_>>(),
        ["600", "644", "700"],
        "public keys may be seen"
    );
    let next = inside("systemctl show -p NextElapseUSecRealtime strongroom-backup.timer");
    assert!(next.contains("UTC"), "the timer runs: {next}");

    // It is not stated that what is on the neighbour's disk may be seen.
    let service = "systemctl start strongroom-backup; systemctl show -p Result strongroom-backup; \
                   journalctl -q -o cat -u strongroom-backup | tail -n 20";
    let said = inside(service);
    assert!(
        said.contains("vda is not ciphertext") && said.contains("Result=exit-code"),
        "{said}"
    );
    inside("echo 'plaintext = true' >>/etc/strongroom/strongroom.toml");
    guest.probe("write 2");
    run(&mut virsh(["suspend", vm]));
    let before = inside("dmesg | grep -c '512-byte logical blocks'");
    let said = inside(service);
    assert!(
        said.contains("Result=success") && !said.contains("warning"),
        "{said}"
    );
    let after = inside("dmesg | grep -c '512-byte logical blocks'");
    assert_eq!(
        after.trim().parse(),
        before.trim().parse::<u32>().map(|count| count + 1),
        "as a disk"
    );

    // The owner of the recovery key can restore without the machine, and sees that it was the machine that signed.
    let signing = made["signing_key"].as_str().unwrap();
    let trusted = lab.path("allowed_signers");
    fs::write(
        &trusted,
        format!("strongroom@backup namespaces=\"strongroom-*\" {signing}\n"),
    )
    .unwrap();
    let config = fs::read_to_string(&file).unwrap();
    let others = shared.ancestors().nth(2).unwrap().join("allowed_signers");
    let config = config.replace(others.to_str().unwrap(), trusted.to_str().unwrap());
    assert!(config.contains(trusted.to_str().unwrap()), "{config}");
    fs::write(&file, config).unwrap();
    let local = Libvirt::connect(URI).unwrap();
    let hash = sha256_at_rest(lab, &local, vm);
    let restored = lab.path("restored.qcow2");
    let said = Said::of(
        making
            .program(&[
                "restore",
                "-v",
                vm,
                "--disk",
                "vda",
                "--to",
                restored.to_str().unwrap(),
            ])
            .env("BORG_PASSPHRASE", &passphrase),
    );
    said.expect(0, &["signed by strongroom@backup"]);
    assert_eq!(sha256_of_raw(&restored, Format::Qcow2), hash);
    // It is in no file of this host's.
    let found = output_of(
        Command::new("grep")
            .args(["-rlaF", "--", &passphrase])
            .arg(lab.dir()),
    );
    assert!(found.is_err(), "{found:?}");
}
