//! Whom a restore point is believed: signatures, and everything that happens without a good one.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::Bench;
use crate::common::running::Said;
use crate::common::tiny::{MIB, Tiny, noise, trust, with_signing};
use jiff::{SignedDuration, Timestamp};
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Lab, run, ssh_keygen};

/// A VM with one signed restore point.
fn signed(lab: &Lab) -> (Tiny, Bench) {
    let tiny = Tiny::define(lab, "signed");
    tiny.set("vda", &noise(1, 2 * MIB));
    let mut bench = Bench::new(lab, &[&tiny.name]);
    with_signing(lab, &mut bench);
    bench.backup(&tiny.name, &()).unwrap();
    (tiny, bench)
}

#[test]
fn restores_need_a_signature_of_somebody_who_is_trusted() {
    let lab = Lab::new();
    let (tiny, mut bench) = signed(&lab);
    let vm = tiny.name.as_str();
    let file = lab.path("out.qcow2");
    let to = file.display().to_string();
    let restore = |bench: &Bench, more: &[&str]| {
        let _ = std::fs::remove_file(&file);
        bench.says(
            &lab,
            &[&["restore", vm, "--disk", "vda", "--to", &to], more].concat(),
        )
    };
    restore(&bench, &["-v"]).expect(0, &["signed by lab@test (ED25519 key SHA256:"]);

    // Another key is trusted.
    let other = ssh_keygen(&lab.path("other"), "other");
    trust(&lab.path("allowed_signers"), "lab@test", &other);
    restore(&bench, &[]).expect(1, &["trust archive", "not accepted", "--unsigned"]);
    assert!(!file.exists());
    restore(&bench, &["--unsigned"]).expect(3, &["all the same"]);
    assert!(file.exists());

    // A backup whose signature would not be accepted is not made, and says so.
    let before = bench.archives(vm);
    let said = bench.says(&lab, &["backup", vm]);
    said.expect(1, &["could never be verified", "no VM was touched"]);
    bench.config.signing.as_mut().unwrap().key = Some(lab.path("absent"));
    bench.says(&lab, &["backup", vm]).expect(1, &["sign with"]);
    assert_eq!(bench.at_rest(&lab, vm), before);

    // Without a key there is no signature, and no restore.
    bench.config.signing.as_mut().unwrap().key = None;
    bench.says(&lab, &["backup", vm]).expect(0, &[]);
    restore(&bench, &[]).expect(1, &["it is not signed"]);
    restore(&bench, &["--unsigned"]).expect(3, &["it is not signed"]);
    bench.config.signing = None;
    restore(&bench, &[]).expect(0, &[]);
}

#[test]
fn an_archive_under_another_name_is_not_the_one_that_was_signed() {
    let lab = Lab::new();
    let (tiny, bench) = signed(&lab);
    let (vm, archives) = (tiny.name.as_str(), bench.archives(&tiny.name));
    let repository = bench.repository(vm).display().to_string();
    bench.borg.run([
        "rename",
        &format!("{repository}::{}", archives[0]),
        &format!("{vm}-2030-01-01T00:00:00.000Z"),
    ]);
    let to = lab.path("out.qcow2").display().to_string();
    bench
        .says(&lab, &["restore", vm, "--disk", "vda", "--to", &to])
        .expect(1, &["its manifest belongs to archive", "--unsigned"]);
}

/// The commands of `docs/reference/formats/manifest.md`, exactly as they stand there.
#[test]
fn the_documented_commands_verify_a_restore_point_by_hand() {
    let lab = Lab::new();
    let (tiny, bench) = signed(&lab);
    let page = include_str!("../../../../docs/reference/formats/manifest.md");
    let (_, rest) = page
        .split_once("```sh\n# verify by hand\n")
        .expect("the page has the commands");
    let (script, _) = rest.split_once("```").unwrap();
    let archive = &bench.archives(&tiny.name)[0];
    let shell = |signers: &str| {
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", script])
            .current_dir(lab.dir())
            .envs(bench.borg.environment())
            .env(
                "ARCHIVE",
                format!("{}::{archive}", bench.repository(&tiny.name).display()),
            )
            .env("IDENTITY", "lab@test")
            .env("SIGNERS", lab.path(signers));
        shell
    };
    let said = run(&mut shell("allowed_signers"));
    assert!(
        said.contains("Good \"strongroom-manifest@v1\" signature for lab@test"),
        "{said}"
    );
    let other = ssh_keygen(&lab.path("other"), "other");
    trust(&lab.path("other_signers"), "lab@test", &other);
    assert!(!shell("other_signers").status().unwrap().success());
}

