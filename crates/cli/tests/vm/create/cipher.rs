//! What of a new disk can be read, with its key and without.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aes::Aes256;
use aes::cipher::{BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
use strongroom_testkit::run;

/// Where the volume begins on the disk.
const VOLUME: u64 = 512 << 20;
/// Where its data begin: LUKS2 headers have 16 MiB.
const DATA: u64 = VOLUME + (16 << 20);
const BLOCK: usize = 4096;

/// A disk's bytes in a sparse file.
pub fn raw_of(image: &Path, raw: &Path) -> PathBuf {
    run(Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([image, raw]));
    raw.to_owned()
}

/// The volume's master key, by one of its passphrases.
pub fn volume_key(disk: &Path, passphrase: &[u8]) -> Vec<u8> {
    let header = header_of(disk);
    let file = disk.with_extension("key");
    with_input(
        Command::new("cryptsetup")
            .args([
                "luksDump",
                "-q",
                "--dump-volume-key",
                "--key-file",
                "-",
                "--volume-key-file",
            ])
            .args([&file, &header]),
        passphrase,
    );
    let key = std::fs::read(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    std::fs::remove_file(header).unwrap();
    assert_eq!(key.len(), 64, "AES-256-XTS has two keys of 32 bytes");
    key
}

/// Gives the volume another passphrase and another UUID, and no other master key.
pub fn rekey(disk: &Path, old: &str, new: &str) {
    let header = header_of(disk);
    let key = disk.with_extension("new");
    std::fs::write(&key, new).unwrap();
    with_input(
        Command::new("cryptsetup")
            .args([
                "luksChangeKey",
                "-q",
                "--key-file",
                "-",
                "--pbkdf",
                "pbkdf2",
                "--pbkdf-force-iterations",
                "1000",
            ])
            .args([&header, &key]),
        old.as_bytes(),
    );
    let uuid = "11111111-2222-4333-8444-555555555555";
    run(Command::new("cryptsetup")
        .args(["luksUUID", "-q", "--uuid", uuid])
        .arg(&header));
    let bytes = std::fs::read(&header).unwrap();
    let target = File::options().write(true).open(disk).unwrap();
    target.write_all_at(&bytes[..16 << 20], VOLUME).unwrap();
}

/// What the volume's header says about it, in cryptsetup's words.
pub fn header_facts(disk: &Path) -> String {
    run(Command::new("cryptsetup").arg("luksDump").arg(header_of(disk)))
}

/// The volume's header and a little more, in a file of its own.
fn header_of(disk: &Path) -> PathBuf {
    let header = disk.with_extension("header");
    let mut bytes = vec![0; 17 << 20];
    File::open(disk)
        .unwrap()
        .read_exact_at(&mut bytes, VOLUME)
        .unwrap();
    std::fs::write(&header, bytes).unwrap();
    header
}

fn with_input(command: &mut Command, input: &[u8]) {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?}");
}

/// The blocks of a disk's volume that are not zero: the first 16 bytes of each, which ciphertext does not have in common
/// by chance.
pub fn blocks(disk: &Path) -> HashSet<[u8; 16]> {
    let mut found = HashSet::new();
    // Behind it is the copy of the partition table, in clear text.
    let end = std::fs::metadata(disk).unwrap().len() - (1 << 20);
    each_block(disk, DATA, end, |_, block| {
        if block.iter().any(|byte| *byte != 0) {
            found.insert(*block.first_chunk::<16>().unwrap());
        }
    });
    found
}

fn each_block(file: &Path, from: u64, end: u64, mut look: impl FnMut(u64, &[u8])) {
    let file = File::open(file).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut at = from;
    while at < end {
        let size = buffer.len().min((end - at) as usize);
        file.read_exact_at(&mut buffer[..size], at).unwrap();
        for (number, block) in buffer[..size].chunks_exact(BLOCK).enumerate() {
            look(at - from + (number * BLOCK) as u64, block);
        }
        at += size as u64;
    }
}

/// How many of the template's blocks (each 16th that is not zero) are at the same place in the decrypted volume.
pub fn same_plaintext(disk: &Path, key: &[u8], template: &Path) -> (usize, usize) {
    let volume = File::open(disk).unwrap();
    let (mut same, mut all) = (0, 0);
    let end = std::fs::metadata(template).unwrap().len();
    each_block(template, 0, end, |at, plain| {
        if !(at / BLOCK as u64).is_multiple_of(16) || plain.iter().all(|byte| *byte == 0) {
            return;
        }
        let mut block = vec![0; BLOCK];
        volume.read_exact_at(&mut block, DATA + at).unwrap();
        // dm-crypt counts sectors of 512 bytes, however large those are that it encrypts.
        decrypt(key, at / 512, &mut block);
        all += 1;
        same += usize::from(block == plain);
    });
    (same, all)
}

/// AES-XTS (IEEE 1619) of one sector, with the sector's number as tweak (`plain64`).
fn decrypt(key: &[u8], sector: u64, data: &mut [u8]) {
    let first = Aes256::new_from_slice(&key[..32]).unwrap();
    let second = Aes256::new_from_slice(&key[32..]).unwrap();
    let mut tweak = aes::Block::from(u128::from(sector).to_le_bytes());
    second.encrypt_block(&mut tweak);
    let mut tweak = u128::from_le_bytes(tweak.into());
    for piece in data.chunks_exact_mut(16) {
        let cipher = u128::from_le_bytes(*piece.first_chunk().unwrap());
        let mut block = aes::Block::from((cipher ^ tweak).to_le_bytes());
        first.decrypt_block(&mut block);
        let plain = u128::from_le_bytes(block.into()) ^ tweak;
        piece.copy_from_slice(&plain.to_le_bytes());
        tweak = (tweak << 1) ^ (if tweak >> 127 == 1 { 0x87 } else { 0 });
    }
}
