//! What the next backup is built upon, after one that did not come to its end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use strongroom_base::cancel::Cancel;
use strongroom_engine::backup::BackupError;
use strongroom_engine::config::CaptureMethod;
use strongroom_engine::run::event::{Kind, Step};
use strongroom_points::manifest::Mode;

use crate::bench::{Bench, Hook};

/// The next backup is incremental, says so of this parent, and what is restored is what the guest had.
#[track_caller]
fn next_is_incremental(bench: &Bench, parent: &str) {
    let before = bench.content();
    let report = bench.engine.backup(&()).unwrap();
    let vda = &report.manifest.disks[0];
    assert_eq!(vda.mode, Mode::Incremental, "{}", vda.reason);
    assert_eq!(vda.parent.as_deref(), Some(parent));
    assert!(bench.restored(&report.archive) == before);
    bench.at_rest(parent);
    bench.check();
}

#[test]
fn a_checkpoint_of_an_aborted_run_is_no_parent() {
    let mut bench = Bench::new(CaptureMethod::Auto);
    bench.engine.backup(&()).unwrap();
    let archives = bench.archives();
    bench.change(0x51);
    let cancel = bench.engine.cancel.clone();
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            cancel.cancel();
        }
    });
    let error = bench.engine.backup(&hook).unwrap_err();
    assert!(matches!(error, BackupError::Cancelled(_)), "{error}");
    bench.engine.cancel = Cancel::new();
    bench.engine.repositories.cancel = bench.engine.cancel.clone();
    assert_eq!(bench.archives(), archives);
    bench.at_rest("aborted");
    bench.check();
    bench.change(0x52);
    next_is_incremental(&bench, &archives[0]);
}

#[test]
fn death_between_the_commit_and_the_records() {
    let bench = Bench::new(CaptureMethod::Auto);
    let before = bench.engine.backup(&()).unwrap().archive;
    bench.change(0x53);
    let hook = Hook::new(|event| {
        let end = matches!(event, Kind::Step { step: Step::Release });
        assert!(!end, "this is where it ends");
    });
    let died = catch_unwind(AssertUnwindSafe(|| bench.engine.backup(&hook)));
    assert!(died.is_err());
    let unrecorded = bench.archives().pop().unwrap();
    assert_ne!(unrecorded, before, "it was committed");
    // The archive is good, but the pair that the records know is the older one.
    bench.change(0x54);
    let content = bench.content();
    let hook = Hook::new(|_| {});
    let report = bench.engine.backup(&hook).unwrap();
    let warnings = hook.warnings.lock().unwrap().join("\n");
    assert!(warnings.contains("was interrupted"), "{warnings}");
    let vda = &report.manifest.disks[0];
    assert_eq!(vda.parent.as_deref(), Some(before.as_str()));
    assert!(bench.restored(&report.archive) == content);
    bench.at_rest("recovered");
    bench.change(0x55);
    next_is_incremental(&bench, &report.archive);
}

#[test]
fn a_parent_whose_archive_is_deleted() {
    let bench = Bench::new(CaptureMethod::Auto);
    let parent = bench.engine.backup(&()).unwrap().archive;
    let repository = bench.engine.config.repository_of(crate::bench::VM);
    bench.borg.run(["delete", &format!("{repository}::{parent}")]);
    let content = bench.content();
    let report = bench.engine.backup(&()).unwrap();
    let vda = &report.manifest.disks[0];
    assert_eq!(vda.mode, Mode::Full);
    assert!(
        vda.reason.contains(&parent) && vda.reason.contains("is not in the repository"),
        "{}",
        vda.reason
    );
    assert!(bench.restored(&report.archive) == content);
    bench.at_rest("deleted");
    bench.change(0x56);
    next_is_incremental(&bench, &report.archive);
}
