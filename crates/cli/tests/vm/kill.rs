//! The kill matrix, its short part: a run dies by SIGKILL before and after each write of its records, and while the
//! frozen view stands, by backup job and by snapshot. The guest is never harmed, and the next run makes a good backup.
//! `long_kill.rs` is the long part.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A test fails by panicking, and says how far it came.

use crate::common::deaths::{self, MODES, Patient};
use strongroom_testkit::Lab;

#[test]
fn a_run_may_die_at_each_step_of_its_journal() {
    let lab = Lab::new();
    let mut patient = Patient::new(&lab, 96);
    // The other ways have no steps but some of those.
    for mode in MODES.iter().filter(|mode| mode.name.ends_with("quiesced")) {
        patient.set_mode(*mode);
        // The first one has no checkpoint before it; those that die shall have one.
        patient.recovers();
        let mut stops = 0;
        while let Some(at) = patient.dies_at(stops + 1) {
            stops += 1;
            eprintln!("{}: {at}", mode.name);
            patient.expect_alive();
            patient.recovers();
        }
        assert!(stops >= 9, "{}: only {stops} stops", mode.name);
    }
    patient.bench.at_rest(&lab, patient.vm());
    patient.bench.check(patient.vm());
}

#[test]
#[ignore = "started by the other tests, to die"]
fn victim() {
    deaths::victim();
}
