//! The polkit rule. It looks at who asks, and about which VM: nothing that a process could choose for itself.

use std::fmt::Write as _;

use super::{Rights, jobs_account};

/// On the connection.
const CONNECT: &[&str] = &["getattr", "search-domains"];
/// On a VM, to look at it.
const LOOK: &[&str] = &["getattr", "read"];
/// On a listed VM, to back it up: frozen view and map of changes (`checkpoint`, `block-write`), the end of the job (`write`), a
/// guest that was stopped because its storage was full (`suspend`, which is also the right to resume).
const JOBS: &[&str] = &["getattr", "read", "checkpoint", "block-write", "suspend", "write"];
/// On the VM that makes the backups: disks are attached and detached.
const LEND: &[&str] = &["getattr", "read", "write"];

impl Rights {
    /// The polkit rule.
    pub fn polkit(&self) -> String {
        let list = |words: &[&str]| format!("[\"{}\"]", words.join("\", \""));
        let vms: Vec<&str> = self.vms.iter().map(String::as_str).collect();
        let vms = list(&vms);
        let jobs = jobs_account(&self.account);
        let mut rule = format!(
            r#"// What {account} and {jobs} may ask of libvirt: to back up these VMs. Made by `strongroom hypervisor-rights`.
polkit.addRule(function(action, subject) {{
    if (action.id.indexOf("org.libvirt.") != 0)
        return polkit.Result.NOT_HANDLED;
    // Who could use libvirt before it asked for each call can do so still.
    if (subject.user != "{account}" && subject.user != "{jobs}")
        return subject.isInGroup("libvirt") ? polkit.Result.YES : polkit.Result.NOT_HANDLED;
    if (action.id == "org.libvirt.unix.manage")
        return polkit.Result.YES;
    var words = action.id.split(".");
    var object = words[3], right = words[4];
    if (words[2] != "api")
        return polkit.Result.NO;
    if (object == "connect" && {connect}.indexOf(right) >= 0)
        return polkit.Result.YES;
    var vm = object == "domain" ? action.lookup("domain_name") : "";
    // The key can run nothing as {jobs} but a script that composes what libvirt is given.
    var rights = subject.user == "{jobs}" ? {jobs_rights} : {look};
    if (object == "domain" && {vms}.indexOf(vm) >= 0 && rights.indexOf(right) >= 0)
        return polkit.Result.YES;
"#,
            account = self.account,
            connect = list(CONNECT),
            jobs_rights = list(JOBS),
            look = list(LOOK),
        );
        // Writing to a String cannot fail.
        if let Some(own) = &self.own {
            let _ = write!(
                rule,
                r#"    // {own} makes the backups: exports of the others are attached to it, and detached.
    rights = subject.user == "{jobs}" ? {lend} : {look};
    if (object == "domain" && vm == "{own}" && rights.indexOf(right) >= 0)
        return polkit.Result.YES;
"#,
                lend = list(LEND),
                look = list(LOOK),
            );
        }
        if let Some(pool) = &self.pool {
            let _ = write!(
                rule,
                r#"    if (subject.user == "{account}" && action.lookup("pool_name") == "{pool}"
            && ["storage-pool.getattr", "storage-vol.getattr", "storage-vol.data-read"].indexOf(object + "." + right) >= 0)
        return polkit.Result.YES;
"#,
                account = self.account,
            );
        }
        rule.push_str("    return polkit.Result.NO;\n});\n");
        rule
    }
}
