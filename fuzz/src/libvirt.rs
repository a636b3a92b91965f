//! The domain definition that an archive holds.

use strongroom_libvirt::fuzzing;

/// What is read of a definition.
pub fn definition(data: &[u8]) {
    let _ = std::str::from_utf8(data).map(fuzzing::definition);
}

/// A definition that is given a new name, identity and places.
pub fn retarget(data: &[u8]) {
    let _ = std::str::from_utf8(data).map(fuzzing::retarget);
}
