//! External snapshots: what everybody says about the images, the way onto an overlay and home again.

mod behind;
mod events;
mod views;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{BlockJob, BlockJobState, Chain, Chains as _, HypervisorError, SnapshotDisk};
use uuid::Uuid;

use crate::fixture::{Guest, expect, virsh};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_mins(1);

const MIB: u64 = 1024 * 1024;

fn image(guest: &Guest, target: &str) -> PathBuf {
    let format = if target == "vdc" { "raw" } else { "qcow2" };
    guest.dir.path().join(format!("{target}.{format}"))
}

fn overlay(guest: &Guest, target: &str) -> PathBuf {
    guest.dir.path().join(format!("{target}.overlay"))
}

fn asked(guest: &Guest, target: &str) -> SnapshotDisk {
    SnapshotDisk {
        target: target.into(),
        overlay: overlay(guest, target),
    }
}

fn chain(guest: &Guest, target: &str) -> Chain {
    let chains = guest.libvirt.chains(guest.uuid).unwrap();
    chains.into_iter().find(|chain| chain.target == target).unwrap()
}

/// What is said of a disk that is on its own image in every view.
fn home(guest: &Guest, target: &str) -> Chain {
    let images = vec![image(guest, target)];
    Chain {
        target: target.into(),
        qemu: images.clone(),
        live: images.clone(),
        inactive: images,
        job: None,
        job_in_qemu: false,
    }
}

/// What is said of a disk that is on its overlay in every view.
fn away(guest: &Guest, target: &str) -> Chain {
    let images = vec![overlay(guest, target), image(guest, target)];
    Chain {
        qemu: images.clone(),
        live: images.clone(),
        inactive: images,
        ..home(guest, target)
    }
}

/// Waits, event by event, until a disk looks as wanted. Woken by events alone: a minute without one fails.
fn await_chain(guest: &Guest, target: &str, seen: u64, wanted: impl Fn(&Chain) -> bool) -> Chain {
    let mut seen = seen;
    let start = Instant::now();
    loop {
        let found = chain(guest, target);
        if wanted(&found) {
            return found;
        }
        seen = guest.libvirt.await_event(guest.uuid, seen, LONG);
        assert!(start.elapsed() < LONG, "{found:?}");
    }
}

fn commit(guest: &Guest, target: &str) {
    let libvirt = &guest.libvirt;
    let seen = libvirt.events(guest.uuid);
    let (top, base) = (overlay(guest, target), image(guest, target));
    libvirt.start_commit(guest.uuid, target, &top, &base, 0).unwrap();
    let ready = |chain: &Chain| {
        let job = chain.job.as_ref();
        job.is_some_and(|job| job.state == BlockJobState::Ready)
    };
    let found = await_chain(guest, target, seen, ready);
    assert_eq!(
        found.job,
        Some(BlockJob {
            kind: "active-commit".into(),
            to: Some(base),
            state: BlockJobState::Ready,
        })
    );
    assert!(found.job_in_qemu);
    assert_eq!(
        found.qemu,
        away(guest, target).qemu,
        "the job's filter is seen through"
    );
    libvirt.pivot(guest.uuid, target).unwrap();
}

/// Whether an image holds that byte in the whole range, read from outside.
fn image_holds(image: &Path, format: &str, pattern: u8, offset: &str, length: &str) -> bool {
    let read = format!("read -P {pattern} {offset} {length}");
    let output = expect(
        Command::new("qemu-io")
            .args(["-U", "-r", "-f", format, "-c", &read])
            .arg(image),
    );
    !output.contains("verification failed")
}

#[test]
fn one_disk_goes_onto_an_overlay_and_home() {
    let guest = Guest::start("");
    let libvirt = &guest.libvirt;
    let targets = |chains: Vec<Chain>| chains.into_iter().map(|chain| chain.target).collect::<Vec<_>>();
    assert_eq!(
        targets(libvirt.chains(guest.uuid).unwrap()),
        ["vda", "vdb", "vdc", "vdd"],
        "without the CD-ROM drive"
    );
    for target in ["vda", "vdb", "vdc", "vdd"] {
        assert_eq!(chain(&guest, target), home(&guest, target));
    }
    guest.write("vda", 0xaa, "1M", "64k");

    let took = libvirt
        .take_snapshot(guest.uuid, &[asked(&guest, "vda")])
        .unwrap();
    assert!(took > Duration::ZERO && took < LONG, "{took:?}");
    assert_eq!(chain(&guest, "vda"), away(&guest, "vda"));
    for target in ["vdb", "vdc", "vdd"] {
        assert_eq!(chain(&guest, target), home(&guest, target), "not asked for");
    }
    assert_eq!(guest.virsh(&["snapshot-list"], &["--name"]).trim(), "");

    // The base stays as it was while the guest writes.
    guest.write("vda", 0xbb, "1M", "64k");
    guest.write("vda", 0xcc, "40M", "8M");
    assert!(image_holds(&image(&guest, "vda"), "qcow2", 0xaa, "1M", "64k"));
    assert!(image_holds(&image(&guest, "vda"), "qcow2", 0, "40M", "8M"));

    // A second one on the same disk is another overlay, which is not wanted; one over an existing file is refused.
    let again = libvirt
        .take_snapshot(guest.uuid, &[asked(&guest, "vda")])
        .unwrap_err();
    assert!(again.to_string().contains("exists already"), "{again}");
    assert_eq!(chain(&guest, "vda"), away(&guest, "vda"));

    commit(&guest, "vda");
    assert_eq!(chain(&guest, "vda"), home(&guest, "vda"));
    std::fs::remove_file(overlay(&guest, "vda")).unwrap();
    assert!(image_holds(&image(&guest, "vda"), "qcow2", 0xbb, "1M", "64k"));
    assert!(image_holds(&image(&guest, "vda"), "qcow2", 0xcc, "40M", "8M"));
    guest.write("vda", 0xdd, "2M", "64k");
    assert!(image_holds(&image(&guest, "vda"), "qcow2", 0xdd, "2M", "64k"));
}

