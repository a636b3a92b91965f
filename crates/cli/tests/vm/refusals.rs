//! What stops a backup before the VM is touched: each with a clear error, and nothing changed.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use strongroom_engine::config::{Config, Vm};
use strongroom_engine::run::event::Kind;
use strongroom_hypervisor::Hypervisor as _;
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Lab, TestGuest, patience, run, virsh};

use crate::common::checks::{fingerprint, socket_of};
use crate::common::running::{Running, Said};
use crate::common::tmpfs::Tmpfs;
use crate::common::{Bench, Hook};

/// A guest with one backup, in a repository on a file system of its own.
struct Scene<'a> {
    lab: &'a Lab,
    guest: TestGuest,
    bench: Bench,
    tmpfs: Tmpfs,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab) -> Self {
        let guest = lab.guest().root_mib(256).boot();
        let tmpfs = Tmpfs::new(lab.path(&format!("repo-{}", guest.name())), 1024);
        let bench = Bench::new(lab, &[guest.name()]);
        guest.probe("write 2");
        Self {
            lab,
            guest,
            bench,
            tmpfs,
        }
    }

    fn vm(&self) -> &str {
        self.guest.name()
    }

    fn backup(&self) -> Said {
        self.bench.says(self.lab, &["backup", self.vm()])
    }

    fn repository(&self) -> &Path {
        self.tmpfs.path()
    }

    /// The records of the VM, and what is in its repository.
    fn state(&self) -> (String, String) {
        let uuid = self.bench.hypervisor.domain(self.vm()).unwrap().uuid;
        let records = self.bench.config.state_directory().join(format!("{uuid}.json"));
        (
            fs::read_to_string(records).unwrap(),
            fingerprint(self.repository()),
        )
    }
}

#[test]
fn a_backup_that_cannot_work_is_refused_before_the_vm_is_touched() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.backup().expect(0, &["vda: full", "first backup", "stored"]);
    let archives = scene.bench.at_rest(&lab, scene.vm());
    assert_eq!(archives.len(), 1);
    let before = scene.state();

    passphrases(&scene);
    places_without_a_repository(&scene);
    a_read_only_repository(&scene);
    mistakes_in_the_configuration(&scene);
    dry_runs(&scene);

    assert_eq!(scene.state(), before, "nothing was written");
    assert_eq!(scene.bench.at_rest(&lab, scene.vm()), archives);
    scene.guest.probe("verify");
    a_locked_repository(&scene);
    two_runs_at_once(&scene);
    scene.backup().expect(0, &["vda: incremental"]);
    assert_eq!(scene.bench.at_rest(&lab, scene.vm()).len(), 3);
    scene.bench.check(scene.vm());
    scene.guest.probe("verify");
}

fn passphrases(scene: &Scene<'_>) {
    let backup = |value: &str| {
        let mut program = scene.bench.program(scene.lab);
        program
            .env("BORG_PASSPHRASE", value)
            .args(["--json", "backup", scene.vm()]);
        Said::of(&mut program)
    };
    let said = backup("wrong");
    said.expect(
        1,
        &[
            &format!("back up {}", scene.vm()),
            "the passphrase is wrong",
            "hint: check BORG_PASSPHRASE",
        ],
    );
    // Scripts get the same as a document.
    let document = said.json();
    assert_eq!(document["backups"][0]["vm"], scene.vm());
    let error = document["backups"][0]["error"].as_str().unwrap();
    assert!(error.contains("the passphrase is wrong"), "{document}");

    // Without a terminal and without a passphrase there is nothing to ask.
    let mut program = scene.bench.program(scene.lab);
    program.env_remove("BORG_PASSPHRASE").args(["backup", scene.vm()]);
    let mut detached = std::process::Command::new("setsid");
    detached
        .arg("--wait")
        .arg(program.get_program())
        .args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => detached.env(name, value),
            None => detached.env_remove(name),
        };
    }
    Said::of(&mut detached).expect(
        1,
        &["needs a passphrase and none was given", "set BORG_PASSPHRASE"],
    );
}

