//! A libvirt URI taken apart: `driver[+transport]://[user@][host][:port]/[path][?parameters]`
//! (<https://libvirt.org/uri.html>).

/// The parts, decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uri {
    /// `qemu`, `xen`, `test`.
    pub driver: String,
    /// `ssh`, `tls`, `unix`; empty if not named: local, or TLS if there is a host.
    pub transport: String,
    /// Who to be there.
    pub user: Option<String>,
    /// The other machine; empty for this one. An IPv6 address is without its brackets.
    pub host: String,
    /// Where it listens, if not at the transport's usual port.
    pub port: Option<u16>,
    /// `/system`, `/session`.
    pub path: String,
    parameters: Vec<(String, String)>,
}

impl Uri {
    /// Takes a URI apart; nothing if it is none.
    pub fn parse(uri: &str) -> Option<Self> {
        let (scheme, rest) = uri.split_once("://")?;
        let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, ""));
        let rest = rest.split('#').next().unwrap_or_default();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(decoded(user)), host),
            None => (None, authority),
        };
        let (host, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((address, rest)) => (address, rest.strip_prefix(':')),
            None => match host.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host, None),
            },
        };
        let parameter = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        };
        Some(Self {
            driver: driver.to_owned(),
            transport: transport.to_owned(),
            user,
            host: decoded(host),
            port: port
                .filter(|port| !port.is_empty())
                .map(str::parse)
                .transpose()
                .ok()?,
            path: path.to_owned(),
            parameters: query
                .split(['&', ';'])
                .filter(|pair| !pair.is_empty())
                .map(parameter)
                .collect(),
        })
    }

    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is set to something else than 0.
    pub fn flag(&self, name: &str) -> bool {
        self.parameter(name).is_some_and(|value| value.parse() != Ok(0))
    }

    /// Whether the daemon is this machine's.
    ///
    /// Any host name counts as another machine, even `localhost`: a tunnel may begin there. So does a command
    /// (`+ext`), which may lead anywhere.
    pub fn is_local(&self) -> bool {
        self.host.is_empty() && self.transport != "ext"
    }
}

/// Undoes percent-encoding; what is no valid encoding stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = |digit: u8| char::from(digit).to_digit(16);
        let pair = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = pair {
            bytes.push((high * 16 + low) as u8);
            rest = after.get(2..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As the value of a parameter.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let each = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_has_parts() {
        let uri =
            Uri::parse("qemu+ssh://back%2Dup@[fe80::1]:2222/system?keyfile=/k%20k&no_verify=1&no_tty=0")
                .unwrap();
        assert_eq!(
            (
                uri.driver.as_str(),
                uri.transport.as_str(),
                uri.user.as_deref(),
                uri.host.as_str(),
                uri.port
            ),
            ("qemu", "ssh", Some("back-up"), "fe80::1", Some(2222))
        );
        assert_eq!(
            (uri.path.as_str(), uri.parameter("keyfile")),
            ("/system", Some("/k k"))
        );
        assert!(uri.flag("no_verify") && !uri.flag("no_tty") && !uri.flag("sshauth"));
        assert_eq!(Uri::parse("qemu+ssh://h/system").unwrap().port, None);
        for none in ["", "host", "qemu+ssh://h:x/system", "qemu+ssh://h:99999/system"] {
            assert_eq!(Uri::parse(none), None, "{none}");
        }
    }

    #[test]
    fn encoding_is_undone() {
        for text in ["/usr/bin/ssh", "a b&c=d%e", "über"] {
            assert_eq!(decoded(&encoded(text)), text);
        }
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%2"), "%zz%2");
    }

    #[test]
    fn locality_is_read_from_the_uri() {
        let local = |uri: &str| Uri::parse(uri).is_some_and(|uri| uri.is_local());
        for uri in [
            "qemu:///system",
            "qemu:///session",
            "qemu+unix:///system?socket=/run/x",
            "test:///default",
        ] {
            assert!(local(uri), "{uri}");
        }
        for uri in [
            "qemu+ssh://root@host/system",
            "qemu+ssh://host:2222/system?keyfile=/k",
            "qemu+tls://[::1]/system",
            "qemu+tcp://localhost/system",
            "qemu://host/system",
            "qemu+ext:///system?command=/bin/proxy",
            "",
            "host",
        ] {
            assert!(!local(uri), "{uri}");
        }
    }
}
