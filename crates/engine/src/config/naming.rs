//! The names of VMs. A table `[vm.…]` is headed by a VM's name or by its UUID.

use strongroom_points::names::is_vm_name;
use uuid::Uuid;

/// The longest name, in bytes: libvirt and our own records add five to make a file's name of it.
const MAX_NAME: usize = 250;

/// The UUID that a VM is named by, if it is: written in full, with its dashes.
pub fn uuid_in(name: &str) -> Option<Uuid> {
    (name.len() == 36).then(|| name.parse().ok())?
}

/// Why a VM of this name cannot be protected, if so.
pub fn name_problem(name: &str) -> Option<String> {
    if !is_vm_name(name) {
        return Some(format!(
            "vm.{name:?}: a VM's name has no slash and no leading dot"
        ));
    }
    if name.chars().any(char::is_control) {
        return Some(format!("vm.{name:?}: a VM's name has no control characters"));
    }
    (name.len() > MAX_NAME).then(|| format!("vm.{name}: a VM's name has {MAX_NAME} bytes at most"))
}
