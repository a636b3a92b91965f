//! One entry for each parser of domain XML, which comes out of repositories, and of QEMU's answers, for fuzzers.

use std::path::{Path, PathBuf};

use strongroom_hypervisor::Retarget;
use uuid::Uuid;

use crate::chains::{definition as chains, inactive};
use crate::qemu::{answered, nodes};
use crate::{definition, retarget};

/// A definition; what is read of it can be relied on.
pub fn definition(xml: &str) {
    let Ok(definition) = definition::read(xml) else {
        return;
    };
    assert!(!definition.name.is_empty());
    for (at, disk) in definition.disks.iter().enumerate() {
        assert!(definition::check_target(&disk.target).is_ok());
        let others = definition.disks.iter().skip(at + 1);
        assert!(others.clone().all(|other| other.target != disk.target));
    }
}

/// A rewriting of everything that can be rewritten; it says what was asked, and changes nothing when repeated.
pub fn retarget(xml: &str) {
    let Ok(before) = definition::read(xml) else {
        return;
    };
    let place = |target: &str| PathBuf::from(format!("/images/{target} & <new>.qcow2"));
    let change = Retarget {
        name: Some("new & \"<name>\"".into()),
        uuid: Some(Uuid::from_u128(1)),
        copy: true,
        genid: Some(Uuid::from_u128(2)),

        disks: before
            .disks
            .iter()
            .map(|disk| (disk.target.clone(), place(&disk.target)))
            .collect(),
        drop_disks: Vec::new(),
        empty_drives: Vec::new(),
        nvram: before.nvram.map(|_| place("vars")),
    };
    let Ok(result) = retarget::rewrite(xml, &change).map(|changed| changed.xml) else {
        return;
    };
    assert!(definition::read(&result).is_ok_and(|after| Some(after.name) == change.name));
    assert!(retarget::rewrite(&result, &change).is_ok_and(|again| again.xml == result));
}

/// The chains in a definition, and another image for each disk; the new one is there, alone, and stays when repeated.
pub fn chains(xml: &str) {
    let image = Path::new("/images/a & <b>.overlay");
    for disk in chains::read(xml).unwrap_or_default() {
        assert!(disk.images.len() <= chains::MAX_IMAGES);
        let Ok(Some(result)) = inactive::rewrite(xml, &disk.target, image, false, "qcow2") else {
            continue;
        };
        let after = chains::read(&result).unwrap_or_default();
        let found = after.iter().find(|after| after.target == disk.target);
        assert!(found.is_some_and(|found| found.paths() == [image]));
        assert!(
            inactive::rewrite(&result, &disk.target, image, false, "qcow2")
                .is_ok_and(|again| again.is_none())
        );
    }
}

/// An answer of QEMU's monitor; every path that is read of it is absolute.
pub fn monitor(answer: &str) {
    let Ok(answer) = answered("fuzz", answer) else {
        return;
    };
    for drive in nodes::drives(&answer).unwrap_or_default() {
        assert!(drive.images.iter().all(|image| image.is_absolute()));
    }
    for node in nodes::nodes(&answer).unwrap_or_default() {
        assert!(node.file.is_none_or(|file| file.is_absolute()));
    }
    let _ = nodes::jobs(&answer).map(|jobs| jobs.iter().any(|job| job.is_on("vda")));
}
