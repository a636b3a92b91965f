//! What a repository or its server sends.

use strongroom_borg::{Name, fuzzing};

pub use fuzzing::{archive, items, key_blob, manifest, msgpack, object, reply};

/// A name is shown to a person: nothing in it reaches the terminal as a control character, and no two names look
/// the same.
pub fn name(data: &[u8]) {
    let shown = Name::from(data).to_string();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    let at = data.len() / 2;
    let (first, second) = data.split_at(at);
    if first != second {
        assert_ne!(Name::from(first).to_string(), Name::from(second).to_string());
    }
}
