#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_hypervisor::{Role, Store, Use, User};
use uuid::Uuid;

use super::{Doubt, InUse, Inventory, Own};
use crate::testing::run;

/// A domain, shut off, with these uses.
fn user(name: &str, uses: Vec<Use>) -> User {
    User {
        name: name.into(),
        uuid: Uuid::from_u128(u128::from(name.as_bytes()[0])),
        active: false,
        uses,
        unread: None,
    }
}

fn disk(target: &str, path: &Path, format: &str) -> Use {
    Use {
        store: Store::Path(path.to_owned()),
        role: Role::Disk(target.into()),
        format: Some(format.into()),
        writable: true,
        shareable: false,
        now: false,
    }
}

fn running(uses: Use) -> Use {
    Use { now: true, ..uses }
}

/// An image on another one.
fn image(path: &Path, below: Option<(&Path, &str)>) {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    match below {
        Some((base, format)) => run(command.arg("-b").arg(base).args(["-F", format]).arg(path)),
        None => run(command.arg(path).arg("1M")),
    }
}

fn of(name: &str) -> Own {
    Own::of(name, user(name, Vec::new()).uuid)
}

fn anew(name: &str, targets: &[&str]) -> Own {
    Own {
        replaced: Some(targets.iter().map(|target| (*target).to_owned()).collect()),
        ..of(name)
    }
}

/// A2: a template, a clone on it, and a clone of the clone. Only the last one may be changed, and the refusal names who is hurt.
#[test]
fn what_a_clone_rests_on_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    image(&at("template"), None);
    image(&at("clone"), Some((Path::new("template"), "qcow2")));
    image(&at("again"), Some((&at("clone"), "qcow2")));
    let users = [
        user("template", vec![disk("vda", &at("template"), "qcow2")]),
        user("clone", vec![disk("vda", &at("clone"), "qcow2")]),
        user("again", vec![disk("vda", &at("again"), "qcow2")]),
    ];
    let inventory = Inventory::of(&users, true);
    for own in [of("template"), anew("template", &["vda"])] {
        let error = inventory.check(&at("template"), &own).unwrap_err();
        assert!(matches!(&error, InUse::Below { domain, .. } if domain == "clone" || domain == "again"));
        assert!(
            error
                .to_string()
                .contains("an image below its disk vda of domain"),
            "{error}"
        );
    }
    let error = inventory.check(&at("clone"), &of("clone")).unwrap_err();
    assert!(error.to_string().contains("\"again\""), "{error}");
    assert_eq!(inventory.check(&at("again"), &of("again")), Ok(()));
    assert!(inventory.owner(&at("template"), "template").is_err());
    let owner = inventory.owner(&at("again"), "template").unwrap().unwrap();
    assert_eq!(
        (owner.domain.as_str(), owner.format.as_deref()),
        ("again", Some("qcow2"))
    );
}

#[test]
fn a_file_has_many_names() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    image(&at("image"), None);
    std::fs::hard_link(at("image"), at("hard")).unwrap();
    std::os::unix::fs::symlink(at("image"), at("soft")).unwrap();
    std::os::unix::fs::symlink(directory.path(), at("directory")).unwrap();
    let users = [user("vm", vec![running(disk("vda", &at("soft"), "qcow2"))])];
    let inventory = Inventory::of(&users, true);
    for name in ["image", "hard", "soft", "directory/image", "./directory/./image"] {
        let error = inventory.check(&at(name), &of("vm")).unwrap_err();
        assert!(error.to_string().contains("runs on it"), "{name}: {error}");
    }
    // Nothing is there yet, and yet it has an owner.
    let users = [user("vm", vec![disk("vda", &at("absent"), "raw")])];
    let inventory = Inventory::of(&users, true);
    assert!(inventory.check(&at("directory/absent"), &Own::none()).is_err());
    assert_eq!(inventory.check(&at("directory/absent"), &of("vm")), Ok(()));
    assert_eq!(inventory.check(&at("other"), &Own::none()), Ok(()));
    // On another machine there are only names.
    let inventory = Inventory::of(&users, false);
    assert!(inventory.check(&at("absent"), &Own::none()).is_err());
    assert_eq!(inventory.check(&at("directory/absent"), &Own::none()), Ok(()));
}

