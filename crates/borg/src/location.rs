//! Where a repository is.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A repository's place: a local directory or one reached over ssh.
///
/// Understood are `/path`, `relative/path`, `file:///path`, `ssh://[user@]host[:port]/path` (with `/./path`
/// relative to the login directory and `/~/path` relative to the home directory) and `[user@]host:path`.
/// Borg's placeholders (`{hostname}` …) are not expanded.
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
    /// True for a directory of this machine.
    pub fn is_local(&self) -> bool {
        self.ssh.is_none()
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
        match &self.ssh {
            None => write!(f, "{}", self.path),
            Some(_) => write!(f, "{}", self.canonical()),
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
        if text.contains("::") {
            return Err(error("an archive (`::name`) does not belong here"));
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            let (authority, path) = rest
                .find('/')
                .map(|at| rest.split_at(at))
                .ok_or_else(|| error("no path"))?;
            let (user, host) = split_user(authority);
            let (host, port) = if let Some(end) = host.find(']').filter(|_| host.starts_with('[')) {
                let (host, port) = host.split_at(end + 1);
                (host, port.strip_prefix(':'))
            } else {
                host.split_once(':')
                    .map_or((host, None), |(host, port)| (host, Some(port)))
            };
            let port = port
                .map(|port| port.parse().map_err(|_| error("the port is no number")))
                .transpose()?;
            let ssh = checked_host(user, host, port).ok_or_else(|| error("the host or user is invalid"))?;
            return Ok(Self {
                ssh: Some(ssh),
                path: normalize(path),
            });
        }
        if let Some(path) = text.strip_prefix("file://") {
            return Ok(Self {
                ssh: None,
                path: normalize(path),
            });
        }
        if let Some((scheme, _)) = text.split_once("://")
            && !scheme.contains('/')
        {
            return Err(error("only ssh:// and file:// are known"));
        }
        // `host:path`, unless a slash comes first
        let bracket_end = if text.contains('[') {
            text.find("]:").map(|at| at + 1)
        } else {
            None
        };
        let colon = bracket_end
            .or_else(|| text.find(':'))
            .filter(|at| !text.get(..*at).unwrap_or("/").contains('/'));
        if let Some((authority, path)) =
            colon.map(|at| (text.get(..at).unwrap_or(""), text.get(at + 1..).unwrap_or("")))
        {
            if path.is_empty() {
                return Err(error("no path"));
            }
            let (user, host) = split_user(authority);
            let ssh = checked_host(user, host, None).ok_or_else(|| error("the host or user is invalid"))?;
            return Ok(Self {
                ssh: Some(ssh),
                path: normalize(path),
            });
        }
        Ok(Self {
            ssh: None,
            path: normalize(text),
        })
    }
}

fn split_user(authority: &str) -> (Option<&str>, &str) {
    authority
        .split_once('@')
        .map_or((None, authority), |(user, host)| (Some(user), host))
}

/// Refuses what ssh could take for an option, and empty parts.
fn checked_host(user: Option<&str>, host: &str, port: Option<u16>) -> Option<SshHost> {
    let usable = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    (usable(host) && host != "[]" && user.is_none_or(usable)).then(|| SshHost {
        user: user.map(str::to_owned),
        host: host.to_owned(),
        port,
    })
}

/// Removes `.`, `..` and double slashes as Borg does, keeping the meaning of a leading `/./`.
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
    match (login_relative, absolute, joined.is_empty()) {
        (true, ..) => format!("/./{joined}"),
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
        assert_eq!(
            parse("./a:b").canonical(),
            std::path::absolute("a:b").unwrap().display().to_string()
        );
        let v6 = parse("ssh://u@[fe80::1]:22/x".replace("::", ":0:").as_str());
        assert_eq!(v6.ssh.as_ref().unwrap().destination(), "u@fe80:0:1");
        assert!(!v6.is_local());
    }

    #[test]
    fn unusable_ones() {
        for text in [
            "",
            "ssh://host",
            "ssh://-oProxyCommand=x/p",
            "-x:p",
            "ssh://h:port/p",
            "/r::archive",
            "s3:b:c://x",
            "rest://x/y",
            "h:",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}
