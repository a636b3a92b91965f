//! What needs a libvirtd of the test's own: one that is killed and mended, a second one to migrate to, one that says that it
//! has no backup jobs.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_engine::backup::BackupError;
use strongroom_engine::config::CaptureMethod;
use strongroom_engine::run::event::Kind;
use strongroom_libvirt::Libvirt;
use strongroom_points::manifest::{Method, Mode};
use strongroom_testkit::{Lab, OtherHost, OwnLibvirtd, output_of, run, virsh};

use crate::common::tiny::{MIB, Tiny, noise};
use crate::common::{Bench, Hook, names};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// A VM with something on its disk, running, and an engine that knows it.
fn scene(lab: &Lab, method: CaptureMethod) -> (Bench, Tiny) {
    let tiny = Tiny::define(lab, "vm");
    tiny.set("vda", &noise(7, 6 * MIB));
    run(&mut virsh(["start", &tiny.name]));
    let mut bench = Bench::new(lab, &[&tiny.name]);
    for vm in bench.config.vm.values_mut() {
        vm.method = method;
        vm.exclude = vec!["vdb".into()];
    }
    (bench, tiny)
}

fn images(arguments: &[&str], mut command: Command) -> String {
    run(command.args(arguments))
}

/// The VM is on its own image, and no overlay is left.
#[track_caller]
fn expect_home(lab: &Lab, vm: &str) {
    for inactive in [&[][..], &["--inactive"]] {
        let images = images(inactive, virsh(["domblklist", vm]));
        assert!(!images.contains("overlay"), "{images}");
    }
    let files = names(lab.dir());
    assert!(!files.iter().any(|name| name.ends_with(".overlay")), "{files:?}");
}

fn migrate(vm: &str, to: &OtherHost) -> Result<String, String> {
    output_of(
        virsh(["migrate", "--live", "--persistent", "--unsafe", vm]).args([
            &to.uri(),
            "--migrateuri",
            "tcp://127.0.0.1",
        ]),
    )
}

#[test]
fn a_vm_that_is_migrated_away_is_left_alone() {
    let Some(daemon) = OwnLibvirtd::enter(module_path!(), "a_vm_that_is_migrated_away_is_left_alone") else {
        return;
    };
    let lab = Lab::new();
    let (mut bench, tiny) = scene(&lab, CaptureMethod::Checkpoint);
    let vm = &tiny.name;
    let other = daemon.other_host(lab.dir());

    // A backup job keeps it where it is: a migration is refused with that reason.
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            let refused = migrate(vm, &other).unwrap_err();
            assert!(refused.contains("lock") || refused.contains("job"), "{refused}");
        }
    });
    bench.backup(vm, &hook).unwrap();
    assert_eq!(bench.at_rest(&lab, vm).len(), 1);

    // On an overlay it can go, and takes the overlay with it. Nothing here may touch that then.
    for settings in bench.config.vm.values_mut() {
        settings.method = CaptureMethod::Snapshot;
    }
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            migrate(vm, &other).unwrap();
        }
    });
    let error = bench.backup(vm, &hook).unwrap_err();
    assert!(matches!(error, BackupError::NotHome { .. }), "{error}");
    let overlay = names(lab.dir())
        .into_iter()
        .find(|name| name.ends_with(".overlay"))
        .expect("the overlay stays");
    let there = images(&[], other.virsh(&["domblklist", vm]));
    assert!(there.contains(&overlay), "{there}");
    for command in [&["recover"][..], &["backup"]] {
        let said = bench.says(&lab, &[command, &[vm.as_str()]].concat());
        said.expect(
            1,
            &["was migrated to another host", &overlay, "Nothing was touched"],
        );
    }
    assert_eq!(run(&mut other.virsh(&["domstate", vm])), "running");
    assert!(lab.path(&overlay).exists());

    // Back here it comes home, and is backed up as if nothing had been.
    let back = [
        "migrate",
        "--live",
        "--persistent",
        "--unsafe",
        vm,
        "qemu:///system",
    ];
    run(other.virsh(&back).args(["--migrateuri", "tcp://127.0.0.1"]));
    bench.says(&lab, &["recover", vm]).expect(3, &["was interrupted"]);
    expect_home(&lab, vm);
    let (report, hash) = bench.backup_with_hash(vm);
    assert_eq!(bench.sha256_of_restored(&lab, vm, &report.archive, "vda"), hash);

    // A VM that runs elsewhere is not one that is shut off.
    migrate(vm, &other).unwrap();
    bench
        .says(&lab, &["backup", vm])
        .expect(1, &["has been migrated to another host", "nothing was touched"]);
    assert_eq!(bench.archives(vm).len(), 2);
    run(&mut other.virsh(&["destroy", vm]));
    run(&mut other.virsh(&["undefine", "--checkpoints-metadata", vm]));
}

