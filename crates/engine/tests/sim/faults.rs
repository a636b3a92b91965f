//! Every call that changes something goes wrong once, in every way. The guest keeps what it has, nothing is left, and a restore
//! point that was made holds what the guest had.
//!
//! An answer is believed but for those about overlays, which have more than one view that can be read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use strongroom_engine::config::CaptureMethod;
use strongroom_engine::run::event::Kind;
use strongroom_sim::Fault;

use crate::bench::{AT_ONCE, Bench, Hook};

/// What is read again whatever is answered.
const OVERLAYS: [&str; 4] = ["take_snapshot", "start_commit", "pivot", "set_inactive_image"];

/// The second backup of a VM, with each of its calls gone wrong.
fn each_call_goes_wrong(method: CaptureMethod, fault: Fault) {
    let acts = {
        let bench = Bench::new(method);
        bench.engine.backup(&()).unwrap();
        bench.change(0x31);
        let before = bench.engine.host.faults().acts().len();
        bench.engine.backup(&()).unwrap();
        bench.engine.host.faults().acts().split_off(before)
    };
    assert!(acts.len() >= 3, "{acts:?}");
    let may = |act: &str| fault != Fault::Forget || OVERLAYS.contains(&act);
    let cases: Vec<_> = acts.iter().enumerate().filter(|(_, act)| may(act)).collect();
    for some in cases.chunks(AT_ONCE) {
        thread::scope(|scope| {
            for (number, act) in some {
                scope.spawn(move || one_goes_wrong(method, *number, act, fault));
            }
        });
    }
}

fn one_goes_wrong(method: CaptureMethod, number: usize, act: &str, fault: Fault) {
    let case = format!("{fault:?} at call {number}, {act}");
    let bench = Bench::new(method);
    bench.engine.backup(&()).unwrap();
    bench.change(0x32);
    let before = bench.content();
    let archives = bench.archives().len();
    bench.engine.host.faults().at(number, fault);
    let captured = AtomicBool::new(false);
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            captured.store(true, Ordering::SeqCst);
        }
    });
    let done = bench.engine.backup(&hook);
    assert!(bench.content() == before, "{case}: the guest has something else");
    match done {
        Ok(report) => {
            assert!(captured.load(Ordering::SeqCst), "{case}");
            assert!(bench.restored(&report.archive) == before, "{case}");
        }
        Err(error) => assert_eq!(bench.archives().len(), archives, "{case}: {error}"),
    }
    // Whatever it left goes with the next one, which is good.
    bench.change(0x33);
    let before = bench.content();
    let next = bench.engine.backup(&());
    let next = next.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(bench.content() == before, "{case}: the guest has something else");
    assert!(bench.restored(&next.archive) == before, "{case}");
    bench.at_rest(&case);
    bench.check();
}

macro_rules! sweep {
    ($($name:ident: $method:ident $fault:ident;)*) => {
        $(#[test] fn $name() { each_call_goes_wrong(CaptureMethod::$method, Fault::$fault); })*
    };
}

sweep! {
    a_call_of_a_job_is_refused: Checkpoint Fail;
    a_call_of_a_job_is_done_without_an_answer: Checkpoint Lose;
    a_call_of_a_job_is_done_twice: Checkpoint Twice;
    a_call_of_a_snapshot_is_refused: Snapshot Fail;
    a_call_of_a_snapshot_is_done_without_an_answer: Snapshot Lose;
    a_call_of_a_snapshot_is_answered_and_not_done: Snapshot Forget;
    a_call_of_a_snapshot_is_done_twice: Snapshot Twice;
}
