//! Whether a guest with encrypted memory (AMD SEV-SNP) is the one that was meant: its attestation report.
//!
//! The processor signs what it has measured before the guest ran: firmware, and with direct kernel boot and
//! `kernelHashes` also kernel, initramfs and command line. Its key (VCEK) is certified by AMD, whose root certificates are
//! built into the `sev` crate: an attacker who brings a report cannot bring another root. Formats: AMD publication 56860
//! (report, table 23), 57230 (certificates).

use std::path::Path;

use sev::certs::snp::builtin::{genoa, milan, turin};
use sev::certs::snp::{Certificate, Chain, Verifiable as _, ca};
use sev::firmware::guest::AttestationReport;
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};
use sev::parser::ByteParser as _;
use strongroom_points::digest::hex;

/// Bytes of a launch digest (SHA-384).
pub const MEASUREMENT: usize = 48;
/// Bytes that a guest can have signed along.
pub const REPORT_DATA: usize = 64;
/// Bytes of a report.
const REPORT: usize = 1184;
/// The longest certificate that is looked at, in bytes. A VCEK has about 1400.
const MAX_CERTIFICATE: usize = 16 * 1024;
/// `sev_features` of QEMU's guests: SEV-SNP and nothing else.
const FEATURES: u64 = 1;

/// Why a report proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It is not a report.
    #[error("read the report: {0}")]
    Report(String),
    /// It is not a certificate.
    #[error("read the processor's certificate (VCEK): {0}")]
    Certificate(String),
    /// AMD has not certified the key.
    #[error("the processor's certificate is signed by none of AMD's keys (Milan, Genoa, Turin)")]
    Chain,
    /// The report was altered, or comes from another processor or another state of its firmware.
    #[error("the report is not signed by the key in the processor's certificate: {0}")]
    Signature(String),
    /// The host may read the guest's memory after all.
    #[error("the guest's policy allows {0}")]
    Policy(&'static str),
    /// Another guest.
    #[error("the guest is another one: its measurement is {found}, expected is {expected}")]
    Measurement {
        /// As reported, in hexadecimal.
        found: String,
        /// As expected.
        expected: String,
    },
    /// Another report of that guest, perhaps an old one.
    #[error("the report was made for another question: its data is {0}")]
    Data(String),
    /// What is to be measured cannot be.
    #[error("compute the expected measurement: {0}")]
    Launch(String),
}

/// What a guest is started from.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// The firmware: an OVMF build for SEV (`OVMF.amdsev.fd`).
    pub firmware: &'a Path,
    /// Kernel, initramfs and command line, with direct kernel boot; only firmware that has a place for their hashes
    /// measures them.
    pub kernel: Option<Kernel<'a>>,
    /// Virtual processors.
    pub vcpus: u32,
    /// QEMU's name for their model (`EPYC-v4`).
    pub cpu: &'a str,
}

/// Direct kernel boot.
#[derive(Debug, Clone)]
pub struct Kernel<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initrd: &'a Path,
    /// The command line, exactly as in the definition.
    pub cmdline: &'a str,
}

/// What a report has to say.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The launch digest.
    pub measurement: [u8; MEASUREMENT],
    /// What the guest was asked to have signed along: proves that the report is not an old one.
    pub data: Option<[u8; REPORT_DATA]>,
}

/// What a report that was verified says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Attested {
    /// The processor's generation.
    pub generation: &'static str,
    /// The launch digest, in hexadecimal.
    pub measurement: String,
    /// The guest's policy.
    pub policy: u64,
    /// The privilege level of who asked for it; 0 is the guest's firmware and kernel.
    pub vmpl: u32,
    /// The processor's id, in hexadecimal.
    pub chip: String,
    /// Whether the report answers a question of ours, and so is not an old one.
    pub fresh: bool,
}