#[test]
fn several_disks_go_together_raw_and_old_ones_too() {
    let guest = Guest::start("");
    let disks = [asked(&guest, "vdc"), asked(&guest, "vdd")];
    guest.libvirt.take_snapshot(guest.uuid, &disks).unwrap();
    assert_eq!(chain(&guest, "vda"), home(&guest, "vda"));
    for target in ["vdc", "vdd"] {
        assert_eq!(chain(&guest, target), away(&guest, target));
        guest.write(target, 0x5a, "3M", "1M");
    }
    for target in ["vdc", "vdd"] {
        commit(&guest, target);
        assert_eq!(chain(&guest, target), home(&guest, target));
    }
    assert!(image_holds(&image(&guest, "vdc"), "raw", 0x5a, "3M", "1M"));
    assert!(image_holds(&image(&guest, "vdd"), "qcow2", 0x5a, "3M", "1M"));
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let guest = Guest::start("");
    let libvirt = &guest.libvirt;
    let refused = |result: Result<(), HypervisorError>| {
        let error = result.unwrap_err();
        assert!(matches!(&error, HypervisorError::Failed { .. }), "{error}");
        for target in ["vda", "vdb", "vdc", "vdd"] {
            assert_eq!(chain(&guest, target), home(&guest, target));
        }
        error.to_string()
    };
    let snapshot = |disks: &[SnapshotDisk]| libvirt.take_snapshot(guest.uuid, disks).map(|_| ());
    let absent = asked(&guest, "vdz");
    assert!(refused(snapshot(&[asked(&guest, "vda"), absent])).contains("no disk vdz"));
    refused(snapshot(&[]));
    refused(snapshot(&[SnapshotDisk {
        target: "vda".into(),
        overlay: "/nonexistent/overlay".into(),
    }]));
    // Atomic: the first disk could have been done.
    refused(snapshot(&[
        asked(&guest, "vda"),
        SnapshotDisk {
            target: "vdb".into(),
            overlay: "/nonexistent/overlay".into(),
        },
    ]));
    std::fs::write(overlay(&guest, "vdb"), "").unwrap();
    assert!(refused(snapshot(&[asked(&guest, "vdb")])).contains("exists already"));

    let (top, base) = (overlay(&guest, "vda"), image(&guest, "vda"));
    refused(libvirt.start_commit(guest.uuid, "vda", &top, &base, 0));
    refused(libvirt.start_commit(guest.uuid, "vdz", &top, &base, 0));
    refused(libvirt.pivot(guest.uuid, "vda"));
    refused(libvirt.set_inactive_image(guest.uuid, "vdz", &base, "qcow2"));
    refused(libvirt.set_inactive_image(guest.uuid, "sda", &base, "qcow2"));
    refused(libvirt.set_inactive_image(guest.uuid, "vda", Path::new("relative"), "qcow2"));

    let nobody = Uuid::from_u128(1);
    let error = libvirt.chains(nobody).unwrap_err();
    assert!(matches!(error, HypervisorError::NoSuchDomain(..)), "{error}");
}

#[test]
fn a_pivot_before_the_time_is_refused() {
    let guest = Guest::start("");
    let libvirt = &guest.libvirt;
    libvirt
        .take_snapshot(guest.uuid, &[asked(&guest, "vda")])
        .unwrap();
    guest.write("vda", 0x11, "0", "32M");
    let (top, base) = (overlay(&guest, "vda"), image(&guest, "vda"));
    libvirt.start_commit(guest.uuid, "vda", &top, &base, MIB).unwrap();
    let found = chain(&guest, "vda");
    assert_eq!(found.job.map(|job| job.state), Some(BlockJobState::Copying));
    assert!(found.job_in_qemu);
    assert_eq!(found.qemu, away(&guest, "vda").qemu);
    libvirt.pivot(guest.uuid, "vda").unwrap_err();
    // Another job, and another snapshot, do not fit beside it.
    let error = libvirt
        .start_commit(guest.uuid, "vda", &top, &base, 0)
        .unwrap_err();
    assert!(matches!(error, HypervisorError::Busy { .. }), "{error}");
    assert_eq!(chain(&guest, "vda").live, away(&guest, "vda").live);
}

