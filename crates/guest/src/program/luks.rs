//! The LUKS2 volume: made, opened, bound and tried by cryptsetup, Clevis and age.

use serde_json::json;
use zeroize::Zeroizing;

use super::Failed;
use super::tool::run_with;
use crate::protocol::{Order, RECOVERY_TOKEN, Tang};

/// The opened volume's name.
pub const NAME: &str = "croot";
/// The opened volume.
pub const DEVICE: &str = "/dev/mapper/croot";

/// A key that opens the volume.
pub type Secret = Zeroizing<Vec<u8>>;

/// The letters of modhex: on the same keys of all Latin keyboards, for a secret that you may have to type.
const MODHEX: [u8; 16] = *b"cbdefghijklnrtuv";

/// 256 bits from the kernel.
pub fn random() -> Result<Zeroizing<[u8; 32]>, Failed> {
    let mut bytes = Zeroizing::new([0; 32]);
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| format!("get random bytes: {error}"))?;
    if got == bytes.len() {
        Ok(bytes)
    } else {
        Err("get random bytes: there are not enough".into())
    }
}

/// A new recovery secret: 256 bits, in eight groups of eight letters.
pub fn recovery_secret() -> Result<Secret, Failed> {
    Ok(modhex(&*random()?))
}

fn modhex(bytes: &[u8]) -> Secret {
    let mut text = Zeroizing::new(Vec::with_capacity(bytes.len() * 2 + bytes.len() / 4));
    for (at, byte) in bytes.iter().enumerate() {
        if at > 0 && at % 4 == 0 {
            text.push(b'-');
        }
        text.push(MODHEX[usize::from(byte >> 4)]);
        text.push(MODHEX[usize::from(byte & 15)]);
    }
    text
}

fn kdf(order: &Order) -> [String; 8] {
    [
        "--pbkdf".into(),
        "argon2id".into(),
        "--pbkdf-memory".into(),
        order.kdf.memory_kib.to_string(),
        "--pbkdf-force-iterations".into(),
        order.kdf.iterations.to_string(),
        "--pbkdf-parallel".into(),
        order.kdf.parallel.to_string(),
    ]
}

/// Makes the volume. Its master key comes from this kernel's generator.
pub fn format(partition: &str, order: &Order, key: &Secret) -> Result<(), Failed> {
    let kdf = kdf(order);
    let mut arguments = vec![
        "luksFormat",
        "-q",
        "--type",
        "luks2",
        "--cipher",
        "aes-xts-plain64",
        "--key-size",
        "512",
        "--sector-size",
        "4096",
        "--key-file",
        "-",
    ];
    arguments.extend(kdf.iter().map(String::as_str));
    arguments.push(partition);
    run_with("cryptsetup", &arguments, key).map(drop)
}

/// Opens the volume; whether discards pass is noted in its header, for every time it is opened from now on.
pub fn open(partition: &str, discard: bool, key: &Secret) -> Result<(), Failed> {
    let mut arguments = vec!["open", "--key-file", "-"];
    // In a machine with so few requests the queues only cost time.
    arguments.extend(["--perf-no_read_workqueue", "--perf-no_write_workqueue"]);
    arguments.extend([partition, NAME]);
    run_with("cryptsetup", &arguments, key)?;
    if discard {
        // Only this of the options is to be persistent.
        run_with(
            "cryptsetup",
            &[
                "refresh",
                "--allow-discards",
                "--persistent",
                "--key-file",
                "-",
                NAME,
            ],
            key,
        )?;
    }
    Ok(())
}

/// Adds a second key.
pub fn add(partition: &str, order: &Order, key: &Secret, second: &Secret) -> Result<(), Failed> {
    let kdf = kdf(order);
    let mut arguments = vec!["luksAddKey", "-q", "--key-file", "-"];
    let size = key.len().to_string();
    arguments.extend(["--keyfile-size", &size]);
    arguments.extend(kdf.iter().map(String::as_str));
    // Both come in on one pipe; no secret is written down.
    let new_size = second.len().to_string();
    arguments.extend(["--new-keyfile-size", &new_size, partition, "/dev/stdin"]);
    let both = Zeroizing::new([key.as_slice(), second.as_slice()].concat());
    run_with("cryptsetup", &arguments, &both).map(drop)
}

/// Proves that a key opens the volume.
pub fn try_open(partition: &str, key: &Secret) -> Result<(), Failed> {
    run_with(
        "cryptsetup",
        &["open", "--test-passphrase", "--key-file", "-", partition],
        key,
    )
    .map(drop)
}

/// Notes in the header what the first slot is for: an audit from outside sees that it holds a random secret,
/// for which it does not matter what a guess costs. Nothing is opened by this token.
pub fn mark_recovery(partition: &str) -> Result<(), Failed> {
    let token = json!({ "type": RECOVERY_TOKEN, "keyslots": ["0"] });
    run_with(
        "cryptsetup",
        &["token", "import", "--json-file", "-", partition],
        token.to_string().as_bytes(),
    )
    .map(drop)
}

/// Encrypts a secret to an age recipient or an SSH public key.
pub fn encrypt_to(recipient: &str, secret: &Secret) -> Result<String, Failed> {
    run_with("age", &["--encrypt", "--armor", "--recipient", recipient], secret)
}

/// Binds the volume to Tang servers: Clevis checks each advertisement's signatures against the thumbprint, and no network
/// is needed, because the advertisement is all that there is to fetch.
pub fn bind(partition: &str, threshold: u8, servers: &[Tang], key: &Secret) -> Result<(), Failed> {
    let mut pins = Vec::new();
    for (at, server) in servers.iter().enumerate() {
        let advertisement = format!("/run/advertisement-{at}");
        std::fs::write(&advertisement, &server.advertisement)
            .map_err(|error| format!("write {advertisement}: {error}"))?;
        pins.push(json!({ "url": server.url, "thp": server.thumbprint, "adv": advertisement }));
    }
    let (pin, config) = match pins.as_slice() {
        [] => return Err("bind the volume: no Tang server is named".into()),
        [one] => ("tang", one.clone()),
        several => ("sss", json!({ "t": threshold, "pins": { "tang": several } })),
    };
    let config = config.to_string();
    run_with(
        "clevis",
        &[
            "luks", "bind", "-y", "-f", "-k", "-", "-d", partition, pin, &config,
        ],
        key,
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_secret_can_be_typed_and_is_never_the_same() {
        let (one, two) = (recovery_secret().unwrap(), recovery_secret().unwrap());
        assert_ne!(one, two);
        let text = String::from_utf8(one.to_vec()).unwrap();
        assert_eq!(text.len(), 71);
        assert_eq!(text.split('-').count(), 8);
        assert!(text.bytes().all(|byte| byte == b'-' || MODHEX.contains(&byte)));
        assert_eq!(modhex(&[0x01, 0xfe]).as_slice(), b"cbvu");
    }
}
