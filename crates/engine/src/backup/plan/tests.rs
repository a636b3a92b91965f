//! What is decided before anything is touched: which disks, by which method, and what is tracked from now on.

mod parents;

use strongroom_hypervisor::{DiskSource, Identity, RunState};

use super::*;
use crate::testing::job;

fn disk(target: &str) -> Disk {
    Disk {
        target: target.into(),
        device: "disk".into(),
        source: DiskSource::File(format!("/images/{target}.qcow2").into()),
        format: "qcow2".into(),
        serial: None,
        read_only: false,
        discard: false,
        size: Some(512),
        bitmaps: Bitmaps::Supported,
        encrypted: false,
        transient: false,
        shared: false,
        identity: Identity::default(),
    }
}

fn domain(state: RunState, disks: Vec<Disk>) -> Domain {
    Domain {
        name: "web".into(),
        uuid: Uuid::nil(),
        state,
        disks,
        xml: String::new(),
        nvram: None,
        saved: false,
        autostart: false,
        shut_down: false,
        away: false,
        has_tpm: false,
        memory_encryption: None,
        extras: Vec::new(),
        busy: None,
        snapshots: Vec::new(),
        internal_snapshots: Vec::new(),
        differences: Vec::new(),
    }
}

fn planned(domain: &Domain, job: &VmJob, parent: &Parent<'_>) -> Result<Plan, String> {
    make(domain, job, None, parent, &RunId::new()).map_err(|error| error.to_string())
}

fn settings(swap: &[&str], exclude: &[&str], method: CaptureMethod) -> VmJob {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    VmJob {
        swap: names(swap),
        exclude: names(exclude),
        method,
        ..job()
    }
}

fn none() -> Parent<'static> {
    Parent::None("no checkpoint is on record".into())
}

#[test]
fn a_disk_that_the_settings_name_has_to_be_there() {
    let domain = domain(RunState::Running, vec![disk("vda"), disk("vdb")]);
    for (swap, exclude) in [(&["vdb"][..], &[][..]), (&[], &["vdb"])] {
        let plan = planned(&domain, &settings(swap, exclude, CaptureMethod::Auto), &none()).unwrap();
        let targets: Vec<_> = plan.disks.iter().map(|disk| disk.target.as_str()).collect();
        assert_eq!(targets, ["vda"]);
        assert_eq!(plan.excluded.len(), 1);
        assert_eq!(plan.excluded[0].target, "vdb");
    }
    for (swap, exclude) in [(&["vdc"][..], &[][..]), (&[], &["vdc"])] {
        let error = planned(&domain, &settings(swap, exclude, CaptureMethod::Auto), &none()).unwrap_err();
        assert!(error.contains("disk vdc, the VM has vda, vdb"), "{error}");
    }
}

#[test]
fn the_snapshot_of_a_disk_that_is_read_stops_a_backup_and_no_other() {
    let mut domain = domain(RunState::Running, vec![disk("vda"), disk("vdb")]);
    domain.snapshots = vec![Snapshot {
        name: "theirs".into(),
        target: "vdb".into(),
        overlay: "/images/vdb.theirs".into(),
    }];
    let all = settings(&[], &[], CaptureMethod::Auto);
    let error = planned(&domain, &all, &none()).unwrap_err();
    assert!(error.contains("vdb") && error.contains("theirs"), "{error}");
    planned(&domain, &settings(&[], &["vdb"], CaptureMethod::Auto), &none()).unwrap();
}

#[test]
fn a_checkpoint_is_made_where_a_disk_that_runs_can_keep_track() {
    let all = settings(&[], &[], CaptureMethod::Auto);
    let raw = || Disk {
        bitmaps: Bitmaps::Unsupported("raw has no place for a dirty bitmap".into()),
        ..disk("vdb")
    };
    for (state, disks, made) in [
        (RunState::Running, vec![disk("vda"), raw()], true),
        (RunState::Running, vec![raw()], false),
        (RunState::ShutOff, vec![disk("vda")], false),
    ] {
        let plan = planned(&domain(state, disks), &all, &none()).unwrap();
        assert_eq!(plan.checkpoint.is_some(), made, "{state:?}");
    }
    let jobless = Parent::NoJobs("it is too old".into());
    let plan = planned(&domain(RunState::Running, vec![disk("vda")]), &all, &jobless).unwrap();
    assert_eq!(plan.checkpoint, None);
}

