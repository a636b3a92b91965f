//! What could be done on a hypervisor with the key of the account that backs up its VMs, and cannot: row R1 and its kind.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use strongroom_engine::run::event::Kind;
use strongroom_hypervisor::Hypervisor as _;
use strongroom_libvirt::Libvirt;
use strongroom_libvirt::rights::words;
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Lab, OwnLibvirtd, Sshd, output_of, polkit, run, virsh};

use crate::common::account::{ACCOUNT, Account, JOBS};
use crate::common::checks::socket_of;
use crate::common::tiny::{MIB, Tiny, noise};
use crate::common::{Bench, Hook};

/// Waits until this is so.
#[track_caller]
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        sleep(Duration::from_millis(100));
    }
}

/// A VM that is listed, one that is not and whose name begins with the same twenty characters, and the account.
struct Scene<'a> {
    lab: &'a Lab,
    account: &'a Account,
    vm: &'a Tiny,
    other: &'a Tiny,
}

#[test]
fn the_account_can_name_no_path_no_address_and_no_state() {
    let name = "the_account_can_name_no_path_no_address_and_no_state";
    let Some(own) = OwnLibvirtd::enter(module_path!(), name) else {
        return;
    };
    let lab = Lab::new();
    polkit::start(&own, lab.dir());
    let vm = Tiny::define(&lab, "a-name-that-is-cut-one");
    let other = Tiny::define(&lab, "a-name-that-is-cut-two");
    assert_eq!(vm.name[..20], other.name[..20]);
    for tiny in [&vm, &other] {
        tiny.set("vda", &noise(7, MIB));
        run(&mut virsh(["start", "--paused", &tiny.name]));
    }
    let mut bench = Bench::new(&lab, &[&vm.name]);
    bench.config.vm.get_mut(&vm.name).unwrap().plaintext = true;
    let sshd = Sshd::start();
    let key = sshd.key();
    let account = Account::make(&own, &lab, &bench, sshd, &key, &[&vm.name]);
    bench.config.hypervisor.clone_from(&account.uri);
    bench.hypervisor = Libvirt::connect(&account.uri).unwrap();
    let scene = Scene {
        lab: &lab,
        account: &account,
        vm: &vm,
        other: &other,
    };

    // It is no more than a backup takes, and no less.
    for mode in [Mode::Full, Mode::Incremental] {
        let hook = Hook::new(|event| {
            if let Kind::Captured { .. } = event {
                scene.others_exports();
            }
        });
        let report = bench.backup(&vm.name, &hook).unwrap();
        assert_eq!(*hook.warnings.lock().unwrap(), Vec::<String>::new());
        let disk = &report.manifest.disks[0];
        assert_eq!(disk.mode, mode, "{}", disk.reason);
    }
    assert_eq!(
        run(&mut virsh(["checkpoint-list", "--name", &vm.name]))
            .lines()
            .count(),
        1
    );

    let before = scene.looks();
    scene.libvirts_calls();
    scene.libvirts_address();
    scene.sentences();
    scene.ssh();
    assert_eq!(scene.looks(), before);
}

