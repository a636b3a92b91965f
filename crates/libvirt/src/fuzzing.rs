//! One entry for each parser of domain XML, which comes out of repositories, for fuzzers.

use std::path::PathBuf;

use strongroom_engine::vm::Retarget;
use uuid::Uuid;

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
        new_macs: true,
        disks: before
            .disks
            .iter()
            .map(|disk| (disk.target.clone(), place(&disk.target)))
            .collect(),
        drop_disks: Vec::new(),
        nvram: before.nvram.map(|_| place("vars")),
    };
    let Ok(result) = retarget::rewrite(xml, &change) else {
        return;
    };
    assert!(definition::read(&result).is_ok_and(|after| Some(after.name) == change.name));
    assert!(retarget::rewrite(&result, &change).is_ok_and(|again| again == result));
}
