//! How a socket on another machine is reached: over ssh, as libvirt reaches its own.
//!
//! ```text
//! ssh [-p PORT] [-l USER] [-i KEYFILE] … -- HOST  nc -U '/var/lib/libvirt/qemu/domain-7-web/sr-0123abcd.sock'
//! ```
//!
//! Its standard input and output are the connection. A forwarded socket (`ssh -L`) would do as well, but `authorized_keys`
//! cannot say *which* sockets may be forwarded; a command it can (`command="…"`), so that an account that may reach the
//! disks' exports cannot reach QEMU's monitor beside them. `nc` is what libvirt itself calls where its own helper is missing.
//!
//! The command line is the one that libvirt makes of the URI (`virNetClientSSHHelperCommand`), so that
//! `~/.ssh/config`, agents and jump hosts count for both, and never asks for anything.

use std::ffi::OsString;
use std::path::Path;

use strongroom_base::exec::{shell_word, ssh_program};

use crate::uri::{Uri, encoded};

/// The command whose input and output are a socket on the machine that the URI names.
pub fn to_socket(uri: &Uri, socket: &Path) -> Result<Vec<OsString>, String> {
    let socket = socket
        .to_str()
        .ok_or_else(|| format!("the socket {} is not in UTF-8", socket.display()))?;
    let netcat = uri.parameter("netcat").unwrap_or("nc");
    on(uri, &format!("{netcat} -U {}", shell_word(socket)))
}

/// The command that runs another one on the machine that the URI names.
pub fn on(uri: &Uri, remote: &str) -> Result<Vec<OsString>, String> {
    on_as(uri, uri.user.as_deref(), &["--", &uri.host, remote])
}

/// The same, as another account there.
pub fn as_account(uri: &Uri, account: &str, remote: &str) -> Result<Vec<OsString>, String> {
    on_as(uri, Some(account), &["--", &uri.host, remote])
}

/// The command that says how ssh would reach the machine: as which `user`, among others.
pub fn asking(uri: &Uri) -> Result<Vec<OsString>, String> {
    on_as(uri, uri.user.as_deref(), &["-G", "--", &uri.host])
}

/// The account that the output of [`asking`] names.
pub fn account(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.strip_prefix("user "))
}

fn on_as(uri: &Uri, account: Option<&str>, last: &[&str]) -> Result<Vec<OsString>, String> {
    // libssh and libssh2 are other implementations of the same, with the same keys and servers.
    if !matches!(uri.transport.as_str(), "ssh" | "libssh" | "libssh2") {
        return Err(format!(
            "sockets on {} can be reached with qemu+ssh only; [nbd_tls] in the configuration does without",
            uri.host
        ));
    }
    let mut command = vec![uri.parameter("command").map_or_else(ssh_program, OsString::from)];
    let mut option = |words: &[&str]| command.extend(words.iter().map(OsString::from));
    if let Some(port) = uri.port {
        option(&["-p", &port.to_string()]);
    }
    if let Some(account) = account {
        option(&["-l", account]);
    }
    if let Some(key) = uri.parameter("keyfile") {
        option(&["-i", key]);
    }
    if let Some(known) = uri.parameter("known_hosts") {
        option(&["-o", &format!("UserKnownHostsFile={known}")]);
    }
    option(&["-T", "-e", "none", "-o", "BatchMode=yes"]);
    if uri.flag("no_verify") || uri.parameter("known_hosts_verify") == Some("ignore") {
        option(&["-o", "StrictHostKeyChecking=no"]);
    }
    option(last);
    Ok(command)
}

/// The URI that libvirt is given: with the program that `STRONGROOM_SSH` names, where the URI itself names none.
pub fn with_program(uri: &str) -> String {
    let ours = std::env::var("STRONGROOM_SSH").unwrap_or_default();
    let wants =
        Uri::parse(uri).is_some_and(|uri| uri.transport == "ssh" && uri.parameter("command").is_none());
    if ours.is_empty() || !wants {
        return uri.to_owned();
    }
    let joint = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{joint}command={}", encoded(&ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(uri: &str) -> Result<String, String> {
        let words = to_socket(&Uri::parse(uri).unwrap(), Path::new("/run/it's.sock"))?;
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn the_command_is_made_of_the_uri() {
        assert_eq!(
            line("qemu+ssh://host/system?command=/opt/ssh").unwrap(),
            r"/opt/ssh -T -e none -o BatchMode=yes -- host nc -U '/run/it'\''s.sock'"
        );
        assert_eq!(
            line("qemu+ssh://me@host:22/system?command=s&keyfile=/k&no_verify=1&netcat=ncat").unwrap(),
            r"s -p 22 -l me -i /k -T -e none -o BatchMode=yes -o StrictHostKeyChecking=no -- host ncat -U '/run/it'\''s.sock'"
        );
        assert!(
            line("qemu+libssh://host/system?command=s&known_hosts=/known")
                .unwrap()
                .contains("-o UserKnownHostsFile=/known")
        );
    }

    #[test]
    fn another_account_is_reached_in_the_same_way() {
        let uri = Uri::parse("qemu+ssh://me@host/system?command=s&keyfile=/k").unwrap();
        let words = as_account(&uri, "me-jobs", "end web").unwrap();
        assert_eq!(
            words.join(std::ffi::OsStr::new(" ")),
            "s -l me-jobs -i /k -T -e none -o BatchMode=yes -- host end web"
        );
        assert_eq!(account("host hv1\nuser backup\nport 22\n"), Some("backup"));
        assert_eq!(account("hostname user\n"), None);
    }

    #[test]
    fn other_transports_reach_no_socket() {
        for uri in [
            "qemu+tls://host/system",
            "qemu://host/system",
            "qemu+ext:///system?command=x",
        ] {
            assert!(line(uri).unwrap_err().contains("qemu+ssh only"), "{uri}");
        }
    }
}
