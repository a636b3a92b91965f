//! The rules that make findings of what was inspected. Pure.

use jiff::{SignedDuration, Timestamp};
use strongroom_disk::Luks;
use strongroom_disk::luks::Kdf;
use strongroom_disk::partitions::{Purpose, Table};
use strongroom_disk::survey::{Content, Part, Samples, Survey};
use strongroom_hypervisor::Domain;
use strongroom_hypervisor::names::is_ours;

use super::{Finding, InspectedDisk, Level};
use crate::capture::tracking;
use crate::run::state::StateError;

/// Tokens whose slots hold random secrets: what a guess costs does not matter there.
const RANDOM: [&str; 6] = [
    "clevis",
    "systemd-tpm2",
    "systemd-fido2",
    "systemd-pkcs11",
    "systemd-recovery",
    strongroom_guest::protocol::RECOVERY_TOKEN,
];
/// The least memory of argon2, in KiB, and the least memory times passes: RFC 9106, section 4, second recommendation.
const LEAST_MEMORY: u64 = 64 * 1024;
const LEAST_WORK: u64 = 3 * LEAST_MEMORY;

fn finding(code: &'static str, level: Level, disk: Option<&str>, text: impl Into<String>) -> Finding {
    Finding {
        code,
        level,
        disk: disk.map(str::to_owned),
        text: text.into(),
    }
}

/// About one disk.
pub fn disk(disk: &InspectedDisk) -> Vec<Finding> {
    let mut findings = image(disk);
    let Ok(survey) = &disk.survey else {
        return findings;
    };
    let at = Some(disk.target.as_str());
    if survey.table == Table::Damaged {
        let text = "its partition table is damaged: what is on it cannot be determined";
        findings.push(finding("damaged-table", Level::Warning, at, text));
    }
    if disk.swap {
        findings.extend(survey.parts.iter().filter_map(|part| swap(at, part)));
        return findings;
    }
    if is_only_swap(disk) {
        let text = "it holds nothing but swap and is backed up: name it in `swap` of the configuration";
        findings.push(finding("swap-not-named", Level::Warning, at, text));
    }
    findings.extend(parts(at, survey));
    if survey.volumes().next().is_some() && !disk.discard {
        let text = "the disk's driver ignores discards: deleted data stays in the image and in backups (discard='unmap')";
        findings.push(finding("no-discard", Level::Warning, at, text));
    }
    findings
}

fn parts(at: Option<&str>, survey: &Survey) -> Vec<Finding> {
    let encrypted = survey.volumes().next().is_some();
    let found = survey.parts.iter().flat_map(|part| match &part.content {
        Content::Luks(luks) => volume(at, part, luks),
        Content::Swap(_) => swap(at, part).into_iter().collect(),
        Content::Other => unknown(at, part, encrypted).into_iter().collect(),
    });
    found.collect()
}

/// What lies on a disk for everybody to read, in words; nothing if all of it, apart from what starts the machine, is
/// ciphertext as far as samples tell.
pub fn clear_text(survey: &Survey) -> Vec<String> {
    const CODES: [&str; 5] = [
        "swap-clear",
        "clear-partition",
        "not-encrypted",
        "clear-segment",
        "clear-text",
    ];
    let found = parts(None, survey).into_iter();
    found
        .filter(|finding| CODES.contains(&finding.code))
        .map(|finding| finding.text)
        .collect()
}

/// Whether a disk holds swap and nothing else.
pub fn is_only_swap(disk: &InspectedDisk) -> bool {
    let swap = |part: &Part| matches!(part.content, Content::Swap(_)) || part.region.purpose == Purpose::Swap;
    let parts = disk
        .survey
        .as_ref()
        .map_or(&[][..], |survey: &Survey| &survey.parts);
    !parts.is_empty() && parts.iter().all(swap)
}

fn image(disk: &InspectedDisk) -> Vec<Finding> {
    let at = Some(disk.target.as_str());
    let mut findings = Vec::new();
    let Some(info) = &disk.info else {
        return findings;
    };
    if let Some(backing) = &info.backing_file {
        let text = format!(
            "its image is an overlay on {backing:?}: a snapshot that was never merged, or a linked clone"
        );
        findings.push(finding("overlay", Level::Warning, at, text));
    }
    for snapshot in &info.snapshots {
        if snapshot.vm_state_size > 0 {
            let text = format!(
                "snapshot {:?} in its image holds the guest's memory, disk keys and all",
                snapshot.name
            );
            findings.push(finding("memory-saved", Level::Unsafe, at, text));
        } else {
            let text = format!("snapshot {:?} is left in its image", snapshot.name);
            findings.push(finding("snapshot", Level::Warning, at, text));
        }
    }
    findings
}