#[test]
fn nothing_that_nobody_has_signed_becomes_part_of_a_signed_restore_point() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(128).boot();
    let vm = guest.name().to_owned();
    let mut bench = Bench::new(&lab, &[&vm]);
    let mode = |bench: &Bench| {
        let report = bench.backup(&vm, &()).unwrap();
        let disk = report.manifest.disk("vda").unwrap();
        (disk.mode, disk.reason.clone())
    };
    assert_eq!(mode(&bench).0, Mode::Full);
    assert_eq!(mode(&bench).0, Mode::Incremental);
    with_signing(&lab, &mut bench);
    let (full, reason) = mode(&bench);
    assert_eq!(full, Mode::Full, "{reason}");
    assert!(reason.contains("is not trusted: it is not signed"), "{reason}");
    assert_eq!(mode(&bench).0, Mode::Incremental);
}

/// As `docs/guide/verify.md` says: the old key's line gets an end, the new one's a beginning.
#[test]
fn a_key_is_rotated_and_all_restore_points_stay_good() {
    let lab = Lab::new();
    let (tiny, mut bench) = signed(&lab);
    let vm = tiny.name.as_str();
    let new = ssh_keygen(&lab.path("new"), "new");
    // In seconds, so that the test can see both sides of the day.
    let turn = Timestamp::now() + SignedDuration::from_secs(1);
    let day = turn.strftime("%Y%m%d%H%M%SZ").to_string();
    let line = |options: &str, public: &Path| {
        let key = std::fs::read_to_string(public).unwrap();
        format!("lab@test namespaces=\"strongroom-*\",{options} {key}")
    };
    let lines = [
        line(&format!("valid-before=\"{day}\""), &lab.path("signing.pub")),
        line(&format!("valid-after=\"{day}\""), &new),
    ];
    std::fs::write(lab.path("allowed_signers"), lines.concat()).unwrap();
    while Timestamp::now() <= turn + SignedDuration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(50));
    }
    // From now on the old key signs nothing that counts; what it has signed before stays good.
    bench
        .says(&lab, &["backup", vm])
        .expect(1, &["could never be verified"]);
    bench.config.signing.as_mut().unwrap().key = Some(lab.path("new"));
    bench.says(&lab, &["backup", vm]).expect(0, &[]);
    let archives = bench.archives(vm);
    assert_eq!(archives.len(), 2);
    bench.says(&lab, &["verify", "--all", "--data"]).expect(0, &[]);
    for archive in &archives {
        bench.sha256_of_restored(&lab, vm, archive, "vda");
    }
    // One that may have been stolen is out whenever it signed; what the new one has signed is not concerned.
    std::fs::copy(lab.path("signing.pub"), lab.path("revoked")).unwrap();
    bench.config.signing.as_mut().unwrap().revoked_keys = Some(lab.path("revoked"));
    let report = bench.says(&lab, &["--json", "verify", "--all"]);
    report.expect(1, &[]);
    let report = report.json();
    let problems = report["verify"]["vms"][0]["problems"].as_array().unwrap();
    let named: Vec<_> = problems
        .iter()
        .map(|problem| (&problem["kind"], &problem["archive"]))
        .collect();
    assert_eq!(named, [(&"signature".into(), &archives[0].as_str().into())]);
}

/// A running `ssh-agent`.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_agent_signs_with_a_key_that_is_in_no_file() {
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "agent");
    let vm = tiny.name.as_str();
    let mut bench = Bench::new(&lab, &[vm]);
    with_signing(&lab, &mut bench);
    let socket = lab.path("agent");
    let agent = Agent(
        Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let begin = Instant::now();
    while !socket.exists() {
        assert!(
            begin.elapsed() < Duration::from_mins(1),
            "ssh-agent does not answer"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    run(Command::new("ssh-add")
        .arg("-q")
        .arg(lab.path("signing"))
        .env("SSH_AUTH_SOCK", &socket));
    std::fs::remove_file(lab.path("signing")).unwrap();
    bench.config.signing.as_mut().unwrap().key = Some(lab.path("signing.pub"));
    let backup = || {
        Said::of(
            bench
                .program(&lab)
                .args(["backup", vm])
                .env("SSH_AUTH_SOCK", &socket),
        )
    };
    backup().expect(0, &[]);
    bench.says(&lab, &["verify", "--all"]).expect(0, &[]);
    // It goes away: no restore point without a signature.
    drop(agent);
    backup().expect(1, &["sign with", "no VM was touched"]);
    assert_eq!(bench.archives(vm).len(), 1);
}