fn places_without_a_repository(scene: &Scene<'_>) {
    let place = scene.lab.path("elsewhere");
    let at = |arguments: &[&str]| {
        let mut bench_config = scene.bench.config.clone();
        let own = Vm {
            repository: Some(place.display().to_string()),
            ..Vm::default()
        };
        bench_config.vm.insert(scene.vm().to_owned(), own);
        let file = scene.lab.path("elsewhere.toml");
        fs::write(&file, bench_config.to_toml()).unwrap();
        let mut program = scene.bench.program(scene.lab);
        Said::of(program.env("STRONGROOM_CONFIG", file).args(arguments))
    };
    let named = place.display().to_string();
    at(&["backup", scene.vm()]).expect(1, &[&named, "does not exist", "hint: check the location"]);
    let listed = at(&["--json", "list", scene.vm()]);
    listed.expect(1, &["does not exist"]);
    assert!(listed.json()["error"].as_str().unwrap().contains(&named));

    // Just a directory; Borg 2 as it was in its beta releases, and as it is.
    fs::create_dir(&place).unwrap();
    let not_borg = ["is not a Borg 1.x repository", "hint: Borg 2"];
    fs::write(place.join("README"), "notes\n").unwrap();
    at(&["backup", scene.vm()]).expect(1, &[&named, not_borg[0], not_borg[1]]);
    fs::write(place.join("config"), "[repository]\nversion = 2\nid = 00\n").unwrap();
    at(&["backup", scene.vm()]).expect(1, &[&named, not_borg[0], not_borg[1]]);
    fs::remove_file(place.join("config")).unwrap();
    for directory in ["config", "data", "keys", "locks"] {
        fs::create_dir(place.join(directory)).unwrap();
    }
    fs::write(place.join("config/version"), "3\n").unwrap();
    let before = fingerprint(&place);
    at(&["backup", scene.vm()]).expect(1, &[&named, not_borg[0], not_borg[1]]);
    at(&["list", scene.vm()]).expect(1, &[&named, not_borg[0], not_borg[1]]);
    assert_eq!(
        fingerprint(&place),
        before,
        "a foreign directory is left as it was"
    );
    fs::remove_dir_all(place).unwrap();
}

fn a_read_only_repository(scene: &Scene<'_>) {
    scene.tmpfs.remount("ro");
    let said = scene.backup();
    scene.tmpfs.remount("rw");
    said.expect(1, &["use the repository", "Read-only file system"]);
    assert!(said.err.contains("hint:"), "{}", said.err);
}

fn a_locked_repository(scene: &Scene<'_>) {
    // Stock Borg holds the lock until its standard input ends.
    let mut holder = scene
        .bench
        .borg
        .command()
        .arg("with-lock")
        .arg(scene.repository())
        .arg("cat")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let lock = scene.repository().join("lock.exclusive");
    while !lock.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let clock = Instant::now();
    scene
        .bench
        .says(scene.lab, &["--lock-wait", "1", "backup", scene.vm()])
        .expect(
            1,
            &["locked by another client", "hint: wait for the other client"],
        );
    assert!(
        clock.elapsed() < patience(Duration::from_secs(15)),
        "{:?}",
        clock.elapsed()
    );

    // Ctrl-C does not have to wait for the lock.
    let clock = Instant::now();
    for command in ["backup", "list"] {
        let mut program = scene.bench.program(scene.lab);
        let mut running = Running::start(program.args(["-v", "--lock-wait", "20", command, scene.vm()]));
        if command == "backup" {
            running.wait_for("opening the repository");
        }
        std::thread::sleep(Duration::from_millis(700));
        if command == "backup" {
            running.interrupt();
        } else {
            // There is nothing to undo: it just ends.
            running.signal("INT");
            assert_eq!(running.end().code, None);
        }
    }
    assert!(
        clock.elapsed() < patience(Duration::from_secs(15)),
        "{:?}",
        clock.elapsed()
    );
    assert!(lock.exists(), "the other client's lock still stands");
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
}

