//! Where a repository is.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A repository's place: a local directory or one reached over ssh.
///
/// Understood are `/path`, `relative/path`, `file:///path`, `ssh://[user@]host[:port]/path` (with `/./path`
/// relative to the login directory and `/~/path` relative to the home directory) and `[user@]host:path`.
/// An IPv6 address is in square brackets. What Borg takes for placeholders (`{hostname}` …) is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub(crate) ssh: Option<SshHost>,
    pub(crate) path: String,
}

/// The remote part of a location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SshHost {
    pub user: Option<String>,
    /// With square brackets, if it is an IPv6 address.
    pub host: String,
    pub port: Option<u16>,
}

impl Location {
    fn new(ssh: Option<SshHost>, path: &str) -> std::result::Result<Self, &'static str> {
        if path.contains("::") {
            return Err(NO_ARCHIVE);
        }
        Ok(Self {
            ssh,
            path: normalize(path),
        })
    }

    /// True for a directory of this machine.
    pub fn is_local(&self) -> bool {
        self.ssh.is_none()
    }

    /// True for a directory of this machine that depends on where the program is started, `~/x` among them: neither Borg nor
    /// this client knows a home directory of this machine's.
    pub fn is_relative(&self) -> bool {
        self.is_local() && !self.path.starts_with('/')
    }

    /// The path for `borg serve`.
    pub(crate) fn served_path(&self) -> String {
        if !self.is_local() {
            return self.path.clone();
        }
        let path = self.canonical();
        // The server would look for a home directory; from a client on the same machine Borg takes it as it is.
        if path.starts_with("/~") {
            format!("/{path}")
        } else {
            path
        }
    }

    /// The form under which Borg remembers the location in its security directory.
    pub fn canonical(&self) -> String {
        match &self.ssh {
            None => std::path::absolute(&self.path)
                .map_or_else(|_| self.path.clone(), |path| normalize(&path.to_string_lossy())),
            Some(ssh) => {
                let path = match self.path.as_bytes().first() {
                    Some(b'/') => self.path.clone(),
                    Some(b'~') => format!("/{}", self.path),
                    _ => format!("/./{}", self.path),
                };
                format!("ssh://{}{path}", ssh.authority())
            }
        }
    }
}

impl SshHost {
    /// Refuses what ssh could take for an option, and empty parts.
    fn checked(user: Option<&str>, host: &str, port: Option<u16>) -> Option<Self> {
        let usable = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        let brackets = host.starts_with('[') || !host.ends_with(']');
        (usable(host) && brackets && user.is_none_or(usable)).then(|| Self {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
        })
    }

    fn authority(&self) -> String {
        let user = self
            .user
            .as_ref()
            .map(|user| format!("{user}@"))
            .unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{user}{}{port}", self.host)
    }

    /// The argument for ssh: without brackets.
    pub fn destination(&self) -> String {
        let host = self.host.trim_matches(['[', ']']);
        self.user
            .as_ref()
            .map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.ssh, self.path.as_str()) {
            // What `ssh://` cannot say: the root, the directory of the login itself, and what is above it.
            (Some(ssh), "/") => write!(f, "ssh://{}/.", ssh.authority()),
            (Some(ssh), path) if path == "." || path == ".." || path.starts_with("../") => {
                write!(f, "{}:{path}", ssh.authority())
            }
            _ => f.write_str(&self.canonical()),
        }
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let error = |reason| Error::Location {
            text: text.to_owned(),
            reason,
        };
        if text.is_empty() {
            return Err(error("it is empty"));
        }
        if text.contains('\0') || text.contains('\n') {
            return Err(error("it contains control characters"));
        }
        // Escaped or not: Borg's own server expands them once more.
        if text.contains(['{', '}']) {
            return Err(error("Borg takes braces for placeholders, `{now}` for example"));
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            let (user, rest) = split_user(rest);
            let (host, rest) = split_host(rest).ok_or_else(|| error(NO_HOST))?;
            let (port, path) = rest
                .find('/')
                .map(|at| rest.split_at(at))
                .filter(|(_, path)| path.len() > 1)
                .ok_or_else(|| error("no path"))?;
            let port = match port.strip_prefix(':') {
                None if port.is_empty() => None,
                None => return Err(error(NO_HOST)),
                Some(port) => Some(decimal(port).ok_or_else(|| error("the port is no number"))?),
            };
            // Borg takes port 0 for none.
            let ssh = SshHost::checked(user, host, port.filter(|port| *port > 0));
            return Self::new(Some(ssh.ok_or_else(|| error(NO_HOST))?), path).map_err(error);
        }
        if let Some(path) = text.strip_prefix("file://") {
            return match path.find('/') {
                Some(slash) if slash + 1 < path.len() => Self::new(None, path).map_err(error),
                _ => Err(error("no path")),
            };
        }
        if let Some((scheme, _)) = text.split_once("://")
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c))
        {
            return Err(error("only ssh:// and file:// are known"));
        }
        if text.starts_with(':') || text.starts_with("//") {
            return Err(error("it starts with a colon or two slashes"));
        }
        // `host:path`, unless a slash comes first
        let (user, rest) = split_user(text);
        if user.is_some_and(str::is_empty) || rest.starts_with(':') {
            return Err(error(NO_HOST));
        }
        let remote = split_host(rest).and_then(|(host, rest)| Some((host, rest.strip_prefix(':')?)));
        if let Some((host, path)) = remote {
            if path.is_empty() {
                return Err(error("no path"));
            }
            if path.starts_with(':') {
                return Err(error(NO_ARCHIVE));
            }
            if path.starts_with("//") || path.starts_with("ssh://") {
                return Err(error("only ssh:// and file:// are known"));
            }
            let ssh = SshHost::checked(user, host, None).ok_or_else(|| error(NO_HOST))?;
            return Self::new(Some(ssh), path).map_err(error);
        }
        Self::new(None, text).map_err(error)
    }
}

