//! A VM that backs up its neighbours: the program in a guest of the same libvirt, which reaches its hypervisor with the least
//! rights and its repository with a key that can only append. Both ways to the disks: over ssh, and as read-only disks.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use strongroom_hypervisor::{HotAdd as _, HotAddDisk, Hypervisor as _, Listener};
use strongroom_libvirt::Libvirt;
use strongroom_libvirt::rights::words;
use strongroom_testkit::{Lab, OwnLibvirtd, Sshd, TestGuest, output_of, polkit, run, ssh_keygen, virsh};

use crate::common::account::{ACCOUNT, Account, JOBS};
use crate::common::checks::{begin_job, sha256_at_rest, socket_of};
use crate::common::{Bench, sha256_of_export};

/// Where a guest in QEMU's own network finds the host's loopback.
const HOST: &str = "10.0.2.2";

/// The VM that makes the backups.
struct BackupVm<'a> {
    guest: TestGuest,
    bench: &'a Bench,
}

impl<'a> BackupVm<'a> {
    /// Makes it of the test guest and a file system with the program and what it calls.
    fn boot(lab: &Lab, bench: &'a Bench, tree: &Path) -> Self {
        let image = lab.path("files.raw");
        run(Command::new("truncate").args(["-s", "512M"]).arg(&image));
        run(Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([tree, &image])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"));
        let guest = lab
            .guest()
            .named("backup")
            .root_mib(64)
            .swap_mib(0)
            .memory_mib(512)
            .files(&image)
            .networked()
            .boot();
        guest.sh("mkdir /all && mount -t ext4 /dev/vdb /all && mount -t proc proc /all/proc && mount -t sysfs sys /all/sys \
                  && mount -t devtmpfs dev /all/dev && mount -t tmpfs tmp /all/tmp && mount -t tmpfs run /all/run");
        guest.sh("ip link set lo up && ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0");
        Self { guest, bench }
    }

    /// Runs the program there. Returns how it ended, its document, and what it said beside that.
    fn strongroom(&self, config: &str, arguments: &str) -> (i64, Value, String) {
        let passphrase = self.bench.borg.environment();
        let passphrase = passphrase
            .iter()
            .find(|(name, _)| *name == "BORG_PASSPHRASE")
            .unwrap();
        let answer = self.guest.probe(&format!(
            "sh chroot /all /bin/busybox env -i HOME=/root PATH=/usr/bin:/bin BORG_BASE_DIR=/root '{}={}' \
             strongroom --json --config /etc/{config}.toml {arguments} 2>/err || r=$?; echo; cat /err; exit $r",
            passphrase.0,
            passphrase.1.to_str().unwrap(),
        ));
        let said = answer["output"].as_str().unwrap();
        let mut documents = serde_json::Deserializer::from_str(said).into_iter::<Value>();
        let document = documents.next().and_then(Result::ok).unwrap_or_default();
        let rest = said.get(documents.byte_offset()..).unwrap_or(said).to_owned();
        (answer["status"].as_i64().unwrap(), document, rest)
    }

    /// Backs up a VM there, which has to work without a warning. Returns the archive.
    fn backup(&self, config: &str, vm: &str, mode: &str) -> String {
        let (status, document, said) = self.strongroom(config, &format!("backup {vm}"));
        let manifest = &document["backups"][0]["backup"]["manifest"];
        assert_eq!(status, 0, "{document} {said}");
        assert_eq!(manifest["disks"][0]["mode"], mode, "{manifest}");
        let archive = document["backups"][0]["backup"]["archive"].as_str().unwrap();
        archive.to_owned()
    }

    /// How many disks its kernel has ever found.
    fn found(&self) -> usize {
        let found = self.guest.sh("dmesg | grep -c '512-byte logical blocks'");
        found.trim().parse().unwrap()
    }

    /// The disks that it has now.
    fn disks(&self) -> String {
        self.guest.sh("ls /sys/block | grep ^vd").replace('\n', " ")
    }
}

/// Everything that the backup VM holds: programs, two keys, two configurations.
fn tree(lab: &Lab, bench: &Bench, sshd: &Sshd, vm: &str, own: &str) -> (PathBuf, [PathBuf; 2]) {
    let tree = lab.path("tree");
    for directory in [
        "bin",
        "dev",
        "etc",
        "proc",
        "run",
        "sys",
        "tmp",
        "root/.ssh",
        "usr/bin",
    ] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    let install = "strip -o \"$2/usr/bin/strongroom\" \"$1\"; cp /bin/busybox \"$2/bin/\"; ln -s busybox \"$2/bin/sh\"; \
                   for program in /usr/bin/ssh /usr/bin/qemu-nbd \"$1\"; do \
                   test \"$program\" = \"$1\" || cp -L --parents \"$program\" \"$2\"; \
                   for library in $(ldd \"$program\" | grep -o '/[^ ]*'); do cp -L --parents \"$library\" \"$2\"; done; done";
    let program = env!("CARGO_BIN_EXE_strongroom");
    run(Command::new("sh")
        .args(["-ec", install, "sh", program])
        .arg(&tree));
    let ssh = tree.join("root/.ssh");
    let keys = ["hypervisor", "repository"].map(|name| {
        ssh_keygen(&ssh.join(name), name);
        ssh.join(name)
    });
    fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(ssh.join("known_hosts"), sshd.known_hosts(HOST)).unwrap();
    let config = format!(
        "Match user {ACCOUNT},{JOBS}\n  IdentityFile /root/.ssh/hypervisor\nMatch user root\n  IdentityFile /root/.ssh/repository\n\
         Match all\n  IdentitiesOnly yes\n  BatchMode yes\n"
    );
    fs::write(ssh.join("config"), config).unwrap();
    let port = sshd.port();
    let mut there = bench.config.clone();
    there.hypervisor = format!("qemu+ssh://{ACCOUNT}@{HOST}:{port}/system?no_tty=1");
    there.repository = format!("ssh://root@{HOST}:{port}{}", there.repository);
    there.state = Some("/root/state".into());
    there.vm.get_mut(vm).unwrap().plaintext = true;
    fs::write(tree.join("etc/ssh.toml"), there.to_toml()).unwrap();
    there.own_domain = Some(own.to_owned());
    fs::write(tree.join("etc/disks.toml"), there.to_toml()).unwrap();
    (tree, keys)
}

#[test]
fn a_backup_vm_backs_up_its_neighbour_by_both_ways_with_the_least_rights() {
    let name = "a_backup_vm_backs_up_its_neighbour_by_both_ways_with_the_least_rights";
    let Some(daemon) = OwnLibvirtd::enter(module_path!(), name) else {
        return;
    };
    let lab = Lab::new();
    polkit::start(&daemon, lab.dir());
    let sshd = Sshd::start();
    let guest = lab.guest().root_mib(256).swap_mib(0).boot();
    let (vm, own) = (guest.name(), lab.name("backup"));
    let bench = Bench::new(&lab, &[vm]);
    let (tree, [hypervisor, repository]) = tree(&lab, &bench, &sshd, vm, &own);
    sshd.let_in(&format!(
        "restrict,command=\"borg serve --append-only --restrict-to-repository {}\" {}",
        bench.repository(vm).display(),
        fs::read_to_string(repository.with_extension("pub")).unwrap()
    ));
    let account = Account::make(
        &daemon,
        &lab,
        &bench,
        sshd,
        &hypervisor,
        &["--own-domain", &own, vm],
    );
    let backup = BackupVm::boot(&lab, &bench, &tree);
    let local = Libvirt::connect(crate::common::URI).unwrap();
    let before = backup.disks();

    let mut points = Vec::new();
    for (config, mode) in [
        ("ssh", "full"),
        ("ssh", "incremental"),
        ("disks", "incremental"),
        ("disks", "full"),
    ] {
        if mode == "full" {
            // The second time over: nothing is known of changes.
            for checkpoint in run(&mut virsh(["checkpoint-list", "--name", vm])).lines() {
                run(&mut virsh(["checkpoint-delete", vm, checkpoint]));
            }
        }
        guest.probe("write 2");
        // It stands still, so that the host can see for itself what has to be in the backup.
        run(&mut virsh(["suspend", vm]));
        let found = backup.found();
        let archive = backup.backup(config, vm, mode);
        assert_eq!(backup.found() - found, usize::from(config == "disks"), "{mode}");
        points.push((archive, sha256_at_rest(&lab, &local, vm)));
        run(&mut virsh(["resume", vm]));
        assert_eq!(backup.disks(), before, "what was attached is detached");
    }
    let hashes: std::collections::BTreeSet<_> = points.iter().map(|(_, hash)| hash).collect();
    assert_eq!(hashes.len(), points.len(), "the guest wrote each time");
    for (archive, hash) in &points {
        assert_eq!(
            bench.sha256_of_restored(&lab, vm, archive, "vda"),
            *hash,
            "{archive}"
        );
    }
    guest.probe("verify");

    // The key to the repository can add, and take nothing away.
    let (status, document, said) = backup.strongroom("ssh", &format!("repo test-append-only {vm}"));
    assert_eq!(status, 0, "{document} {said}");

    nothing_can_be_written(&lab, &backup, &account, vm);
    refused(&lab, &account, vm, &own);
}

/// A disk that is attached takes no writes, and that is QEMU's doing.
fn nothing_can_be_written(lab: &Lab, backup: &BackupVm<'_>, account: &Account, vm: &str) {
    let local = Libvirt::connect(crate::common::URI).unwrap();
    let domain = local.domain(vm).unwrap();
    let socket = socket_of(&local, domain.uuid, "sr-0123abcd.sock");
    let listener = Listener::Socket(socket.clone());
    begin_job(lab, &local, vm, &listener);
    let export = local.export(&listener, "vda").unwrap();
    let hash = sha256_of_export(&export);
    let there = Libvirt::connect(&account.uri).unwrap();
    let own = backup.guest.name();
    let added = HotAddDisk {
        vm,
        socket: &socket,
        export: "vda",
        serial: "sr-0123abcd-vda",
    };
    there.attach_export(own, &added).unwrap();
    let device = "for i in $(seq 100); do d=$(grep -l sr-0123abcd-vda /sys/block/vd*/serial) && break; sleep 0.1; done; \
                  d=${d#/sys/block/}; echo /dev/${d%/serial}";
    let device = backup.guest.sh(device).trim().to_owned();
    assert!(device.starts_with("/dev/vd"), "{device}");

    // Its kernel will not, and cannot be talked into it.
    for attempt in [
        format!("dd if=/dev/zero of={device} bs=4096 count=1 conv=notrunc,fsync"),
        format!("blockdev --setrw {device}; dd if=/dev/zero of={device} bs=4096 count=1 conv=notrunc,fsync"),
    ] {
        let answer = backup.guest.probe(&format!("sh {attempt}"));
        assert_ne!(answer["status"], 0, "{attempt}: {answer}");
    }
    // A kernel that would try is refused by QEMU: a write where a request of the guest's would come in.
    let monitor = |arguments: &[&str]| {
        let command = [&["qemu-monitor-command", own], arguments].concat();
        run(Command::new("virsh")
            .args(["-q", "-c", crate::common::URI])
            .args(command))
    };
    let blocks: Value = serde_json::from_str(&monitor(&[r#"{"execute":"query-block"}"#])).unwrap();
    let found = |block: &&Value| block["inserted"]["file"].to_string().contains("sr-0123abcd.sock");
    let disks = blocks["return"].as_array().unwrap();
    let disk = disks.iter().find(found).unwrap_or_else(|| panic!("{blocks}"));
    assert_eq!(disk["inserted"]["ro"], true, "{disk}");
    let qdev = disk["qdev"].as_str().unwrap();
    let said = monitor(&["--hmp", &format!("qemu-io -d {qdev} \"write -P 1 0 4096\"")]);
    assert!(
        said.contains("Operation not permitted") || said.contains("read-only"),
        "{said}"
    );
    let said = monitor(&["--hmp", &format!("qemu-io -d {qdev} \"read 0 4096\"")]);
    assert_eq!(said.trim(), "", "the same way reads");
    assert_eq!(sha256_of_export(&export), hash);

    // What was left attached is taken back, and goes although it is in use.
    backup
        .guest
        .sh(&format!("sleep 1000 <{device} >/dev/null 2>&1 &"));
    assert_eq!(there.detach_exports(own, "sr-0123abcd-").unwrap(), 1);
    assert_eq!(there.detach_exports(own, "sr-0123abcd-").unwrap(), 0);
    backup.guest.sh(&format!(
        "for i in $(seq 100); do test -e {device} || exit 0; sleep 0.1; done; exit 1"
    ));
    local.end_backup(domain.uuid).unwrap();
    let job = run(&mut virsh(["domjobinfo", vm]));
    assert_eq!(job.split_whitespace().last(), Some("None"), "{job}");
}

/// What attaching disks could be used for, and is not.
fn refused(lab: &Lab, account: &Account, vm: &str, own: &str) {
    let image = lab.path("other.raw").display().to_string();
    run(Command::new("truncate").args(["-s", "1M", &image]));
    let export = words::attach(own, vm, "0123abcd", "vda", "vdsa");
    for asked in [
        format!("virsh -q -c qemu:///system attach-disk {own} {image} vdsa --live"),
        format!("attach {own} {vm} 0123abcd {image} vdsa"),
        format!("{export} --config"),
        words::attach(vm, vm, "0123abcd", "vda", "vdsa"),
        words::attach(own, own, "0123abcd", "vda", "vdsa"),
        words::attach(own, "other", "0123abcd", "vda", "vdsa"),
        words::detach(own, "vda"),
        words::detach(vm, "vdsa"),
    ] {
        let (code, said) = account.job(&asked);
        assert_eq!(code, Some(126), "{asked}: {said}");
    }
    // Whatever asks libvirt itself has no right to it: the words are looked at where they are run.
    let xml = lab.path("attached.xml").display().to_string();
    let text = format!("<disk type='file'><source file='{image}'/><target dev='vdsa' bus='virtio'/></disk>");
    fs::write(&xml, text).unwrap();
    for asked in [
        &["attach-device", own, &xml, "--live"][..],
        &["attach-disk", own, &image, "vdsa", "--live"],
        &["attach-disk", vm, &image, "vdsa", "--live"],
        &["detach-disk", own, "vda", "--live"],
        &["qemu-monitor-command", own, r#"{"execute":"query-block"}"#],
        &["destroy", own],
        &["backup-begin", own],
        &["dumpxml", "--security-info", own],
    ] {
        account.refused(asked);
    }
    let other = output_of(&mut virsh(["domblklist", own])).unwrap();
    assert!(!other.contains("vds"), "{other}");
}
