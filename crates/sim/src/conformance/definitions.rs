//! Domains: described, defined, and which files they use.

use strongroom_hypervisor::{
    Bitmaps, DiskSource, HypervisorError, Retarget, Role, RunState, SnapshotDisk, Store, Use, User,
};
use uuid::Uuid;

use super::{MIB, Peer, PeerExt as _};

/// A domain is found by either name, and its disks are what they are, whatever it does.
pub fn a_domain_is_described(peer: &dyn Peer) {
    let (port, facts) = (peer.port(), peer.facts());
    assert!(port.domain_names().unwrap().contains(&facts.name));
    assert_eq!(port.domain(&facts.name).unwrap().uuid, peer.uuid());
    assert_eq!((facts.state, facts.autostart), (RunState::ShutOff, false));
    assert!(facts.busy.is_none() && facts.snapshots.is_empty() && facts.differences.is_empty());
    let check = || {
        let disks = peer.facts().disks;
        for (target, mib) in [("vda", 64), ("vdb", 16), ("vdc", 16)] {
            let disk = disks.iter().find(|disk| disk.target == target).unwrap();
            assert_eq!(disk.size, Some(mib * MIB));
            assert_eq!(disk.source, DiskSource::File(peer.image(target)));
            assert_eq!(disk.device, "disk");
            assert!(!disk.read_only && !disk.encrypted && !disk.transient && !disk.shared);
            assert!(disk.identity.file.is_some(), "{:?}", disk.identity);
        }
        let of = |target| disks.iter().find(|disk| disk.target == target).unwrap();
        assert_eq!(
            (of("vda").format.as_str(), of("vdc").format.as_str()),
            ("qcow2", "raw")
        );
        assert_eq!(of("vda").bitmaps, Bitmaps::Supported);
        assert!(matches!(&of("vdc").bitmaps, Bitmaps::Unsupported(why) if why.contains("raw")));
        assert!(!of("vda").identity.is(&of("vdb").identity));
    };
    check();
    peer.start();
    check();
    assert_eq!(peer.facts().state, RunState::Running);
    peer.pause();
    assert_eq!(peer.facts().state, RunState::Paused);
    assert_eq!(
        peer.facts().xml,
        facts.xml,
        "the stored definition is the same while it runs"
    );
    let absent = Uuid::new_v4().to_string();
    let error = port.domain(&absent).unwrap_err();
    assert!(matches!(error, HypervisorError::NoSuchDomain(..)), "{error}");
}

/// A name and a UUID belong to one domain, unless its definition is to be replaced.
pub fn a_definition_takes_no_name_that_is_taken(peer: &dyn Peer) {
    let (port, facts) = (peer.port(), peer.facts());
    let error = port.define(&facts.xml, false).unwrap_err();
    assert!(matches!(error, HypervisorError::Exists(..)), "{error}");
    let other = Retarget {
        uuid: Some(Uuid::new_v4()),
        ..Retarget::default()
    };
    let other = port.retarget(&facts.xml, &other).unwrap().xml;
    for replace in [false, true] {
        let error = port.check_definable(&other, replace).unwrap_err();
        assert!(matches!(error, HypervisorError::Exists(..)), "{error}");
    }
    port.check_definable(&facts.xml, true).unwrap();
    assert_eq!(port.define(&facts.xml, true).unwrap(), peer.uuid());
    port.set_autostart(peer.uuid(), true).unwrap();
    assert!(peer.facts().autostart);
    port.set_autostart(peer.uuid(), false).unwrap();
    assert!(port.define("not a definition", false).is_err());
    // Under another name it is no replacement; and none is replaced while it runs.
    let renamed = Retarget {
        name: Some(format!("{}-new", facts.name)),
        ..Retarget::default()
    };
    let renamed = port.retarget(&facts.xml, &renamed).unwrap().xml;
    let error = port.define(&renamed, true).unwrap_err();
    assert!(matches!(error, HypervisorError::Exists(..)), "{error}");
    peer.start();
    let error = port.define(&facts.xml, true).unwrap_err().to_string();
    assert!(error.contains("runs"), "{error}");
}

