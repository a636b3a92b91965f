//! Backup jobs: what they show, whom they refuse, what they leave.

use strongroom_hypervisor::{HypervisorError, RunningJob};

use super::{KIB, MIB, Peer, PeerExt as _, dirty, holds, is_served};

fn no_leftovers(peer: &dyn Peer) {
    assert_eq!(peer.port().backup_job(peer.uuid()).unwrap(), None);
    for target in ["vda", "vdb", "vdc"] {
        assert!(!peer.scratch(target).exists(), "scratch file of {target}");
    }
}

/// What the guest writes while a job runs does not show; a second job is refused at once; the end leaves nothing.
pub fn a_full_view_is_frozen(peer: &dyn Peer) {
    peer.start();
    let (port, uuid) = (peer.port(), peer.uuid());
    assert_eq!(port.backup_job(uuid).unwrap(), None);
    assert_eq!(port.lacks_backup_jobs(uuid).unwrap(), None);
    peer.write("vda", 0xaa, MIB, 64 * KIB);
    peer.write("vdc", 0xee, 0, MIB);
    // The system disk, and a raw one that cannot take part in a checkpoint.
    let job = peer.job(Some("cp-1"), &[("vda", None, true), ("vdc", None, false)]);
    port.begin_backup(uuid, &job).unwrap();
    let at = |target: &str| port.export(&job.listener, target).unwrap();
    assert_eq!(
        port.backup_job(uuid).unwrap(),
        Some(RunningJob {
            socket: job.listener.socket().map(Into::into),
            scratch: vec![peer.scratch("vda"), peer.scratch("vdc")],
        })
    );
    assert!(peer.facts().busy.is_some(), "a job of ours shows");
    assert!(
        !is_served(&at("vdb")),
        "a disk that was not asked for is not exported"
    );
    peer.write("vda", 0xbb, MIB, 64 * KIB);
    peer.write("vda", 0xcc, 40 * MIB, MIB);
    peer.write("vdb", 0xdd, 0, MIB);
    peer.write("vdc", 0, 0, MIB);
    assert!(holds(&at("vda"), 0xaa, MIB, 64 * KIB));
    assert!(holds(&at("vda"), 0, 40 * MIB, MIB));
    assert!(holds(&at("vdc"), 0xee, 0, MIB));
    // A second one does no harm to the first.
    let second = port.begin_backup(uuid, &job).unwrap_err();
    assert!(matches!(&second, HypervisorError::Busy { .. }), "{second}");
    assert!(holds(&at("vda"), 0xaa, MIB, 64 * KIB));
    port.end_backup(uuid).unwrap();
    no_leftovers(peer);
    assert!(!is_served(&at("vda")));
    port.end_backup(uuid).unwrap();
    assert_eq!(peer.checkpoints(), ["cp-1"]);
    assert!(peer.facts().busy.is_none());
}

/// Exactly what was written since the checkpoint is dirty, whatever was made after it; other disks go in full beside it.
pub fn an_incremental_view_tells_what_was_written(peer: &dyn Peer) {
    peer.start();
    let (port, uuid) = (peer.port(), peer.uuid());
    peer.write("vda", 0xaa, 2 * MIB, MIB);
    peer.checkpoint("cp-1");
    peer.write("vda", 0xbb, MIB, 64 * KIB);
    peer.write("vda", 0xcc, 40 * MIB, MIB);
    let job = peer.job(Some("cp-2"), &[("vda", Some("cp-1"), true), ("vdb", None, true)]);
    port.begin_backup(uuid, &job).unwrap();
    let at = |target: &str| port.export(&job.listener, target).unwrap();
    assert_eq!(dirty(&at("vda")), [(MIB, 64 * KIB), (40 * MIB, MIB)]);
    assert!(holds(&at("vda"), 0xbb, MIB, 64 * KIB));
    assert!(is_served(&at("vdb")));
    // Of the next one, from this instant on.
    peer.write("vda", 0xdd, 8 * MIB, 64 * KIB);
    port.end_backup(uuid).unwrap();
    no_leftovers(peer);
    assert_eq!(peer.checkpoints(), ["cp-1", "cp-2"]);
    for (since, written) in [
        ("cp-2", vec![(8 * MIB, 64 * KIB)]),
        (
            "cp-1",
            vec![(MIB, 64 * KIB), (8 * MIB, 64 * KIB), (40 * MIB, MIB)],
        ),
    ] {
        let job = peer.job(None, &[("vda", Some(since), false)]);
        port.begin_backup(uuid, &job).unwrap();
        assert_eq!(
            dirty(&port.export(&job.listener, "vda").unwrap()),
            written,
            "{since}"
        );
        port.end_backup(uuid).unwrap();
    }
    // A parent that is deleted leaves the others what they know.
    port.delete_checkpoint(uuid, "cp-1").unwrap();
    let job = peer.job(None, &[("vda", Some("cp-2"), false)]);
    port.begin_backup(uuid, &job).unwrap();
    assert_eq!(
        dirty(&port.export(&job.listener, "vda").unwrap()),
        [(8 * MIB, 64 * KIB)]
    );
    port.end_backup(uuid).unwrap();
}

/// Off, from a checkpoint that is not there, or of a disk that is not there: refused, and as if nothing had been asked.
pub fn a_job_that_cannot_begin_leaves_nothing(peer: &dyn Peer) {
    let (port, uuid) = (peer.port(), peer.uuid());
    peer.start();
    let full = peer.job(Some("cp"), &[("vda", None, true)]);
    for job in [
        peer.job(Some("cp"), &[("vda", Some("absent"), true)]),
        peer.job(Some("cp"), &[("vda", None, true), ("vdz", None, false)]),
        peer.job(Some("cp"), &[("vda", None, true), ("vdc", None, true)]),
    ] {
        port.begin_backup(uuid, &job).unwrap_err();
        no_leftovers(peer);
        assert!(peer.checkpoints().is_empty(), "{job:?}");
    }
    port.begin_backup(uuid, &full).unwrap();
    port.end_backup(uuid).unwrap();
    // A job ends with the process.
    let again = peer.job(None, &[("vda", Some("cp"), false)]);
    port.begin_backup(uuid, &again).unwrap();
    peer.stop();
    no_leftovers(peer);
    port.begin_backup(uuid, &again).unwrap_err();
    no_leftovers(peer);
}