/// A part as people name it.
fn named(part: &Part) -> String {
    part.region
        .partition
        .map_or_else(|| "the disk".into(), |number| format!("partition {number}"))
}

/// How many of the samples are in clear text.
fn measured(samples: &Samples) -> String {
    format!(
        "{} of {} sampled blocks are in clear text, the plainest with {:.1} bits of entropy a byte",
        samples.clear, samples.written, samples.lowest
    )
}

fn swap(at: Option<&str>, part: &Part) -> Option<Finding> {
    match &part.content {
        Content::Swap(signature) => Some(finding(
            "swap-clear",
            Level::Unsafe,
            at,
            format!(
                "{} is swap in clear text ({signature}): what was in memory lies there",
                named(part)
            ),
        )),
        Content::Other if part.samples.clear > 0 => Some(finding(
            "swap-clear",
            Level::Unsafe,
            at,
            format!(
                "{}, which is for swap, holds clear text: {}",
                named(part),
                measured(&part.samples)
            ),
        )),
        _ => None,
    }
}

fn unknown(at: Option<&str>, part: &Part, encrypted_beside: bool) -> Option<Finding> {
    let name = named(part);
    if part.samples.written == 0 {
        return None;
    }
    if part.region.purpose == Purpose::Swap {
        let text =
            format!("{name} is for swap, on a disk that is backed up: it belongs on a disk of its own");
        return swap(at, part).or_else(|| Some(finding("swap-shared-disk", Level::Warning, at, text)));
    }
    if part.is_boot(encrypted_beside) {
        let text = format!(
            "{name} starts the machine and is in clear text: an attacker who can write the image chooses what asks for the passphrase"
        );
        return Some(finding("clear-boot", Level::Note, at, text));
    }
    if part.samples.clear > 0 {
        let (code, what) = if encrypted_beside {
            ("clear-partition", format!("{name} is not encrypted"))
        } else {
            ("not-encrypted", format!("{name} has no LUKS header"))
        };
        let text = format!("{what}: {}", measured(&part.samples));
        return Some(finding(code, Level::Unsafe, at, text));
    }
    let text = format!("{name} looks like ciphertext without a header: it cannot be judged");
    Some(finding("no-header", Level::Note, at, text))
}

fn volume(at: Option<&str>, part: &Part, luks: &Luks) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = named(part);
    let mut found = |code, level, text: String| findings.push(finding(code, level, at, text));
    let open = luks.segments.iter().any(|segment| {
        let cipher = segment.cipher.as_deref();
        cipher.is_none_or(|cipher| cipher.contains("null"))
    });
    if open {
        let text = format!("{name}: the LUKS header says that data is not encrypted");
        found("clear-segment", Level::Unsafe, text);
    }
    if part.samples.clear > 0 {
        let text = format!(
            "{name} has a LUKS header, but beneath it {}",
            measured(&part.samples)
        );
        found("clear-text", Level::Unsafe, text);
    }
    if luks.requirements.iter().any(|word| word.contains("reencrypt")) {
        let text = format!("{name}: a re-encryption was begun and has not ended");
        found("reencryption", Level::Warning, text);
    }
    for slot in &luks.slots {
        if openers(luks, slot.number).is_empty() && is_weak(&slot.kdf) {
            let text = format!(
                "{name}: the passphrase of slot {} is cheap to guess ({})",
                slot.number, slot.kdf
            );
            found("weak-kdf", Level::Warning, text);
        }
    }
    let pins = || luks.tokens.iter().filter_map(|token| token.pin.as_ref());
    for pin in pins().filter(|pin| pin.host_alone()) {
        let text = format!("{name}: the host alone can open it: {pin}, and the TPM is the host's own");
        found("host-unlock", Level::Warning, text);
    }
    let passphrases = luks
        .slots
        .iter()
        .filter(|slot| openers(luks, slot.number).is_empty())
        .count();
    let mut ways: Vec<String> = luks.tokens.iter().map(opener).collect();
    if passphrases > 0 {
        ways.push(format!("{passphrases} passphrase slots"));
    }
    if ways.is_empty() {
        ways.push("nothing: it has no key slot".into());
    }
    found(
        "unlock",
        Level::Note,
        format!("{name} is opened by {}", ways.join(", ")),
    );
    if luks.version == 2 && !luks.flags.iter().any(|flag| flag == "allow-discards") {
        let text = format!("{name}: its header does not pass discards on; /etc/crypttab may (`discard`)");
        found("luks-discard", Level::Note, text);
    }
    findings
}