/// The launch digest of a guest.
pub fn measure(launch: &Launch<'_>) -> Result<[u8; MEASUREMENT], AttestError> {
    let wrong = |error: &dyn std::fmt::Display| AttestError::Launch(error.to_string());
    let cpu = CpuType::try_from(launch.cpu).map_err(|_| {
        wrong(&format!(
            "QEMU's model {:?} of a processor is not known",
            launch.cpu
        ))
    })?;
    if !(1..=1024).contains(&launch.vcpus) {
        return Err(wrong(&format!("{} virtual processors", launch.vcpus)));
    }
    let arguments = SnpMeasurementArgs {
        vcpus: launch.vcpus,
        vcpu_type: cpu,
        ovmf_file: launch.firmware.to_owned(),
        guest_features: GuestFeatures(FEATURES),
        kernel_file: launch.kernel.as_ref().map(|kernel| kernel.kernel.to_owned()),
        initrd_file: launch.kernel.as_ref().map(|kernel| kernel.initrd.to_owned()),
        append: launch.kernel.as_ref().map(|kernel| kernel.cmdline),
        ovmf_hash_str: None,
        vmm_type: Some(VMMType::QEMU),
    };
    let digest = snp_calc_launch_digest(arguments).map_err(|error| wrong(&error))?;
    digest.to_bytes().map_err(|error| wrong(&error))
}

/// Verifies a report: certified by AMD, signed by the processor, of a guest that the host cannot look into, and of the one
/// that is expected. `vcek` is the processor's certificate, DER or PEM. Certificates' dates are not looked at: AMD's
/// outlive the processors, and a host chooses its clock.
pub fn verify(report: &[u8], vcek: &[u8], expected: &Expected) -> Result<Attested, AttestError> {
    let parsed = parse(report)?;
    let vcek = certificate(vcek)?;
    let (generation, chain) = chain(&vcek).ok_or(AttestError::Chain)?;
    (&chain, &parsed)
        .verify()
        .map_err(|error| AttestError::Signature(error.to_string()))?;
    if parsed.policy.debug_allowed() {
        return Err(AttestError::Policy("debugging: the host can read its memory"));
    }
    if parsed.policy.migrate_ma_allowed() {
        return Err(AttestError::Policy("a migration agent, which gets its memory"));
    }
    if parsed.measurement != expected.measurement {
        return Err(AttestError::Measurement {
            found: hex(&parsed.measurement),
            expected: hex(&expected.measurement),
        });
    }
    if expected.data.is_some_and(|data| data != parsed.report_data) {
        return Err(AttestError::Data(hex(&parsed.report_data)));
    }
    Ok(Attested {
        generation,
        measurement: hex(&parsed.measurement),
        policy: parsed.policy.into(),
        vmpl: parsed.vmpl,
        chip: hex(&parsed.chip_id),
        fresh: expected.data.is_some(),
    })
}

/// Reads a report. The signature is checked over what was understood: it has to be all that was there.
fn parse(report: &[u8]) -> Result<AttestationReport, AttestError> {
    let wrong = |error: &dyn std::fmt::Display| AttestError::Report(error.to_string());
    if report.len() != REPORT {
        return Err(wrong(&format!(
            "it has {} bytes instead of {REPORT}",
            report.len()
        )));
    }
    let parsed = AttestationReport::from_bytes(report).map_err(|error| wrong(&error))?;
    let again = parsed.to_bytes().map_err(|error| wrong(&error))?;
    // R and S of the signature are of 48 bytes in fields of 72 (table 134); the rest is not looked at elsewhere.
    let padding = [0x2d0..0x2e8, 0x318..0x330].map(|range| report.get(range));
    let padded = padding
        .iter()
        .all(|bytes| bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0)));
    if again.as_slice() != report || !padded {
        return Err(wrong(&"parts of it that have to be zero are not"));
    }
    Ok(parsed)
}

fn certificate(bytes: &[u8]) -> Result<Certificate, AttestError> {
    let wrong = |error: &dyn std::fmt::Display| AttestError::Certificate(error.to_string());
    if bytes.len() > MAX_CERTIFICATE {
        return Err(wrong(&format!("it has {} bytes", bytes.len())));
    }
    if bytes.starts_with(b"-----BEGIN") {
        Certificate::from_pem(bytes)
    } else {
        Certificate::from_der(bytes)
    }
    .map_err(|error| wrong(&error))
}

/// The chain from one of AMD's roots to this certificate.
fn chain(vcek: &Certificate) -> Option<(&'static str, Chain)> {
    let roots = [
        ("Milan", milan::ark(), milan::ask()),
        ("Genoa", genoa::ark(), genoa::ask()),
        ("Turin", turin::ark(), turin::ask()),
    ];
    roots.into_iter().find_map(|(name, ark, ask)| {
        let chain = Chain {
            ca: ca::Chain {
                ark: ark.ok()?,
                ask: ask.ok()?,
            },
            vek: vcek.clone(),
        };
        let holds = (&chain).verify().is_ok();
        holds.then_some((name, chain))
    })
}

#[cfg(test)]
mod tests;