#[test]
fn a_block_job_that_libvirt_cannot_forget_is_explained_and_mended_when_asked_for() {
    let name = "a_block_job_that_libvirt_cannot_forget_is_explained_and_mended_when_asked_for";
    let Some(daemon) = OwnLibvirtd::enter(module_path!(), name) else {
        return;
    };
    let lab = Lab::new();
    let (mut bench, tiny) = scene(&lab, CaptureMethod::Snapshot);
    let vm = &tiny.name;
    bench.config.reader.limit_mib = 1;
    wedge(&daemon, &lab, &bench, vm);
    bench.config.reader.limit_mib = 0;
    let shown = || run(&mut virsh(["dumpxml", vm]));
    assert!(shown().contains("<mirror"), "{}", shown());
    let process = || fs::read_to_string(format!("/run/libvirt/qemu/{vm}.pid")).unwrap();
    let before = process();

    // It is made safe and explained, and nothing more.
    let words = [
        "libvirt was killed while it ended a block job",
        "--repair-libvirt-status",
    ];
    bench.says(&lab, &["backup", vm]).expect(1, &words);
    bench.says(&lab, &["recover", vm]).expect(1, &words);
    let next = images(&["--inactive"], virsh(["domblklist", vm]));
    assert!(
        !next.contains("overlay"),
        "the next start finds the newest data: {next}"
    );
    // Which VM is meant has to be said.
    assert_eq!(
        bench.says(&lab, &["recover", "--repair-libvirt-status"]).code,
        Some(2)
    );
    let dry = bench.says(&lab, &["recover", "--repair-libvirt-status", "--dry-run", vm]);
    dry.expect(3, &["libvirt shows a block job that has ended"]);
    assert!(shown().contains("<mirror"), "nothing was done");

    let said = bench.says(&lab, &["-v", "recover", "--repair-libvirt-status", vm]);
    said.expect(3, &["libvirt has been stopped and started", "put right"]);
    assert!(!shown().contains("<mirror"), "{}", shown());
    expect_home(&lab, vm);
    assert_eq!(process(), before, "QEMU has run on");
    assert_eq!(run(&mut virsh(["domstate", vm])), "running");
    let left = names(Path::new("/run/libvirt/qemu"));
    assert!(!left.iter().any(|name| name.contains("strongroom")), "{left:?}");
    // libvirt takes snapshots and jobs of it again, and knows it after another restart.
    daemon.end("TERM");
    daemon.start();
    let (report, hash) = bench.backup_with_hash(vm);
    assert_eq!(report.manifest.method, Method::Snapshot);
    assert_eq!(bench.sha256_of_restored(&lab, vm, &report.archive, "vda"), hash);
    bench
        .says(&lab, &["recover", "--repair-libvirt-status", vm])
        .expect(0, &[]);
}

/// Brings about exactly what a libvirtd leaves that is killed between its order to switch to the base and QEMU's answer:
/// QEMU has done it, and libvirt's status says that it was asked to. (By chance it takes three kills on average.)
fn wedge(daemon: &OwnLibvirtd, lab: &Lab, bench: &Bench, vm: &str) {
    let mut program = bench.program(lab).args(["backup", vm]).spawn().unwrap();
    wait_until("it is on its overlay", || {
        images(&["--inactive"], virsh(["domblklist", vm])).contains("overlay")
    });
    program.kill().unwrap();
    program.wait().unwrap();
    run(virsh(["blockcommit", vm, "vda", "--active"]).stdin(std::process::Stdio::null()));
    wait_until("the commit is ready", || {
        run(&mut virsh(["dumpxml", vm])).contains("ready='yes'")
    });
    let id = run(&mut virsh(["domid", vm]));
    daemon.end("KILL");
    let socket = fs::read_dir("/var/lib/libvirt/qemu")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&format!("domain-{}-", id.trim()))
        })
        .unwrap()
        .join("monitor.sock");
    complete(&socket);
    let status = PathBuf::from(format!("/run/libvirt/qemu/{vm}.xml"));
    let text = fs::read_to_string(&status).unwrap();
    assert!(text.contains("ready='yes'"), "{text}");
    fs::write(&status, text.replace("ready='yes'", "ready='pivot'")).unwrap();
    // Before its order the program had noted this.
    let uuid = run(Command::new("sed")
        .args(["-n", "s:.*<uuid>\\(.*\\)</uuid>.*:\\1:p"])
        .arg(&status));
    let journal = bench
        .config
        .state_directory()
        .join(format!("{}.json", uuid.lines().next().unwrap()));
    let mut records: Value = serde_json::from_slice(&fs::read(&journal).unwrap()).unwrap();
    records["run"]["overlays"][0]["pivoting"] = json!(true);
    fs::write(&journal, records.to_string()).unwrap();
    daemon.start();
}

