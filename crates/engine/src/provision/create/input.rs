//! What people ask for: names, sizes, keys; and what is wrong with it.

use strongroom_guest::protocol::{Kdf, Unlock};
use strongroom_hypervisor::{Accelerator, Firmware};

use super::Request;

/// The smallest swap disk, in bytes.
const MIN_SWAP: u64 = 16 << 20;
/// The longest public key that is taken, in bytes: of a 16384-bit RSA key and a long comment.
const MAX_KEY: usize = 4096;
/// The most public keys.
const MAX_KEYS: usize = 64;

/// What is wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InputError {
    /// The domain's name.
    #[error(
        "use the name {0:?}: letters, digits, dots, dashes and underscores, 1 to 64, a letter or digit in front"
    )]
    Name(String),
    /// The machine's own name.
    #[error(
        "use the host name {0:?}: letters, digits and dashes, 1 to 63, none in front or at the end (see --hostname)"
    )]
    Hostname(String),
    /// Too small for the template.
    #[error("make a disk of {} MiB: the template needs at least {} MiB", size >> 20, needed.div_ceil(1 << 20))]
    Size {
        /// What was asked for, in bytes.
        size: u64,
        /// What is needed, in bytes.
        needed: u64,
    },
    /// Not whole MiB.
    #[error("make a disk of {0} bytes: whole MiB are needed")]
    Odd(u64),
    /// Too small for swap.
    #[error("make a swap disk of {0} bytes: at least 16 MiB are needed")]
    Swap(u64),
    /// Parameters of Argon2id that cryptsetup, or the machine itself, could not use.
    #[error("derive keys with Argon2id: {0}")]
    Kdf(&'static str),
    /// Nothing could open the disk when Tang is lost.
    #[error(
        "make a disk that only Tang opens: --recovery-to names the age or SSH key that gets the recovery secret"
    )]
    NoRecovery,
    /// More servers needed than there are.
    #[error("need {threshold} of {servers} Tang servers")]
    Threshold {
        /// How many are needed.
        threshold: u8,
        /// How many there are.
        servers: usize,
    },
    /// Encrypted memory with what rules it out.
    #[error("encrypt the machine's memory: {0}")]
    Memory(&'static str),
    /// Not a public key that a secret can be encrypted to.
    #[error(
        "encrypt the recovery secret to {0:?}: an age recipient (age1…) or an SSH public key (ssh-ed25519, ssh-rsa) is needed"
    )]
    Recipient(String),
    /// A private key in the place of a public one.
    #[error("use a private key as a public one: name the file that ends with .pub")]
    Private,
    /// Not a public key of SSH.
    #[error("let {0:?} log in: it is no SSH public key")]
    AuthorizedKey(String),
}

/// Checks all that can be checked without looking at anything else.
pub fn check(request: &Request) -> Result<(), InputError> {
    name(&request.name)?;
    hostname(&request.hostname)?;
    for size in [Some(request.size), request.swap].into_iter().flatten() {
        if !size.is_multiple_of(1 << 20) {
            return Err(InputError::Odd(size));
        }
    }
    if let Some(size) = request.swap.filter(|size| *size < MIN_SWAP) {
        return Err(InputError::Swap(size));
    }
    kdf(request.kdf, request.memory)?;
    if request.launch_security.is_some() {
        encrypted_memory(request.accelerator, request.firmware)?;
    }
    if let Unlock::Tang { threshold, servers } = &request.unlock {
        if request.recovery.is_none() {
            return Err(InputError::NoRecovery);
        }
        if *threshold == 0 || usize::from(*threshold) > servers.len() {
            return Err(InputError::Threshold {
                threshold: *threshold,
                servers: servers.len(),
            });
        }
    }
    Ok(())
}

fn name(name: &str) -> Result<(), InputError> {
    let good =
        crate::provision::template::is_name(name) && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    good.then_some(())
        .ok_or_else(|| InputError::Name(name.to_owned()))
}

fn hostname(name: &str) -> Result<(), InputError> {
    let good = (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    good.then_some(())
        .ok_or_else(|| InputError::Hostname(name.to_owned()))
}

/// Within what cryptsetup takes (`cryptsetup(8)`), and what the machine will have when it opens its disk.
fn kdf(kdf: Kdf, memory: u64) -> Result<(), InputError> {
    if !(32..=4 << 20).contains(&kdf.memory_kib) {
        return Err(InputError::Kdf("the memory is 32 KiB to 4 GiB"));
    }
    if u64::from(kdf.memory_kib) << 10 > memory / 2 {
        return Err(InputError::Kdf(
            "the machine could not open its disk: it needs twice that memory",
        ));
    }
    if kdf.iterations < 4 {
        return Err(InputError::Kdf("there are at least 4 iterations"));
    }
    if !(1..=4).contains(&kdf.parallel) {
        return Err(InputError::Kdf("there are 1 to 4 lanes"));
    }
    Ok(())
}

/// What can be told before the host is asked (libvirt's page on launch security).
fn encrypted_memory(accelerator: Option<Accelerator>, firmware: Firmware) -> Result<(), InputError> {
    match (accelerator, firmware) {
        (Some(Accelerator::Tcg), _) => Err(InputError::Memory("only KVM can (--virt-type)")),
        (_, Firmware::Bios) => Err(InputError::Memory("a BIOS cannot start it (--firmware)")),
        (_, Firmware::SecureBoot) => Err(InputError::Memory(
            "Secure Boot needs system management mode, which that rules out (--firmware)",
        )),
        (_, Firmware::Uefi) => Ok(()),
    }
}

/// The machine's own name, made from the domain's.
pub fn hostname_of(name: &str) -> String {
    let dashed: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    dashed.trim_matches('-').to_owned()
}

/// To whom a secret is encrypted, from a recipient or the content of a public key's file.
pub fn recipient(text: &str) -> Result<String, InputError> {
    if text.contains("PRIVATE KEY") || text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
        // Not a word of it in a message.
        return Err(InputError::Private);
    }
    let mut lines = lines(text);
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Err(InputError::Recipient(shortened(text)));
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    let good = line.len() <= MAX_KEY
        && match words.as_slice() {
            [age] => {
                age.len() == 62
                    && age.starts_with("age1")
                    && age
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            }
            ["ssh-ed25519" | "ssh-rsa", key, ..] => is_base64(key),
            _ => false,
        };
    if good {
        // Without the comment: nothing needs it.
        Ok(words[..words.len().min(2)].join(" "))
    } else {
        Err(InputError::Recipient(shortened(text)))
    }
}

