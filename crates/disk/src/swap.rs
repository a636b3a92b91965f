//! The header of a Linux swap area: enough of it to make an empty one with the same identity.
//!
//! Layout as in the kernel's `union swap_header` (include/linux/swap.h) and mkswap(8), for pages of 4 KiB:
//! 1024 bytes left to boot loaders, then version, last page, number of bad pages (32 bits each, in the byte order
//! of the machine, here little endian), UUID (16 bytes), label (16 bytes, padded with NUL); the last ten bytes of
//! the page are the magic.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The size of the page the header fills.
pub const PAGE: usize = 4096;
/// The longest label in bytes.
pub const LABEL_BYTES: usize = 16;
/// The smallest area mkswap(8) makes, in pages.
const MIN_PAGES: u64 = 10;
const MAGIC: &[u8] = b"SWAPSPACE2";
const VERSION: u32 = 1;
const VERSION_AT: usize = 1024;
const LAST_PAGE_AT: usize = 1028;
const UUID_AT: usize = 1036;
const LABEL_AT: usize = 1052;

/// The identity of a swap area, as `/etc/fstab` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapArea {
    /// What `UUID=` finds.
    pub uuid: Uuid,
    /// What `LABEL=` finds; empty if there is none (or none in UTF-8). At most [`LABEL_BYTES`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
}

/// A swap area that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// No room for a header and a few pages.
    #[error("{size} bytes are too few for a swap area")]
    TooSmall {
        /// The bytes there are.
        size: u64,
    },
    /// The label does not fit.
    #[error("swap label {label:?} is longer than {LABEL_BYTES} bytes or holds a NUL")]
    Label {
        /// The label.
        label: String,
    },
}

impl SwapArea {
    /// Reads the header from the first page of an area; `None` if it is not a swap area of version 1.
    pub fn parse(page: &[u8; PAGE]) -> Option<Self> {
        if !page.ends_with(MAGIC) || page.get(VERSION_AT..LAST_PAGE_AT)? != VERSION.to_le_bytes() {
            return None;
        }
        let uuid = Uuid::from_slice(page.get(UUID_AT..LABEL_AT)?).ok()?;
        let label = page
            .get(LABEL_AT..LABEL_AT + LABEL_BYTES)?
            .split(|byte| *byte == 0)
            .next()?;
        let label = std::str::from_utf8(label).unwrap_or_default().to_owned();
        Some(Self { uuid, label })
    }

    /// The first page of an empty area of `size` bytes with this identity.
    pub fn to_page(&self, size: u64) -> Result<[u8; PAGE], SwapError> {
        let pages = size / PAGE as u64;
        if pages < MIN_PAGES {
            return Err(SwapError::TooSmall { size });
        }
        if self.label.len() > LABEL_BYTES || self.label.contains('\0') {
            return Err(SwapError::Label {
                label: self.label.clone(),
            });
        }
        let last_page = u32::try_from(pages - 1).unwrap_or(u32::MAX);
        let mut page = [0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(VERSION_AT, &VERSION.to_le_bytes());
        put(LAST_PAGE_AT, &last_page.to_le_bytes());
        put(UUID_AT, self.uuid.as_bytes());
        put(LABEL_AT, self.label.as_bytes());
        put(PAGE - MAGIC.len(), MAGIC);
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(uuid: u128, label in "[a-zé]{0,8}", size in 40960u64..1 << 50) {
            let area = SwapArea { uuid: Uuid::from_u128(uuid), label };
            prop_assert_eq!(SwapArea::parse(&area.to_page(size).unwrap()), Some(area));
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut area = SwapArea {
            uuid: Uuid::nil(),
            label: "x".repeat(17),
        };
        assert!(matches!(area.to_page(1 << 20), Err(SwapError::Label { .. })));
        area.label.truncate(16);
        assert_eq!(
            SwapArea::parse(&area.to_page(1 << 20).unwrap()).unwrap().label,
            area.label
        );
        assert_eq!(area.to_page(40959), Err(SwapError::TooSmall { size: 40959 }));
    }

    #[test]
    fn ignores_what_is_no_swap_area() {
        assert_eq!(SwapArea::parse(&[0; PAGE]), None);
        let mut page = SwapArea {
            uuid: Uuid::nil(),
            label: String::new(),
        }
        .to_page(1 << 20)
        .unwrap();
        page[LABEL_AT] = 0xff;
        assert_eq!(SwapArea::parse(&page).unwrap().label, "");
        page[VERSION_AT] = 2;
        assert_eq!(SwapArea::parse(&page), None);
    }
}
