//! What each document looks like. A change here is a change of what users' programs read: fields are added, and that is all.

use serde_json::{Value, json, to_value};
use strongroom_engine::run::event::Code;
use uuid::Uuid;

use super::*;

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[track_caller]
fn is(document: impl Serialize, expected: &Value) {
    assert_eq!(to_value(document).unwrap(), *expected);
}

fn manifest_json() -> Value {
    json!({
        "format": 1, "vm": {"name": "web", "uuid": Uuid::nil()}, "run": "1", "sequence": 7, "previous": null,
        "captured": "2026-11-30T12:00:00Z", "method": "checkpoint", "consistency": "filesystem", "stall_us": 12,
        "frozen_us": 3, "checkpoint": "strongroom-1", "disks": [], "excluded": [], "files": [], "inventory": ["web"],
        "producer": "strongroom 0.1.0",
    })
}

fn manifest() -> Manifest {
    serde_json::from_value(manifest_json()).unwrap()
}

fn warned() -> Warned {
    Warned {
        code: Code::Clock,
        vm: Some("web".into()),
        text: "it is late".into(),
    }
}

#[test]
fn warnings_come_with_their_codes() {
    let document = WithWarnings {
        document: Failed {
            error: "back up web: no",
            hint: None,
        },
        warnings: strings(&["web: it is late"]),
        warning_details: vec![warned()],
    };
    is(
        document,
        &json!({
            "error": "back up web: no", "hint": null, "warnings": ["web: it is late"],
            "warning_details": [{"code": "clock", "vm": "web", "text": "it is late"}],
        }),
    );
}

#[test]
fn a_backup_is_a_plan_a_report_or_an_error() {
    let plan = Plan {
        vm: "web".into(),
        uuid: Uuid::nil(),
        run: "1".into(),
        archive: "web-1".into(),
        method: strongroom_points::manifest::Method::Offline,
        method_reason: None,
        checkpoint: None,
        disks: Vec::new(),
        excluded: Vec::new(),
    };
    let report = backup::Report {
        vm: "web".into(),
        archive: "web-1".into(),
        repository: "/srv/web".into(),
        seconds: 1.5,
        manifest: manifest(),
        bytes_stored: 9,
        requests: backup::Requests {
            nbd: 2,
            repository: 3,
        },
    };
    let details = [warned()];
    let one = |outcome| OneBackup {
        vm: "web",
        outcome,
        warnings: vec!["it is late"],
        warning_details: &details,
    };
    let failed = Failed {
        error: "no",
        hint: Some("try"),
    };
    let backups = vec![
        one(BackupOutcome::Planned { plan: &plan }),
        one(BackupOutcome::Done { backup: &report }),
        one(BackupOutcome::Failed(failed)),
    ];
    let details = json!([{"code": "clock", "vm": "web", "text": "it is late"}]);
    let with = |mut value: Value| {
        value["vm"] = json!("web");
        value["warnings"] = json!(["it is late"]);
        value["warning_details"] = details.clone();
        value
    };
    let expected = [
        with(json!({"plan": {
            "vm": "web", "uuid": Uuid::nil(), "run": "1", "archive": "web-1", "method": "offline", "checkpoint": null,
            "disks": [], "excluded": [],
        }})),
        with(json!({"backup": {
            "vm": "web", "archive": "web-1", "repository": "/srv/web", "seconds": 1.5, "manifest": manifest(),
            "bytes_stored": 9, "requests": {"nbd": 2, "repository": 3},
        }})),
        with(json!({"error": "no", "hint": "try"})),
    ];
    is(Backups { backups }, &json!({ "backups": expected }));
}

#[test]
fn what_is_restored_or_would_be() {
    let plan = restore::RestorePlan {
        vm: "web".into(),
        archive: "web-1".into(),
        ..restore::RestorePlan::default()
    };
    is(
        RestorePlanned { plan: &plan },
        &json!({"plan": {"vm": "web", "archive": "web-1", "disks": [], "files": [], "left_out": []}}),
    );
    let report = restore::Report {
        vm: "web".into(),
        uuid: None,
        archive: "web-1".into(),
        disks: Vec::new(),
        left_out: Vec::new(),
        changes: strings(&["a"]),
        seconds: 0.5,
    };
    is(
        Restored { restore: &report },
        &json!({"restore": {
            "vm": "web", "uuid": null, "archive": "web-1", "disks": [], "left_out": [], "changes": ["a"], "seconds": 0.5,
        }}),
    );
}