/// Public keys of a file like `id_ed25519.pub` or `authorized_keys`, without options.
pub fn authorized_keys(text: &str) -> Result<Vec<String>, InputError> {
    if text.contains("PRIVATE KEY") {
        return Err(InputError::Private);
    }
    let keys: Vec<String> = lines(text).map(str::to_owned).collect();
    let good = |line: &String| {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        line.len() <= MAX_KEY
            && !line.contains(char::is_control)
            && ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"]
                .iter()
                .any(|start| kind.starts_with(start))
            && words.next().is_some_and(is_base64)
    };
    match keys.iter().find(|line| !good(line)) {
        Some(odd) => Err(InputError::AuthorizedKey(shortened(odd))),
        None if keys.is_empty() || keys.len() > MAX_KEYS => Err(InputError::AuthorizedKey(shortened(text))),
        None => Ok(keys),
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn is_base64(text: &str) -> bool {
    text.len() >= 40
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SSH: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtF7sHo0LwZ3xVZcZQ2l1mC5PzpmHcWkQe0Xk8mXs1f";

    #[test]
    fn names_are_plain() {
        for good in ["web01", "web_01.example", "9"] {
            name(good).unwrap();
        }
        for bad in [
            "",
            "-web",
            ".web",
            "_web",
            "a/b",
            "a b",
            "ä",
            "web\n",
            &"x".repeat(65),
        ] {
            name(bad).unwrap_err();
        }
        assert_eq!(hostname_of("web_01.example"), "web-01-example");
        assert_eq!(hostname_of("web."), "web");
        hostname("web-01").unwrap();
        for bad in ["", "-web", "web-", "web.example", &"x".repeat(64)] {
            hostname(bad).unwrap_err();
        }
    }

    #[test]
    fn keys_can_be_derived_by_the_machine_itself() {
        let good = Kdf {
            memory_kib: 256 << 10,
            iterations: 4,
            parallel: 4,
        };
        kdf(good, 1 << 30).unwrap();
        kdf(good, 256 << 20).unwrap_err();
        for bad in [
            Kdf {
                memory_kib: 31,
                ..good
            },
            Kdf {
                iterations: 3,
                ..good
            },
            Kdf { parallel: 5, ..good },
            Kdf { parallel: 0, ..good },
        ] {
            kdf(bad, 1 << 30).unwrap_err();
        }
    }

    #[test]
    fn encrypted_memory_has_its_conditions() {
        let kvm = Some(Accelerator::Kvm);
        encrypted_memory(kvm, Firmware::Uefi).unwrap();
        encrypted_memory(None, Firmware::Uefi).unwrap();
        encrypted_memory(Some(Accelerator::Tcg), Firmware::Uefi).unwrap_err();
        encrypted_memory(kvm, Firmware::Bios).unwrap_err();
        encrypted_memory(kvm, Firmware::SecureBoot).unwrap_err();
    }

    #[test]
    fn a_secret_goes_to_public_keys_only() {
        let age = format!("age1{}", "q".repeat(58));
        assert_eq!(recipient(&format!("{age}\n")).unwrap(), age);
        assert_eq!(recipient(&format!("{SSH} me@host\n")).unwrap(), SSH);
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n";
        assert_eq!(recipient(private), Err(InputError::Private));
        assert_eq!(recipient("AGE-SECRET-KEY-1QQQ"), Err(InputError::Private));
        for bad in [
            "",
            "age1short",
            "ssh-ed25519",
            "ssh-ed25519 --output=x",
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABB",
            &format!("{SSH}\n{SSH}"),
        ] {
            assert!(matches!(recipient(bad), Err(InputError::Recipient(_))), "{bad}");
        }
    }

    #[test]
    fn who_may_log_in_is_a_public_key() {
        assert_eq!(
            authorized_keys(&format!("# me\n\n{SSH} me@host\n"))
                .unwrap()
                .len(),
            1
        );
        assert_eq!(
            authorized_keys("-----BEGIN OPENSSH PRIVATE KEY-----"),
            Err(InputError::Private)
        );
        for bad in [
            "",
            "hello",
            &format!("command=\"x\" {SSH}"),
            &format!("{SSH} a\u{1b}b"),
        ] {
            authorized_keys(bad).unwrap_err();
        }
    }
}
