//! `nonce`: the first counter that no client has reserved yet, as 16 hex digits.

use crate::error::Doing as _;
use crate::files::{Directory, read_all, replace};
use crate::{Error, Result};

const FILE: &str = "nonce";
const MAX_LEN: u64 = 1 << 10;

/// The first counter that is free; `None` if none was ever reserved.
pub(crate) fn free(directory: &dyn Directory) -> Result<Option<u64>> {
    let bytes = match read_all(directory, FILE, MAX_LEN).doing("read", FILE) {
        Err(error) if error.is_absent() => return Ok(None),
        other => other?,
    };
    let digits = bytes.trim_ascii();
    if digits.len() != 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Error::damaged(FILE, "it is not a number of 16 hex digits"));
    }
    let number = std::str::from_utf8(digits)
        .ok()
        .and_then(|text| u64::from_str_radix(text, 16).ok());
    Ok(number)
}

/// Reserves all counters below `next`, if `start` is still the first free one.
pub(crate) fn reserve(directory: &dyn Directory, start: Option<u64>, next: u64) -> Result<()> {
    if free(directory)? != start {
        return Err(Error::NonceMoved);
    }
    replace(directory, FILE, format!("{next:016x}").as_bytes()).doing("write", FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Disk;

    #[test]
    fn a_nonce_is_reserved_once() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        assert_eq!(free(&disk).unwrap(), None);
        reserve(&disk, None, 0x1234).unwrap();
        assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), b"0000000000001234");
        assert!(matches!(reserve(&disk, None, 0x5678), Err(Error::NonceMoved)));
        reserve(&disk, Some(0x1234), 0x5678).unwrap();
        assert_eq!(free(&disk).unwrap(), Some(0x5678));
    }

    #[test]
    fn a_nonce_that_is_no_number_is_damage_and_never_zero() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        for text in ["", "1234", "00000000000000zz", "+000000000001234"] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert!(matches!(free(&disk), Err(Error::Damaged { .. })), "{text:?}");
            assert!(reserve(&disk, None, 5).is_err());
        }
        std::fs::write(dir.path().join(FILE), "0000000000001234\n").unwrap();
        assert_eq!(free(&disk).unwrap(), Some(0x1234));
    }
}
