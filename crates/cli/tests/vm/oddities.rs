//! The bench of oddities: domains of every kind that a host may hold, one row each, and for each what every command does:
//! what is right, or a refusal that says what to do.
//!
//! No guest is booted: domains are started paused, and written to through QEMU's monitor. `STRONGROOM_ODDITY=WORD` runs
//! only the rows whose description holds the word.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod course;
mod domains;
mod formats;
mod place;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use self::course::Expected;
use self::place::Place;

/// One kind of domain.
struct Kind {
    /// What is odd about it.
    what: &'static str,
    /// Its name, behind the lab's own prefix.
    name: &'static str,
    /// Makes it: images and definition.
    make: fn(&mut Place),
    /// What is right.
    expected: Expected,
}

#[test]
fn each_kind_of_domain_is_right_or_refused_with_a_reason() {
    let only = std::env::var("STRONGROOM_ODDITY").unwrap_or_default();
    let kinds = formats::KINDS.iter().chain(domains::KINDS);
    let waiting: Mutex<Vec<&Kind>> = Mutex::new(kinds.filter(|kind| kind.what.contains(&only)).collect());
    let failed = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(kind) = { waiting.lock().unwrap().pop() } {
                    let begin = Instant::now();
                    let result = catch_unwind(AssertUnwindSafe(|| course::follow(kind)));
                    println!("{}: {:.0?}", kind.what, begin.elapsed());
                    if result.is_err() {
                        failed.lock().unwrap().push(kind.what);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "wrong (see above): {failed:?}");
}
