//! What objects are called: 32 bytes.

use std::fmt;

/// The name of an object in a repository.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 32]);

impl Id {
    /// The manifest, which every repository has under the same name.
    pub const MANIFEST: Self = Self([0; 32]);
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_shown_in_hex() {
        let mut id = Id::MANIFEST;
        id.0[0] = 0xab;
        assert_eq!(id.to_string(), format!("ab{}", "0".repeat(62)));
        assert_eq!(format!("{id:?}"), format!("Id({id})"));
    }
}
