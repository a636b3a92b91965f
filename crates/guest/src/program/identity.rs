//! What makes the copy a machine of its own: name, keys, tables.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::tool::run;
use super::{Failed, luks};
use crate::protocol::{ALLOWED_SIGNERS, BackupKeys, Order, SIGNING_KEY};

/// Public facts about an SSH key.
pub struct PublicKey {
    /// `ssh-ed25519 AAAA…`.
    pub public: String,
    /// `SHA256:…`.
    pub fingerprint: String,
}

/// Writes it all into the new system.
pub fn write(root: &Path, order: &Order) -> Result<PublicKey, Failed> {
    let name = &order.hostname;
    let put = |path: &str, text: &str| put(root, path, text, 0o644);
    put("etc/hostname", &format!("{name}\n"))?;
    put(
        "etc/hosts",
        &format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n"),
    )?;
    put("etc/crypttab", &crypttab(order))?;
    put("etc/fstab", &fstab(order))?;
    put("etc/machine-id", &format!("{}\n", machine_id()?))?;
    if !order.authorized_keys.is_empty() {
        private(root, "root/.ssh")?;
        let keys = order.authorized_keys.join("\n") + "\n";
        self::put(root, "root/.ssh/authorized_keys", &keys, 0o600)?;
    }
    key_pair(root, "etc/ssh/ssh_host_ed25519_key", &format!("root@{name}"))
}

/// What a machine has that makes backups: its configuration, and keys of its own making, which no other machine ever has. The
/// repositories' passphrase goes out once, encrypted: without it, nothing could be restored when the machine is lost.
pub fn backups(root: &Path, order: &Order) -> Result<Option<BackupKeys>, Failed> {
    let Some(backups) = &order.backups else {
        return Ok(None);
    };
    let recipient = order
        .recovery
        .as_ref()
        .ok_or("make the repositories' passphrase: no recipient is named to encrypt it to")?;
    private(root, "etc/strongroom")?;
    private(root, "root/.ssh")?;
    put(
        root,
        "etc/strongroom/strongroom.toml",
        &backups.configuration,
        0o600,
    )?;
    put(root, "root/.ssh/known_hosts", &backups.known_hosts, 0o600)?;
    let passphrase = luks::recovery_secret()?;
    let text = std::str::from_utf8(&passphrase).map_err(|error| format!("make a passphrase: {error}"))?;
    put(root, "etc/strongroom/passphrase", text, 0o600)?;
    let name = format!("strongroom@{}", order.hostname);
    let key = key_pair(root, "root/.ssh/id_ed25519", &name)?;
    let signing = key_pair(root, SIGNING_KEY, &name)?;
    let trusted = format!("{name} namespaces=\"strongroom-*\" {}\n", signing.public);
    put(root, ALLOWED_SIGNERS, &trusted, 0o600)?;
    Ok(Some(BackupKeys {
        ssh_key: key.public,
        signing_key: signing.public,
        passphrase: luks::encrypt_to(recipient, &passphrase)?,
    }))
}

/// Makes a directory that is root's alone.
fn private(root: &Path, path: &str) -> Result<(), Failed> {
    let directory = root.join(path);
    fs::create_dir_all(&directory)
        .and_then(|()| fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)))
        .map_err(|error| format!("make {}: {error}", directory.display()))
}

/// One line for what the initramfs opens. That discards pass, or not, is noted in the volume's header, so that the
/// initramfs is the same for all machines of a template.
fn crypttab(order: &Order) -> String {
    let mut text = "croot PARTLABEL=croot none luks,initramfs\n".to_owned();
    if order.swap {
        // A new key with each boot; nothing of it is left afterwards.
        text +=
            "cswap PARTLABEL=cswap /dev/urandom swap,plain,cipher=aes-xts-plain64,size=512,sector-size=4096";
        text += if order.discard { ",discard\n" } else { "\n" };
    }
    text
}

fn fstab(order: &Order) -> String {
    // noinit_itable: tables that are not needed yet would be written, and fill the sparse image.
    let mut text = "/dev/mapper/croot / ext4 errors=remount-ro,noinit_itable 0 1\n\
                    PARTLABEL=boot /boot ext4 defaults,noinit_itable 0 2\n\
                    PARTLABEL=esp /boot/efi vfat umask=0077 0 1\n"
        .to_owned();
    if order.swap {
        text += "/dev/mapper/cswap none swap sw";
        text += if order.discard { ",discard=once" } else { "" };
        text += " 0 0\n";
    }
    text
}

fn machine_id() -> Result<String, Failed> {
    use std::fmt::Write as _;
    Ok(luks::random()?[..16]
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
}

fn key_pair(root: &Path, path: &str, comment: &str) -> Result<PublicKey, Failed> {
    let file = root.join(path);
    let file = file.to_str().ok_or("make an SSH key: no such path")?;
    run(
        "ssh-keygen",
        &["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", file],
    )?;
    let public =
        fs::read_to_string(format!("{file}.pub")).map_err(|error| format!("read {file}.pub: {error}"))?;
    let listed = run("ssh-keygen", &["-l", "-f", file])?;
    let words = |text: &str, which: &[usize]| {
        let all: Vec<&str> = text.split_whitespace().collect();
        which
            .iter()
            .filter_map(|at| all.get(*at).copied())
            .collect::<Vec<_>>()
            .join(" ")
    };
    Ok(PublicKey {
        public: words(&public, &[0, 1]),
        fingerprint: words(&listed, &[1]),
    })
}

fn put(root: &Path, path: &str, text: &str, mode: u32) -> Result<(), Failed> {
    let file = root.join(path);
    // The template may have a link in its place that leads anywhere.
    let _ = fs::remove_file(&file);
    fs::write(&file, text)
        .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(mode)))
        .map_err(|error| format!("write {}: {error}", file.display()))
}