#[test]
fn restore_points_are_listed_and_shown() {
    let restore_points = vec![
        ListedPoint::Readable {
            vm: "web".into(),
            archive: "web-1".into(),
            manifest: Box::new(manifest()),
        },
        ListedPoint::Unreadable {
            vm: "web".into(),
            archive: "web-2".into(),
            error: "damaged".into(),
        },
    ];
    let problems = vec![ProblemOfVm {
        vm: "db".into(),
        error: "list db: no".into(),
        hint: None,
    }];
    is(
        Listed {
            restore_points,
            problems,
        },
        &json!({
            "restore_points": [
                {"vm": "web", "archive": "web-1", "manifest": manifest()},
                {"vm": "web", "archive": "web-2", "error": "damaged"},
            ],
            "problems": [{"vm": "db", "error": "list db: no", "hint": null}],
        }),
    );
    is(
        Shown {
            archive: "web-1".into(),
            manifest: &manifest(),
        },
        &json!({"archive": "web-1", "manifest": manifest()}),
    );
    // What a manifest has here is what is written into archives.
    let shown = to_value(manifest()).unwrap();
    let (shown, stored) = (shown.as_object().unwrap(), manifest_json());
    assert!(
        stored
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, value)| shown[key] == *value)
    );
}

#[test]
fn a_status_has_null_for_what_is_not_known() {
    let vms = vec![StatusOfVm {
        vm: "web",
        state: "running",
        restore_points: None,
        last_backup: Some("2026-11-30T12:00:00Z".parse().unwrap()),
        last_archive: Some("web-1"),
        last_backup_known_from: "records",
        running: true,
        running_since: None,
        interrupted: false,
        next: "full",
        problem: None,
    }];
    let pools = [Pool {
        place: "/srv".into(),
        size: 1,
        free: 2,
        images: 3,
        virtual_size: 4,
        actual: 5,
        promised: 6,
    }];
    is(
        Status { vms, pools: &pools },
        &json!({
            "vms": [{
                "vm": "web", "state": "running", "restore_points": null, "last_backup": "2026-11-30T12:00:00Z",
                "last_archive": "web-1", "last_backup_known_from": "records", "running": true, "running_since": null,
                "interrupted": false, "next": "full", "problem": null,
            }],
            "pools": [{"place": "/srv", "size": 1, "free": 2, "images": 3, "virtual": 4, "actual": 5, "promised": 6}],
        }),
    );
}

#[test]
fn what_is_set_up() {
    is(
        Initialised {
            configuration: Path::new("/etc/c.toml"),
            vms: &strings(&["web"]),
        },
        &json!({"configuration": "/etc/c.toml", "vms": ["web"]}),
    );
    let audit = audit::Report {
        vms: vec![audit::VmReport {
            vm: "web".into(),
            state: None,
            volumes: Vec::new(),
            findings: vec![audit::Finding {
                code: "open",
                level: audit::Level::Unsafe,
                disk: None,
                text: "so".into(),
            }],
            problems: strings(&["p"]),
        }],
        not_compared: strings(&["n"]),
    };
    let found = json!({
        "vms": [{
            "vm": "web", "state": null, "volumes": [], "problems": ["p"],
            "findings": [{"code": "open", "level": "unsafe", "disk": null, "text": "so"}],
        }],
        "not_compared": ["n"],
    });
    is(
        Adopted {
            configuration: Path::new("/etc/c.toml"),
            audit: &audit,
        },
        &json!({"configuration": "/etc/c.toml", "audit": found}),
    );
    let problems = vec![ProblemOfHypervisor {
        hypervisor: "qemu:///system".into(),
        error: "no".into(),
    }];
    is(
        Audited {
            audit: &audit,
            problems,
        },
        &json!({"audit": found, "problems": [{"hypervisor": "qemu:///system", "error": "no"}]}),
    );
    let rights = HypervisorRights {
        polkit: "p".into(),
        authorized_keys: "k".into(),
        script: "s".into(),
        jobs: JobsRights {
            account: "a".into(),
            authorized_keys: "j".into(),
            script: "t".into(),
        },
        commands: strings(&["c"]),
    };
    is(
        rights,
        &json!({
            "polkit": "p", "authorized_keys": "k", "script": "s", "commands": ["c"],
            "jobs": {"account": "a", "authorized_keys": "j", "script": "t"},
        }),
    );
}

