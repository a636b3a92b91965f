//! What `init` writes, and what it refuses to write, with libvirt's test driver as the hypervisor.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::running::Said;
use strongroom_engine::config::Config;

/// The only domain of libvirt's test driver.
const VM: &str = "test";
const HYPERVISOR: &str = "test:///default";

/// Runs `init`.
fn init(directory: &Path, arguments: &[&str]) -> Said {
    let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    program
        .arg("init")
        .args(arguments)
        .args(["--encryption", "repokey"])
        .env("STRONGROOM_CONFIG", directory.join("strongroom.toml"))
        .env("BORG_BASE_DIR", directory.join("base"))
        .env("BORG_PASSPHRASE", "secret")
        .env_remove("BORG_REPO");
    Said::of(&mut program)
}

/// The file's text at first: with comments, another hypervisor and another VM.
fn commented(directory: &Path) -> String {
    let place = directory.display();
    format!(
        "# Ours.\nhypervisor = \"test:///elsewhere\" # not this one\nrepository = '{place}/{{vm}}'\nstate = '{place}/state'\n\n[vm.other]\nswap = ['vdb'] # scratch\n"
    )
}

#[test]
fn what_the_file_holds_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strongroom.toml");
    let before = commented(directory.path());
    fs::write(&file, &before).unwrap();
    init(directory.path(), &["-c", HYPERVISOR, VM]).expect(0, &["made repository"]);
    let after = fs::read_to_string(&file).unwrap();
    // It names its hypervisor, which is not that of the others.
    assert_eq!(
        after,
        format!("{before}\n[vm.{VM}]\nhypervisor = \"{HYPERVISOR}\"\n")
    );
    assert!(directory.path().join(VM).join("config").exists());
    // Once more: nothing is left to do.
    init(directory.path(), &["-c", HYPERVISOR, VM]).expect(0, &["is there"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), after);
    // What is configured is changed by hand.
    let hint = format!("hint: edit [vm.{VM}]");
    for change in [["--swap", "vdb"], ["--repository", "/elsewhere"]] {
        init(directory.path(), &["-c", HYPERVISOR, VM, change[0], change[1]])
            .expect(2, &["it is configured already", &hint]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), after);
}

#[test]
fn a_new_file_names_the_hypervisor() {
    let directory = tempfile::tempdir().unwrap();
    let pattern = directory.path().join("{vm}").display().to_string();
    // The records of a new configuration would go to the system's place: the VM is unknown before anything is made.
    init(directory.path(), &["-c", HYPERVISOR, "--repository", &pattern]).expect(0, &["configuration:"]);
    let config = Config::read(&directory.path().join("strongroom.toml")).unwrap();
    assert_eq!(
        (config.hypervisor.as_str(), config.repository.as_str()),
        (HYPERVISOR, pattern.as_str())
    );
}

#[test]
fn vms_do_not_share_a_repository() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strongroom.toml");
    let words = ["would share", "{vm}", "hint:", "BORG_REPO"];
    init(
        directory.path(),
        &["-c", HYPERVISOR, "--repository", "/srv/one", "a", "b"],
    )
    .expect(2, &words);
    assert!(!file.exists());
    // Nor one that is there already, however it is written.
    let before = commented(directory.path());
    fs::write(&file, &before).unwrap();
    let taken = directory.path().join(".").join("other").display().to_string();
    init(directory.path(), &["-c", HYPERVISOR, "--repository", &taken, VM]).expect(2, &words);
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert!(!directory.path().join("other").exists());
}

#[test]
fn a_file_that_cannot_be_appended_to_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strongroom.toml");
    let text = "repository = '/srv/{vm}'\nvm = { other = {} }\n";
    fs::write(&file, text).unwrap();
    init(directory.path(), &["-c", HYPERVISOR, VM])
        .expect(2, &["cannot be appended", "hint: add the VMs by hand"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn a_signing_key_is_made_and_trusted_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strongroom.toml");
    fs::write(&file, commented(directory.path())).unwrap();
    let key = directory.path().join("keys/signing");
    let wanted = ["--signing-key", key.to_str().unwrap()];
    let unprotected = [
        wanted.as_slice(),
        &["-c", HYPERVISOR, "--unprotected-signing-key"],
    ]
    .concat();
    init(directory.path(), &unprotected).expect(0, &["made signing key", "trusts strongroom@"]);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("# Ours.\n"), "{text}");
    let signing = Config::read(&file).unwrap().signing.unwrap();
    assert_eq!(signing.key.as_ref(), Some(&key));
    let signers = fs::read_to_string(signing.allowed_signers.unwrap()).unwrap();
    assert!(
        signers.starts_with(signing.identity.as_deref().unwrap()),
        "{signers}"
    );
    assert!(
        signers.contains("namespaces=\"strongroom-*\" ssh-ed25519 "),
        "{signers}"
    );
    // Once more: nothing changes; another key is not taken in its place.
    init(directory.path(), &unprotected).expect(0, &[]);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    init(directory.path(), &["-c", HYPERVISOR, "--signing-key", "/other"])
        .expect(2, &["is configured already"]);
    // A key that exists is taken as it is, into a new file too.
    let other = tempfile::tempdir().unwrap();
    let pattern = other.path().join("{vm}").display().to_string();
    let arguments = [
        "-c",
        HYPERVISOR,
        "--repository",
        &pattern,
        "--signing-key",
        key.to_str().unwrap(),
    ];
    init(other.path(), &arguments).expect(0, &["is there"]);
    assert!(
        Config::read(&other.path().join("strongroom.toml"))
            .unwrap()
            .signing
            .is_some()
    );
    assert_eq!(
        fs::read_to_string(other.path().join("allowed_signers")).unwrap(),
        signers
    );
}
