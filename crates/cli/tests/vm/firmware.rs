//! What lies outside the disks comes back as well: UEFI variables and the state of an emulated TPM.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::Bench;
use crate::common::pool::Pool;
use crate::common::tiny::with_signing;
use strongroom_testkit::{Format, Lab, Sshd, create_disk, run, virsh};

const TPM: &str = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";

fn definition(name: &str, disk: &Path, variables: &Path, more: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='q35'>hvm</type>
         <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
         <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{}</nvram></os>
         <features><acpi/></features>
         <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>
         <target dev='vda' bus='virtio'/></disk>{more}</devices></domain>",
        variables.display(),
        disk.display()
    )
}

fn uuid(name: &str) -> String {
    run(&mut virsh(["domuuid", name])).trim().to_owned()
}

fn tpm_state(name: &str) -> PathBuf {
    Path::new("/var/lib/libvirt/swtpm")
        .join(uuid(name))
        .join("tpm2/tpm2-00.permall")
}

#[test]
fn uefi_variables_and_tpm_state_come_back_with_the_vm_and_its_copy() {
    let lab = Lab::new();
    let name = lab.name("firmware");
    let (disk, variables) = (lab.path("firmware.qcow2"), lab.path("firmware-vars.fd"));
    create_disk(&disk, Format::Qcow2, 16);
    let xml = lab.path("firmware.xml");
    std::fs::write(&xml, definition(&name, &disk, &variables, TPM)).unwrap();
    run(&mut virsh(["define", xml.to_str().unwrap()]));
    // A TPM directory that is not empty is not "manufactured" by libvirt: swtpm makes a blank TPM in it. That is
    // all this test needs, and it needs no certificate authority on the host.
    let state = tpm_state(&name);
    std::fs::create_dir_all(state.parent().unwrap()).unwrap();
    let blank = state.with_file_name("blank");
    std::fs::write(&blank, "").unwrap();
    // The first start makes both.
    run(&mut virsh(["start", &name]));
    run(&mut virsh(["destroy", &name]));
    std::fs::remove_file(blank).unwrap();
    let before = (
        std::fs::read(&variables).unwrap(),
        std::fs::read(tpm_state(&name)).unwrap(),
    );
    assert!(!before.0.is_empty() && !before.1.is_empty());

    let mut bench = Bench::new(&lab, &[&name]);
    with_signing(&lab, &mut bench);
    let shown = bench.json(&lab, &["backup", &name]);
    let manifest = &shown["backups"][0]["backup"]["manifest"];
    let files: Vec<&str> = manifest["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(files.len(), 3, "definition, variables, TPM: {shown}");
    bench.says(&lab, &["verify", "--all"]).expect(0, &[]);

    // Beside the original: places of its own.
    let copy = lab.name("copy");
    bench.json(&lab, &["restore", &name, "--as", &copy]);
    assert_ne!(uuid(&copy), uuid(&name));
    assert_eq!(std::fs::read(tpm_state(&copy)).unwrap(), before.1);
    assert_eq!(
        std::fs::read(lab.path(&format!("{copy}-nvram.fd"))).unwrap(),
        before.0
    );
    run(&mut virsh(["start", &copy]));
    run(&mut virsh(["destroy", &copy]));

    // A TPM's state cannot be taken to another machine.
    let sshd = Sshd::start();
    let away = [
        "--connect",
        &sshd.libvirt(),
        "restore",
        &name,
        "--as",
        &lab.name("away"),
    ];
    bench
        .says(&lab, &away)
        .expect(1, &["state of its TPM", "another machine"]);

    // Gone, and back.
    let state = tpm_state(&name);
    run(&mut virsh(["undefine", "--nvram", "--tpm", &name]));
    assert!(!state.exists(), "libvirt removes the state with the domain");
    bench.json(&lab, &["restore", &name]);
    assert_eq!(tpm_state(&name), state, "the UUID is the old one");
    assert_eq!(std::fs::read(&state).unwrap(), before.1);
    assert_eq!(
        std::fs::read(lab.path(&format!("{name}-nvram.fd"))).unwrap(),
        before.0
    );
    run(&mut virsh(["start", &name]));
    run(&mut virsh(["destroy", &name]));
    // Each has to be there: a restore point without one is not whole.
    let repository = bench.repository(&name);
    let archive = format!("{}::{}", repository.display(), bench.archives(&name)[0]);
    let whole = lab.path("whole");
    let copy_to = |from: &Path, to: &Path| run(Command::new("cp").arg("-a").args([from, to]));
    copy_to(&repository, &whole);
    for file in &files {
        bench
            .borg
            .run(["recreate", "--exclude", &format!("fm:{file}"), &archive]);
        bench
            .says(&lab, &["verify", "--all"])
            .expect(1, &[&format!("{file}: it is missing")]);
        std::fs::remove_dir_all(&repository).unwrap();
        copy_to(&whole, &repository);
        bench.forget_replay();
    }
    bench.says(&lab, &["verify", "--all"]).expect(0, &[]);
    // Lab removes domains and files below its directory; this state is libvirt's.
    for name in [&copy, &name] {
        run(&mut virsh(["undefine", "--nvram", "--tpm", name]));
    }
}

#[test]
fn uefi_variables_go_to_another_machine_with_the_vm() {
    let lab = Lab::new();
    let (name, away) = (lab.name("firmware"), lab.name("away"));
    let (disk, variables) = (lab.path("firmware.qcow2"), lab.path("firmware-vars.fd"));
    create_disk(&disk, Format::Qcow2, 16);
    let xml = lab.path("firmware.xml");
    std::fs::write(&xml, definition(&name, &disk, &variables, "")).unwrap();
    run(&mut virsh(["define", xml.to_str().unwrap()]));
    run(&mut virsh(["start", &name]));
    run(&mut virsh(["destroy", &name]));
    let bench = Bench::new(&lab, &[&name]);
    bench.json(&lab, &["backup", &name]);

    let sshd = Sshd::start();
    let _pool = Pool::of(lab.dir(), &away);
    let restore = ["--connect", &sshd.libvirt(), "restore", &name, "--as", &away];
    bench.says(&lab, &restore).expect(0, &["defined as"]);
    assert_eq!(
        std::fs::read(lab.path(&format!("{away}-nvram.fd"))).unwrap(),
        std::fs::read(&variables).unwrap()
    );
    run(&mut virsh(["start", &away]));
}