fn mistakes_in_the_configuration(scene: &Scene<'_>) {
    let with = |change: &dyn Fn(&mut Config), arguments: &[&str]| {
        let mut config = scene.bench.config.clone();
        change(&mut config);
        let file = scene.lab.path("mistaken.toml");
        fs::write(&file, config.to_toml()).unwrap();
        let mut program = scene.bench.program(scene.lab);
        Said::of(program.env("STRONGROOM_CONFIG", file).args(arguments))
    };
    // No such VM in the configuration, and none in libvirt.
    scene
        .bench
        .says(scene.lab, &["backup", "nobody"])
        .expect(2, &["nobody", "`strongroom init nobody` adds it"]);
    let gone = scene.lab.name("gone");
    let add = |config: &mut Config| {
        config.vm.insert(gone.clone(), Vm::default());
    };
    with(&add, &["backup", &gone]).expect(1, &[&gone, "find a domain", crate::common::URI]);
    // One VM that fails does not keep the others from their turn; here both are asked about only.
    let both = with(&add, &["--json", "backup", "-n", "--all"]);
    both.expect(1, &["find a domain"]);
    let document = both.json();
    assert_eq!(document["backups"].as_array().unwrap().len(), 2, "{document}");
    assert_eq!(document["backups"][1]["plan"]["vm"], scene.vm(), "{document}");
    // A disk that is not there, and no disk left.
    let swap = |target: &'static str| {
        move |config: &mut Config| {
            config
                .vm
                .values_mut()
                .for_each(|vm| vm.swap = vec![target.into()]);
        }
    };
    with(&swap("vdz"), &["backup", scene.vm()]).expect(2, &["disk vdz", "has vda, vdb"]);
    with(&swap("vda"), &["backup", scene.vm()]).expect(2, &["no disk is left to back up"]);
    // No configuration, half of one, an unreachable hypervisor.
    let mut program = scene.bench.program(scene.lab);
    program.args(["--config", "/nonexistent/strongroom.toml", "backup", "--all"]);
    Said::of(&mut program).expect(2, &["/nonexistent/strongroom.toml", "hint: `strongroom init"]);
    scene.bench.says(scene.lab, &["backup"]).expect(2, &["Usage"]);
    scene
        .bench
        .says(
            scene.lab,
            &[
                "--connect",
                "qemu+unix:///system?socket=/nonexistent",
                "backup",
                scene.vm(),
            ],
        )
        .expect(1, &["connect to the hypervisor", "/nonexistent"]);
    let said = scene
        .bench
        .says(scene.lab, &["--json", "show", &format!("{}@1999", scene.vm())]);
    said.expect(2, &["find restore point", "`strongroom list` shows"]);
    assert!(said.json()["error"].is_string());
}

fn dry_runs(scene: &Scene<'_>) {
    let planned = scene.bench.json(scene.lab, &["backup", "--dry-run", scene.vm()]);
    let plan = &planned["backups"][0]["plan"];
    assert_eq!(plan["disks"][0]["mode"], "incremental", "{planned}");
    assert_eq!(plan["excluded"][0]["why"], "swap", "{planned}");
    let named = scene.lab.name("copy");
    let planned = scene
        .bench
        .json(scene.lab, &["restore", "--dry-run", scene.vm(), "--as", &named]);
    assert_eq!(planned["plan"]["vm"], *named, "{planned}");
    let status = scene.bench.json(scene.lab, &["status"]);
    assert_eq!(status["vms"][0]["next"], "incremental", "{status}");
    assert_eq!(status["vms"][0]["problem"], serde_json::Value::Null, "{status}");
}

