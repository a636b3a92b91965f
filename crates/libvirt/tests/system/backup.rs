//! Backup jobs: what they export, whom they refuse, what they leave.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{BackupJob, Hypervisor, HypervisorError, Listener, RunningJob};

use crate::fixture::{Guest, dirty, exports, holds, nbd_uri, virsh};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn no_leftovers(guest: &Guest) {
    assert_eq!(guest.libvirt.backup_job(guest.uuid).unwrap(), None);
    for entry in std::fs::read_dir(guest.dir.path()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(
            !name.to_string_lossy().ends_with(".scratch"),
            "{}",
            name.display()
        );
    }
}

#[test]
fn full_then_incremental() {
    let guest = Guest::start("");
    let libvirt = &guest.libvirt;
    assert_eq!(libvirt.backup_job(guest.uuid).unwrap(), None);
    guest.write("vda", 0xaa, "1M", "64k");

    // Full: the system disk, and a raw one that cannot take part in a checkpoint.
    let job = guest.job(
        Some("cp-1"),
        vec![guest.disk("vda", None, true), guest.disk("vdc", None, false)],
    );
    let took = libvirt.begin_backup(guest.uuid, &job).unwrap();
    assert!(
        took > Duration::ZERO && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert_eq!(exports(&guest.socket()), ["vda", "vdc"]);
    assert_eq!(
        libvirt.backup_job(guest.uuid).unwrap(),
        Some(RunningJob {
            socket: Some(guest.socket()),
            scratch: vec![guest.scratch("vda"), guest.scratch("vdc")],
        })
    );
    let swap = Command::new("nbdinfo")
        .arg(nbd_uri(&guest.socket(), "vdb"))
        .output()
        .unwrap();
    assert!(!swap.status.success(), "the swap disk must not be exported");

    // The view is frozen: what the guest writes meanwhile does not show.
    guest.write("vda", 0xbb, "1M", "64k");
    guest.write("vda", 0xcc, "40M", "1M");
    guest.write("vdb", 0xdd, "0", "1M");
    assert!(holds(&guest.socket(), "vda", 0xaa, "1M", "64k"));
    assert!(holds(&guest.socket(), "vda", 0, "40M", "1M"));

    // A second one is refused at once, and does no harm to the first.
    let start = Instant::now();
    let second = libvirt.begin_backup(guest.uuid, &job).unwrap_err();
    assert!(matches!(&second, HypervisorError::Busy { .. }), "{second}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(exports(&guest.socket()), ["vda", "vdc"]);

    libvirt.end_backup(guest.uuid).unwrap();
    no_leftovers(&guest);
    assert!(!guest.socket().exists());
    libvirt.end_backup(guest.uuid).unwrap();

    // Incremental: exactly what was written since the checkpoint; another disk goes in full beside it.
    let disks = || {
        vec![
            guest.disk("vda", Some("cp-1"), true),
            guest.disk("vdb", None, true),
            guest.disk("vdd", None, false),
        ]
    };
    let job = guest.job(Some("cp-2"), disks());
    libvirt.begin_backup(guest.uuid, &job).unwrap();
    assert_eq!(exports(&guest.socket()), ["vda", "vdb", "vdd"]);
    assert_eq!(dirty(&guest.socket(), "vda"), [(MIB, 64 * KIB), (40 * MIB, MIB)]);
    assert!(holds(&guest.socket(), "vda", 0xbb, "1M", "64k"));
    libvirt.end_backup(guest.uuid).unwrap();
    assert_eq!(libvirt.checkpoints(guest.uuid).unwrap(), ["cp-1", "cp-2"]);

    // Disks may have different bases in one job, and no new checkpoint is made unless asked for.
    guest.write("vda", 0xee, "2M", "64k");
    let disks = vec![
        guest.disk("vda", Some("cp-1"), false),
        guest.disk("vdb", Some("cp-2"), false),
    ];
    let job = guest.job(None, disks);
    libvirt.begin_backup(guest.uuid, &job).unwrap();
    assert_eq!(
        dirty(&guest.socket(), "vda"),
        [(MIB, 64 * KIB), (2 * MIB, 64 * KIB), (40 * MIB, MIB)]
    );
    assert_eq!(dirty(&guest.socket(), "vdb"), []);
    libvirt.end_backup(guest.uuid).unwrap();
    assert_eq!(libvirt.checkpoints(guest.uuid).unwrap(), ["cp-1", "cp-2"]);
}

#[test]
fn domains_may_have_odd_names() {
    let guest = Guest::start(" \"ü & <x>' {🔒} % ");
    let job = guest.job(Some("-1_a.B"), vec![guest.disk("vda", None, true)]);
    guest.libvirt.begin_backup(guest.uuid, &job).unwrap();
    assert_eq!(exports(&guest.socket()), ["vda"]);
    guest.libvirt.end_backup(guest.uuid).unwrap();
    assert_eq!(guest.libvirt.checkpoints(guest.uuid).unwrap(), ["-1_a.B"]);
    guest.libvirt.check_checkpoint(guest.uuid, "-1_a.B").unwrap();
}

#[test]
fn what_cannot_start_leaves_nothing() {
    let guest = Guest::start("");
    let begin = |job: &BackupJob| {
        let error = guest.libvirt.begin_backup(guest.uuid, job).unwrap_err();
        assert!(matches!(&error, HypervisorError::Failed { .. }), "{error}");
        assert_eq!(guest.libvirt.checkpoints(guest.uuid).unwrap(), [""; 0]);
        no_leftovers(&guest);
        error.to_string()
    };
    // No bitmap has a place in these two.
    begin(&guest.job(
        Some("cp"),
        vec![guest.disk("vda", None, true), guest.disk("vdc", None, true)],
    ));
    begin(&guest.job(Some("cp"), vec![guest.disk("vdd", None, true)]));
    // libvirt takes few characters in a checkpoint's name.
    assert!(begin(&guest.job(Some("ü"), vec![guest.disk("vda", None, true)])).contains("only letters"));
    // No such checkpoint, no medium, no such directory.
    begin(&guest.job(Some("cp"), vec![guest.disk("vda", Some("absent"), true)]));
    begin(&guest.job(None, vec![guest.disk("sda", None, false)]));
    let job = guest.job(Some("cp"), vec![guest.disk("vda", None, true)]);
    begin(&BackupJob {
        listener: Listener::Socket("/nonexistent/sock".into()),
        ..job.clone()
    });
    let mut nowhere = job.clone();
    nowhere.disks[0].scratch = "/nonexistent/scratch".into();
    begin(&nowhere);
    // A scratch file that is there already has an owner.
    let taken = guest.dir.path().join("taken");
    std::fs::write(&taken, "precious").unwrap();
    let mut overwriting = job.clone();
    overwriting.disks[0].scratch.clone_from(&taken);
    begin(&overwriting);
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "precious");
    // A domain that does not run.
    guest.virsh(&["destroy"], &[]);
    assert!(begin(&job).contains("inactive domain"));
}

#[test]
fn a_job_that_somebody_else_ends() {
    let guest = Guest::start("");
    let job = guest.job(None, vec![guest.disk("vda", None, false)]);
    guest.libvirt.begin_backup(guest.uuid, &job).unwrap();
    guest.virsh(&["domjobabort"], &[]);
    guest.libvirt.end_backup(guest.uuid).unwrap();
    no_leftovers(&guest);
    assert!(!guest.socket().exists());

    guest.libvirt.begin_backup(guest.uuid, &job).unwrap();
    guest.virsh(&["destroy"], &[]);
    guest.libvirt.end_backup(guest.uuid).unwrap();
    no_leftovers(&guest);
}

#[test]
fn a_paused_domain_is_backed_up() {
    let guest = Guest::start("");
    guest.virsh(&["suspend"], &[]);
    guest.checkpoint("cp");
    guest.libvirt.check_checkpoint(guest.uuid, "cp").unwrap();
}

/// Starts a backup job that is not ours, over TCP.
fn foreign_job(guest: &Guest, scratch: &Path) {
    let port = TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let text = format!(
        "<domainbackup mode='pull'><server transport='tcp' name='127.0.0.1' port='{port}'/><disks>\
         <disk name='vda' type='file'><scratch file='{}'/></disk></disks></domainbackup>",
        scratch.display()
    );
    let xml = guest.dir.path().join("foreign.xml");
    std::fs::write(&xml, text).unwrap();
    guest.virsh(&["backup-begin"], &[xml.to_str().unwrap()]);
}

#[test]
fn a_job_of_somebody_else_is_seen_and_respected() {
    let guest = Guest::start("");
    let scratch = guest.dir.path().join("theirs");
    foreign_job(&guest, &scratch);
    let theirs = Some(RunningJob {
        socket: None,
        scratch: vec![scratch],
    });
    assert_eq!(guest.libvirt.backup_job(guest.uuid).unwrap(), theirs);
    let job = guest.job(Some("cp"), vec![guest.disk("vda", None, true)]);
    let error = guest.libvirt.begin_backup(guest.uuid, &job).unwrap_err();
    assert!(matches!(error, HypervisorError::Busy { .. }), "{error}");
    assert_eq!(guest.libvirt.backup_job(guest.uuid).unwrap(), theirs);
    assert_eq!(guest.libvirt.checkpoints(guest.uuid).unwrap(), [""; 0]);
}

#[test]
fn a_domain_that_is_held_is_busy() {
    let guest = Guest::start("");
    let job = guest.job(Some("cp"), vec![guest.disk("vda", None, true)]);
    // QEMU stands still, and a call waits for its answer: libvirt gives up after half a minute.
    let stopped = guest.freeze();
    let mut waiting = virsh();
    let name = guest.uuid.to_string();
    let mut waiting = waiting
        .args(["qemu-monitor-command", &name, "{\"execute\":\"query-name\"}"])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let error = guest.libvirt.begin_backup(guest.uuid, &job).unwrap_err();
    assert!(matches!(error, HypervisorError::Busy { .. }), "{error}");
    drop(stopped);
    waiting.wait().unwrap();
    no_leftovers(&guest);
    assert_eq!(guest.libvirt.checkpoints(guest.uuid).unwrap(), [""; 0]);
    guest.libvirt.begin_backup(guest.uuid, &job).unwrap();
}
