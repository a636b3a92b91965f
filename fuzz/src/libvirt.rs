//! The domain definition that an archive holds, and what a running domain answers.

use strongroom_libvirt::fuzzing;

/// What is read of a definition.
pub fn definition(data: &[u8]) {
    let _ = std::str::from_utf8(data).map(fuzzing::definition);
}

/// A definition that is given a new name, identity and places.
pub fn retarget(data: &[u8]) {
    let _ = std::str::from_utf8(data).map(fuzzing::retarget);
}

/// The images that a definition names, and another one in their place.
pub fn chains(data: &[u8]) {
    let _ = std::str::from_utf8(data).map(fuzzing::chains);
}

/// An answer of QEMU's monitor about drives, nodes or jobs.
pub fn monitor(data: &[u8]) {
    let _ = std::str::from_utf8(data).map(fuzzing::monitor);
}
