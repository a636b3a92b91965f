//! What an account on a hypervisor has to be allowed so that another machine can back up its VMs, and no more.
//!
//! Three things together: a polkit rule, which libvirt asks about each call (`access_drivers = ["polkit"]`,
//! <https://libvirt.org/aclpolkit.html>); a line of `authorized_keys` that lets the key do two things, reach libvirt and reach
//! the exports of listed VMs' disks; and the commands that put both in place. Pure text: nothing is done here.
//!
//! | call | right | what for |
//! |---|---|---|
//! | `virConnectOpen` | `connect.getattr` | the connection |
//! | `virConnectListAllDomains`, events | `connect.search-domains` | `status`, waiting for the end of a job |
//! | look-ups | `domain.getattr` | everything |
//! | definition, state, sizes, jobs, checkpoints, snapshots: reading them | `domain.read` | planning, and the restore point |
//! | `virDomainBackupBegin`, `virDomainCheckpointDelete` | `domain.checkpoint` | the frozen view, the map of changes |
//! | `virDomainBackupBegin` | `domain.block-write` | the frozen view |
//! | `virDomainAbortJob` | `domain.write`, for `virsh domjobabort VM` alone | the end of the frozen view |
//! | `virDomainResume` | `domain.suspend` | a guest that was stopped because its storage was full runs on |
//! | `virDomainAttachDeviceFlags`, `virDomainDetachDeviceFlags` | `domain.write` on the VM that makes the backups, for two commands of `virsh` alone | exports as its disks, read-only |
//! | `virStorageVolDownload` and look-ups | `storage-pool.getattr`, `storage-vol.getattr`, `storage-vol.data-read` | UEFI variables, if a pool for them is named |
//!
//! Deliberately not among them: `domain.read-secure`, which is the passwords in a definition, and `domain.write`, which is
//! also QEMU's monitor and the guest agent. libvirt wants the latter to end a job and to attach a disk, too. So polkit looks at
//! the process that asks: only the command lines that the forced command runs for it have the right, and those do nothing else.

use std::fmt::Write as _;

use crate::exec::shell_word;

/// An account, and what it may back up.
#[derive(Debug, Clone)]
pub struct Rights {
    /// The account on the hypervisor.
    pub account: String,
    /// Group that may enter the directories in which QEMU makes its sockets.
    pub group: String,
    /// The VMs.
    pub vms: Vec<String>,
    /// The public key that is let in, as in `id_ed25519.pub`.
    pub key: String,
    /// A storage pool whose files may be read: the one with the UEFI variables.
    pub pool: Option<String>,
    /// The VM that makes the backups, if it is one of this hypervisor's: exports may be attached to it, read-only.
    pub own: Option<String>,
}

/// libvirt cuts a domain's name to so many characters in the name of its directory.
const SHORT_NAME: usize = 20;

/// What the key may run to end a job. The words are few, so that polkit can compare them.
pub fn abort_command(vm: &str) -> String {
    format!("virsh -q -c qemu:///system domjobabort {}", shell_word(vm))
}

/// What the targets are called under which exports are attached: this, and one of [`LENT_TARGETS`].
pub const LENT_PREFIX: &str = "vds";
/// So many can be attached at the same time.
pub const LENT_TARGETS: [char; 16] = [
    'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p',
];

/// What the key may run to have an export attached to the VM that makes the backups, as a disk that nobody can write to.
pub fn lend_command(own: &str, export: &str, target: &str, socket: &str, serial: &str) -> String {
    lend_words(
        &word(own),
        &word(export),
        &word(target),
        &word(socket),
        &word(serial),
    )
}

/// The command, or a pattern for it.
fn lend_words(own: &str, export: &str, target: &str, socket: &str, serial: &str) -> String {
    format!(
        "virsh -q -c qemu:///system attach-disk {own} {export} {target} --live --sourcetype network --source-protocol nbd \
         --source-host-transport unix --source-host-socket {socket} --targetbus virtio --driver qemu --subdriver raw \
         --cache none --mode readonly --serial {serial}"
    )
}

