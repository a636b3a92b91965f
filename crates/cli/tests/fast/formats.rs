//! What version 0.1.0 wrote is in users' hands: this version reads its configuration, repositories, records, witness and
//! journals. `tests/data/0.1.0.tar.zst` was made by that version; what is in it, its README says.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_engine::run::state::StateDirectory;
use strongroom_points::digest::sha256;
use strongroom_testkit::run;
use tempfile::TempDir;

use crate::common::running::Said;

/// Names of its restore points, and the SHA-256 of disk `vda`, oldest first: shut off, full, and by either method.
const POINTS: [(&str, &str); 4] = [
    (
        "2026-11-30T15:33:12.991Z",
        "a7e1b63d56f7ad6aebff0079e29630e866ed30be451ac03554bbec5e9c51330e",
    ),
    (
        "2026-11-30T15:33:13.973Z",
        "a7e1b63d56f7ad6aebff0079e29630e866ed30be451ac03554bbec5e9c51330e",
    ),
    (
        "2026-11-30T15:33:14.856Z",
        "fcddbf68138d771c6630b9540253040c44d07746213fd1908479263528c9bc16",
    ),
    (
        "2026-11-30T15:33:15.352Z",
        "987cb19b3bde49e0685b511e7a08dae3374086895aaed3c33151890d36cf4ec3",
    ),
];

/// Everything that version 0.1.0 left, at a place of its own.
struct Left {
    _directory: TempDir,
    path: PathBuf,
}

impl Left {
    fn unpack() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/0.1.0.tar.zst");
        run(Command::new("tar")
            .arg("-xf")
            .arg(archive)
            .arg("-C")
            .arg(directory.path()));
        let path = directory.path().join("0.1.0");
        for file in fs::read_dir(path.join("journals"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .chain([path.join("strongroom.toml")])
        {
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, text.replace("/srv/fixture", &path.display().to_string())).unwrap();
        }
        Self {
            _directory: directory,
            path,
        }
    }

    fn strongroom(&self, arguments: &[&str]) -> Said {
        let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        program
            .args(["--connect", "test:///default"])
            .args(arguments)
            .env("STRONGROOM_CONFIG", self.path.join("strongroom.toml"))
            .env("BORG_BASE_DIR", self.path.join("home"))
            .env("BORG_PASSPHRASE", "the fixture passphrase")
            .env_remove("BORG_REPO");
        Said::of(&mut program)
    }
}

#[test]
fn restore_points_are_listed_verified_and_restored() {
    let left = Left::unpack();
    let listed = left.strongroom(&["list", "--json", "fixture"]);
    let listed = listed.expect(0, &[]).json();
    let points = listed["restore_points"].as_array().unwrap();
    let names: Vec<_> = points
        .iter()
        .map(|point| point["archive"].as_str().unwrap())
        .collect();
    let expected = POINTS.map(|(time, _)| format!("fixture-{time}"));
    assert_eq!(names, expected);
    let verified = left.strongroom(&["verify", "--all", "--data"]);
    assert!(
        verified
            .expect(0, &[])
            .out
            .contains("4 restore points, newest number 4")
    );
    for (time, digest) in POINTS {
        let image = left.path.join("vda.raw");
        let point = format!("fixture@fixture-{time}");
        let to = image.display().to_string();
        left.strongroom(&["restore", &point, "--disk", "vda", "--to", &to, "--format", "raw"])
            .expect(0, &[]);
        let found = sha256(&fs::read(&image).unwrap());
        assert_eq!(found, digest, "{time}");
        // The newest header opens every one of them.
        let mut open = Command::new("cryptsetup");
        open.args(["open", "--test-passphrase", "--key-file"])
            .arg(left.path.join("passphrase"))
            .arg(&image);
        fs::write(left.path.join("passphrase"), "guest passphrase").unwrap();
        run(&mut open);
        fs::remove_file(&image).unwrap();
    }
}

/// A machine that has nothing but the configuration, in which the VM is named by its UUID: its restore points say what it is called.
#[test]
fn a_uuid_is_enough_on_a_machine_without_records() {
    let left = Left::unpack();
    let uuid = "0f1c5d0a-0101-4a11-8b5e-5740f1f00010";
    let file = left.path.join("strongroom.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (_, repository) = text.split_once("repository = \"").unwrap();
    let (repository, _) = repository.split_once('"').unwrap();
    let repository = repository.replace("{vm}", "fixture");
    let signing = text
        .split_once("[signing]")
        .map_or("", |(_, rest)| rest.split("\n[").next().unwrap());
    let signing = if signing.is_empty() {
        String::new()
    } else {
        format!("[signing]{signing}\n")
    };
    let state = left.path.join("nothing").display().to_string();
    fs::write(
        &file,
        format!(
            "repository = '/nowhere/{{vm}}'\nstate = '{state}'\n{signing}\n[vm.{uuid}]\nrepository = '{repository}'\n"
        ),
    )
    .unwrap();
    for asked in [uuid, "fixture"] {
        let listed = left.strongroom(&["list", "--json", asked]);
        let listed = listed.expect(0, &[]).json();
        assert_eq!(listed["restore_points"].as_array().unwrap().len(), 4, "{asked}");
        assert_eq!(listed["restore_points"][3]["vm"], "fixture", "{asked}");
        left.strongroom(&["show", asked]).expect(0, &[]);
        let verified = left.strongroom(&["verify", asked]);
        // What only a record could show is not shown.
        verified.expect(3, &["no record of the newest"]);
        assert!(verified.out.contains("newest number 4"), "{}", verified.out);
        let image = left.path.join("vda.raw");
        let to = image.display().to_string();
        left.strongroom(&["restore", asked, "--disk", "vda", "--to", &to, "--format", "raw"])
            .expect(0, &[]);
        assert_eq!(sha256(&fs::read(&image).unwrap()), POINTS[3].1, "{asked}");
        fs::remove_file(&image).unwrap();
        // What the first one has left here is not needed.
        fs::remove_dir_all(left.path.join("nothing")).unwrap();
    }
    left.strongroom(&["verify", "--all"])
        .expect(3, &["no record of the newest"]);
}

#[test]
fn journals_of_runs_that_died_are_read() {
    let left = Left::unpack();
    let uuid = "0f1c5d0a-0101-4a11-8b5e-5740f1f00010".parse().unwrap();
    let state = StateDirectory::open(left.path.join("state")).unwrap();
    let at_rest = state.peek(uuid).unwrap().unwrap();
    assert!(at_rest.run.is_none());
    let committed = at_rest.committed.unwrap();
    assert_eq!(committed.archive, format!("fixture-{}", POINTS[3].0));
    for (journal, scratch, pivoting) in [
        ("checkpoint", 1, None),
        ("snapshot", 0, Some(false)),
        ("snapshot-pivoting", 0, Some(true)),
    ] {
        fs::copy(
            left.path.join(format!("journals/{journal}.json")),
            left.path.join(format!("state/{uuid}.json")),
        )
        .unwrap();
        let run = state.peek(uuid).unwrap().unwrap().run.unwrap();
        assert_eq!(run.scratch.len(), scratch, "{journal}");
        assert_eq!(
            run.overlays.first().map(|overlay| overlay.pivoting),
            pivoting,
            "{journal}"
        );
        assert!(run.checkpoint.is_some(), "{journal}");
    }
}