/// What opens a slot without a passphrase: a secret that cannot be guessed.
pub fn openers(luks: &Luks, slot: u32) -> Vec<String> {
    let tokens = luks.tokens.iter().filter(|token| token.slots.contains(&slot));
    tokens
        .filter(|token| RANDOM.contains(&token.kind.as_str()))
        .map(opener)
        .collect()
}

fn opener(token: &strongroom_disk::luks::Token) -> String {
    match &token.pin {
        Some(pin) => format!("{}: {pin}", token.kind),
        None => token.kind.clone(),
    }
}

fn is_weak(kdf: &Kdf) -> bool {
    match kdf {
        Kdf::Argon2 { time, memory, .. } => {
            *memory < LEAST_MEMORY || memory.saturating_mul(*time) < LEAST_WORK
        }
        Kdf::Pbkdf2 { .. } | Kdf::Other(_) => true,
    }
}

/// About a VM's definition and state, with the names of its snapshots.
pub fn domain(domain: &Domain, snapshots: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |code, level, text: String| findings.push(finding(code, level, None, text));
    if domain.saved {
        let text = "its memory is saved in a file of the host, disk keys and all: `virsh start`, or `virsh managedsave-remove`";
        found("memory-saved", Level::Unsafe, text.into());
    }
    if !snapshots.is_empty() {
        found(
            "snapshot",
            Level::Warning,
            format!("snapshots are left: {}", snapshots.join(", ")),
        );
    }
    match &domain.memory_encryption {
        Some(kind) => found("memory", Level::Note, format!("its memory is encrypted ({kind})")),
        None => found(
            "memory",
            Level::Note,
            "its memory is not encrypted: the hypervisor can read the disk keys while it runs".into(),
        ),
    }
    if !domain.extras.is_empty() {
        found(
            "extras",
            Level::Note,
            format!("it has {}", domain.extras.join(", ")),
        );
    }
    findings
}

/// About snapshots and these checkpoints of a VM, which get into each other's way.
pub fn tracking(domain: &Domain, checkpoints: &[String]) -> Option<Finding> {
    let text = tracking::conflict(domain, checkpoints)?;
    Some(finding("snapshot-and-checkpoint", Level::Warning, None, text))
}

/// About bitmaps of ours in a disk's image that none of the known checkpoints stands for.
pub fn leftovers(disk: &InspectedDisk, known: &[String]) -> Option<Finding> {
    let bitmaps = disk.info.iter().flat_map(|info| &info.bitmaps);
    let names: Vec<&str> = bitmaps
        .map(|bitmap| bitmap.name.as_str())
        .filter(|name| is_ours(name) && !known.iter().any(|known| known == name))
        .collect();
    if names.is_empty() {
        return None;
    }
    let text = format!(
        "its image has dirty bitmaps of strongroom's that belong to nothing ({}): `strongroom recover` removes them",
        names.join(", ")
    );
    Some(finding("bitmaps-left", Level::Warning, Some(&disk.target), text))
}

/// How a VM is protected.
#[derive(Debug)]
pub struct Protection {
    /// The configuration names it.
    pub configured: bool,
    /// Restore points are signed.
    pub signed: bool,
    /// A run died and was not tidied up.
    pub interrupted: bool,
    /// When the newest restore point was committed.
    pub last: Result<Option<Timestamp>, StateError>,
}

/// About a VM's backups.
pub fn protection(protection: &Protection, now: Timestamp, max_age: SignedDuration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |code, text: String| findings.push(finding(code, Level::Warning, None, text));
    if !protection.configured {
        found(
            "unprotected",
            "it is not in the configuration: `strongroom adopt` puts it under protection".into(),
        );
        return findings;
    }
    match &protection.last {
        Ok(None) => found("no-backup", "it was never backed up from here".into()),
        Ok(Some(last)) => {
            let age = now.duration_since(*last);
            if age > max_age {
                found(
                    "old-backup",
                    format!("its last good backup is {} hours old", age.as_hours()),
                );
            }
        }
        Err(error) => found(
            "no-backup",
            format!("its last backup is unknown: failed to {error}"),
        ),
    }
    if protection.interrupted {
        found(
            "interrupted",
            "a backup was interrupted and is not tidied up: `strongroom recover`".into(),
        );
    }
    if !protection.signed {
        found(
            "unsigned",
            "its restore points are not signed: `strongroom init --signing-key`".into(),
        );
    }
    findings
}

#[cfg(test)]
mod tests;
