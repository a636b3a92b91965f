//! The files in an archive that are neither disks nor definition: UEFI variables, and the state of an emulated TPM. Which paths
//! they have, and how large they can be.

use std::path::{Path, PathBuf};

use crate::manifest::NVRAM_PATH;

/// The largest UEFI variable store that is taken along, in bytes. Real ones have half a MiB.
pub const MAX_NVRAM: u64 = 16 << 20;
/// The largest file of a TPM's state, in bytes. Real ones have some ten KiB.
pub const MAX_TPM: u64 = 1 << 20;
/// Directory of the TPM's state inside an archive.
pub const TPM_PREFIX: &str = "tpm/";

/// The size that a file of this path in an archive may have; `None` if it is not one of these.
pub fn limit(path: &str) -> Option<u64> {
    if path == NVRAM_PATH {
        Some(MAX_NVRAM)
    } else {
        tpm_place(path).map(|_| MAX_TPM)
    }
}

/// Where a file of a TPM's state goes below the TPM's directory: `tpm2/tpm2-00.permall` for
/// `tpm/tpm2/tpm2-00.permall`. `None` for a path that no backup of ours writes.
pub fn tpm_place(path: &str) -> Option<PathBuf> {
    let (kind, name) = path.strip_prefix(TPM_PREFIX)?.split_once('/')?;
    (is_plain(kind) && is_plain(name)).then(|| Path::new(kind).join(name))
}

/// A file name without anything that leads elsewhere; hidden files (locks) are left out.
fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_in_one_directory_are_places_of_a_tpm() {
        assert_eq!(
            tpm_place("tpm/tpm2/tpm2-00.permall").unwrap(),
            Path::new("tpm2/tpm2-00.permall")
        );
        for path in [
            "tpm/tpm2",
            "tpm/tpm2/.lock",
            "tpm/../x",
            "tpm/tpm2/../../x",
            "tpm//x",
            "tpm/a/b/c",
            "/tpm/a/b",
            "nvram.fd",
            "tpm/a/",
        ] {
            assert_eq!(tpm_place(path), None, "{path}");
        }
    }
}
