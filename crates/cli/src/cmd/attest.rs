//! `strongroom attest`.

use std::path::Path;

use strongroom_engine::provision::attest::{self, Expected, Kernel, Launch, MEASUREMENT};
use strongroom_engine::run::event::Code;
use strongroom_points::digest::hex;

use crate::args::Attest;
use crate::documents::{Attested, Measured};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;

/// Verifies the report of a guest with encrypted memory, or says which measurement it has to have.
pub fn run(settings: &Settings, args: &Attest) -> Result<Exit, Failure> {
    let measurement = measurement(args)?;
    let Some((report, vcek)) = args.report.as_deref().zip(args.vcek.as_deref()) else {
        if settings.ui.json() {
            Ui::document(&Measured {
                measurement: hex(&measurement),
            });
        } else {
            Ui::out(hex(&measurement));
        }
        return Ok(Exit::Done);
    };
    let data = match &args.report_data {
        None => None,
        Some(text) => Some(bytes("--report-data", text)?),
    };
    let expected = Expected { measurement, data };
    let attested = attest::verify(&read(report)?, &read(vcek)?, &expected).map_err(Failure::failed)?;
    if !attested.fresh {
        settings
            .ui
            .warn(Code::ReportMayBeOld, None, "the report may be an old one: let the guest sign a number of yours, and give it as --report-data");
    }
    if settings.ui.json() {
        settings
            .ui
            .document_with_warnings(Attested { attested: &attested });
    } else {
        Ui::out(format!(
            "the guest is the one expected: measurement {}, policy {:#x}, VMPL {}, on a {} processor",
            attested.measurement, attested.policy, attested.vmpl, attested.generation
        ));
    }
    Ok(Exit::Done)
}

fn measurement(args: &Attest) -> Result<[u8; MEASUREMENT], Failure> {
    if let Some(text) = &args.measurement {
        return bytes("--measurement", text);
    }
    let firmware = args.firmware.as_deref().unwrap_or(Path::new(""));
    let kernel = args.kernel.as_deref().zip(args.initrd.as_deref());
    let launch = Launch {
        firmware,
        kernel: kernel.map(|(kernel, initrd)| Kernel {
            kernel,
            initrd,
            cmdline: args.cmdline.as_deref().unwrap_or_default(),
        }),
        vcpus: args.vcpus,
        cpu: &args.cpu,
    };
    attest::measure(&launch).map_err(Failure::failed)
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| Failure::failed(format!("read {}: {error}", file.display())))
}

/// So many bytes in hexadecimal.
fn bytes<const N: usize>(what: &str, text: &str) -> Result<[u8; N], Failure> {
    let wrong = || Failure::usage(format!("read {what}: it is not {N} bytes in hexadecimal"));
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect();
    let digits = digits.filter(|digits| digits.len() == 2 * N).ok_or_else(wrong)?;
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |value, digit| value << 4 | digit);
    }
    Ok(bytes)
}
