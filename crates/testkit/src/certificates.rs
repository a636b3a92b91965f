//! Certificates for TLS.

use std::path::Path;
use std::process::Command;

use crate::run::run;

/// Makes a certificate authority, and certificates of it for a server `localhost` (127.0.0.1) and a client: `ca-cert.pem`,
/// `server-cert.pem`, `server-key.pem`, `client-cert.pem`, `client-key.pem`. All of them are valid for two days.
pub fn certificates(directory: &Path) {
    let at = |name: &str| directory.join(name);
    let make = |common_name: &str, key: &str, certificate: &str, more: &[&str]| {
        run(Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-batch", "-days", "2",
            ])
            .args(["-subj", &format!("/CN={common_name}")])
            .args(more)
            .arg("-keyout")
            .arg(at(key))
            .arg("-out")
            .arg(at(certificate)));
    };
    make("test authority", "ca-key.pem", "ca-cert.pem", &[]);
    let (authority, key) = (at("ca-cert.pem"), at("ca-key.pem"));
    let signed = [
        "-CA",
        authority.to_str().expect("a path in UTF-8"),
        "-CAkey",
        key.to_str().expect("a path in UTF-8"),
        "-addext",
        "basicConstraints=CA:FALSE",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ];
    make("localhost", "server-key.pem", "server-cert.pem", &signed);
    make("client", "client-key.pem", "client-cert.pem", &signed);
}