/// Disks that are given places have them, those that are dropped are gone; the rest is as it was, but for a copy.
pub fn a_changed_definition_is_another_domain(peer: &dyn Peer) {
    let (port, facts) = (peer.port(), peer.facts());
    let change = Retarget {
        name: Some(format!("{}-copy", facts.name)),
        uuid: Some(Uuid::new_v4()),
        copy: true,
        disks: vec![("vda".into(), peer.directory().join("new.qcow2"))],
        drop_disks: vec!["vdb".into()],
        ..Retarget::default()
    };
    let changed = port.retarget(&facts.xml, &change).unwrap();
    port.check_definable(&changed.xml, false).unwrap();
    let disks = port.disks_in(&changed.xml).unwrap();
    let source = |target| {
        let disk = disks.iter().find(|disk| disk.target == target);
        disk.map(|disk| disk.source.clone())
    };
    assert_eq!(
        source("vda"),
        Some(DiskSource::File(peer.directory().join("new.qcow2")))
    );
    assert_eq!(source("vdb"), None);
    assert_eq!(source("vdc"), None, "a copy shares no disk");
    let change = Retarget {
        copy: false,
        ..change
    };
    let moved = port.retarget(&facts.xml, &change).unwrap();
    let disks = port.disks_in(&moved.xml).unwrap();
    let vdc = disks.iter().find(|disk| disk.target == "vdc").unwrap();
    assert_eq!(vdc.source, DiskSource::File(peer.image("vdc")));
    // Nothing of it has happened.
    assert_eq!(peer.facts().xml, facts.xml);
    assert_eq!(
        port.domain_names()
            .unwrap()
            .iter()
            .filter(|name| **name == facts.name)
            .count(),
        1
    );
}

/// The images of a domain are used now while it runs, and from its next start on; those below an overlay are, too.
pub fn every_image_has_its_user(peer: &dyn Peer) {
    let user = || -> User {
        let mut users = peer.port().users().unwrap().into_iter();
        users.find(|user| user.uuid == peer.uuid()).unwrap()
    };
    let uses = |user: &User, path: &std::path::Path, now: bool| -> Vec<Use> {
        let store = Store::Path(path.to_owned());
        let of = |one: &&Use| one.store == store && one.now == now;
        user.uses.iter().filter(of).cloned().collect()
    };
    let off = user();
    assert!(!off.active && off.unread.is_none());
    for (target, format) in [("vda", "qcow2"), ("vdb", "qcow2"), ("vdc", "raw")] {
        let image = peer.image(target);
        assert!(uses(&off, &image, true).is_empty());
        let [one] = &uses(&off, &image, false)[..] else {
            panic!("{:?}", off.uses)
        };
        assert_eq!(one.role, Role::Disk(target.into()));
        assert_eq!(one.format.as_deref(), Some(format));
        assert!(one.writable && !one.shareable);
    }
    peer.start();
    let on = user();
    assert!(on.active);
    assert_eq!(uses(&on, &peer.image("vda"), true).len(), 1);
    assert_eq!(uses(&on, &peer.image("vda"), false).len(), 1);
    let asked = SnapshotDisk {
        target: "vda".into(),
        overlay: peer.overlay("vda"),
    };
    peer.port().take_snapshot(peer.uuid(), &[asked]).unwrap();
    let on = user();
    let overlay = &uses(&on, &peer.overlay("vda"), true)[0];
    assert_eq!(
        (&overlay.role, overlay.writable),
        (&Role::Disk("vda".into()), true)
    );
    let below = &uses(&on, &peer.image("vda"), true)[0];
    assert_eq!((&below.role, below.writable), (&Role::Below("vda".into()), false));
}