const NO_ARCHIVE: &str = "an archive (`::name`) does not belong here";
const NO_HOST: &str = "the host or user is invalid";

/// The user before the first `@`, if that is before the host.
fn split_user(text: &str) -> (Option<&str>, &str) {
    match text.split_once('@') {
        Some((user, rest)) if !user.contains([':', '/']) => (Some(user), rest),
        _ => (None, text),
    }
}

/// The host at the start, and what follows: a name or an IPv4 address, or an IPv6 address in square brackets, which stay.
fn split_host(text: &str) -> Option<(&str, &str)> {
    let end = if text.starts_with('[') {
        let end = text.find(']')? + 1;
        let address = text.get(1..end - 1)?;
        let is_address = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
        (!address.is_empty() && address.chars().all(is_address)).then_some(end)?
    } else {
        text.find([':', '/']).unwrap_or(text.len())
    };
    Some(text.split_at(end)).filter(|(host, _)| !host.is_empty())
}

fn decimal(text: &str) -> Option<u16> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// Removes `.`, `..` and double slashes as Borg does (Python's `normpath`), keeping the meaning of a leading `/./`.
fn normalize(path: &str) -> String {
    let login_relative = path.starts_with("/./");
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    // POSIX leaves the meaning of two slashes at the start open.
    let two = path.starts_with("//") && !path.starts_with("///");
    match (login_relative, absolute, joined.is_empty()) {
        (true, ..) => format!("/./{joined}"),
        (_, true, _) if two => format!("//{joined}"),
        (_, true, _) => format!("/{joined}"),
        (_, _, true) => ".".to_owned(),
        _ => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Location {
        text.parse().expect(text)
    }

    #[test]
    fn forms() {
        assert_eq!(parse("/srv/a/../b//c/").canonical(), "/srv/b/c");
        assert_eq!(parse("file:///srv/repo").canonical(), "/srv/repo");
        assert_eq!(
            parse("ssh://me@host:2222/srv/repo").canonical(),
            "ssh://me@host:2222/srv/repo"
        );
        assert_eq!(parse("ssh://host/./rel/x").canonical(), "ssh://host/./rel/x");
        assert_eq!(parse("ssh://host/~/x").path, "/~/x");
        assert_eq!(parse("host:rel/x").canonical(), "ssh://host/./rel/x");
        assert_eq!(parse("me@host:~/x").canonical(), "ssh://me@host/~/x");
        assert_eq!(parse("host:/abs").canonical(), "ssh://host/abs");
        for odd in ["host:/", "host:.", "me@host:../x", "host:..", "ssh://host:22/."] {
            let location = parse(odd);
            assert_eq!(
                parse(&location.to_string()).canonical(),
                location.canonical(),
                "{odd}"
            );
        }
        assert_eq!(
            parse("./a:b").canonical(),
            std::path::absolute("a:b").unwrap().display().to_string()
        );
        assert!(parse("~/x").is_relative() && parse("x").is_relative() && !parse("/x").is_relative());
        assert!(!parse("host:x").is_relative());
    }

    /// A11.
    #[test]
    fn addresses_of_ipv6_are_in_brackets() {
        let v6 = parse("ssh://backup@[2001:db8::17]:2222/srv/repo/");
        assert_eq!(v6.canonical(), "ssh://backup@[2001:db8::17]:2222/srv/repo");
        let ssh = v6.ssh.as_ref().unwrap();
        assert_eq!(
            (ssh.destination().as_str(), ssh.port),
            ("backup@2001:db8::17", Some(2222))
        );
        assert_eq!(parse("ssh://[::1]/x").canonical(), "ssh://[::1]/x");
        assert_eq!(parse("me@[::1]:x").canonical(), "ssh://me@[::1]/./x");
        for bad in [
            "ssh://[::1]x/y",
            "ssh://[::1/y",
            "ssh://[::1]/y::archive",
            "ssh://[fe80::1%eth0]/x",
            "ssh://::1/x",
        ] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
    }

    /// `borg serve` looks for a home directory where Borg itself, on the same machine, does not.
    #[test]
    fn a_local_path_means_the_same_to_the_server() {
        assert_eq!(parse("/~/x").served_path(), "//~/x");
        assert_eq!(parse("/./x").served_path(), "/x");
        assert_eq!(parse("host:~/x").served_path(), "~/x");
        assert_eq!(parse("ssh://host/~/x").served_path(), "/~/x");
    }

    /// R12.
    #[test]
    fn placeholders_of_borg_are_refused() {
        for text in [
            "/srv/web-{now}",
            "/srv/{{now}}",
            "ssh://{hostname}/x",
            "h:{vm}",
            "/srv/a}",
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains("placeholders"), "{error}");
        }
    }

    #[test]
    fn unusable_ones() {
        for text in [
            "",
            "ssh://host",
            "ssh://host/",
            "ssh://-oProxyCommand=x/p",
            "-x:p",
            "ssh://h:port/p",
            "ssh://h:/p",
            "ssh://h:+22/p",
            "ssh://u:password@h/p",
            "//srv/r",
            "file://",
            "file:///",
            "/r::archive",
            "h:r::archive",
            "@host:r",
            "rest://x/y",
            "h:",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}
