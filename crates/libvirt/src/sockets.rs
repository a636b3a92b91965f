//! Where QEMU may make sockets: libvirt's own directory for a running domain.
//!
//! It is `<state>/domain-<id>-<name>`, the name cut to 20 characters (`virDomainDefGetShortName`). It belongs to
//! QEMU's user, and libvirt's `AppArmor` and `SELinux` profiles let QEMU write there without an edit.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::uri::Uri;

/// Longest path of a unix socket in bytes (`sun_path`, less its final NUL).
pub const MAX_SOCKET: usize = 107;

/// Room that is left for `/` and a socket's file name.
const FILE_NAME: usize = 21;

/// libvirt cuts the domain's name to so many characters.
const SHORT_NAME: usize = 20;

/// Finds the directory of a running domain. `uri` is the connection's own, as libvirt reports it.
pub fn directory(uri: &str, local: bool, id: u32, name: &str) -> Result<PathBuf, String> {
    let base = base(uri)?;
    let directory = if let Some(Ok(found)) = local.then(|| listed(&base, id)) {
        found.ok_or_else(|| format!("{} has no directory for it", base.display()))?
    } else {
        // Not this machine's, or not readable for us: libvirt's rule stands.
        let short: String = name.chars().take(SHORT_NAME).collect();
        base.join(format!("domain-{id}-{short}"))
    };
    let length = directory.as_os_str().len();
    if length + FILE_NAME > MAX_SOCKET {
        return Err(format!(
            "{} has {length} bytes: too long for a socket in it, which may have {MAX_SOCKET}; a shorter name of the \
             domain helps",
            directory.display()
        ));
    }
    Ok(directory)
}

/// Only the system's QEMU driver has a place that can be told from here: in session mode it depends on the
/// daemon's own environment, and on whether it runs as root.
fn base(uri: &str) -> Result<PathBuf, String> {
    if Uri::parse(uri).is_some_and(|uri| uri.driver == "qemu" && uri.path == "/system") {
        return Ok(PathBuf::from("/var/lib/libvirt/qemu"));
    }
    Err(format!(
        "where {uri} keeps its domains' sockets is not known; with qemu:///system it is"
    ))
}

/// The directory of a domain by its id, which is unique among the running ones.
fn listed(base: &Path, id: u32) -> std::io::Result<Option<PathBuf>> {
    let prefix = format!("domain-{id}-");
    let entries = match std::fs::read_dir(base) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes())
        {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::directory;
    use std::path::Path;

    const REMOTE: &str = "qemu+ssh://root@host/system?keyfile=/session";

    #[test]
    fn a_remote_directory_follows_the_rule() {
        let of = |name: &str| directory(REMOTE, false, 7, name);
        assert_eq!(
            of("web").unwrap(),
            Path::new("/var/lib/libvirt/qemu/domain-7-web")
        );
        let long = "über & unter \"0123456789\"";
        assert_eq!(
            of(long).unwrap(),
            Path::new("/var/lib/libvirt/qemu/domain-7-über & unter \"012345")
        );
        // Twenty characters of four bytes each leave no room for a socket.
        assert!(of(&"🔒".repeat(20)).unwrap_err().contains("too long"));
    }

    #[test]
    fn a_domain_that_has_none_here_is_told() {
        let error = directory("qemu:///system", true, u32::MAX, "web").unwrap_err();
        assert!(error.contains("no directory"), "{error}");
    }

    #[test]
    fn other_drivers_are_unknown() {
        for uri in [
            "xen:///system",
            "qemu:///session",
            "test:///default",
            "qemu:///embed?root=/system",
            "odd",
        ] {
            for local in [false, true] {
                let error = directory(uri, local, 1, "web").unwrap_err();
                assert!(error.contains("not known"), "{error}");
            }
        }
    }
}