/// The format of the top image is the definition's: a guest may have written a header into its raw disk. Below, it is what the
/// header above says.
#[test]
fn nothing_is_probed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    image(&at("secret"), None);
    image(&at("planted"), Some((&at("secret"), "qcow2")));
    image(&at("top"), Some((&at("planted"), "raw")));
    let users = [user(
        "vm",
        vec![
            disk("vda", &at("planted"), "raw"),
            disk("vdb", &at("top"), "qcow2"),
        ],
    )];
    let inventory = Inventory::of(&users, true);
    assert_eq!(inventory.check(&at("secret"), &Own::none()), Ok(()));
    assert!(matches!(
        inventory.check(&at("planted"), &Own::none()),
        Err(InUse::Below { .. })
    ));
}

#[test]
fn an_external_data_file_is_a_part_of_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let option = format!("data_file={}", at("data").display());
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", &option])
        .arg(at("meta"))
        .arg("1M"));
    let inventory = Inventory::of(&[user("vm", vec![disk("vda", &at("meta"), "qcow2")])], true);
    assert!(inventory.check(&at("data"), &of("vm")).is_err());
    assert_eq!(inventory.check(&at("data"), &anew("vm", &["vda"])), Ok(()));
    let data = inventory.users_of(&at("data")).next().unwrap();
    assert!(data.writable);
}

/// A chain that bites its own tail ends, and so does one that is endless.
#[test]
fn chains_end() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    image(&at("one"), None);
    image(&at("two"), Some((&at("one"), "qcow2")));
    run(Command::new("qemu-img")
        .args(["rebase", "-u", "-b", "two", "-F", "qcow2"])
        .arg(at("one")));
    let inventory = Inventory::of(&[user("vm", vec![disk("vda", &at("two"), "qcow2")])], true);
    assert!(inventory.held().len() <= 4, "{:?}", inventory.held());
}

#[test]
fn who_may_replace_what() {
    let path = PathBuf::from("/nowhere/image");
    let taken = |uses: Use, own: &Own| Inventory::of(&[user("vm", vec![uses])], true).check(&path, own);
    let own_disk = || disk("vda", &path, "raw");
    let other_role = |role: Role| Use {
        role,
        ..disk("vda", &path, "raw")
    };
    // Its own, shut off; but not for a copy, and not another one's.
    assert_eq!(taken(own_disk(), &of("vm")), Ok(()));
    assert_eq!(taken(own_disk(), &anew("vm", &["vda"])), Ok(()));
    assert!(taken(own_disk(), &Own::none()).is_err());
    let error = taken(own_disk(), &of("web")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "write /nowhere/image: it is its disk vda of domain \"vm\"; take another path with --to, or take it out of that domain \
         first"
    );
    // A disk that stays in the definition keeps its image.
    assert!(taken(own_disk(), &anew("vm", &["vdb"])).is_err());
    // What is open, or will be when memory is resumed, is not to be replaced.
    assert!(matches!(
        taken(running(own_disk()), &of("vm")),
        Err(InUse::Now { .. })
    ));
    assert!(taken(running(own_disk()), &anew("vm", &["vda"])).is_err());
    // What snapshots refer to is theirs.
    let snapshot = || other_role(Role::Snapshot("s".into()));
    assert!(taken(snapshot(), &anew("vm", &["vda"])).is_err());
    assert!(taken(other_role(Role::Below("vda".into())), &of("vm")).is_err());
    assert_eq!(
        taken(other_role(Role::Below("vda".into())), &anew("vm", &["vda"])),
        Ok(())
    );
    assert_eq!(taken(other_role(Role::Variables), &anew("vm", &["vda"])), Ok(()));
    assert!(taken(other_role(Role::Variables), &Own::none()).is_err());
    assert!(taken(other_role(Role::Other("its kernel")), &of("web")).is_err());
}

/// A domain that runs, and lets nothing be read of its definition.
fn hangs(name: &str) -> User {
    User {
        active: true,
        unread: Some("cannot acquire state change lock".into()),
        ..user(name, Vec::new())
    }
}