#[test]
fn the_method_is_the_one_asked_for_or_that_which_there_is() {
    use CaptureMethod::{Auto, Checkpoint, Snapshot};
    for (state, asked, jobs, method, reason) in [
        (RunState::Running, Auto, true, Method::Checkpoint, None),
        (RunState::Running, Checkpoint, true, Method::Checkpoint, None),
        (RunState::Running, Snapshot, true, Method::Snapshot, None),
        (
            RunState::Running,
            Auto,
            false,
            Method::Snapshot,
            Some("no backup job: old"),
        ),
        (RunState::Running, Checkpoint, false, Method::Checkpoint, None),
        (RunState::ShutOff, Auto, false, Method::Offline, None),
        (RunState::ShutOff, Snapshot, true, Method::Offline, None),
    ] {
        let parent = if jobs {
            none()
        } else {
            Parent::NoJobs("old".into())
        };
        let domain = domain(state, vec![disk("vda")]);
        let plan = planned(&domain, &settings(&[], &[], asked), &parent).unwrap();
        assert_eq!(
            (plan.method, plan.method_reason.as_deref()),
            (method, reason),
            "{state:?} {asked:?} {jobs}"
        );
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_a_reason() {
    let all = settings(&[], &[], CaptureMethod::Auto);
    let network = Disk {
        source: DiskSource::Other("network".into()),
        ..disk("vda")
    };
    let off = domain(RunState::ShutOff, vec![network.clone()]);
    let error = planned(&off, &all, &none()).unwrap_err();
    assert!(
        error.contains("neither a file nor a block device") && error.contains("start the VM"),
        "{error}"
    );
    planned(&domain(RunState::Running, vec![network]), &all, &none()).unwrap();
    let unknown = Disk {
        size: None,
        ..disk("vda")
    };
    planned(&domain(RunState::Running, vec![unknown]), &all, &none()).unwrap_err();
    planned(&domain(RunState::Running, vec![]), &all, &none()).unwrap_err();
    let only = settings(&[], &["vda"], CaptureMethod::Auto);
    planned(&domain(RunState::Running, vec![disk("vda")]), &only, &none()).unwrap_err();
    for odd in [
        Domain {
            away: true,
            ..domain(RunState::ShutOff, vec![disk("vda")])
        },
        Domain {
            busy: Some("a migration is under way".into()),
            ..domain(RunState::Running, vec![disk("vda")])
        },
    ] {
        let error = planned(&odd, &all, &none()).unwrap_err();
        assert!(error.contains("nothing was touched"), "{error}");
    }
}

#[test]
fn an_archive_is_named_without_what_others_could_take_for_something_else() {
    for (name, wanted) in [
        ("web.1_a-b+c", "web.1_a-b+c"),
        ("a/b@c d{now}::'x'", "a_b_c_d_now____x_"),
        ("größe", "größe"),
    ] {
        assert_eq!(archive_prefix(name), wanted);
    }
    assert_eq!(archive_prefix(&"x".repeat(200)).len(), 128);
}

/// The swap disk is another one than before: you are asked, unless you have said that it is right.
#[test]
fn a_disk_with_another_role_is_asked_about_until_confirmed() {
    let mut newest = parents::written();
    newest.excluded.push(strongroom_points::manifest::ExcludedDisk {
        target: "vdb".into(),
        why: Exclusion::Swap,
        size: Some(1024),
        layout: None,
        identity: Some(Identity {
            source: Some("/images/other".into()),
            ..Identity::default()
        }),
    });
    let domain = domain(RunState::Running, vec![disk("vda"), disk("vdb")]);
    let make = |disks_confirmed| {
        let job = VmJob {
            disks_confirmed,
            ..settings(&["vdb"], &[], CaptureMethod::Auto)
        };
        make(&domain, &job, Some(&newest), &none(), &RunId::new()).map_err(|error| error.to_string())
    };
    let error = make(false).unwrap_err();
    assert!(error.contains("/images/other"), "{error}");
    make(true).unwrap();
}
