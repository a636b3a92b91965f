//! A backup is killed before and after each of its calls, and on both sides of each write of its records. The guest keeps what
//! it has, the next backup puts right what was left, and is good.
//!
//! The victim is this test binary, started once more for its ignored test `victim`.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use strongroom_engine::config::CaptureMethod;
use strongroom_sim::Fault;

use crate::bench::{AT_ONCE, Bench, Engine};

/// What a victim is told, as JSON in its environment.
const ORDER: &str = "STRONGROOM_TEST_SIM_VICTIM";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    directory: PathBuf,
    borg: PathBuf,
    method: CaptureMethod,
    at: Stop,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Stop {
    /// Before the call of this number that changes something.
    Before(usize),
    /// After it.
    After(usize),
    /// At this side of a write of the records, counted from the first.
    Record(usize),
}

#[test]
#[ignore = "started by the others"]
fn victim() {
    let Some(order) = std::env::var_os(ORDER) else {
        return;
    };
    let order: Order = serde_json::from_str(order.to_str().unwrap()).unwrap();
    let mut engine = Engine::open(&order.directory, &order.borg, order.method);
    match order.at {
        Stop::Before(number) => engine.host.faults().at(number, Fault::DieBefore),
        Stop::After(number) => engine.host.faults().at(number, Fault::DieAfter),
        Stop::Record(number) => {
            let count = AtomicUsize::new(0);
            engine.state = engine.state.watched(Arc::new(move |_| {
                if count.fetch_add(1, Ordering::SeqCst) == number {
                    kill_process(getpid(), Signal::KILL).unwrap();
                }
            }));
        }
    }
    engine.backup(&()).unwrap();
}

/// Whether the victim was killed; else it came to its end before.
fn is_killed(bench: &Bench, method: CaptureMethod, at: Stop) -> bool {
    let order = Order {
        directory: bench.lab.directory().to_owned(),
        borg: bench.borg.base().to_owned(),
        method,
        at,
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "deaths::victim", "--ignored"])
        .env(ORDER, serde_json::to_string(&order).unwrap())
        .output()
        .unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(
        killed || output.status.success(),
        "{at:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    killed
}

/// Second backups that are killed at these stops, until one comes to its end.
fn each_is_survived(method: CaptureMethod, stop: fn(usize) -> Stop) {
    thread::scope(|scope| {
        for first in 0..AT_ONCE {
            scope.spawn(move || {
                let bench = Bench::new(method);
                bench.engine.backup(&()).unwrap();
                let stops = (first..).step_by(AT_ONCE).map(stop);
                let survived = stops.take_while(|at| is_survived(&bench, method, *at)).count();
                assert!(survived > 0 || first > 2, "there are no more than {first} stops");
                bench.check();
            });
        }
    });
}

/// Whether a backup was killed at this stop. Then all is well after the next one; else it came to its end before.
fn is_survived(bench: &Bench, method: CaptureMethod, at: Stop) -> bool {
    let case = format!("{at:?}");
    bench.change(bench.guest.content("vdb")[3 << 20].wrapping_add(1));
    let before = bench.content();
    let killed = is_killed(bench, method, at);
    assert!(bench.content() == before, "{case}: the guest has something else");
    if killed {
        let next = bench.engine.backup(&());
        let next = next.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert!(bench.content() == before, "{case}: the guest has something else");
        assert!(bench.restored(&next.archive) == before, "{case}");
    }
    bench.at_rest(&case);
    killed
}

macro_rules! deaths {
    ($($name:ident: $method:ident $stop:ident;)*) => {
        $(#[test] fn $name() { each_is_survived(CaptureMethod::$method, Stop::$stop); })*
    };
}

deaths! {
    a_job_is_survived_that_dies_before_a_call: Checkpoint Before;
    a_job_is_survived_that_dies_after_a_call: Checkpoint After;
    a_job_is_survived_that_dies_at_a_record: Checkpoint Record;
    a_snapshot_is_survived_that_dies_before_a_call: Snapshot Before;
    a_snapshot_is_survived_that_dies_after_a_call: Snapshot After;
    a_snapshot_is_survived_that_dies_at_a_record: Snapshot Record;
}
