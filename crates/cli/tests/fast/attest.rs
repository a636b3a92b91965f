//! `attest` with the published vectors of the `sev` crate; what is refused is tested in `engine::attest`.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;

use crate::common::running::Said;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/fixtures/snp");

fn attest(arguments: &[&str]) -> Said {
    let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    Said::of(program.arg("attest").args(arguments))
}

#[test]
fn a_report_is_verified_or_refused() {
    let text = std::fs::read_to_string(format!("{VECTORS}/report_milan.hex")).unwrap();
    let text = text.trim().to_lowercase();
    let field = |from: usize, to: usize| &text[2 * from..2 * to];
    let (data, measurement) = (field(0x50, 0x90), field(0x90, 0xc0));
    let bytes: Vec<u8> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.bin");
    std::fs::write(&report, bytes).unwrap();
    let report = report.display().to_string();
    let vcek = format!("{VECTORS}/vcek_milan.der");
    let given = ["--report", &report, "--vcek", &vcek];
    let with = |more: &[&str]| attest(&[&given[..], more].concat());

    let said = with(&["--measurement", measurement, "--report-data", data]);
    said.expect(0, &[]);
    assert!(
        said.out.contains(measurement) && said.out.contains("Milan"),
        "{}",
        said.out
    );
    with(&["--measurement", measurement]).expect(3, &["may be an old one"]);
    let other = "00".repeat(48);
    with(&["--measurement", &other]).expect(1, &["the guest is another one", measurement]);
    with(&["--measurement", measurement, "--report-data", &"00".repeat(64)])
        .expect(1, &["another question", data]);
    with(&["--measurement", "00"]).expect(2, &["48 bytes"]);

    // What it has to be is computed from the files.
    let firmware = format!("{VECTORS}/ovmf_AmdSev_suffix.bin");
    let launch = [
        "--firmware",
        &firmware,
        "--kernel",
        "/dev/null",
        "--initrd",
        "/dev/null",
    ];
    let launch = [&launch[..], &["--cmdline", "console=ttyS0 loglevel=7"]].concat();
    let said = attest(&launch);
    said.expect(0, &[]);
    let published =
        "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa";
    assert_eq!(said.out.trim(), published);
    with(&launch).expect(1, &["the guest is another one", published]);
    attest(&[]).expect(2, &[]);
    attest(&["--report", &report, "--measurement", &other]).expect(2, &["--vcek"]);
}
