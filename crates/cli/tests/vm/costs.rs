//! What a backup asks of the hypervisor and of the repository, counted: times tell nothing on a busy machine, these numbers
//! are the same each time. A change that makes a backup ask for more has to say so here.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use crate::common::Bench;
use crate::common::tiny::{MIB, Tiny, noise};
use strongroom_engine::backup::{Report, Requests};
use strongroom_points::manifest::Mode;
use strongroom_testkit::{Lab, run, virsh};

/// A disk of 1 TiB.
const SIZE_MIB: u64 = 1 << 20;
/// The chunks that hold what is on it, 4 MiB each.
const CHUNKS: u64 = 16;

/// What a run may ask for: as much as it does, or less.
#[track_caller]
fn expect(report: &Report, mode: Mode, most: Requests) {
    let Requests { nbd, repository } = report.requests;
    assert_eq!(report.manifest.disks[0].mode, mode);
    assert!(nbd <= most.nbd, "requests to NBD servers: {nbd}");
    assert!(
        repository <= most.repository,
        "requests to the repository: {repository}"
    );
}

#[test]
fn a_backup_asks_for_no_more_than_it_needs() {
    let lab = Lab::new();
    let tiny = Tiny::with_disks(&lab, "costs", &[("vda", SIZE_MIB)]);
    tiny.set("vda", &noise(1, CHUNKS as usize * 4 * MIB));
    let bench = Bench::new(&lab, &[&tiny.name]);
    run(virsh(["start", &tiny.name]).arg("--paused"));
    let backup = || bench.backup(&tiny.name, &()).unwrap();

    // What is a hole is asked for in 1024 parts; then each MiB is one request, and each chunk. Two are for the partition
    // table, which tells disks apart.
    let first = backup();
    expect(
        &first,
        Mode::Full,
        Requests {
            nbd: 1104,
            repository: 32,
        },
    );
    // The list of the chunks that there are comes in 512 groups; what is signed of the newest restore point is read by itself,
    // and the objects are counted.
    let unchanged = backup();
    expect(
        &unchanged,
        Mode::Incremental,
        Requests {
            nbd: 1068,
            repository: 533,
        },
    );
    assert_eq!(backup().requests, unchanged.requests, "the same costs the same");
    // Two places in one cell, and one in another: both cells are stored once more, in pieces of 64 KiB.
    for offset in [MIB, 3 * MIB, 9 * MIB] {
        tiny.write("vda", 7, offset, 65536);
    }
    let changed = backup();
    expect(
        &changed,
        Mode::Incremental,
        Requests {
            nbd: 1196,
            repository: 661,
        },
    );
}
