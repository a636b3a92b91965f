//! Names: those that are ours, and those that others may have.

/// What our checkpoints, sockets and scratch files are called, before the run's id.
pub const PREFIX: &str = "strongroom-";

/// Text in each checkpoint, for whoever lists them.
pub const CHECKPOINT_DESCRIPTION: &str = "made by strongroom: the base of its next incremental backup";

/// Whether a checkpoint or bitmap of this name is one of ours.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// A VM's name as it appears in archive names: without what Borg or a shell could take for something else.
pub fn archive_prefix(vm: &str) -> String {
    vm.chars()
        .map(|c| {
            if c.is_alphanumeric() || "._-+".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(128)
        .collect()
}

/// Whether a VM can be called so: names of repositories and of records are made from it.
pub fn is_vm_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.')
}

/// Whether this can be a disk's target name (`vda`, `sdb`, `nvme0n1`): two or more lower-case letters, then letters
/// and digits; Linux allows 31 characters for a block device. Such names are part of paths, NBD export names and
/// archive paths. Both what is backed up and what is restored goes by this rule.
pub fn is_target(name: &str) -> bool {
    let letters = name.bytes().take_while(u8::is_ascii_lowercase).count();
    (2..=31).contains(&name.len())
        && letters >= 2
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_names_have_one_rule() {
        for good in ["vda", "sdaa", "nvme0n1", "vdabcdefghijklmnop", &"v".repeat(31)] {
            assert!(is_target(good), "{good}");
        }
        for bad in [
            "",
            "v",
            "1a",
            "v1a",
            "VDA",
            "vd a",
            "../x",
            "vd/a",
            "vdä",
            &"v".repeat(32),
        ] {
            assert!(!is_target(bad), "{bad}");
        }
    }
}
