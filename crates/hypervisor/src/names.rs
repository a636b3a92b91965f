//! Names that are written into definitions, rules and paths: what ours begin with, and which of others' can be taken as they
//! are.

/// What our checkpoints, sockets, scratch files and overlays are called, before the run's id.
pub const PREFIX: &str = "strongroom-";

/// Description of our checkpoints, for those who list them.
pub const CHECKPOINT_DESCRIPTION: &str = "made by strongroom: the base of its next incremental backup";

/// Whether a checkpoint or bitmap of this name is one of ours.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
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

/// Whether a name can be written into rules and patterns as it is.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(['-', '.']) && name.chars().all(is_plain_char)
}

/// Whether a character can be in a name that is written into rules and patterns.
pub fn is_plain_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._+-".contains(c)
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
