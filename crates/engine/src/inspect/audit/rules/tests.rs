use jiff::{SignedDuration, Timestamp};
use strongroom_disk::luks::{KeySlot, Pin, Segment, Token};
use strongroom_disk::partitions::{Purpose, Region};

use super::*;

fn luks(cipher: Option<&str>, kdf: Kdf, tokens: Vec<Token>) -> Luks {
    Luks {
        offset: 0,
        version: 2,
        uuid: "u".into(),
        digests: vec![],
        tokens,
        slots: vec![KeySlot {
            number: 0,
            key_bits: 512,
            kdf,
        }],
        segments: vec![Segment {
            offset: 16 << 20,
            length: None,
            cipher: cipher.map(str::to_owned),
        }],
        flags: vec!["allow-discards".into()],
        requirements: vec![],
        area: Err(strongroom_disk::NoArea::Layout),
    }
}

fn codes(luks: &Luks) -> Vec<&'static str> {
    let part = Part {
        region: Region {
            partition: None,
            offset: 0,
            length: 1 << 30,
            purpose: Purpose::Other,
        },
        content: Content::Luks(Box::new(luks.clone())),
        samples: Samples::default(),
    };
    let findings = volume(Some("vda"), &part, luks);
    let serious = findings.iter().filter(|finding| finding.level > Level::Note);
    serious.map(|finding| finding.code).collect()
}

fn argon2(memory_mib: u64, time: u64) -> Kdf {
    Kdf::Argon2 {
        variant: "argon2id".into(),
        time,
        memory: memory_mib * 1024,
        cpus: 4,
    }
}

#[test]
fn data_in_clear_text_by_its_own_header() {
    let slow = || argon2(1024, 4);
    assert_eq!(
        codes(&luks(Some("aes-xts-plain64"), slow(), vec![])),
        Vec::<&str>::new()
    );
    for cipher in [None, Some("cipher_null-ecb")] {
        assert_eq!(codes(&luks(cipher, slow(), vec![])), ["clear-segment"]);
    }
}

#[test]
fn a_guess_has_its_price() {
    let price = |kdf| codes(&luks(Some("aes-xts-plain64"), kdf, vec![])).contains(&"weak-kdf");
    for (memory, time, weak) in [
        (64, 3, false),
        (64, 2, true),
        (32, 100, true),
        (1024, 1, false),
        (63, 4, true),
    ] {
        assert_eq!(price(argon2(memory, time)), weak, "{memory} MiB, {time}");
    }
    let pbkdf2 = || Kdf::Pbkdf2 {
        hash: "sha512".into(),
        iterations: 10_000_000,
    };
    assert!(price(pbkdf2()) && price(Kdf::Other("scrypt".into())));
    // A token that opens this slot, one that opens another, and one that says nothing of how.
    for (kind, slots, weak) in [
        ("clevis", vec![0], false),
        ("clevis", vec![1], true),
        ("other", vec![0], true),
    ] {
        let token = Token {
            kind: kind.into(),
            slots,
            pin: None,
        };
        let found = codes(&luks(Some("aes-xts-plain64"), pbkdf2(), vec![token]));
        assert_eq!(found.contains(&"weak-kdf"), weak, "{kind}");
    }
}

#[test]
fn a_tpm_that_suffices_is_the_hosts() {
    let tpm = || Pin::Tpm2 { pcrs: "7".into() };
    let tang = || Pin::Tang {
        url: "http://t".into(),
    };
    let of = |of, pins| Pin::Threshold { of, pins };
    for (pin, alone) in [
        (tpm(), true),
        (tang(), false),
        (of(1, vec![tpm(), tang()]), true),
        (of(2, vec![tpm(), tang()]), false),
        (of(2, vec![tpm(), of(1, vec![tang(), tpm()])]), true),
    ] {
        let text = pin.to_string();
        let token = Token {
            kind: "clevis".into(),
            slots: vec![0],
            pin: Some(pin),
        };
        let found = codes(&luks(Some("aes-xts-plain64"), argon2(1024, 4), vec![token]));
        assert_eq!(found.contains(&"host-unlock"), alone, "{text}");
    }
}

#[test]
fn a_backup_ages() {
    let now = Timestamp::from_second(1_000_000).unwrap();
    let ago = |hours: i64| Timestamp::from_second(1_000_000 - hours * 3600).unwrap();
    let of = |last| Protection {
        configured: true,
        signed: true,
        interrupted: false,
        last: Ok(last),
    };
    let codes = |last| -> Vec<&str> {
        let findings = protection(&of(last), now, SignedDuration::from_hours(48));
        findings.iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes(Some(ago(47))), Vec::<&str>::new());
    assert_eq!(codes(Some(ago(49))), ["old-backup"]);
    assert_eq!(codes(None), ["no-backup"]);
    let outside = Protection {
        configured: false,
        ..of(None)
    };
    let findings = protection(&outside, now, SignedDuration::from_hours(48));
    assert_eq!(
        findings.iter().map(|finding| finding.code).collect::<Vec<_>>(),
        ["unprotected"]
    );
}
