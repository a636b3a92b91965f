//! Which earlier restore point an increment may follow.

use super::super::*;
use strongroom_points::store::{Archive, ArchiveInfo, ChunkId, Item};

fn committed() -> Committed {
    Committed {
        run: "r1".into(),
        archive: "web-1".into(),
        checkpoint: "strongroom-r1".into(),
        repository: "00".into(),
    }
}

pub(super) fn written() -> Manifest {
    let text = r#"{"format":1,"vm":{"name":"web","uuid":"00000000-0000-0000-0000-000000000001"},"run":"r1",
        "sequence":1,"previous":null,"captured":"2026-11-30T00:00:00Z","method":"checkpoint","consistency":"crash",
        "stall_us":0,"checkpoint":"strongroom-r1","disks":[],"excluded":[],"files":[],"inventory":[],"producer":"test"}"#;
    Manifest::parse(text.as_bytes()).unwrap()
}

/// The mutants of `parent`: each fact by itself makes it no parent.
#[test]
fn a_checkpoint_and_an_archive_are_a_pair_or_no_parent() {
    let vm = Uuid::from_u128(1);
    let good = written();
    assert_eq!(pair(&committed(), "00", vm, Some(&good)), Ok(()));
    let no = |repository: &str, vm: u128, written: Option<&Manifest>, says: &str| {
        let why = pair(&committed(), repository, Uuid::from_u128(vm), written).unwrap_err();
        assert!(why.contains(says), "{why}");
    };
    no("11", 1, Some(&good), "another repository");
    no("00", 2, Some(&good), "another VM");
    no("00", 1, None, "is not in the repository");
    let mut other = written();
    other.run = "r2".into();
    no(
        "00",
        1,
        Some(&other),
        "not the one that the checkpoint belongs to",
    );
    let mut other = written();
    other.checkpoint = None;
    no(
        "00",
        1,
        Some(&other),
        "not the one that the checkpoint belongs to",
    );
}

/// A disk `vda` of 4096 bytes as a manifest has it.
fn record(chunks: &[ChunkRef], identity: Identity) -> DiskRecord {
    let text = r#"{"target":"vda","size":4096,"source_format":"qcow2","mode":"full","reason":"","parent":null,
        "tracked":true,"digest":"","chunks":1,"bytes_read":0,"bytes_stored":0,"luks":[]}"#;
    DiskRecord {
        digest: digest::of_chunks(chunks),
        identity: Some(identity),
        ..serde_json::from_str(text).unwrap()
    }
}

/// A bitmap that cannot be used makes its own disk be read in full, and no other.
#[test]
fn a_bad_bitmap_is_of_one_disk() {
    let chunks = vec![ChunkRef {
        id: ChunkId([1; 32]),
        size: 4096,
        stored: 0,
    }];
    let vda = super::disk("vda");
    let mut manifest = written();
    manifest.disks.push(record(&chunks, vda.identity.clone()));
    let path = strongroom_points::manifest::disk_path("vda");
    let info = ArchiveInfo {
        name: "web-1".into(),
        id: ChunkId([0; 32]),
        time: manifest.captured,
    };
    let point = RestorePoint {
        archive: Archive {
            time: info.time,
            authenticated: true,
            item_ids: Vec::new(),
            info,
        },
        manifest,
        bytes: Vec::new(),
        signature: None,
        link: String::new(),
        items: [(path.clone(), Item::regular(&path, chunks))].into(),
        strange: Vec::new(),
        damaged: std::collections::BTreeSet::new(),
    };
    let committed = committed();
    let says = |target: &str| {
        let bad = BadBitmap {
            target: target.into(),
            why: "it is inconsistent".into(),
        };
        basis(&vda, 4096, &Parent::Usable(&committed, &point, vec![bad])).map(|known| known.archive.clone())
    };
    assert_eq!(says("vdb"), Ok("web-1".into()));
    assert!(says("vda").unwrap_err().contains("it is inconsistent"));
}

/// The mutants of `basis`: tracked, size, list and digest.
#[test]
fn a_disk_follows_a_copy_that_is_whole_and_tracked() {
    let chunks = [ChunkRef {
        id: ChunkId([1; 32]),
        size: 4096,
        stored: 99,
    }];
    let source = |path: &str| Identity {
        source: Some(path.into()),
        ..Identity::default()
    };
    let record = || record(&chunks, source("/i/1"));
    let check = |record: Option<&DiskRecord>, bad: Option<&BadBitmap>, size, chunks| {
        copied(&committed(), record, &source("/i/1"), bad, size, chunks)
    };
    let good = record();
    assert_eq!(check(Some(&good), None, 4096, Some(&chunks)), Ok(()));
    let no = |result: Result<(), String>, says: &str| {
        let why = result.unwrap_err();
        assert!(why.contains(says), "{why}");
    };
    no(check(None, None, 4096, Some(&chunks)), "is not in web-1");
    let mut untracked = record();
    untracked.tracked = false;
    no(
        check(Some(&untracked), None, 4096, Some(&chunks)),
        "were not tracked",
    );
    no(check(Some(&good), None, 8192, Some(&chunks)), "size changed");
    let mut another = record();
    another.identity = Some(source("/i/2"));
    no(
        check(Some(&another), None, 4096, Some(&chunks)),
        "it is another disk than in web-1",
    );
    another.identity = None;
    no(
        check(Some(&another), None, 4096, Some(&chunks)),
        "does not say which disk it was",
    );
    no(check(Some(&good), None, 4096, None), "damaged and patched");
    no(
        check(Some(&good), None, 4096, Some(&[])),
        "not the one that was written",
    );
    let mut other = record();
    other.digest = "x".into();
    no(
        check(Some(&other), None, 4096, Some(&chunks)),
        "not the one that was written",
    );
    let bad = BadBitmap {
        target: "vda".into(),
        why: "it is inconsistent".into(),
    };
    no(
        check(Some(&good), Some(&bad), 4096, Some(&chunks)),
        "it is inconsistent",
    );
}