/// What the key may run to have such a disk detached.
pub fn take_back_command(own: &str, target: &str) -> String {
    take_back_words(&word(own), &word(target))
}

fn take_back_words(own: &str, target: &str) -> String {
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

/// Whether a name can be written into rules and patterns as it is.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(['-', '.']) && name.chars().all(is_plain_char)
}

fn is_plain_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._+-".contains(c)
}

/// How the directories begin in which QEMU makes its sockets.
const SOCKETS: &str = "/var/lib/libvirt/qemu/domain-";

/// A domain's name as it is in the name of its directory.
fn short(vm: &str) -> String {
    vm.chars().take(SHORT_NAME).collect()
}

/// A name that stands for itself in a regular expression.
fn expression(name: &str) -> String {
    name.replace('.', "\\.").replace('+', "\\+")
}

/// A regular expression between slashes.
fn slashed(expression: &str) -> String {
    expression.replace('/', "\\/")
}

/// Rights on the connection.
const CONNECT: &[&str] = &["getattr", "search-domains"];
/// Rights on each of the VMs.
const DOMAIN: &[&str] = &["getattr", "read", "checkpoint", "block-write", "suspend"];

impl Rights {
    /// Whether the names can be written into rules and patterns as they are, and the key is one.
    pub fn check(&self) -> Result<(), String> {
        if self.vms.is_empty() {
            return Err("name the VMs that may be backed up".into());
        }
        let names = self
            .vms
            .iter()
            .chain([&self.account, &self.group])
            .chain(&self.pool)
            .chain(&self.own);
        if let Some(odd) = names.into_iter().find(|name| !is_plain(name)) {
            return Err(format!(
                "{odd:?}: only letters, digits and ._+- can be in a name that rules are made for"
            ));
        }
        let words: Vec<&str> = self.key.split_whitespace().collect();
        let kind = words.first().copied().unwrap_or_default();
        let base64 = |text: &&str| {
            text.len() > 40
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
        };
        if !(kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-"))
            || !words.get(1).is_some_and(base64)
            || self.key.trim().lines().count() != 1
        {
            return Err("the key is not a public SSH key on one line".into());
        }
        Ok(())
    }

    /// The polkit rule.
    pub fn polkit(&self) -> String {
        let list = |words: &[&str]| format!("[\"{}\"]", words.join("\", \""));
        let vms: Vec<&str> = self.vms.iter().map(String::as_str).collect();
        let mut rule = format!(
            r#"// What the account {account} may ask of libvirt: to back up these VMs. Made by `strongroom hypervisor-rights`.
polkit.addRule(function(action, subject) {{
    if (action.id.indexOf("org.libvirt.") != 0)
        return polkit.Result.NOT_HANDLED;
    // Who could use libvirt before it asked for each call can do so still.
    if (subject.user != "{account}")
        return subject.isInGroup("libvirt") ? polkit.Result.YES : polkit.Result.NOT_HANDLED;
    if (action.id == "org.libvirt.unix.manage")
        return polkit.Result.YES;
    var words = action.id.split(".");
    var object = words[3], right = words[4];
    if (words[2] != "api")
        return polkit.Result.NO;
    if (object == "connect" && {connect}.indexOf(right) >= 0)
        return polkit.Result.YES;
    if (object == "domain" && {domain}.indexOf(right) >= 0
            && {vms}.indexOf(action.lookup("domain_name")) >= 0)
        return polkit.Result.YES;
"#,
            account = self.account,
            connect = list(CONNECT),
            domain = list(DOMAIN),
            vms = list(&vms),
        );
        // Writing to a String cannot fail.
        let _ = write!(
            rule,
            r#"    // To end a backup job takes the right to everything else: only the one command that the key may run for it has it.
    if (object == "domain" && right == "write" && {vms}.indexOf(action.lookup("domain_name")) >= 0) {{
        var asks = polkit.spawn(["/usr/bin/xargs", "-0", "-a", "/proc/" + subject.pid + "/cmdline", "/bin/echo"]);
        if (asks == "virsh -q -c qemu:///system domjobabort " + action.lookup("domain_name") + "\n")
            return polkit.Result.YES;
    }}
"#,
            vms = list(&vms),
        );
        if let Some(own) = &self.own {
            let _ = write!(
                rule,
                r#"    // {own} makes the backups: exports of the others may be attached to it as disks, and detached, by two commands.
    if (object == "domain" && ["getattr", "read"].indexOf(right) >= 0 && action.lookup("domain_name") == "{own}")
        return polkit.Result.YES;
    if (object == "domain" && right == "write" && action.lookup("domain_name") == "{own}") {{
        var words = polkit.spawn(["/usr/bin/xargs", "-0", "-a", "/proc/" + subject.pid + "/cmdline", "/bin/echo"]);
        if (/^{lend}\n$/.test(words) || /^{take_back}\n$/.test(words))
            return polkit.Result.YES;
    }}
"#,
                lend = self.lend_expression(own),
                take_back = slashed(&take_back_words(&expression(own), "vds[a-p]")),
            );
        }
        if let Some(pool) = &self.pool {
            let _ = write!(
                rule,
                r#"    if (["storage-pool.getattr", "storage-vol.getattr", "storage-vol.data-read"].indexOf(object + "." + right) >= 0
            && action.lookup("pool_name") == "{pool}")
        return polkit.Result.YES;
"#
            );
        }
        rule.push_str("    return polkit.Result.NO;\n});\n");
        rule
    }

    /// What polkit compares the command with that has an export attached.
    fn lend_expression(&self, own: &str) -> String {
        let short: Vec<String> = self.vms.iter().map(|vm| expression(&short(vm))).collect();
        let socket = format!("{SOCKETS}[0-9]+-({})/sr-[0-9a-f]{{8}}\\.sock", short.join("|"));
        slashed(&lend_words(
            &expression(own),
            "[a-z0-9]+",
            "vds[a-p]",
            &socket,
            "sr-[0-9a-f]{8}-[a-z0-9]+",
        ))
    }

    /// The line of `authorized_keys`. Whatever the client asks for, one of these commands is run, or none: libvirt's own
    /// helper, netcat on an export of a listed VM, the end of a listed VM's job, and such an export as a disk of the VM that makes
    /// the backups.
    pub fn authorized_key(&self) -> String {
        let hex = "[0-9a-f]".repeat(8);
        let (mut commands, mut sockets) = (String::new(), String::new());
        // Writing to a String cannot fail.
        for vm in &self.vms {
            let _ = write!(commands, "\"{0}\") exec {0};; ", abort_command(vm));
            // The number in front of the name has to be one: else it is another VM's directory.
            let _ = write!(
                sockets,
                "{SOCKETS}*-{short}/sr-{hex}.sock) i=${{s#{SOCKETS}}}; i=${{i%-{short}/*}}; \
                 case $i in ''|*[!0-9]*) ;; *) exec $x;; esac;; ",
                short = short(vm),
            );
        }
        if let Some(own) = &self.own {
            let serial = format!("\"sr-{hex}-[a-z]*\"");
            let pattern = lend_words(own, "\"[a-z]*\"", "vds\"[a-p]\"", "\"*\"", &serial);
            // As many words as there are in the pattern: then each star is one.
            let example = lend_words("o", "e", "t", "SOCKET", "s");
            let words = example.split(' ').count();
            let socket = example.split(' ').take_while(|word| *word != "SOCKET").count() + 1;
            let _ = write!(
                commands,
                "\"{pattern}\") set -f; set -- $c; [ $# = {words} ] && x=$c && s=${{{socket}}};; \"{}\") exec $c;; ",
                take_back_words(own, "vds\"[a-p]\"")
            );
        }
        let command = format!(
            "c=$SSH_ORIGINAL_COMMAND; s=; x=; case $c in *virt-ssh-helper*) exec virt-ssh-helper qemu:///system;; {commands}\
             \"nc -U '\"*\"'\") s=${{c#nc -U ?}}; s=${{s%?}}; x=\"nc -U $s\";; esac; \
             case $s in *[!A-Za-z0-9._+/-]*|*..*) ;; {sockets}esac; \
             echo strongroom: refused >&2; exit 126"
        );
        format!(
            "restrict,command=\"{}\" {}\n",
            command.replace('"', "\\\""),
            self.key.trim()
        )
    }

    /// What the hypervisor's administrator does, as root, one command after the other.
    pub fn commands(&self) -> Vec<String> {
        let Self { account, group, .. } = self;
        let home = format!("/home/{account}");
        vec![
            format!(
                "useradd --system --create-home --home-dir {home} --shell /bin/sh --password '*' --groups {group} {account}"
            ),
            format!(
                "cat >/etc/polkit-1/rules.d/40-{account}.rules <<'END'\n{}END",
                self.polkit()
            ),
            format!("install -d -m 755 -o root -g root {home} {home}/.ssh"),
            format!(
                "cat >{home}/.ssh/authorized_keys <<'END'\n{}END",
                self.authorized_key()
            ),
            "for daemon in libvirtd virtqemud; do file=/etc/libvirt/$daemon.conf; test -f $file || continue; \
             grep -q '^access_drivers' $file || echo 'access_drivers = [ \"polkit\" ]' >>$file; done"
                .into(),
            "systemctl try-restart libvirtd virtqemud".into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn rights(vms: &[&str]) -> Rights {
        Rights {
            account: "strongroom".into(),
            group: "libvirt-qemu".into(),
            vms: vms.iter().map(|vm| (*vm).to_owned()).collect(),
            key: format!("ssh-ed25519 {} me@here\n", "A".repeat(68)),
            pool: None,
            own: None,
        }
    }

    /// What a shell makes of the forced command, with programs that only say what they are called with.
    fn forced(rights: &Rights, asked: &str) -> (String, Option<i32>) {
        let line = rights.authorized_key();
        let (_, rest) = line.split_once("command=\"").unwrap();
        let command = rest.split_once("\" ssh-").unwrap().0.replace("\\\"", "\"");
        let directory = tempfile::tempdir().unwrap();
        for program in ["nc", "virt-ssh-helper", "virsh"] {
            let path = directory.path().join(program);
            std::fs::write(&path, format!("#!/bin/sh\necho {program} \"$@\"\n")).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&path, mode).unwrap();
        }
        let output = Command::new("/bin/sh")
            .args(["-c", &command])
            .env("PATH", directory.path())
            .env("SSH_ORIGINAL_COMMAND", asked)
            .output()
            .unwrap();
        (
            String::from_utf8(output.stdout).unwrap().trim().to_owned(),
            output.status.code(),
        )
    }

    #[test]
    fn a_key_reaches_libvirt_and_exports_of_listed_vms_and_nothing_else() {
        let rights = rights(&["web01", "a-name-that-is-longer-than-twenty"]);
        rights.check().unwrap();
        let socket = |vm: &str| format!("/var/lib/libvirt/qemu/domain-{vm}/sr-0123abcd.sock");
        for good in [socket("3-web01"), socket("12-a-name-that-is-longe")] {
            let (said, code) = forced(&rights, &format!("nc -U '{good}'"));
            assert_eq!((said, code), (format!("nc -U {good}"), Some(0)));
        }
        let libvirt = "sh -c 'which virt-ssh-helper 1>/dev/null 2>&1; if test $? = 0; then virt-ssh-helper qemu:///system; fi'";
        assert_eq!(
            forced(&rights, libvirt),
            ("virt-ssh-helper qemu:///system".into(), Some(0))
        );
        let abort = "virsh -q -c qemu:///system domjobabort";
        let asked = abort_command("web01");
        assert_eq!(forced(&rights, &asked), (format!("{abort} web01"), Some(0)));
        for bad in [
            "",
            "sh",
            &abort_command("web02"),
            &format!("{asked}; id"),
            &format!("{abort} web01 --postcopy"),
            "virsh -q -c qemu:///system destroy 'web01'",
            "nc -U '/var/lib/libvirt/qemu/domain-3-web01/monitor.sock'",
            "nc -U '/run/libvirt/libvirt-sock'",
            "nc -U '/var/lib/libvirt/qemu/domain-3-web01/../domain-4-db/sr-0123abcd.sock'",
            "nc -U '/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock' -e /bin/sh",
            "nc -U '/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock'; id '",
            "nc -U '/var/lib/libvirt/qemu/domain-3-web01/sr-$(id -u1).sock'",
            "nc -lU '/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock'",
            &format!("nc -U '{}'", socket("3-web02")),
            &format!("nc -U '{}'", socket("3-x-web01")),
            &format!("nc -U '{}'", socket("-web01")),
            &format!("nc -U '{}'", socket("3-db/x-web01")),
        ] {
            assert_eq!(forced(&rights, bad), (String::new(), Some(126)), "{bad}");
        }
        // No VM that disks may be attached to.
        let lend = |own: &str, vm: &str| {
            let serial = "sr-0123abcd-vda";
            lend_command(own, "vda", "vdsa", &socket(vm), serial)
        };
        assert_eq!(forced(&rights, &lend("backup1", "3-web01")).1, Some(126));
        assert_eq!(
            forced(&rights, &take_back_command("backup1", "vdsa")).1,
            Some(126)
        );
        // However it is asked for, libvirt's helper gets no words of the client's.
        let (said, _) = forced(&rights, "virt-ssh-helper test:///default; id");
        assert_eq!(said, "virt-ssh-helper qemu:///system");
    }

    #[test]
    fn exports_of_listed_vms_can_be_attached_to_one_vm_and_nothing_else_can() {
        let mut rights = rights(&["web01", "db.1"]);
        rights.own = Some("backup1".into());
        rights.check().unwrap();
        let socket = |vm: &str| format!("/var/lib/libvirt/qemu/domain-{vm}/sr-0123abcd.sock");
        let lend = |own: &str, vm: &str| lend_command(own, "vda", "vdsb", &socket(vm), "sr-0123abcd-vda");
        let back = |target: &str| take_back_command("backup1", target);
        for good in [
            lend("backup1", "3-web01"),
            lend("backup1", "12-db.1"),
            back("vdsp"),
        ] {
            assert_eq!(forced(&rights, &good), (good.clone(), Some(0)));
        }
        let good = lend("backup1", "3-web01");
        for bad in [
            lend("web01", "3-web01"),
            lend("backup1", "3-web02"),
            lend("backup1", "3-x-web01"),
            lend("backup1", "3-dbx1"),
            good.replace("--mode readonly ", ""),
            good.replace("readonly", "shareable"),
            good.replace(" vda ", " vda --config "),
            good.replace(" vda ", " /dev/sda "),
            good.replace("vdsb", "vda"),
            good.replace("--sourcetype network", "--sourcetype block"),
            good.replace("sr-0123abcd.sock", "monitor.sock"),
            good.replace("/sr-", "/../domain-4-db/sr-"),
            format!("{good} --config"),
            format!("{good}; id"),
            good.replace(" --live ", " --live\n"),
            back("vda"),
            back("vdsb --config"),
            take_back_command("web01", "vdsb"),
        ] {
            assert_eq!(forced(&rights, &bad), (String::new(), Some(126)), "{bad}");
        }
        // polkit's expression says the same; it is tried for real in vm_rights.
        assert!(
            rights
                .polkit()
                .contains(r"\/domain-[0-9]+-(web01|db\.1)\/sr-[0-9a-f]{8}\.sock")
        );
    }

    #[test]
    fn names_that_could_be_something_else_are_refused() {
        for bad in ["a b", "a\"b", "-a", "a*", "über", ""] {
            assert!(rights(&[bad]).check().is_err(), "{bad}");
        }
        let mut odd = rights(&["web"]);
        for key in [
            "",
            "hello",
            "ssh-ed25519 short",
            "ssh-ed25519 AAAA\nssh-ed25519 AAAA",
        ] {
            odd.key = key.into();
            assert!(odd.check().is_err(), "{key}");
        }
        assert!(rights(&[]).check().is_err());
    }
}
