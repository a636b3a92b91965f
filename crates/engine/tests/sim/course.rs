//! The course of backups and restores where nothing goes wrong.

use strongroom_engine::config::CaptureMethod;
use strongroom_engine::restore;
use strongroom_engine::run::event::Kind;
use strongroom_hypervisor::Hypervisor as _;
use strongroom_points::manifest::{Method, Mode};

use crate::bench::{Bench, Hook, MIB, VM, request};

/// Full, then incremental, each with what the guest had at its instant, whatever it wrote while it was read.
fn comes_back(method: CaptureMethod, expected: Method) {
    let bench = Bench::new(method);
    let before = bench.content();
    let hook = Hook::new(|event| {
        if let Kind::Captured { exports, .. } = event {
            assert_eq!(exports.len(), 2);
            bench.change(0x21);
        }
    });
    let full = bench.engine.backup(&hook).unwrap();
    assert_eq!(*hook.warnings.lock().unwrap(), [""; 0]);
    assert_eq!(full.manifest.method, expected);
    for disk in &full.manifest.disks {
        assert_eq!((disk.mode, disk.parent.as_deref()), (Mode::Full, None));
        assert_eq!(
            disk.tracked,
            disk.target == "vda",
            "a raw image has no place for a bitmap"
        );
    }
    bench.at_rest("");
    let between = bench.content();
    assert_ne!(before, between);

    let next = bench.engine.backup(&()).unwrap();
    let [vda, vdb] = &next.manifest.disks[..] else {
        panic!("{:?}", next.manifest.disks)
    };
    assert_eq!((vda.mode, vdb.mode), (Mode::Incremental, Mode::Full));
    assert_eq!(vda.parent.as_deref(), Some(full.archive.as_str()));
    // One cell and the spot check, of 12 MiB.
    assert!(vda.bytes_read < 6 * MIB, "{} bytes are read", vda.bytes_read);
    bench.at_rest("");

    assert_eq!(bench.archives(), [full.archive.as_str(), &next.archive]);
    assert!(bench.restored(&full.archive) == before, "the full one");
    assert!(bench.restored(&next.archive) == between, "the incremental one");
    assert!(bench.content() == between, "the guest's own disks");
    bench.check();
}

#[test]
fn what_a_job_froze_comes_back() {
    comes_back(CaptureMethod::Checkpoint, Method::Checkpoint);
}

#[test]
fn what_lies_below_a_snapshot_comes_back() {
    comes_back(CaptureMethod::Snapshot, Method::Snapshot);
}

#[test]
fn a_vm_that_is_off_is_read_as_it_is() {
    let bench = Bench::new(CaptureMethod::Auto);
    bench.guest.shut_down();
    let before = bench.content();
    let report = bench.engine.backup(&()).unwrap();
    assert_eq!(report.manifest.method, Method::Offline);
    assert!(bench.restored(&report.archive) == before);
    bench.at_rest("");
    // Started while it is read, what was read counts for nothing.
    let hook = Hook::new(|event| {
        if let Kind::Captured { .. } = event {
            bench.guest.start();
            bench.change(0x22);
        }
    });
    let error = bench.engine.backup(&hook).unwrap_err().to_string();
    assert!(
        error.contains("started or written to while it was read"),
        "{error}"
    );
    assert_eq!(bench.archives(), [report.archive]);
}

#[test]
fn a_whole_vm_is_defined_beside_its_original_and_over_it() {
    let bench = Bench::new(CaptureMethod::Auto);
    let before = bench.content();
    bench.engine.backup(&()).unwrap();
    let to = bench.lab.path("copies");
    std::fs::create_dir(&to).unwrap();
    let copy = restore::Request {
        rename: Some("copy".into()),
        to: Some(to),
        ..request("latest")
    };
    bench.engine.restore(&copy).unwrap();
    let host = &bench.engine.host;
    let domain = host.domain("copy").unwrap();
    assert_ne!(domain.uuid, bench.guest.uuid);
    let guest = host.guest_of(domain.uuid);
    assert!(["vda", "vdb"].map(|target| guest.content(target)) == before);
    // It is no VM's place to be defined twice.
    bench.engine.restore(&copy).unwrap_err();

    // Over the original: not while it runs.
    bench.change(0x23);
    let over = restore::Request {
        overwrite: true,
        ..request("latest")
    };
    bench.engine.restore(&over).unwrap_err();
    assert!(bench.content() != before);
    bench.guest.shut_down();
    bench.engine.restore(&request("latest")).unwrap_err();
    bench.engine.restore(&over).unwrap();
    assert_eq!(host.domain(VM).unwrap().uuid, bench.guest.uuid);
    assert!(bench.content() == before);
}

#[test]
fn what_qemu_forgot_is_read_in_full() {
    let bench = Bench::new(CaptureMethod::Auto);
    bench.engine.backup(&()).unwrap();
    bench.guest.kill();
    bench.guest.start();
    bench.change(0x24);
    let before = bench.content();
    let report = bench.engine.backup(&()).unwrap();
    let vda = &report.manifest.disks[0];
    assert_eq!(vda.mode, Mode::Full);
    assert!(vda.reason.contains("checkpoint"), "{}", vda.reason);
    assert!(bench.restored("latest") == before);
    bench.at_rest("");
    bench.change(0x25);
    assert_eq!(
        bench.engine.backup(&()).unwrap().manifest.disks[0].mode,
        Mode::Incremental
    );
}

#[test]
fn a_checkpoint_that_was_forgotten_is_known_again() {
    let bench = Bench::new(CaptureMethod::Auto);
    bench.engine.backup(&()).unwrap();
    let host = &bench.engine.host;
    let [checkpoint] = &host.checkpoints(bench.guest.uuid).unwrap()[..] else {
        panic!("one checkpoint")
    };
    strongroom_hypervisor::Tracking::forget_checkpoint(host, bench.guest.uuid, checkpoint).unwrap();
    bench.change(0x26);
    let before = bench.content();
    let report = bench.engine.backup(&()).unwrap();
    assert_eq!(report.manifest.disks[0].mode, Mode::Incremental);
    assert!(bench.restored("latest") == before);
    bench.at_rest("");
}
