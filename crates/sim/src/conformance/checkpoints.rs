//! Checkpoints that are fine, gone, broken; and the bitmaps behind them.

use strongroom_hypervisor::HypervisorError;

use super::{Peer, PeerExt as _};

const NONE: [&str; 0] = [];

/// Oldest first, each good; a deleted one is gone, and what is not there is deleted already.
pub fn checkpoints_are_listed_checked_and_deleted(peer: &dyn Peer) {
    peer.start();
    let port = peer.port();
    assert_eq!(peer.checkpoints(), NONE);
    for name in ["b", "a", "c"] {
        peer.checkpoint(name);
    }
    assert_eq!(peer.checkpoints(), ["b", "a", "c"], "oldest first");
    for name in ["a", "b", "c"] {
        assert_eq!(peer.bad(name), NONE);
    }
    let error = port.check_checkpoint(peer.uuid(), "absent").unwrap_err();
    assert!(matches!(&error, HypervisorError::Failed { .. }), "{error}");
    port.delete_checkpoint(peer.uuid(), "a").unwrap();
    port.delete_checkpoint(peer.uuid(), "a").unwrap();
    port.delete_checkpoint(peer.uuid(), "never \0 was").unwrap_err();
    assert_eq!(peer.checkpoints(), ["b", "c"]);
    assert_eq!(peer.bad("b"), NONE);
    // Without a job, too; and no name twice.
    port.create_checkpoint(peer.uuid(), "d", &["vda".into(), "vdb".into()])
        .unwrap();
    port.create_checkpoint(peer.uuid(), "d", &["vda".into()])
        .unwrap_err();
    assert_eq!(
        (peer.checkpoints(), peer.bad("d")),
        (vec!["b".into(), "c".into(), "d".into()], vec![])
    );
}

/// Off, it has them still; none can be deleted.
pub fn a_domain_that_is_off_keeps_its_checkpoints(peer: &dyn Peer) {
    peer.start();
    peer.checkpoint("cp");
    peer.stop();
    let port = peer.port();
    assert_eq!(peer.bad("cp"), NONE);
    port.check_checkpoint(peer.uuid(), "absent").unwrap_err();
    let error = port.delete_checkpoint(peer.uuid(), "cp").unwrap_err().to_string();
    assert!(error.contains("only while the domain runs"), "{error}");
    assert_eq!(peer.checkpoints(), ["cp"]);
    port.delete_checkpoint(peer.uuid(), "absent").unwrap();
    port.create_checkpoint(peer.uuid(), "new", &["vda".into()])
        .unwrap_err();
    peer.start();
    assert_eq!(peer.bad("cp"), NONE);
}

/// A process that is killed takes what it knew of changes with it, also of checkpoints that were stored once.
pub fn a_death_of_the_process_breaks_all_checkpoints(peer: &dyn Peer) {
    peer.start();
    let port = peer.port();
    peer.checkpoint("stored");
    peer.stop();
    peer.start();
    assert_eq!(peer.bad("stored"), NONE);
    peer.checkpoint("in-memory");
    peer.kill();
    assert_eq!(
        peer.checkpoints(),
        ["stored", "in-memory"],
        "the list shows nothing of it"
    );
    peer.start();
    for name in ["stored", "in-memory"] {
        assert_eq!(peer.bad(name), ["vda"]);
        let job = peer.job(None, &[("vda", Some(name), false)]);
        let error = port.begin_backup(peer.uuid(), &job).unwrap_err();
        assert!(error.to_string().contains("bitmap"), "{error}");
        assert_eq!(port.backup_job(peer.uuid()).unwrap(), None);
    }
    port.delete_checkpoint(peer.uuid(), "in-memory").unwrap();
    port.delete_checkpoint(peer.uuid(), "stored").unwrap();
    assert_eq!(peer.checkpoints(), NONE);
    peer.checkpoint("new");
    assert_eq!(peer.bad("new"), NONE);
}

/// A checkpoint that is forgotten leaves its bitmap; with that it can be made known again, or the bitmap be removed.
pub fn bitmaps_outlive_what_is_known_of_a_checkpoint(peer: &dyn Peer) {
    peer.start();
    let port = peer.port();
    let bitmaps = || {
        let found = port.bitmaps(peer.uuid()).unwrap();
        let found = found
            .into_iter()
            .map(|bitmap| (bitmap.target, bitmap.name, bitmap.sound));
        found.collect::<Vec<_>>()
    };
    let one = |sound| vec![("vda".to_owned(), "cp".to_owned(), sound)];
    peer.checkpoint("cp");
    assert_eq!(bitmaps(), one(true));
    port.forget_checkpoint(peer.uuid(), "cp").unwrap();
    port.forget_checkpoint(peer.uuid(), "cp").unwrap();
    assert_eq!((peer.checkpoints(), bitmaps()), (vec![], one(true)));
    port.redefine_checkpoint(peer.uuid(), "cp", &["vda".into()])
        .unwrap();
    assert_eq!((peer.checkpoints(), peer.bad("cp")), (vec!["cp".into()], vec![]));
    port.forget_checkpoint(peer.uuid(), "cp").unwrap();
    port.remove_bitmap(peer.uuid(), "vda", "cp").unwrap();
    port.remove_bitmap(peer.uuid(), "vda", "cp").unwrap();
    assert_eq!(bitmaps(), []);
    port.redefine_checkpoint(peer.uuid(), "cp", &["vda".into()])
        .unwrap_err();
    assert_eq!(peer.checkpoints(), NONE);
}