fn two_runs_at_once(scene: &Scene<'_>) {
    let second = std::sync::Mutex::new(None);
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            let clock = Instant::now();
            let said = scene.backup();
            *second.lock().unwrap() = Some((said, clock.elapsed()));
        }
    });
    scene.bench.backup(scene.vm(), &hook).unwrap();
    let (said, took) = second.into_inner().unwrap().unwrap();
    said.expect(1, &[scene.vm(), "another run of strongroom works on it"]);
    assert!(took < patience(Duration::from_secs(5)), "{took:?}");
}

#[test]
fn what_others_do_with_the_vm_is_left_alone() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.backup().expect(0, &["first backup"]);
    let archives = scene.bench.at_rest(&lab, scene.vm());
    let before = scene.state();

    a_foreign_backup_job(&scene);
    a_foreign_block_job(&scene);
    a_foreign_snapshot(&scene);
    a_dump(&scene);

    assert_eq!(scene.state(), before, "nothing was written");
    assert_eq!(scene.bench.at_rest(&lab, scene.vm()), archives);
    scene.guest.probe("verify");
    // Snapshots inside the image are no hindrance; nothing is tracked beside them, so that they can be reverted to.
    run(&mut virsh(["snapshot-create-as", scene.vm(), "inside"]));
    scene.backup().expect(
        0,
        &["vda: full", "changes are not tracked: it has internal snapshots"],
    );
    run(&mut virsh(["snapshot-delete", scene.vm(), "inside"]));
    scene.backup().expect(0, &["vda: full"]);
    scene.backup().expect(0, &["vda: incremental"]);
    a_foreign_checkpoint(&scene);
    scene.bench.at_rest(&lab, scene.vm());
    scene.bench.check(scene.vm());
    scene.guest.probe("verify");
}

/// It is no hindrance, stays as it is, and may go whenever its owner wants.
fn a_foreign_checkpoint(scene: &Scene<'_>) {
    let good = || {
        scene.guest.probe("write 3");
        let (report, hash) = scene.bench.backup_with_hash(scene.vm());
        let disk = report.manifest.disk("vda").unwrap();
        assert_eq!(disk.mode, Mode::Incremental, "{}", disk.reason);
        let restored = scene
            .bench
            .sha256_of_restored(scene.lab, scene.vm(), &report.archive, "vda");
        assert_eq!(restored, hash);
    };
    // How much has changed since, which takes a whole chain of bitmaps.
    let since = || {
        let xml = run(&mut virsh(["checkpoint-dumpxml", "--size", scene.vm(), "theirs"]));
        let (_, size) = xml
            .split_once("name='vda'")
            .unwrap()
            .1
            .split_once("size='")
            .unwrap();
        size.split('\'').next().unwrap().parse::<u64>().unwrap()
    };
    run(&mut virsh(["checkpoint-create-as", scene.vm(), "theirs"]));
    good();
    let first = since();
    good();
    assert!(
        first >= 3 << 20 && since() > first,
        "{first}, then {}: they miss changes",
        since()
    );
    run(&mut virsh(["checkpoint-delete", scene.vm(), "theirs"]));
    good();
}

fn a_foreign_backup_job(scene: &Scene<'_>) {
    let uuid = scene.bench.hypervisor.domain(scene.vm()).unwrap().uuid;
    let socket = socket_of(&scene.bench.hypervisor, uuid, "theirs.sock");
    let (socket, scratch) = (socket.display(), scene.lab.path("theirs"));
    let xml = scene.lab.path("theirs.xml");
    let job = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>\
         <disk name='vda' backup='yes' type='file'><driver type='qcow2'/><scratch file='{}'/></disk>\
         <disk name='vdb' backup='no'/></disks></domainbackup>",
        scratch.display()
    );
    fs::write(&xml, job).unwrap();
    run(virsh(["backup-begin", scene.vm()]).arg(&xml));
    let clock = Instant::now();
    let said = scene.backup();
    said.expect(
        1,
        &[
            &format!("back up {}", scene.vm()),
            &format!("a backup job of another program runs, with the socket {socket}"),
            "nothing was touched",
            "hint: run the backup again when that is over",
        ],
    );
    assert!(
        clock.elapsed() < patience(Duration::from_secs(15)),
        "{:?}",
        clock.elapsed()
    );
    let dry = scene
        .bench
        .says(scene.lab, &["--json", "backup", "-n", scene.vm()]);
    dry.expect(1, &["a backup job of another program"]);
    let job = run(&mut virsh(["domjobinfo", scene.vm()]));
    assert!(job.contains("Backup"), "it still runs: {job}");
    run(&mut virsh(["domjobabort", scene.vm()]));
}

