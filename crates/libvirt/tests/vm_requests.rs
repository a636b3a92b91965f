//! What a guest asks of its disks is counted, and how long that takes; what others read from them is not.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use strongroom_hypervisor::{Hypervisor as _, Requests};
use strongroom_libvirt::Libvirt;
use strongroom_testkit::Lab;
use uuid::Uuid;

#[test]
fn the_requests_of_a_guest_are_counted_and_timed() {
    let lab = Lab::new();
    let guest = lab.guest().root_mib(256).boot();
    let libvirt = Libvirt::connect("qemu:///system").unwrap();
    let uuid: Uuid = guest.uuid().parse().unwrap();
    let ask = || libvirt.requests(uuid, &["vda", "vdb"]).unwrap();
    let before = ask();
    assert_eq!(before.len(), 6, "{before:?}");
    assert!(before[0].count > 0, "it has read its file system: {before:?}");
    guest.probe("write 8");
    guest.probe("sync");
    let after = ask();
    let more = |at: usize| Requests {
        count: after[at].count - before[at].count,
        nanoseconds: after[at].nanoseconds - before[at].nanoseconds,
    };
    for (at, what) in [(1, "writes"), (2, "flushes")] {
        assert!(
            more(at).count > 0 && more(at).nanoseconds > 0,
            "{what}: {:?}",
            more(at)
        );
    }
    assert_eq!(after[4], before[4], "nothing was written to the swap disk");
    let error = libvirt.requests(uuid, &["vdz"]).unwrap_err().to_string();
    assert!(error.contains("vdz"), "{error}");
    guest.destroy();
    assert!(
        libvirt.requests(uuid, &["vda"]).is_err(),
        "there is no QEMU to ask"
    );
}