impl Scene<'_> {
    /// Everything that an attack could change.
    fn looks(&self) -> String {
        let mut looks = String::new();
        for tiny in [self.vm, self.other] {
            for arguments in [
                &["domstate", "--reason"][..],
                &["domblklist", "--details"],
                &["checkpoint-list", "--name"],
                &["snapshot-list", "--name"],
                &["metadata", "--uri", "urn:x"],
                &["desc"],
                &["domjobinfo"],
            ] {
                let (first, rest) = arguments.split_first().unwrap();
                looks += &output_of(virsh([*first, &tiny.name]).args(rest)).unwrap_or_default();
            }
            for target in ["vda", "vdb"] {
                let image = fs::metadata(tiny.disk(target)).unwrap();
                let (size, owner) = (image.len().to_string(), image.uid().to_string());
                looks += &[target, &size, &owner, ""].join(" ");
            }
        }
        looks
    }

    /// A file with this text, for `virsh`.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.lab.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Whatever libvirt itself is asked for that changes something is refused; with each path and address in it.
    fn libvirts_calls(&self) {
        let vm = &*self.vm.name;
        // Of root, and of another VM: neither is touched.
        let root = self.file("root.txt", "of root");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o600)).unwrap();
        let victim = self.other.disk("vdb").display().to_string();
        let push = |name: &str, path: &str| {
            let disk =
                format!("<disk name='vda' type='file'><target file='{path}'/><driver type='raw'/></disk>");
            self.file(
                name,
                &format!("<domainbackup mode='push'><disks>{disk}</disks></domainbackup>"),
            )
        };
        let (push_root, push_victim) = (push("push1.xml", &root), push("push2.xml", &victim));
        let listen = |name: &str, server: &str| {
            self.file(
                name,
                &format!("<domainbackup mode='pull'>{server}</domainbackup>"),
            )
        };
        let tcp = listen("tcp.xml", "<server transport='tcp' name='0.0.0.0' port='10809'/>");
        let unix = listen("unix.xml", "<server transport='unix' socket='/run/x.sock'/>");
        let point = self.file(
            "point.xml",
            "<domaincheckpoint><name>../x</name><description>&lt;/x&gt;</description></domaincheckpoint>",
        );
        let snapshot = self.file(
            "snapshot.xml",
            &format!("<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{victim}'/></disk></disks></domainsnapshot>"),
        );
        let disk = self.file(
            "disk.xml",
            &format!("<disk type='file'><source file='{root}'/><target dev='vdx' bus='virtio'/></disk>"),
        );
        let image = self.file("image", "");
        let fresh = self.lab.path("fresh").display().to_string();
        let secret = self.file("secret.xml", "<secret ephemeral='no' private='no'/>");
        let network = self.file("network.xml", "<network><name>x</name></network>");
        let all: &[&[&str]] = &[
            &["backup-begin", vm],
            &["backup-begin", vm, &push_root, "--reuse-external"],
            &["backup-begin", vm, &push_victim, "--reuse-external"],
            &["backup-begin", vm, &tcp],
            &["backup-begin", vm, &unix],
            &["domjobabort", vm],
            &["checkpoint-create", vm, &point],
            &["checkpoint-create", vm, &point, "--redefine"],
            &["checkpoint-create-as", vm, "x"],
            &["suspend", vm],
            &["resume", vm],
            &["reset", vm],
            &["inject-nmi", vm],
            &["send-key", vm, "KEY_A"],
            &["blockcopy", vm, "vda", &fresh, "--transient-job"],
            &[
                "blockcopy",
                vm,
                "vda",
                &victim,
                "--reuse-external",
                "--transient-job",
            ],
            &["blockcommit", vm, "vda", "--active"],
            &["blockpull", vm, "vda"],
            &["blockjob", vm, "vda", "--abort"],
            &["blockresize", vm, "vda", "1M"],
            &["blkdeviotune", vm, "vda", "--total-bytes-sec", "1"],
            &[
                "snapshot-create",
                vm,
                &snapshot,
                "--disk-only",
                "--reuse-external",
                "--no-metadata",
            ],
            &["snapshot-create-as", vm, "x"],
            &["attach-device", vm, &disk],
            &["attach-disk", vm, &root, "vdx"],
            &["detach-disk", vm, "vdb"],
            &["update-device", vm, &disk],
            &["qemu-monitor-command", vm, "--hmp", "info block"],
            &["qemu-agent-command", vm, r#"{"execute":"guest-ping"}"#],
            &["domfsfreeze", vm],
            &["domfstrim", vm],
            &["metadata", vm, "urn:x", "--key", "x", "--set", "<x/>"],
            &["desc", vm, "--new-desc", "x"],
            &["dump", vm, &fresh],
            &["save", vm, &fresh],
            &["managedsave", vm],
            &["screenshot", vm, &fresh],
            &["migrate", "--p2p", vm, "qemu+ssh://10.0.0.1/system"],
            &["domrename", vm, "x"],
            &["setvcpus", vm, "1"],
            &["setmem", vm, "32768"],
            &["domblkthreshold", vm, "vda", "1"],
            &["set-lifecycle-action", vm, "poweroff", "restart"],
            &["autostart", vm],
            &["destroy", vm],
            &["undefine", vm],
            &["dumpxml", vm, "--security-info"],
            &["pool-create-as", "x", "dir", "--target", "/etc"],
            &["pool-define-as", "x", "dir", "--target", "/etc"],
            &["find-storage-pool-sources-as", "netfs", "10.0.0.1"],
            &["vol-create-as", "default", "x", "1M"],
            &["vol-upload", "--pool", "default", "x", &image],
            &["net-create", &network],
            &["secret-define", &secret],
            &["nodesuspend", "mem", "60"],
            &["domxml-to-native", "qemu-argv", "--domain", vm],
            &["nodeinfo"],
            &["domstate", &self.other.name],
            &["backup-begin", &self.other.name],
        ];
        for refused in all {
            self.account.refused(refused);
        }
        assert_eq!(fs::read_to_string(&root).unwrap(), "of root");
        assert_eq!(fs::metadata(&root).unwrap().uid(), 0);
        assert!(!Path::new(&fresh).exists());
    }

    /// libvirtd opens what URI it is told to, also one that names a program, which it runs as root.
    fn libvirts_address(&self) {
        let (mark, program) = (self.lab.path("mark"), self.lab.path("program"));
        fs::write(&program, format!("#!/bin/sh\nid >{}\n", mark.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        for named in [
            format!("qemu%2Bssh%3A%2F%2Fh%2Fsystem%3Fcommand%3D{}", program.display()),
            "qemu%2Btcp%3A%2F%2F127.0.0.1%3A1%2Fsystem".to_owned(),
            "test%3A%2F%2F%2Fdefault".to_owned(),
        ] {
            let uri = format!("{}&name={named}", self.account.uri);
            let said = output_of(Command::new("timeout").args(["30", "virsh", "-q", "-c", &uri, "list"]));
            assert!(said.is_err(), "{named}: {said:?}");
        }
        assert!(!mark.exists(), "{}", fs::read_to_string(&mark).unwrap());
        self.account.virsh(&["list", "--all"]);
    }

    /// Begins a job that the administrator wants. Returns its socket.
    fn administrators_job(&self, tiny: &Tiny) -> PathBuf {
        let local = Libvirt::connect(crate::common::URI).unwrap();
        let domain = local.domain(&tiny.name).unwrap();
        let socket = socket_of(&local, domain.uuid, "sr-99999999.sock");
        let server = format!("<server transport='unix' socket='{}'/>", socket.display());
        let job = self.file(
            "job.xml",
            &format!("<domainbackup mode='pull'>{server}</domainbackup>"),
        );
        run(virsh(["backup-begin", &tiny.name]).arg(job));
        socket
    }

    /// While another VM has a job, as the administrator has begun it: its exports are out of reach, and its end is too.
    fn others_exports(&self) {
        let socket = self.administrators_job(self.other);
        let own = self.vm.name.chars().take(20).collect::<String>();
        assert!(
            socket.display().to_string().contains(&own),
            "it looks like the listed VM's"
        );
        let (code, said) = self
            .account
            .ssh(&["127.0.0.1", &format!("nc -U '{}'", socket.display())]);
        assert_eq!(code, Some(126), "{said}");
        let (code, said) = self.account.job(&words::end(&self.other.name));
        assert_eq!(code, Some(126), "{said}");
        run(&mut virsh(["domjobabort", &self.other.name]));
    }

    /// What the account for jobs takes no orders for, and what it does nothing about.
    fn sentences(&self) {
        let (vm, other) = (&*self.vm.name, &*self.other.name);
        let run_id = "20261130T010203Z-0123abcd";
        let begin = format!("begin {vm} {run_id} unix none vda:full:no");
        for bad in [
            "",
            "sh",
            "id",
            "virt-ssh-helper qemu:///system",
            "nc -U '/run/libvirt/libvirt-sock'",
            &begin.replace(vm, other),
            &begin.replace("unix", "10809"),
            &begin.replace("unix", "/run/x.sock"),
            &begin.replace("vda", "/etc/passwd"),
            &begin.replace(":no", ":no;id"),
            &begin.replace(":no", ":no\nid"),
            &begin.replace(run_id, "../x"),
            &format!("{begin} $(id)"),
            &format!("{begin} --reuse-external"),
            &format!("forget {vm} theirs"),
            &format!("forget {other} strongroom-x"),
            &format!("resume {other}"),
            &format!("attach {vm} {vm} 0123abcd vda vdsa"),
            &format!("detach {vm} vdsa"),
        ] {
            let (code, said) = self.account.job(bad);
            assert_eq!(code, Some(126), "{bad}: {said}");
        }
        // It is paused because the administrator wants it so.
        let (code, said) = self.account.job(&words::resume(vm));
        assert!(code == Some(1) && said.contains("was not stopped"), "{said}");
        // The administrator's own job, and one's own that would go into a file that is there.
        self.administrators_job(self.vm);
        let (code, said) = self.account.job(&words::end(vm));
        assert!(
            code == Some(1) && said.contains("not one of Strongroom's"),
            "{said}"
        );
        run(&mut virsh(["domjobabort", vm]));
        wait("the administrator's job stays", || {
            output_of(&mut virsh(["backup-dumpxml", vm])).is_err()
        });
        let directory = self.vm.disk("vda").parent().unwrap().to_owned();
        let scratch = directory.join(format!("strongroom-{run_id}-vda.scratch"));
        std::os::unix::fs::symlink("/etc/passwd", &scratch).unwrap();
        let (code, said) = self.account.job(&begin);
        assert!(code != Some(0) && said.contains("exists"), "{said}");
        fs::remove_file(&scratch).unwrap();
        let (code, said) = self.account.job(&begin);
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = self.account.job(&words::end(vm));
        assert_eq!(code, Some(0), "{said}");
        wait("the scratch file stays", || !scratch.exists());
        // libvirt itself is out of reach by way of it.
        let uri = self
            .account
            .uri
            .replace(&format!("{ACCOUNT}@"), &format!("{JOBS}@"));
        let said = output_of(Command::new("timeout").args(["30", "virsh", "-q", "-c", &uri, "list"]));
        assert!(said.is_err(), "{said:?}");
    }

    /// Neither account has a terminal, files, forwarded ports, agents or displays, or an environment of the client's.
    fn ssh(&self) {
        for account in [ACCOUNT, JOBS] {
            let (code, said) = self.account.ssh_as(account, &["-tt", "127.0.0.1"]);
            assert!(
                code != Some(0) && said.contains("PTY allocation request failed"),
                "{said}"
            );
            let (code, said) = self.account.ssh_as(account, &["-s", "127.0.0.1", "sftp"]);
            assert_ne!(code, Some(0), "{said}");
            let (code, said) = self.account.ssh_as(account, &["-W", "127.0.0.1:22", "127.0.0.1"]);
            assert!(code != Some(0) && said.contains("prohibited"), "{said}");
            let forward = [
                "-o",
                "ExitOnForwardFailure=yes",
                "-N",
                "-R",
                "0:127.0.0.1:22",
                "127.0.0.1",
            ];
            let (code, said) = self.account.ssh_as(account, &forward);
            assert!(code != Some(0) && said.contains("forwarding"), "{said}");
            let set = [
                "-A",
                "-X",
                "-o",
                "SetEnv=PATH=/tmp LC_ALL=de_DE.UTF-8 ENV=/tmp/x SSH_ORIGINAL_COMMAND=id",
                "127.0.0.1",
                "id",
            ];
            let (code, said) = self.account.ssh_as(account, &set);
            assert_eq!(code, Some(126), "{said}");
        }
        // Nothing runs on when a client has gone. The test's own connection stays.
        let processes = || {
            let found = output_of(Command::new("pgrep").args(["-u", ACCOUNT, "-f", "reach"]));
            found.unwrap_or_default().lines().count()
        };
        let before = processes();
        let mut client = Command::new(self.account.sshd.program())
            .args(["-l", ACCOUNT, "127.0.0.1", "virt-ssh-helper"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait("nothing runs", || processes() > before);
        client.kill().unwrap();
        client.wait().unwrap();
        wait("something runs on", || processes() <= before);
    }
}