#[test]
fn a_stale_definition_is_put_right_and_keeps_the_rest() {
    let guest = Guest::start("");
    let libvirt = &guest.libvirt;
    let defined = || guest.virsh(&["dumpxml"], &["--inactive", "--security-info"]);
    let before = defined();
    libvirt
        .take_snapshot(guest.uuid, &[asked(&guest, "vda")])
        .unwrap();
    let with_overlay = defined();
    assert!(with_overlay.contains("<backingStore"), "{with_overlay}");

    // Another program defines the domain as it was: from now on a power cycle would lose data.
    let stale = guest.dir.path().join("stale.xml");
    std::fs::write(&stale, &before).unwrap();
    expect(virsh().arg("define").arg(&stale));
    let found = chain(&guest, "vda");
    assert_eq!(
        (found.live, found.inactive),
        (away(&guest, "vda").live, home(&guest, "vda").live)
    );

    let top = overlay(&guest, "vda");
    for _ in 0..2 {
        libvirt
            .set_inactive_image(guest.uuid, "vda", &top, "qcow2")
            .unwrap();
        let found = chain(&guest, "vda");
        assert_eq!(found.inactive, std::slice::from_ref(&top));
        assert_eq!(
            found.live,
            away(&guest, "vda").live,
            "the running one is not touched"
        );
        assert_eq!(
            defined(),
            before.replace(image(&guest, "vda").to_str().unwrap(), top.to_str().unwrap())
        );
    }

    // What libvirt itself wrote goes back to what it was before the snapshot, byte by byte.
    std::fs::write(&stale, &with_overlay).unwrap();
    expect(virsh().arg("define").arg(&stale));
    let base = image(&guest, "vda");
    libvirt
        .set_inactive_image(guest.uuid, "vda", &base, "qcow2")
        .unwrap();
    assert_eq!(defined(), before);
    commit(&guest, "vda");
    assert_eq!(chain(&guest, "vda"), home(&guest, "vda"));
}

#[test]
fn a_domain_that_is_off_has_only_its_definition() {
    let guest = Guest::start("");
    let libvirt = &guest.libvirt;
    libvirt
        .take_snapshot(guest.uuid, &[asked(&guest, "vda")])
        .unwrap();
    let seen = libvirt.events(guest.uuid);
    guest.virsh(&["destroy"], &[]);
    assert!(
        libvirt.await_event(guest.uuid, seen, LONG) > seen,
        "its end is an event"
    );
    let off = |inactive| Chain {
        qemu: Vec::new(),
        live: Vec::new(),
        inactive,
        ..home(&guest, "vda")
    };
    assert_eq!(chain(&guest, "vda"), off(away(&guest, "vda").inactive));
    let (top, base) = (overlay(&guest, "vda"), image(&guest, "vda"));
    libvirt
        .take_snapshot(guest.uuid, &[asked(&guest, "vdb")])
        .unwrap_err();
    libvirt
        .start_commit(guest.uuid, "vda", &top, &base, 0)
        .unwrap_err();

    // As it is done for a domain that was stopped on its overlay.
    expect(
        Command::new("qemu-img")
            .args(["commit", "-q", "-f", "qcow2", "-b"])
            .args([&base, &top]),
    );
    libvirt
        .set_inactive_image(guest.uuid, "vda", &base, "qcow2")
        .unwrap();
    assert_eq!(chain(&guest, "vda"), off(vec![base]));
    let seen = libvirt.events(guest.uuid);
    guest.virsh(&["start"], &[]);
    assert!(libvirt.await_event(guest.uuid, seen, LONG) > seen);
    assert_eq!(chain(&guest, "vda"), home(&guest, "vda"));
}

#[test]
fn a_block_device_stays_one() {
    let guest = Guest::define("");
    let device = guest.dir.path().join("device");
    // A node that leads nowhere: the domain is not started with it.
    let made = Command::new("mknod")
        .arg(&device)
        .args(["b", "240", "0"])
        .status();
    assert!(made.unwrap().success());
    let set = |image: &Path, format: &str| {
        let set = guest.libvirt.set_inactive_image(guest.uuid, "vdc", image, format);
        set.unwrap();
    };
    let disk = || {
        guest
            .facts()
            .disks
            .into_iter()
            .find(|disk| disk.target == "vdc")
            .unwrap()
    };
    set(&device, "raw");
    assert_eq!(
        disk().source,
        strongroom_hypervisor::DiskSource::Block(device.clone())
    );
    assert_eq!(chain(&guest, "vdc").inactive, [device]);
    set(&overlay(&guest, "vdc"), "qcow2");
    assert_eq!(
        disk().source,
        strongroom_hypervisor::DiskSource::File(overlay(&guest, "vdc"))
    );
    assert_eq!(disk().format, "qcow2");
}
