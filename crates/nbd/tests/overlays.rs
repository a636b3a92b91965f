//! Overlays that no QEMU has open.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;

use strongroom_nbd::{Format, commit_overlay, holds_data, reads_the_same};

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn write(image: &Path, format: &str, command: &str) {
    run(
        "qemu-io",
        &["-f", format, "-c", command, &image.display().to_string()],
    );
}

/// Fails unless the image reads like this.
fn expect(image: &Path, format: &str, command: &str) {
    let output = Command::new("qemu-io")
        .args(["-f", format, "-c", command, &image.display().to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && !said.contains("verification failed"),
        "{said}"
    );
}

#[test]
fn an_overlay_is_merged_once_and_is_empty_then() {
    for (name, format) in [("raw", Format::Raw), ("qcow2", Format::Qcow2)] {
        let directory = tempfile::tempdir().unwrap();
        let (base, overlay) = (directory.path().join("base"), directory.path().join("top"));
        let at = |path: &Path| path.display().to_string();
        run("qemu-img", &["create", "-q", "-f", name, &at(&base), "8M"]);
        write(&base, name, "write -P 1 0 128k");
        run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                name,
                "-b",
                &at(&base),
                &at(&overlay),
            ],
        );
        assert!(!holds_data(&overlay).unwrap(), "nothing was written");
        assert!(reads_the_same(&overlay, &base, format).unwrap());

        write(&overlay, "qcow2", "write -P 2 64k 64k");
        write(&overlay, "qcow2", "write -P 2 4M 64k");
        assert!(holds_data(&overlay).unwrap());
        assert!(!reads_the_same(&overlay, &base, format).unwrap());
        commit_overlay(&overlay, &base, format).unwrap();
        assert!(!holds_data(&overlay).unwrap(), "{name}: what was merged is gone");
        assert!(reads_the_same(&overlay, &base, format).unwrap());
        expect(&base, name, "read -P 1 0 64k");
        expect(&base, name, "read -P 2 64k 64k");
        expect(&base, name, "read -P 2 4M 64k");
        // A death after the merge: it is done again, and changes nothing.
        commit_overlay(&overlay, &base, format).unwrap();
        expect(&base, name, "read -P 2 4M 64k");
        // Zeroes that the guest wrote are data.
        write(&overlay, "qcow2", "write -z 0 64k");
        assert!(holds_data(&overlay).unwrap(), "{name}: zeroes hide what is below");
    }
}

#[test]
fn what_is_no_image_is_an_error_and_an_empty_file_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("top");
    assert!(holds_data(&file).is_err(), "it does not exist");
    std::fs::write(&file, "").unwrap();
    assert!(!holds_data(&file).unwrap());
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    assert!(holds_data(&file).is_err(), "it cannot be told what is in it");
}
