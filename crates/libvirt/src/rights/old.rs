//! What the key could run with the rights that version 0.1.0 made: two commands of `virsh`, word for word, in the one account that
//! there was. Asked for only where the account for jobs is missing.

use strongroom_base::exec::shell_word;
use strongroom_hypervisor::names::is_plain_char;

/// Ends a VM's job.
pub fn abort_command(vm: &str) -> String {
    format!("virsh -q -c qemu:///system domjobabort {}", shell_word(vm))
}

/// Attaches an export to the VM that makes the backups.
pub fn attach_command(own: &str, export: &str, target: &str, socket: &str, serial: &str) -> String {
    let [own, export, target, socket, serial] = [own, export, target, socket, serial].map(word);
    format!(
        "virsh -q -c qemu:///system attach-disk {own} {export} {target} --live --sourcetype network --source-protocol nbd \
         --source-host-transport unix --source-host-socket {socket} --targetbus virtio --driver qemu --subdriver raw \
         --cache none --mode readonly --serial {serial}"
    )
}

/// Detaches it.
pub fn detach_command(own: &str, target: &str) -> String {
    let [own, target] = [own, target].map(word);
    format!("virsh -q -c qemu:///system detach-disk {own} {target} --live")
}

/// A word for a shell, as it is where that can be.
fn word(text: &str) -> String {
    if !text.is_empty() && text.chars().all(|c| is_plain_char(c) || c == '/') {
        text.to_owned()
    } else {
        shell_word(text)
    }
}