/// Of a domain that hangs it is not known what it uses: what is there stays as it is, and names that are free are free.
#[test]
fn what_may_be_in_use_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (there, free) = (directory.path().join("there"), directory.path().join("free"));
    image(&there, None);
    let vm = || user("vm", vec![disk("vda", &there, "qcow2")]);
    let inventory = Inventory::of(&[hangs("dead"), vm()], true);
    for own in [of("vm"), anew("vm", &["vda"]), of("dead"), Own::none()] {
        assert_eq!(inventory.check(&free, &own), Ok(()));
    }
    for own in [of("vm"), anew("vm", &["vda"])] {
        let error = inventory.check(&there, &own).unwrap_err();
        assert!(matches!(&error, InUse::Unknown { domain, .. } if domain == "dead"));
        let text = error.to_string();
        for word in [
            "there",
            "\"dead\"",
            "cannot acquire state change lock",
            "virsh destroy",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }
    let unknown = inventory.owner(&there, "vm").unwrap_err();
    assert!(matches!(unknown, InUse::Unknown { .. }), "{unknown}");
    // What is known is said first.
    let known = inventory.check(&there, &Own::none()).unwrap_err();
    assert!(matches!(known, InUse::Named { .. }), "{known}");
    // The VM itself may be the one that hangs.
    assert!(
        Inventory::of(&[hangs("vm")], true)
            .check(&there, &of("vm"))
            .is_err()
    );
    // It answers again.
    let inventory = Inventory::of(&[user("dead", Vec::new()), vm()], true);
    assert_eq!(inventory.check(&there, &of("vm")), Ok(()));
    assert!(inventory.owner(&there, "vm").unwrap().is_some());
    // On another machine nothing is replaced, so all that is asked about is free.
    let inventory = Inventory::of(&[hangs("dead")], false);
    assert_eq!(inventory.check(&there, &Own::none()), Ok(()));
}

/// What is defined is asked until it is known: a domain that hangs may be the one that has the files.
#[test]
fn a_domain_that_hangs_may_have_what_is_asked_about() {
    let directory = tempfile::tempdir().unwrap();
    let (there, other) = (directory.path().join("there"), directory.path().join("other"));
    image(&there, None);
    image(&other, None);
    let asked = [other.as_path(), there.as_path()];
    let vm = || user("vm", vec![disk("vda", &there, "qcow2")]);
    let of = |users: &[User]| {
        let inventory = Inventory::of(users, true);
        let user = inventory.any_user(asked).map_err(|unread| unread.domain.clone());
        user.map(|held| held.map(|held| held.domain.clone()))
    };
    assert_eq!(of(&[]), Ok(None));
    assert_eq!(of(&[user("web", Vec::new())]), Ok(None));
    assert_eq!(of(&[hangs("dead")]), Err("dead".into()));
    // What is known is enough.
    assert_eq!(of(&[hangs("dead"), vm()]), Ok(Some("vm".into())));
}

/// A backup goes on beside a domain that hangs. It matters only where nothing else keeps that from the images.
#[test]
fn a_backup_goes_on_beside_a_domain_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let there = directory.path().join("there");
    image(&there, None);
    let vm = user(
        "vm",
        vec![
            disk("vda", &there, "qcow2"),
            disk("vdb", &directory.path().join("absent"), "raw"),
        ],
    );
    let doubts = |users: &[User], local: bool, target: &str, off: bool| {
        let inventory = Inventory::of(users, local);
        let doubts = inventory.doubts(vm.uuid, &[target], off);
        doubts
            .into_iter()
            .map(|(unread, doubt)| (unread.domain.clone(), doubt))
            .collect::<Vec<_>>()
    };
    let users = [vm.clone(), hangs("dead")];
    let one = |doubt| vec![("dead".to_owned(), doubt)];
    assert_eq!(doubts(&users, true, "vda", false), one(Doubt::Slight));
    assert_eq!(doubts(&users, true, "vda", true), one(Doubt::Grave));
    assert_eq!(doubts(&users, true, "vdb", true), one(Doubt::Slight));
    assert_eq!(doubts(&users, false, "vdb", true), one(Doubt::Grave));
    assert_eq!(doubts(&[vm.clone(), hangs("vm")], true, "vda", true), []);
    assert_eq!(
        doubts(&[vm.clone(), user("dead", Vec::new())], true, "vda", true),
        []
    );
}
