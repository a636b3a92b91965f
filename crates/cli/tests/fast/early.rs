//! What is wrong is said early, and what is there is said although something else is not: places of repositories, names of VMs,
//! standard output, and repositories of which one cannot be read.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use strongroom_engine::run::state::StateDirectory;
use strongroom_testkit::run;
use tempfile::TempDir;
use uuid::Uuid;

use crate::common::running::Said;
use crate::common::terminal::Terminal;

/// The only domain of libvirt's test driver, and its UUID.
const VM: &str = "test";
const UUID: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

/// A configuration in a directory of its own.
struct Place {
    directory: TempDir,
}

impl Place {
    /// With this behind a line each for the hypervisor and the records.
    fn new(text: &str) -> Self {
        let place = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        place.configure("test:///default", text);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `{place}` in the text stands for the directory.
    fn configure(&self, hypervisor: &str, text: &str) {
        let place = self.directory.path().display().to_string();
        let text = format!("hypervisor = '{hypervisor}'\nstate = '{place}/state'\n{text}")
            .replace("{place}", &place);
        fs::write(self.path("strongroom.toml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        program
            .args(arguments)
            .env("STRONGROOM_CONFIG", self.path("strongroom.toml"))
            .env("BORG_BASE_DIR", self.path("base"))
            .env("BORG_PASSPHRASE", "secret")
            .env_remove("BORG_REPO");
        program
    }

    fn strongroom(&self, arguments: &[&str]) -> Said {
        Said::of(&mut self.command(arguments))
    }

    /// Stock Borg.
    fn borg(&self, arguments: &[&str]) {
        run(Command::new("borg")
            .args(arguments)
            .env("BORG_BASE_DIR", self.path("base"))
            .env("BORG_PASSPHRASE", "secret"));
    }
}

const PATTERN: &str = "repository = '{place}/{vm}'\n[vm.test]\n";

/// A14: a place that one command would take for another one than the next is refused by all of them.
#[test]
fn a_place_that_means_something_else_elsewhere_is_refused() {
    for (repository, word) in [
        ("/srv/{hostname}/{vm}", "placeholders"),
        ("~/{vm}", "from the root on"),
    ] {
        let place = Place::new(&format!("repository = '{repository}'\n[vm.test]\n"));
        for command in ["list", "status", "backup", "verify", "init", "restore"] {
            place
                .strongroom(&[command, "test"])
                .expect(2, &["repository:", word]);
        }
    }
    // Borg's own variable counts, and is no other case.
    let place = Place::new("");
    fs::remove_file(place.path("strongroom.toml")).unwrap();
    let mut init = place.command(&["-c", "test:///default", "init", "test"]);
    Said::of(init.env("BORG_REPO", "/srv/{hostname}")).expect(2, &["repository:", "placeholders"]);
    assert!(!place.path("strongroom.toml").exists());
}

/// What a VM needs to be protected.
const DISK: &str =
    "<devices><disk type='file' device='disk'><source file='/x'/><target dev='vda'/></disk></devices>";

/// A hypervisor with domains of these names.
fn hypervisor(place: &Place, names: &[&str]) -> String {
    let domain = |name: &&str| {
        let name = name.replace('&', "&amp;").replace('<', "&lt;");
        format!(
            "<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os>{DISK}</domain>"
        )
    };
    let file = place.path("host.xml");
    let domains: String = names.iter().map(domain).collect();
    fs::write(&file, format!("<node>{domains}</node>")).unwrap();
    format!("test://{}", file.display())
}

/// R12, and other names that VMs have: right everywhere, or refused by `init` before anything is made.
#[test]
fn names_of_every_kind() {
    let (long, too_long) = ("n".repeat(200), "n".repeat(251));
    let good = [
        "web 01.müller-größe",
        "web@2026-11-30",
        "-web",
        "a'b\"c[x]%s$HOME;id",
        &long,
    ];
    let bad = [
        ("web-{now}", "placeholders"),
        ("a::b", "an archive"),
        (".web", "no leading dot"),
        ("a/b", "no slash"),
        ("a\tb", "control characters"),
        (&too_long, "250 bytes"),
    ];
    let place = Place::new("");
    fs::create_dir(place.path("repos")).unwrap();
    place.configure(&hypervisor(&place, &good), "repository = '{place}/repos/{vm}'\n");
    let before = fs::read_to_string(place.path("strongroom.toml")).unwrap();
    for (name, word) in bad {
        place.strongroom(&["init", "--", name]).expect(2, &[word]);
    }
    assert_eq!(fs::read_to_string(place.path("strongroom.toml")).unwrap(), before);
    assert_eq!(fs::read_dir(place.path("repos")).unwrap().count(), 0);
    // Nor are they looked for somewhere else.
    place.strongroom(&["list", "a/b"]).expect(2, &["no slash"]);
    place.strongroom(&["show", "a/b@latest"]).expect(2, &["no slash"]);

    let init = ["init", "--encryption", "repokey", "--"];
    place
        .strongroom(&[&init[..], &good[..]].concat())
        .expect(0, &["made repository"]);
    for name in good {
        assert!(place.path("repos").join(name).join("config").exists(), "{name}");
    }
    place.strongroom(&["list"]).expect(0, &[]);
    let status = place.strongroom(&["--json", "status"]).json();
    let said: Vec<&Value> = (0..good.len()).map(|at| &status["vms"][at]["vm"]).collect();
    assert!(good.iter().all(|name| said.contains(&&json!(name))), "{status}");
    assert!(
        (0..good.len()).all(|at| status["vms"][at]["restore_points"] == 0),
        "{status}"
    );
    // Its restore points are looked for in its own repository, where there are none; `web` is none of ours.
    place
        .strongroom(&["show", "web@2026-11-30"])
        .expect(2, &["find restore point web@2026-11-30@latest"]);
}

/// R12: a repository of its own makes a VM with such a name right.
#[test]
fn a_name_with_braces_can_have_a_repository_of_its_own() {
    let place = Place::new("");
    place.configure(
        &hypervisor(&place, &["web-{now}"]),
        "repository = '{place}/{vm}'\n[vm.'web-{now}']\nrepository = '{place}/web-now'\n",
    );
    place
        .strongroom(&["init", "--encryption", "repokey"])
        .expect(0, &["made repository"]);
    assert!(place.path("web-now/config").exists());
    place.strongroom(&["list"]).expect(0, &[]);
}

/// With `--progress json` standard error has events and nothing else; documents have the codes of warnings.
#[test]
fn progress_for_programs_is_json_and_nothing_else() {
    let place = Place::new(PATTERN);
    place
        .strongroom(&["init", "--encryption", "repokey"])
        .expect(0, &[]);
    let events = |arguments: &[&str], code: i32| -> (Vec<Value>, String) {
        let mut command = place.command(&["--progress", "json"]);
        let output = command.args(arguments).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
        let lines = err.lines().map(|line| serde_json::from_str(line).unwrap());
        (lines.collect(), String::from_utf8(output.stdout).unwrap())
    };
    let (warned, document) = events(&["--json", "status", VM], 3);
    let document: Value = serde_json::from_str(&document).unwrap();
    let [warning] = &warned[..] else {
        panic!("{warned:?}");
    };
    let about = |value: &Value| ["code", "vm", "text"].map(|key| value[key].clone());
    assert_eq!(warning["event"], "warning");
    assert_eq!(
        about(warning),
        ["vm-problem", VM, "there is no backup"].map(Value::from)
    );
    assert_eq!(about(&document["warning_details"][0]), about(warning));
    assert_eq!(document["warnings"], json!([format!("{VM}: there is no backup")]));

    let (failed, _) = events(&["list", "other"], 1);
    let [failure] = &failed[..] else {
        panic!("{failed:?}");
    };
    assert_eq!(failure["event"], "failed");
    assert!(
        failure["message"].as_str().unwrap().contains("list other"),
        "{failure}"
    );
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A17: a result that could not be written is a failure, whatever the command.
#[test]
fn a_result_that_does_not_arrive_is_a_failure() {
    let place = Place::new(PATTERN);
    place
        .strongroom(&["init", "--encryption", "repokey"])
        .expect(0, &[]);
    let key = place.path("key.pub");
    fs::write(
        &key,
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIII x\n",
    )
    .unwrap();
    let key = key.display().to_string();
    for arguments in [
        &["list"][..],
        &["--json", "list"],
        &["--json", "status"],
        &["--json", "init", "test"],
        &["hypervisor-rights", "--key", &key, "test"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
    ] {
        let mut command = place.command(arguments);
        let output = command.stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {err}");
        assert!(
            err.contains("write the result to standard output"),
            "{arguments:?}: {err}"
        );
        // A reader who has read enough is told nothing.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!err.contains("standard output"), "{arguments:?}: {err}");
        assert_ne!(output.status.code(), Some(1), "{arguments:?}: {err}");
    }
    let output = place.command(&["man", "/dev/full/x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

/// K7: one repository that cannot be read does not hide the others.
#[test]
fn the_others_are_listed() {
    let text = "repository = '{place}/{vm}'\n[vm.test]\n[vm.gone]\n[vm.zweite]\n";
    let place = Place::new(text);
    let repositories = ["test", "zweite"].map(|name| place.path(name).display().to_string());
    for repository in &repositories {
        place.borg(&["init", "-e", "repokey", repository]);
        place.borg(&["create", &format!("{repository}::etc"), "/etc/hostname"]);
    }
    let said = place.strongroom(&["--verbose", "list"]);
    said.expect(
        1,
        &[
            "failed to list gone:",
            "zweite: archive etc was not made by strongroom",
        ],
    );
    let document = place.strongroom(&["--json", "list"]).json();
    assert_eq!(document["problems"][0]["vm"], "gone");
    // Of all VMs, each repository is asked.
    place
        .strongroom(&["repo", "test-append-only"])
        .expect(1, &["test the repository of gone", "prove zweite safe"]);
    place.strongroom(&["verify", "--all"]).expect(1, &["verify gone"]);
}

/// One VM's status as JSON; whatever the exit code.
fn status(place: &Place) -> Value {
    place.strongroom(&["--json", "status", VM]).json()["vms"][0].clone()
}

/// K7: `status` counts restore points of ours, knows a run under way from one that has died, waits for no lock, and does not take
/// "cannot be asked" for "never".
#[test]
fn status_is_true_and_at_once() {
    let place = Place::new(PATTERN);
    let repository = place.path(VM).display().to_string();
    let unknown = status(&place);
    assert_eq!(unknown["restore_points"], Value::Null);
    assert_eq!(unknown["last_backup_known_from"], "unknown");
    let said = place.strongroom(&["status"]);
    assert!(
        said.out.contains("unknown") && !said.out.contains("never"),
        "{}",
        said.out
    );

    place.borg(&["init", "-e", "repokey", &repository]);
    for other in ["etc", "test-2026-11-30T15:34:45.123Z", "test-2026-11-30"] {
        place.borg(&["create", &format!("{repository}::{other}"), "/etc/hostname"]);
    }
    let never = status(&place);
    assert_eq!(never["restore_points"], 0, "archives of others are none of ours");
    assert_eq!(never["last_backup_known_from"], "repository");
    assert_eq!(never["problem"], "there is no backup");

    // A run that is under way holds its VM's lock, and its repository's.
    let uuid: Uuid = UUID.parse().unwrap();
    let state = StateDirectory::open(place.path("state")).unwrap();
    let mut held = state.lock(VM, uuid).unwrap();
    held.begin(interrupted()).unwrap();
    fs::create_dir(place.path(VM).join("lock.exclusive")).unwrap();
    let clock = std::time::Instant::now();
    let running = place.strongroom(&["--json", "--lock-wait", "600", "status"]);
    assert!(clock.elapsed().as_secs() < 60, "it waited for the lock");
    let running = running.json()["vms"][0].clone();
    assert_eq!(running["running"], true, "{running}");
    assert_eq!(running["running_since"], "2026-11-30T12:00:00Z");
    assert_eq!(running["interrupted"], false);
    assert_eq!(running["restore_points"], 0);
    let said = place.strongroom(&["status"]);
    assert!(
        said.out.contains("a backup runs since 2026-11-30 12:00:00 UTC"),
        "{}",
        said.out
    );
    drop(held);
    let interrupted = status(&place);
    assert_eq!(interrupted["running"], false);
    assert_eq!(interrupted["interrupted"], true);
}

fn interrupted() -> strongroom_engine::run::state::Run {
    serde_json::from_value(json!({
        "id": "x", "started": "2026-11-30T12:00:00Z", "archive": "test-x", "checkpoint": null, "socket": null,
        "scratch": [], "running": true,
    }))
    .unwrap()
}

/// A new passphrase is typed twice, and is not empty.
#[test]
fn a_new_passphrase_is_asked_for_twice() {
    let place = Place::new(PATTERN);
    let at_terminal = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        Terminal::start(command.env_remove("BORG_PASSPHRASE"))
    };
    let init = ["init", "--encryption", "repokey"];
    // Three slips, and nothing is made.
    let mut terminal = at_terminal(&init);
    terminal.expect("New passphrase for").type_line("");
    terminal
        .expect("protects nothing")
        .expect("New passphrase for")
        .type_line("slip-1");
    terminal.expect("again:").type_line("slip-2");
    terminal
        .expect("differ")
        .expect("New passphrase for")
        .type_line("slip-1");
    terminal.expect("again:").type_line("");
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(1), "{screen}");
    assert!(!screen.contains("slip"), "{screen}");
    assert!(!place.path(VM).exists());

    let mut terminal = at_terminal(&init);
    terminal.expect("New passphrase for").type_line("good one");
    terminal.expect("again:").type_line("good one");
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("made repository"), "{screen}");

    // One that exists is asked for once.
    let mut terminal = at_terminal(&["list"]);
    terminal.expect("Passphrase for").type_line("good one");
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains("again"), "{screen}");
}

/// K7: a VM that the configuration names by its UUID goes by its name, and can be asked for by either.
#[test]
fn a_vm_that_is_named_by_its_uuid() {
    let place = Place::new(&format!("repository = '{{place}}/{{vm}}'\n[vm.{UUID}]\n"));
    place
        .strongroom(&["init", "--encryption", "repokey"])
        .expect(0, &["made repository"]);
    assert!(place.path(UUID).join("config").exists());
    for asked in [VM, UUID] {
        place
            .strongroom(&["status", asked])
            .expect(3, &["there is no backup"]);
        let said = place.strongroom(&["backup", "--dry-run", asked]);
        assert!(!said.err.contains("in the configuration"), "{}", said.err);
    }
    let named = place.strongroom(&["--json", "status"]).json();
    assert_eq!(named["vms"][0]["vm"], VM);
    // Twice is refused: which one holds?
    place.configure(
        "test:///default",
        &format!("repository = '{{place}}/{{vm}}'\n[vm.{UUID}]\n[vm.test]\n"),
    );
    for asked in [VM, UUID] {
        place
            .strongroom(&["backup", "--dry-run", asked])
            .expect(2, &["are the same VM", "remove one of them"]);
    }
}

/// K7: what every backup needs is looked at before the first VM is touched, and said once.
#[test]
fn a_backup_that_cannot_be_finished_is_not_begun() {
    let place = Place::new(PATTERN);
    let key = place.path("signing").display().to_string();
    place
        .strongroom(&[
            "init",
            "--encryption",
            "repokey",
            "--signing-key",
            &key,
            "--unprotected-signing-key",
        ])
        .expect(0, &["made signing key"]);
    let signing = fs::read_to_string(place.path("strongroom.toml")).unwrap();
    let (_, signing) = signing.split_once("[signing]").unwrap();
    let (signing, _) = signing.split_once("[vm").unwrap_or((signing, ""));
    let text =
        |more: &str| format!("repository = '{{place}}/{{vm}}'\n[signing]{signing}\n{more}\n[vm.test]\n");
    place.configure("test:///default", &text(""));
    let backup = |place: &Place| place.strongroom(&["backup", "--dry-run", "test", "gone"]);
    let touched = |said: &Said| said.err.contains("back up test");
    // All is well: each VM fails, or not, for reasons of its own.
    let said = backup(&place);
    assert!(
        said.err.contains("in the configuration") && !said.err.contains("no VM was touched"),
        "{}",
        said.err
    );

    let refused = |place: &Place, words: &[&str]| {
        let said = backup(place);
        said.expect(1, words).expect(1, &["no VM was touched"]);
        assert!(
            !touched(&said) && said.err.matches("failed to").count() == 1,
            "{}",
            said.err
        );
        let document = Said::of(&mut place.command(&["--json", "backup", "test"])).json();
        assert!(
            document["hint"].as_str().unwrap().contains("no VM was touched"),
            "{document}"
        );
    };
    // No ssh-keygen.
    let programs = place.path("programs");
    fs::create_dir(&programs).unwrap();
    let said = Said::of(place.command(&["backup", "test"]).env("PATH", &programs));
    said.expect(1, &["start ssh-keygen", "OpenSSH", "no VM was touched"]);
    // A key that is gone, is none, or has a passphrase, and no terminal.
    let aside = place.path("aside");
    fs::rename(&key, &aside).unwrap();
    refused(&place, &["sign with", "ssh-add"]);
    fs::write(&key, "no key\n").unwrap();
    refused(&place, &["sign with", "ssh-add"]);
    fs::copy(&aside, &key).unwrap();
    run(Command::new("ssh-keygen").args(["-q", "-p", "-P", "", "-N", "secret", "-f", &key]));
    refused(&place, &["sign with", "passphrase", "ssh-add"]);
    fs::rename(&aside, &key).unwrap();
    // A key that `allowed_signers` does not list.
    fs::write(place.path("allowed_signers"), "").unwrap();
    refused(&place, &["could never be verified", "allowed_signers"]);
    // Witnesses that cannot be told.
    for (witness, word) in [
        ("file = '{place}/no/such/witness.jsonl'", "No such file"),
        ("file = '/sys/kernel/witness.jsonl'", "denied"),
        ("command = ['no-such-program', 'x']", "start no-such-program"),
        ("command = ['{place}/strongroom.toml']", "denied"),
        (
            "command = ['true']\nread_command = ['/no/such/program']",
            "start /no/such/program",
        ),
    ] {
        place.configure(
            "test:///default",
            &format!("repository = '{{place}}/{{vm}}'\n[witness]\n{witness}\n[vm.test]\n"),
        );
        refused(&place, &["use the witness", word]);
    }
    assert!(!place.path("no").exists());
    // Records that cannot be written: a place that cannot be made, and one that is there.
    for state in ["/sys/kernel", "/proc/no/such", "{place}/strongroom.toml/state"] {
        let text = format!(
            "hypervisor = 'test:///default'\nstate = '{state}'\nrepository = '{{place}}/{{vm}}'\n[vm.test]\n"
        );
        let text = text.replace("{place}", &place.directory.path().display().to_string());
        fs::write(place.path("strongroom.toml"), text).unwrap();
        refused(&place, &["keep records in", "`state` in the configuration"]);
    }
}

/// K7: a repository out of reach is the matter of its VM alone.
#[test]
fn one_repository_out_of_reach_keeps_no_other_vm() {
    let place = Place::new("");
    place.configure(
        &hypervisor(&place, &["one", "two", "three"]),
        "repository = '{place}/{vm}'\n[vm.one]\n[vm.two]\n[vm.three]\n",
    );
    place
        .strongroom(&["init", "--encryption", "repokey"])
        .expect(0, &[]);
    fs::rename(place.path("two"), place.path("elsewhere")).unwrap();
    let said = place.strongroom(&["--json", "backup", "--dry-run", "--all"]);
    said.expect(1, &["back up two: use the repository"]);
    let backups = said.json()["backups"].clone();
    assert_eq!(backups.as_array().unwrap().len(), 3, "{backups}");
    for one in backups.as_array().unwrap() {
        assert_eq!(one["error"].is_null(), one["vm"] != "two", "{backups}");
    }
}

/// Every exit code: part of the interface.
#[test]
fn exit_codes() {
    let place = Place::new(PATTERN);
    place
        .strongroom(&["init", "--encryption", "repokey"])
        .expect(0, &[]);
    place.strongroom(&["list"]).expect(0, &[]);
    fs::rename(place.path(VM), place.path("elsewhere")).unwrap();
    place.strongroom(&["list"]).expect(1, &["failed to list test"]);
    place.strongroom(&["list", "--no-such-option"]).expect(2, &[]);
    place
        .strongroom(&["backup", "unknown"])
        .expect(2, &["strongroom init unknown"]);
    place.strongroom(&["status"]).expect(3, &["warning"]);
    fs::write(Path::new(&place.path("strongroom.toml")), "repositry = 1\n").unwrap();
    place.strongroom(&["list"]).expect(2, &["repositry"]);
}
