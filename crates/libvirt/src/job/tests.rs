use std::path::{Path, PathBuf};

use strongroom_hypervisor::{BackupJob, Disk, JobDisk, Listener};

use super::{checkpoint, described, request, without_size};
use crate::definition::read;

fn domain() -> Vec<Disk> {
    read(include_str!("../../tests/fixtures/server.xml"))
        .unwrap()
        .disks
}

fn disk(target: &str, since: Option<&str>, checkpoint: bool) -> JobDisk {
    let scratch = PathBuf::from(format!("/s & t/{target}"));
    JobDisk {
        target: target.into(),
        scratch,
        since: since.map(Into::into),
        checkpoint,
    }
}

fn job(disks: Vec<JobDisk>) -> BackupJob {
    BackupJob {
        disks,
        checkpoint: Some("new-cp.1".into()),
        listener: Listener::Socket("/run/'s'".into()),
    }
}

#[test]
fn a_port_is_served_with_tls_only() {
    let listener = Listener::Tls {
        address: "0.0.0.0".into(),
        port: 10809,
    };
    let disks = vec![disk("vda", None, true)];
    let request = request(
        &BackupJob {
            listener,
            ..job(disks)
        },
        &domain(),
    )
    .unwrap();
    assert!(
        request
            .backup
            .contains(r#"<server transport="tcp" tls="yes" name="0.0.0.0" port="10809"/>"#),
        "{}",
        request.backup
    );
    let described = described(&request.backup).unwrap();
    assert_eq!(described.running.socket, None);
    assert_eq!(described.running.scratch, [Path::new("/s & t/vda")]);
}

#[test]
fn every_disk_is_named() {
    let job = job(vec![disk("vda", Some("old-cp"), true), disk("vdc", None, false)]);
    let request = request(&job, &domain()).unwrap();
    let document = roxmltree::Document::parse(&request.backup).unwrap();
    let disks: Vec<_> = document
        .descendants()
        .filter(|node| node.has_tag_name("disk"))
        .collect();
    let pick = |key| {
        disks
            .iter()
            .map(|disk| disk.attribute(key).unwrap_or("-"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        pick("name"),
        ["vda", "sdb", "vdc", "nvme0n1", "sda", "sdc", "hda"]
    );
    assert_eq!(pick("backup"), ["yes", "no", "yes", "no", "no", "no", "no"]);
    assert_eq!(
        pick("backupmode"),
        ["incremental", "-", "full", "-", "-", "-", "-"]
    );
    assert_eq!(pick("incremental"), ["old-cp", "-", "-", "-", "-", "-", "-"]);
    assert_eq!(pick("exportname"), ["vda", "-", "vdc", "-", "-", "-", "-"]);

    let checkpoint = request.checkpoint.unwrap();
    let document = roxmltree::Document::parse(&checkpoint).unwrap();
    assert_eq!(
        super::child(document.root_element(), "name").unwrap().text(),
        Some("new-cp.1")
    );
    let disks: Vec<_> = document
        .descendants()
        .filter(|node| node.has_tag_name("disk"))
        .collect();
    let kinds: Vec<_> = disks
        .iter()
        .map(|disk| disk.attribute("checkpoint").unwrap())
        .collect();
    assert_eq!(kinds, ["bitmap", "no", "no", "no", "no", "no", "no"]);

    // libvirt describes a job in the words in which it was asked for.
    let described = described(&request.backup).unwrap();
    assert_eq!(described.running.socket.as_deref(), Some(Path::new("/run/'s'")));
    assert_eq!(
        described.running.scratch,
        [PathBuf::from("/s & t/vda"), PathBuf::from("/s & t/vdc")]
    );
    assert_eq!(described.targets, ["vda", "vdc"]);
}

#[test]
fn no_checkpoint_is_no_document() {
    let job = BackupJob {
        checkpoint: None,
        ..job(vec![disk("vda", None, false)])
    };
    assert!(request(&job, &domain()).unwrap().checkpoint.is_none());
}

#[test]
fn impossible_jobs_are_refused() {
    let relative = JobDisk {
        scratch: "s".into(),
        ..disk("vda", None, true)
    };
    let cases = [
        (job(vec![]), "no disk was asked for"),
        (job(vec![disk("vdz", None, true)]), "no disk vdz"),
        (
            job(vec![disk("vda", None, true), disk("vda", None, true)]),
            "twice",
        ),
        (job(vec![disk("vda", None, false)]), "no disk for it"),
        (job(vec![relative]), "not absolute"),
        (job(vec![disk("vda", Some(".a"), true)]), "cannot be the name"),
        (
            BackupJob {
                listener: Listener::Socket(format!("/{}", "s".repeat(107)).into()),
                ..job(vec![disk("vda", None, true)])
            },
            "108 bytes",
        ),
        (
            BackupJob {
                checkpoint: Some("\u{1b}[0m".into()),
                ..job(vec![disk("vda", None, true)])
            },
            "cannot be the name",
        ),
    ];
    for (job, reason) in cases {
        let error = request(&job, &domain()).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_job_of_someone_else_is_understood() {
    let push = "<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file'><target file='/x'/></disk>\
                <disk name='vdb' backup='no'/></disks></domainbackup>";
    let push = described(push).unwrap();
    assert_eq!((push.running.socket, push.running.scratch.len()), (None, 0));
    assert_eq!(push.targets, ["vda"]);
    let block = "<domainbackup mode='pull'><server transport='tcp' name='::1' port='1'/><disks>\
                 <disk name='vda'><scratch dev='/dev/x'/></disk></disks></domainbackup>";
    assert_eq!(
        described(block).unwrap().running.scratch,
        [PathBuf::from("/dev/x")]
    );
    described("<domainbackup>").unwrap_err();
    described("<domain/>").unwrap_err();
}

#[test]
fn a_bitmap_without_a_size_is_broken() {
    let xml =
        |disks: &str| format!("<domaincheckpoint><name>c</name><disks>{disks}</disks></domaincheckpoint>");
    let check = |disks: &str| without_size(&xml(disks), &domain());
    let good = "<disk name='vda' checkpoint='bitmap' bitmap='c' size='0'/>";
    let broken = "<disk name='vdc' checkpoint='bitmap' bitmap='c'/>";
    let gone = "<disk name='vdz' checkpoint='bitmap' bitmap='c'/>";
    let excluded = "<disk name='sdb' checkpoint='no'/>";
    assert_eq!(check(&format!("{good}{excluded}")).unwrap(), [""; 0]);
    assert_eq!(check(&format!("{good}{gone}")).unwrap(), [""; 0]);
    assert_eq!(check(&format!("{good}{broken}")).unwrap(), ["vdc"]);
    for none in [gone, excluded, ""] {
        assert!(
            check(none).unwrap_err().contains("none of the domain's disks"),
            "{none}"
        );
    }
    without_size("<domaincheckpoint/>", &domain()).unwrap_err();
}

#[test]
fn a_checkpoint_of_its_own_names_every_disk() {
    let domain = domain();
    let chosen = vec![domain[0].target.clone()];
    let xml = checkpoint("strongroom-1", &chosen, &domain).unwrap();
    assert!(xml.contains("<name>strongroom-1</name>"), "{xml}");
    assert_eq!(
        xml.matches("checkpoint=\"bitmap\"").count() + xml.matches("checkpoint='bitmap'").count(),
        1
    );
    for disk in &domain {
        assert!(
            xml.contains(&disk.target),
            "{} is not excluded by name: {xml}",
            disk.target
        );
    }
    assert!(checkpoint("strongroom-1", &["vdz".into()], &domain).is_err());
    assert!(checkpoint("strongroom-1", &[], &domain).is_err());
    assert!(checkpoint("a/b", &chosen, &domain).is_err());
}