#[test]
fn what_is_made() {
    let created = create::Created {
        name: "web".into(),
        uuid: Uuid::nil(),
        system: "/i/web.qcow2".into(),
        swap: None,
        allocated: 1,
        luks: create::LuksFacts {
            uuid: "u".into(),
            offset: 2,
            digests: Vec::new(),
            tokens: Vec::new(),
        },
        recovery: None,
        passphrase: None,
        ssh_key: None,
        signing_key: None,
        ssh_host_key: "k".into(),
        ssh_fingerprint: "f".into(),
        template: "debian-13".into(),
        template_signer: "me".into(),
        seconds: 3.5,
    };
    is(
        Created { created: &created },
        &json!({"created": {
            "name": "web", "uuid": Uuid::nil(), "system": "/i/web.qcow2", "swap": null, "allocated": 1,
            "luks": {"uuid": "u", "offset": 2, "digests": [], "tokens": []}, "recovery": null, "ssh_host_key": "k",
            "ssh_fingerprint": "f", "template": "debian-13", "template_signer": "me", "seconds": 3.5,
        }}),
    );
    is(Templates { templates: &[] }, &json!({"templates": []}));
    is(
        Removed {
            removed: &strings(&["debian-12"]),
        },
        &json!({"removed": ["debian-12"]}),
    );
    is(
        Measured {
            measurement: "00".into(),
        },
        &json!({"measurement": "00"}),
    );
    let attested = attest::Attested {
        generation: "Milan",
        measurement: "00".into(),
        policy: 1,
        vmpl: 0,
        chip: "c".into(),
        fresh: true,
    };
    is(
        Attested { attested: &attested },
        &json!({"attested": {
            "generation": "Milan", "measurement": "00", "policy": 1, "vmpl": 0, "chip": "c", "fresh": true,
        }}),
    );
}

#[test]
fn what_is_verified() {
    let report = verify::Report {
        ok: false,
        vms: Vec::new(),
        given_up: strings(&["old"]),
        problems: Vec::new(),
    };
    is(
        Verified { verify: &report },
        &json!({"verify": {"ok": false, "vms": [], "given_up": ["old"], "problems": []}}),
    );
    let append_only = vec![
        AppendOnlyVm::Known {
            vm: "web".into(),
            repository: "/srv/web".into(),
            append_only: true,
        },
        AppendOnlyVm::Failed {
            vm: "db".into(),
            repository: "/srv/db".into(),
            error: "no".into(),
        },
    ];
    is(
        AppendOnly { append_only },
        &json!({"append_only": [
            {"vm": "web", "repository": "/srv/web", "append_only": true},
            {"vm": "db", "repository": "/srv/db", "error": "no"},
        ]}),
    );
    let seal = || -> Seal {
        serde_json::from_value(json!({
            "format": 1, "subject": {"name": "web"}, "sealed": "2026-11-30T12:00:00Z", "files": [], "producer": "p",
        }))
        .unwrap()
    };
    let sealed = vec![
        SealedVm::Used { vm: "a", used: true },
        SealedVm::Sealed {
            vm: "web",
            seal: seal(),
            file: "/s".into(),
        },
    ];
    is(
        Sealed { vms: sealed },
        &json!({"vms": [{"vm": "a", "used": true}, {"vm": "web", "seal": seal(), "file": "/s"}]}),
    );
    let checked = vec![
        CheckedVm::Good {
            vm: "web",
            ok: true,
            seal: seal(),
            signer: "me".into(),
        },
        CheckedVm::NotSealed {
            vm: "a",
            ok: true,
            seal: (),
        },
        CheckedVm::Failed {
            vm: "b",
            ok: false,
            error: "no".into(),
        },
    ];
    is(
        CheckedImages { vms: checked },
        &json!({"vms": [
            {"vm": "web", "ok": true, "seal": seal(), "signer": "me"},
            {"vm": "a", "ok": true, "seal": null},
            {"vm": "b", "ok": false, "error": "no"},
        ]}),
    );
}

#[test]
fn what_is_put_right_or_let_go() {
    let recovered = vec![
        RecoveredVm::Done {
            vm: "web".into(),
            found: strings(&["f"]),
        },
        RecoveredVm::Failed {
            vm: "db".into(),
            error: "no".into(),
        },
    ];
    is(
        Recovered { vms: recovered },
        &json!({"vms": [{"vm": "web", "found": ["f"]}, {"vm": "db", "error": "no"}]}),
    );
    let released = vec![
        ReleasedVm::Done {
            vm: "web".into(),
            found: Vec::new(),
            removed: true,
        },
        ReleasedVm::Failed {
            vm: "db".into(),
            error: "no".into(),
        },
    ];
    is(
        Released { vms: released },
        &json!({"vms": [{"vm": "web", "found": [], "removed": true}, {"vm": "db", "error": "no"}]}),
    );
}

/// Each field of the documents themselves is on the page.
#[test]
fn the_page_explains_each_field() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/json.md");
    let page = std::fs::read_to_string(page).unwrap();
    let source = include_str!("../documents.rs");
    let fields = source.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("pub ")?.split_once(": ")?.0;
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            .then_some(name)
    });
    let fields: Vec<&str> = fields
        .filter(|name| !["document", "outcome"].contains(name))
        .collect();
    assert!(fields.len() > 50, "{fields:?}");
    let missing: Vec<_> = fields
        .iter()
        .filter(|name| !page.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "not in docs/reference/json.md: {missing:?}");
}