fn a_foreign_block_job(scene: &Scene<'_>) {
    let copy = scene.lab.path("copy.qcow2");
    run(virsh(["blockcopy", scene.vm(), "vda"])
        .arg(&copy)
        .args(["--transient-job", "--bandwidth", "1"]));
    scene.backup().expect(
        1,
        &["a block job (copy) runs on its disk vda", "nothing was touched"],
    );
    let live = run(&mut virsh(["dumpxml", scene.vm()]));
    assert!(live.contains("job='copy'"), "it still runs: {live}");
    run(&mut virsh(["blockjob", scene.vm(), "vda", "--abort"]));
    fs::remove_file(copy).unwrap();
}

fn a_foreign_snapshot(scene: &Scene<'_>) {
    let (overlay, swap) = (scene.lab.path("theirs.overlay"), scene.lab.path("swap.overlay"));
    let spec = |target: &str, file: &Path| format!("{target},snapshot=external,file={}", file.display());
    let take = |name: &str, spec: &str, other: &str| {
        let mut command = virsh(["snapshot-create-as", scene.vm(), name, "--disk-only", "--atomic"]);
        run(command.args(["--diskspec", spec, "--diskspec", other]));
    };
    take("theirs", &spec("vda", &overlay), "vdb,snapshot=no");
    scene.backup().expect(
        1,
        &[
            &format!("disk vda runs on {}", overlay.display()),
            "the overlay of another program's snapshot \"theirs\"",
            "nothing was touched",
            "hint: let the program that took it merge it",
        ],
    );
    let chain = run(&mut virsh(["domblklist", scene.vm()]));
    assert!(chain.contains(overlay.to_str().unwrap()), "{chain}");
    let pivot = |target: &str| {
        run(virsh(["blockcommit", scene.vm(), target]).args(["--active", "--pivot", "--wait"]));
    };
    pivot("vda");
    fs::remove_file(overlay).unwrap();
    // What libvirt remembers of it is no reason, and neither is one of a disk that is not backed up.
    take("swap", &spec("vdb", &swap), "vda,snapshot=no");
    let planned = scene.bench.json(scene.lab, &["backup", "-n", scene.vm()]);
    assert_eq!(planned["backups"][0]["plan"]["disks"][0]["mode"], "incremental");
    pivot("vdb");
    fs::remove_file(swap).unwrap();
    for name in ["theirs", "swap"] {
        run(&mut virsh(["snapshot-delete", scene.vm(), "--metadata", name]));
    }
}

/// A job that holds the VM as a whole, as a migration does.
fn a_dump(scene: &Scene<'_>) {
    let core = scene.lab.path("core");
    let operation = || run(&mut virsh(["domjobinfo", scene.vm()]));
    let said = loop {
        let mut dump = virsh(["dump", "--live", "--memory-only", scene.vm()]);
        let mut dump = dump.arg(&core).stdout(Stdio::null()).spawn().unwrap();
        while !operation().contains("Dump") && dump.try_wait().unwrap().is_none() {}
        let said = scene.bench.says(scene.lab, &["backup", "-n", scene.vm()]);
        assert!(dump.wait().unwrap().success());
        // It may have been over too soon.
        if said.code != Some(0) {
            break said;
        }
    };
    fs::remove_file(core).unwrap();
    said.expect(1, &["its memory is being dumped", "nothing was touched"]);
}
