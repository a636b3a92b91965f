//! External snapshots: onto an overlay, and back to the image.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{BlockJobState, Chain, SnapshotDisk};

use super::{KIB, MIB, Peer, PeerExt as _, dirty};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_mins(1);

fn asked(peer: &dyn Peer, target: &str) -> SnapshotDisk {
    SnapshotDisk {
        target: target.into(),
        overlay: peer.overlay(target),
    }
}

fn chain(peer: &dyn Peer, target: &str) -> Chain {
    let mut chains = peer.port().chains(peer.uuid()).unwrap().into_iter();
    chains.find(|chain| chain.target == target).unwrap()
}

/// What is said of a disk that is on its own image in every view.
fn on_its_image(peer: &dyn Peer, target: &str) -> Chain {
    let images = vec![peer.image(target)];
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
fn away(peer: &dyn Peer, target: &str) -> Chain {
    let images = vec![peer.overlay(target), peer.image(target)];
    Chain {
        qemu: images.clone(),
        live: images.clone(),
        inactive: images,
        ..on_its_image(peer, target)
    }
}

/// Waits, event by event, until a disk looks as wanted.
fn await_chain(peer: &dyn Peer, target: &str, mut seen: u64, wanted: impl Fn(&Chain) -> bool) -> Chain {
    let start = Instant::now();
    loop {
        let found = chain(peer, target);
        if wanted(&found) {
            return found;
        }
        seen = peer.port().await_event(peer.uuid(), seen, LONG);
        assert!(start.elapsed() < LONG, "{found:?}");
    }
}

/// Merges a disk's overlay and waits until the guest is on its image again.
fn consolidate(peer: &dyn Peer, target: &str) {
    let (port, uuid) = (peer.port(), peer.uuid());
    let seen = port.events(uuid);
    let (overlay, base) = (peer.overlay(target), peer.image(target));
    port.start_commit(uuid, target, &overlay, &base, 0).unwrap();
    let state = |chain: &Chain| chain.job.as_ref().map(|job| job.state);
    let ready = |chain: &Chain| state(chain) == Some(BlockJobState::Ready);
    let found = await_chain(peer, target, seen, ready);
    let job = found.job.as_ref().unwrap();
    assert_eq!(
        (job.kind.as_str(), job.to.as_deref()),
        ("active-commit", Some(base.as_path()))
    );
    assert!(found.job_in_qemu);
    assert_eq!(
        found.qemu,
        away(peer, target).qemu,
        "a job's filter is seen through"
    );
    let seen = port.events(uuid);
    port.pivot(uuid, target).unwrap();
    await_chain(peer, target, seen, |found| *found == on_its_image(peer, target));
}

/// Whether an image that no process has holds that byte in the whole range.
fn holds(image: &Path, format: &str, pattern: u8, offset: u64, length: u64) -> bool {
    let read = format!("read -P {pattern} {offset} {length}");
    let output = Command::new("qemu-io")
        .args(["-r", "-f", format, "-c", &read])
        .arg(image)
        .output()
        .unwrap();
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("verification failed")
}

/// All three views go with it; what was written meanwhile is in the image, whose disk is on it for good.
pub fn an_image_goes_onto_an_overlay_and_home(peer: &dyn Peer) {
    peer.start();
    let (port, uuid) = (peer.port(), peer.uuid());
    for target in ["vda", "vdc"] {
        assert_eq!(chain(peer, target), on_its_image(peer, target));
        peer.write(target, 0x11, 0, MIB);
    }
    port.take_snapshot(uuid, &[asked(peer, "vda"), asked(peer, "vdc")])
        .unwrap();
    assert_eq!(chain(peer, "vda"), away(peer, "vda"));
    assert_eq!(chain(peer, "vdc"), away(peer, "vdc"));
    assert_eq!(chain(peer, "vdb"), on_its_image(peer, "vdb"));
    assert_eq!(port.snapshot_names(uuid).unwrap().len(), 0, "none is on record");
    for target in ["vda", "vdc"] {
        peer.write(target, 0x22, 64 * KIB, 64 * KIB);
        port.pivot(uuid, target).unwrap_err();
        consolidate(peer, target);
        peer.write(target, 0x33, 2 * MIB, 64 * KIB);
    }
    peer.stop();
    for (target, format) in [("vda", "qcow2"), ("vdc", "raw")] {
        let image = peer.image(target);
        assert!(holds(&image, format, 0x11, 0, 64 * KIB));
        assert!(holds(&image, format, 0x22, 64 * KIB, 64 * KIB));
        assert!(holds(&image, format, 0x33, 2 * MIB, 64 * KIB));
        let off = chain(peer, target);
        assert_eq!((off.qemu.len(), off.live.len()), (0, 0), "there is no process");
        assert_eq!(off.inactive[0], image);
        // The overlay is left to be removed.
        assert!(peer.overlay(target).exists());
    }
}

/// A file that is in the way, and no disk goes anywhere; what is not on an overlay is not merged.
pub fn a_snapshot_is_of_all_disks_or_of_none(peer: &dyn Peer) {
    peer.start();
    let (port, uuid) = (peer.port(), peer.uuid());
    std::fs::write(peer.overlay("vdb"), "in the way").unwrap();
    port.take_snapshot(uuid, &[asked(peer, "vda"), asked(peer, "vdb")])
        .unwrap_err();
    for target in ["vda", "vdb"] {
        assert_eq!(chain(peer, target), on_its_image(peer, target));
    }
    assert_eq!(std::fs::read(peer.overlay("vdb")).unwrap(), b"in the way");
    assert!(!peer.overlay("vda").exists());
    let (overlay, base) = (peer.overlay("vda"), peer.image("vda"));
    port.start_commit(uuid, "vda", &overlay, &base, 0).unwrap_err();
    assert_eq!(chain(peer, "vda"), on_its_image(peer, "vda"));
    // No view of a backup job goes away below it.
    let job = peer.job(None, &[("vda", None, false)]);
    port.begin_backup(uuid, &job).unwrap();
    port.end_backup(uuid).unwrap();
    // What the next start uses can be put right by name.
    port.set_inactive_image(uuid, "vda", &base, "qcow2").unwrap();
    assert_eq!(chain(peer, "vda"), on_its_image(peer, "vda"));
}

/// What went through an overlay has changed since the checkpoint before it.
pub fn a_checkpoint_knows_what_was_merged(peer: &dyn Peer) {
    peer.start();
    let (port, uuid) = (peer.port(), peer.uuid());
    port.create_checkpoint(uuid, "cp", &["vda".into()]).unwrap();
    port.take_snapshot(uuid, &[asked(peer, "vda")]).unwrap();
    peer.write("vda", 0x44, 4 * MIB, 64 * KIB);
    consolidate(peer, "vda");
    peer.write("vda", 0x55, 8 * MIB, 64 * KIB);
    let job = peer.job(None, &[("vda", Some("cp"), false)]);
    port.begin_backup(uuid, &job).unwrap();
    let found = dirty(&port.export(&job.listener, "vda").unwrap());
    assert_eq!(found, [(4 * MIB, 64 * KIB), (8 * MIB, 64 * KIB)]);
    port.end_backup(uuid).unwrap();
}