/// Ends QEMU's commit job by its monitor, as libvirtd would have.
fn complete(socket: &Path) {
    let stream = UnixStream::connect(socket).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut ask = |command: &str, arguments: Value| {
        let request = json!({ "execute": command, "arguments": arguments });
        (&stream).write_all(format!("{request}\n").as_bytes()).unwrap();
        // A greeting and events come in between.
        loop {
            let said: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            if said.get("return").is_some() || said.get("error").is_some() {
                return said;
            }
        }
    };
    ask("qmp_capabilities", json!({}));
    let jobs = ask("query-jobs", json!({}));
    let id = jobs["return"][0]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{jobs}"))
        .to_owned();
    let said = ask("job-complete", json!({ "id": id }));
    assert!(said.get("return").is_some(), "{said}");
    wait_until("the job has ended", || {
        ask("query-jobs", json!({}))["return"][0]["status"] == "concluded"
    });
    ask("job-dismiss", json!({ "id": id }));
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "not so far: {what}");
        sleep(Duration::from_millis(50));
    }
}

/// No libvirt that can be had here lacks backup jobs; so the daemon's answer to the question whether it has them is changed
/// on its way, by one letter. Everything else is real.
#[test]
fn a_host_without_backup_jobs_is_backed_up_by_snapshot() {
    let Some(_daemon) = OwnLibvirtd::enter(
        module_path!(),
        "a_host_without_backup_jobs_is_backed_up_by_snapshot",
    ) else {
        return;
    };
    let lab = Lab::new();
    let (mut bench, tiny) = scene(&lab, CaptureMethod::Auto);
    let vm = tiny.name.clone();
    // One that can is asked for a job first.
    let report = bench.backup(&vm, &()).unwrap();
    assert_eq!(
        (report.manifest.method, report.manifest.method_reason),
        (Method::Checkpoint, None)
    );

    let socket = lab.path("proxy");
    proxy(&socket);
    bench.config.hypervisor = format!("qemu+unix:///system?socket={}", socket.display());
    bench.hypervisor = Libvirt::connect(&bench.config.hypervisor).unwrap();
    let planned = bench.json(&lab, &["backup", "--dry-run", &vm]);
    let plan = &planned["backups"][0]["plan"];
    assert_eq!(plan["method"], "snapshot", "{plan}");
    let why = plan["method_reason"].as_str().unwrap();
    assert!(why.contains("no backup jobs"), "{why}");
    for _ in 0..2 {
        let (report, hash) = bench.backup_with_hash(&vm);
        let manifest = &report.manifest;
        assert_eq!(manifest.method, Method::Snapshot);
        assert!(
            manifest
                .method_reason
                .as_ref()
                .unwrap()
                .contains("no backup jobs")
        );
        assert_eq!(manifest.checkpoint, None, "it has no checkpoints either");
        let vda = &manifest.disks[0];
        assert_eq!((vda.mode, vda.tracked), (Mode::Full, false), "{}", vda.reason);
        // Everything is read, and nothing stored that is there already.
        assert!(
            vda.bytes_read >= 6 * MIB as u64 && vda.bytes_stored == 0,
            "{vda:?}"
        );
        assert_eq!(bench.sha256_of_restored(&lab, &vm, &report.archive, "vda"), hash);
        expect_home(&lab, &vm);
    }
    // A request for a job or nothing gets nothing else.
    for settings in bench.config.vm.values_mut() {
        settings.method = CaptureMethod::Checkpoint;
    }
    let planned = bench.json(&lab, &["backup", "--dry-run", &vm]);
    assert_eq!(planned["backups"][0]["plan"]["method"], "checkpoint", "{planned}");
}

