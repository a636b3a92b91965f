//! With the published vectors of the `sev` crate: no processor is needed. See `tests/fixtures/snp/README.md`.

use super::*;

const VCEK: &[u8] = include_bytes!("../../../tests/fixtures/snp/vcek_milan.der");
const FIRMWARE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/snp/ovmf_AmdSev_suffix.bin"
);

fn report() -> Vec<u8> {
    let text = include_str!("../../../tests/fixtures/snp/report_milan.hex").trim();
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Field offsets as in table 23 of AMD publication 56860.
fn expected() -> Expected {
    let report = report();
    Expected {
        measurement: report[0x90..0xc0].try_into().unwrap(),
        data: Some(report[0x50..0x90].try_into().unwrap()),
    }
}

#[test]
fn a_real_report_is_believed() {
    let attested = verify(&report(), VCEK, &expected()).unwrap();
    assert_eq!((attested.generation, attested.fresh), ("Milan", true));
    assert_eq!(attested.measurement, hex(&report()[0x90..0xc0]));
    assert_eq!(attested.policy.to_le_bytes(), report()[8..16]);
    assert_eq!(attested.chip, hex(&report()[0x1a0..0x1e0]));
    let old = Expected {
        data: None,
        ..expected()
    };
    assert!(!verify(&report(), VCEK, &old).unwrap().fresh);
}

#[test]
fn no_bit_of_a_report_can_be_changed() {
    // Each byte of what is signed, and of the signature (r and s of 72 bytes); what lies behind is zero.
    for at in 0..REPORT {
        let mut altered = report();
        altered[at] ^= 1 << (at % 8);
        // What the guest says of itself follows, so that only the signature can be at fault.
        let expected = Expected {
            measurement: altered[0x90..0xc0].try_into().unwrap(),
            data: Some(altered[0x50..0x90].try_into().unwrap()),
        };
        let refused = verify(&altered, VCEK, &expected);
        assert!(
            matches!(refused, Err(AttestError::Signature(_) | AttestError::Report(_))),
            "byte {at:#x}: {refused:?}"
        );
    }
    for length in [0, 1, REPORT - 1] {
        assert!(matches!(
            verify(&report()[..length], VCEK, &expected()),
            Err(AttestError::Report(_))
        ));
    }
    let longer = [report(), vec![0]].concat();
    assert!(matches!(
        verify(&longer, VCEK, &expected()),
        Err(AttestError::Report(_))
    ));
}

#[test]
fn no_byte_of_a_certificate_can_be_changed() {
    // Every 7th: the signature of the whole certificate is RSA, of which each check takes its time.
    // Between what is signed and the signature stands the name of the algorithm once more, which decides nothing.
    let signed = 8 + usize::from(u16::from_be_bytes(VCEK[6..8].try_into().unwrap()));
    let signature = VCEK.len() - 512;
    for at in (0..signed).chain(signature..VCEK.len()).step_by(7) {
        let mut altered = VCEK.to_vec();
        altered[at] ^= 0x10;
        let refused = verify(&report(), &altered, &expected());
        assert!(
            matches!(refused, Err(AttestError::Chain | AttestError::Certificate(_))),
            "byte {at}: {refused:?}"
        );
    }
    let long = vec![0x30; 20_000];
    for other in [&b"-----BEGIN CERTIFICATE-----"[..], b"", &long] {
        assert!(matches!(
            verify(&report(), other, &expected()),
            Err(AttestError::Certificate(_))
        ));
    }
}

#[test]
fn another_guest_and_an_old_answer_are_refused() {
    let mut other = expected();
    other.measurement[47] ^= 1;
    let error = verify(&report(), VCEK, &other).unwrap_err();
    assert!(matches!(error, AttestError::Measurement { .. }), "{error}");
    let mut old = expected();
    old.data = Some([7; REPORT_DATA]);
    assert!(matches!(verify(&report(), VCEK, &old), Err(AttestError::Data(_))));
}

fn launch(cmdline: &str) -> Launch<'_> {
    Launch {
        firmware: Path::new(FIRMWARE),
        kernel: Some(Kernel {
            kernel: Path::new("/dev/null"),
            initrd: Path::new("/dev/null"),
            cmdline,
        }),
        vcpus: 1,
        cpu: "EPYC-v4",
    }
}

#[test]
fn a_measurement_is_of_all_that_starts_the_guest() {
    let published =
        "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa";
    let base = measure(&launch("console=ttyS0 loglevel=7")).unwrap();
    assert_eq!(hex(&base), published);
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel");
    std::fs::write(&kernel, "another").unwrap();
    let firmware = directory.path().join("firmware");
    let mut bytes = std::fs::read(FIRMWARE).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&firmware, bytes).unwrap();
    let original = || launch("console=ttyS0 loglevel=7");
    let with = |kernel: Kernel<'static>| Launch {
        kernel: Some(kernel),
        ..original()
    };
    let kernel: &'static Path = Box::leak(kernel.into_boxed_path());
    let null = Path::new("/dev/null");
    let cmdline = "console=ttyS0 loglevel=7";
    for other in [
        launch("console=ttyS0 loglevel=8"),
        with(Kernel {
            kernel,
            initrd: null,
            cmdline,
        }),
        with(Kernel {
            kernel: null,
            initrd: kernel,
            cmdline,
        }),
        Launch {
            firmware: &firmware,
            ..original()
        },
        Launch {
            vcpus: 2,
            ..original()
        },
        Launch {
            cpu: "EPYC-Milan",
            ..original()
        },
    ] {
        assert_ne!(measure(&other).unwrap(), base, "{other:?}");
    }
}

#[test]
fn what_cannot_be_measured_is_said_so() {
    let wrong = |launch: &Launch<'_>, why: &str| {
        let error = measure(launch).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    wrong(
        &Launch {
            cpu: "pentium",
            ..launch("")
        },
        "pentium",
    );
    wrong(
        &Launch {
            vcpus: 0,
            ..launch("")
        },
        "0 virtual",
    );
    let absent = Launch {
        firmware: Path::new("/no/such/firmware"),
        ..launch("")
    };
    assert!(measure(&absent).is_err());
    // A file that is no firmware.
    let text = Launch {
        firmware: Path::new(file!()),
        ..launch("")
    };
    assert!(measure(&text).is_err());
}
