//! Names: those that are ours, and those that others may have.

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