/// Passes on what is said between clients and libvirtd, message by message, but for that one word.
fn proxy(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = UnixStream::connect("/run/libvirt/libvirt-sock").unwrap();
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || pass_on(from, to, false));
            std::thread::spawn(move || pass_on(server, client, true));
        }
    });
}

fn pass_on(mut from: UnixStream, mut to: UnixStream, changed: bool) {
    // A message begins with its length, itself included, as four bytes in network order (libvirt's RPC).
    let mut length = [0; 4];
    while from.read_exact(&mut length).is_ok() {
        let mut message = vec![0; u32::from_be_bytes(length) as usize - length.len()];
        if from.read_exact(&mut message).is_err() {
            break;
        }
        let word = b"<backup supported='yes'/>";
        if changed && let Some(at) = message.windows(word.len()).position(|part| part == word) {
            message[at..at + word.len()].copy_from_slice(b"<backup supported='no' />");
        }
        if to
            .write_all(&length)
            .and_then(|()| to.write_all(&message))
            .is_err()
        {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn libvirtd_may_end_or_be_killed_under_a_backup() {
    let Some(daemon) = OwnLibvirtd::enter(module_path!(), "libvirtd_may_end_or_be_killed_under_a_backup")
    else {
        return;
    };
    let lab = Lab::new();
    let (mut bench, tiny) = scene(&lab, CaptureMethod::Checkpoint);
    let vm = &tiny.name;
    for method in [CaptureMethod::Checkpoint, CaptureMethod::Snapshot] {
        for settings in bench.config.vm.values_mut() {
            settings.method = method;
        }
        for signal in ["TERM", "KILL"] {
            let once = Once::new();
            let hook = Hook::new(|event| {
                if let Kind::Captured { .. } = event {
                    once.call_once(|| {
                        daemon.end(signal);
                        daemon.start();
                    });
                }
            });
            // It may outlive that, or fail; what it says is true.
            let archives = bench.backup(vm, &hook).map(|report| report.archive);
            assert!(
                once.is_completed(),
                "{method:?}, {signal}: it did not come so far"
            );
            assert_eq!(run(&mut virsh(["domstate", vm])).trim(), "running");
            if let Ok(archive) = &archives {
                assert!(bench.archives(vm).contains(archive), "{method:?}, {signal}");
            }
            let (report, hash) = bench.backup_with_hash(vm);
            expect_home(&lab, vm);
            bench.at_rest(&lab, vm);
            let restored = bench.sha256_of_restored(&lab, vm, &report.archive, "vda");
            assert_eq!(restored, hash, "{method:?}, {signal}: {archives:?}");
        }
    }
}

/// What a libvirtd leaves that is killed between the start of a backup job and the first word about it in its status. (By
/// chance that takes some eighty kills; so the status gets it from here.)
#[test]
fn a_job_that_libvirt_has_lost_track_of_is_explained() {
    let Some(daemon) = OwnLibvirtd::enter(
        module_path!(),
        "a_job_that_libvirt_has_lost_track_of_is_explained",
    ) else {
        return;
    };
    let lab = Lab::new();
    let (bench, tiny) = scene(&lab, CaptureMethod::Checkpoint);
    let vm = &tiny.name;
    daemon.end("KILL");
    let status = PathBuf::from(format!("/run/libvirt/qemu/{vm}.xml"));
    let text = fs::read_to_string(&status).unwrap();
    let job = "<job type='none' async='backup' phase='none' flags='0x0'/>";
    let begun = text.replacen("<qemuCaps>", &format!("{job}<qemuCaps>"), 1);
    assert_ne!(begun, text);
    fs::write(&status, begun).unwrap();
    daemon.start();
    let lost = output_of(&mut virsh(["domjobinfo", vm])).unwrap_err();
    assert!(lost.contains("job data missing"), "{lost}");

    let words = ["has lost all track", "shut off, libvirtd restarted"];
    bench.says(&lab, &["backup", vm]).expect(1, &words);
    assert_eq!(run(&mut virsh(["domstate", vm])), "running");
    run(&mut virsh(["destroy", vm]));
    daemon.end("TERM");
    daemon.start();
    run(&mut virsh(["start", vm]));
    let (report, hash) = bench.backup_with_hash(vm);
    bench.at_rest(&lab, vm);
    assert_eq!(bench.sha256_of_restored(&lab, vm, &report.archive, "vda"), hash);
}
