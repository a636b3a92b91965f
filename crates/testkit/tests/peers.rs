//! The peers that need no virtual machine: `sshd` and Borg.

use std::process::Command;

use strongroom_testkit::{Borg, Format, Sshd, create_disk, run, sha256_of_raw};

#[test]
fn borg_serves_a_repository_over_a_real_sshd() {
    let sshd = Sshd::start();
    let borg = Borg::packaged();
    let dir = tempfile::tempdir().unwrap();
    for (name, url) in [
        ("one", sshd.url(&dir.path().join("one"))),
        ("two", sshd.scp_url(&dir.path().join("two"))),
    ] {
        run(borg
            .command()
            .env("BORG_RSH", sshd.rsh())
            .args(["init", "-e", "repokey-blake2", &url]));
        assert!(dir.path().join(name).join("config").exists());
    }
    assert!(sshd.log().contains("Accepted publickey"), "{}", sshd.log());
    let local = dir.path().join("three").display().to_string();
    borg.run(["init", "-e", "none", &local]);
    assert_eq!(borg.run(["list", &local]), "");
}

#[test]
fn the_hash_of_an_image_is_that_of_its_guest_visible_bytes() {
    let dir = tempfile::tempdir().unwrap();
    // SHA-256 of one MiB of zeros.
    let zeros = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58";
    for (format, name) in [
        (Format::Qcow2, "v3"),
        (Format::Qcow2V2, "v2"),
        (Format::Raw, "raw"),
    ] {
        let path = dir.path().join(name);
        create_disk(&path, format, 1);
        assert_eq!(sha256_of_raw(&path, format), zeros, "{name}");
        run(Command::new("qemu-io")
            .args(["-f", format.driver(), "-c", "write -P 7 64k 512"])
            .arg(&path));
        assert_ne!(sha256_of_raw(&path, format), zeros, "{name}");
    }
}
