//! The scripts, run by a shell, with programs that only say what they are called with.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use strongroom_hypervisor::{BackupJob, JobDisk, Listener};

use super::*;

const LONG: &str = "a-name-that-is-longer-than-twenty";

/// A libvirt with three VMs.
const VIRSH: &str = r#"#!/bin/sh
[ "$1 $2 $3" = "-q -c qemu:///system" ] || exit 9
shift 3
case "$1 $2" in
    "domid web01") echo 3 ;;
    "domid db.1") echo - ;;
    "domid a-name"*) echo 7 ;;
    "checkpoint-list "*) seq -f strongroom-%g "${CHECKPOINTS:-2}" ;;
    "domblklist "*) printf ' file    disk    vda   /srv/it'"'"'s <a> & b/web.qcow2\n block   disk    vdb   /dev/vg/web\n file    cdrom   sda   -\n' ;;
    "backup-dumpxml "*) printf "<domainbackup mode='pull'>\n<scratch file='/srv/$SCRATCH'/>\n<scratch file='/srv/strongroom-1-vdb.scratch'/>\n" ;;
    "domstate "*) echo "$STATE" ;;
    "backup-begin "*) shift; echo "$@"; cat /dev/fd/3; [ $# = 2 ] || cat /dev/fd/4 ;;
    *) echo virsh "$@" ;;
esac
"#;

fn rights(vms: &[&str]) -> Rights {
    Rights {
        account: "strongroom".into(),
        group: "libvirt-qemu".into(),
        vms: vms.iter().map(|vm| (*vm).to_owned()).collect(),
        key: format!("ssh-ed25519 {} me@here\n", "A".repeat(68)),
        pool: None,
        own: None,
        images: "/var/lib/libvirt/images".into(),
        nbd_tls: None,
    }
}

fn install(directory: &Path, script: &str) {
    let path = "PATH=/usr/bin:/bin:/usr/sbin:/sbin";
    assert!(script.contains(path));
    let here = format!("PATH={}:/usr/bin:/bin", directory.display());
    for (name, text) in [
        ("virsh", VIRSH),
        ("nc", "#!/bin/sh\necho nc \"$@\"\n"),
        (
            "virt-ssh-helper",
            "#!/bin/sh\n[ \"$*\" = qemu:///system ] && exec cat\n",
        ),
        ("script", script.replace(path, &here).as_str()),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
        std::fs::set_permissions(directory.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// What comes of a script when this is asked for and that is said.
fn run(script: &str, asked: &str, input: &[u8], environment: &[(&str, &str)]) -> (Vec<u8>, Option<i32>) {
    let directory = tempfile::tempdir().unwrap();
    install(directory.path(), script);
    let mut child = Command::new("/bin/sh")
        .arg(directory.path().join("script"))
        .env("SSH_ORIGINAL_COMMAND", asked)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // As sshd does; the script may end all of them.
        .process_group(0)
        .spawn()
        .unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    (output.stdout, output.status.code())
}

fn says(script: &str, asked: &str) -> (String, Option<i32>) {
    let (said, code) = run(script, asked, b"", &[]);
    (String::from_utf8(said).unwrap().trim().to_owned(), code)
}

/// Row R1: what is named by a client is an export of a listed VM, by libvirt's own number of it.
#[test]
fn the_account_reads_exports_of_listed_vms_and_nothing_else() {
    let rights = rights(&["web01", LONG, "db.1"]);
    rights.check().unwrap();
    let script = rights.reach_script();
    let socket = |vm: &str| format!("/var/lib/libvirt/qemu/domain-{vm}/sr-0123abcd.sock");
    for good in [socket("3-web01"), socket("7-a-name-that-is-longe")] {
        assert_eq!(
            says(&script, &format!("nc -U '{good}'")),
            (format!("nc -U {good}"), Some(0))
        );
    }
    for bad in [
        "",
        "sh",
        "end web01",
        "nc -U '/var/lib/libvirt/qemu/domain-3-web01/monitor.sock'",
        "nc -U '/run/libvirt/libvirt-sock'",
        "nc -U '/var/lib/libvirt/qemu/domain-3-web01/../domain-4-db/sr-0123abcd.sock'",
        "nc -U '/var/lib/libvirt/qemu/domain-3-web01/x/sr-0123abcd.sock'",
        "nc -U '/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock' -e /bin/sh",
        "nc -U '/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock'; id '",
        "nc -U '/var/lib/libvirt/qemu/domain-3-web01/sr-$(id -u1).sock'",
        "nc -U '/var/lib/libvirt/qemu/domain-3-web01/sr-????????.sock'",
        "nc -U '/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock\n'",
        "nc -lU '/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock'",
        "virsh -q -c qemu:///system domjobabort 'web01'",
        &format!("nc -U '{}'", socket("3-web02")),
        &format!("nc -U '{}'", socket("3-x-web01")),
        &format!("nc -U '{}'", socket("-web01")),
        &format!("nc -U '{}'", socket("3-db/x-web01")),
        // Another VM's of a name that begins with the same twenty characters, one that was there before, one that is off.
        &format!("nc -U '{}'", socket("8-a-name-that-is-longe")),
        &format!("nc -U '{}'", socket("2-web01")),
        &format!("nc -U '{}'", socket("--db.1")),
    ] {
        assert_eq!(says(&script, bad), (String::new(), Some(126)), "{bad}");
    }
}

fn message(program: u32, call: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(28 + body.len()).unwrap();
    let header = [length, program, 1, call, 0, 0, 0].map(u32::to_be_bytes);
    [header.concat().as_slice(), body].concat()
}

fn open(uri: Option<&str>) -> Vec<u8> {
    let mut body = u32::from(uri.is_some()).to_be_bytes().to_vec();
    if let Some(uri) = uri {
        body.extend(u32::try_from(uri.len()).unwrap().to_be_bytes());
        body.extend(uri.as_bytes());
        body.resize(body.len().next_multiple_of(4), 0);
    }
    body.extend([0; 4]);
    message(LIBVIRT, 1, &body)
}

const LIBVIRT: u32 = 0x2000_8086;
const QEMU: u32 = 0x2000_8087;
const ALIVE: u32 = 0x6b65_6570;

/// libvirtd opens whatever URI a client names, also `qemu+ssh://HOST/system?command=PROGRAM`, and runs that program as root.
#[test]
fn libvirt_is_asked_to_open_this_machines_qemu_and_nothing_else() {
    let script = rights(&["web01"]).reach_script();
    let asked = "sh -c 'which virt-ssh-helper 1>/dev/null 2>&1; if test $? = 0; then virt-ssh-helper qemu:///system; fi'";
    let passes = |messages: &[Vec<u8>]| run(&script, asked, &messages.concat(), &[]).0;
    let every_byte: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let good = [
        message(LIBVIRT, 66, b""),
        open(Some("qemu:///system")),
        message(LIBVIRT, 23, &every_byte),
        message(QEMU, 1, b"1234"),
        message(ALIVE, 1, b""),
    ];
    assert!(
        passes(&good) == good.concat(),
        "what libvirt's client says passes as it is"
    );
    // However it is asked for, libvirt's helper gets no words of the client's.
    let odd = "virt-ssh-helper test:///default; id";
    assert!(run(&script, odd, &good.concat(), &[]).0 == good.concat());
    let mut longer = open(Some("qemu:///system"));
    longer.extend(b"more");
    longer[3] += 4;
    for bad in [
        open(Some("qemu+ssh://h/system?command=/tmp/x")),
        open(Some("qemu+tcp://10.0.0.1/system")),
        open(Some("qemu:///session")),
        open(Some("test:///default")),
        open(Some("qemu:///systeM")),
        open(Some("")),
        open(None),
        longer,
        message(LIBVIRT, 1, b""),
        message(0x2000_8088, 1, b""),
        message(0x0690_0690, 1, b""),
        b"\0\0\0\x04\x20\0\x80\x86\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
        b"\xff\xff\xff\xff\x20\0\x80\x86\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
    ] {
        let mut told = good.to_vec();
        told.extend([bad.clone(), good[0].clone()]);
        // At most the head of the refused message is seen by libvirt, which waits for the rest.
        let passed = passes(&told);
        let before = good.concat();
        assert!(passed.starts_with(&before), "{bad:?}");
        assert!(passed.len() <= before.len() + 28, "{:?}", &passed[before.len()..]);
    }
}

fn job(run: &str) -> BackupJob {
    let disk = |target: &str, since: Option<&str>, checkpoint| JobDisk {
        target: target.into(),
        scratch: format!("/x/strongroom-{run}-{target}.scratch").into(),
        since: since.map(str::to_owned),
        checkpoint,
    };
    BackupJob {
        disks: vec![
            disk("vda", Some("strongroom-20261129T010203Z-89abcdef"), true),
            disk("vdb", None, false),
        ],
        checkpoint: Some(format!("strongroom-{run}")),
        listener: Listener::Socket("/y/sr-0123abcd.sock".into()),
    }
}

const RUN: &str = "20261130T010203Z-0123abcd";

/// Row R1: what libvirt is given is composed on the hypervisor.
#[test]
fn a_job_is_composed_on_the_hypervisor() {
    let mut rights = rights(&["web01", "db.1", LONG]);
    let script = rights.jobs_script();
    let begin = words::begin("web01", &job(RUN)).unwrap();
    let (said, code) = says(&script, &begin);
    assert_eq!(code, Some(0), "{said}");
    let disks = format!(
        "<disks><disk name='vda' backup='yes' type='file' exportname='vda' backupmode='incremental' \
         incremental='strongroom-20261129T010203Z-89abcdef'><driver type='qcow2'/>\
         <scratch file='/srv/it&apos;s &lt;a> &amp; b/strongroom-{RUN}-vda.scratch'/></disk>\
         <disk name='vdb' backup='yes' type='file' exportname='vdb' backupmode='full'><driver type='qcow2'/>\
         <scratch file='/var/lib/libvirt/images/strongroom-{RUN}-vdb.scratch'/></disk><disk name='sda' backup='no'/></disks>"
    );
    let point = format!(
        "<domaincheckpoint><name>strongroom-{RUN}</name><description>made by strongroom: the base of its next incremental \
         backup</description><disks><disk name='vda' checkpoint='bitmap'/><disk name='vdb' checkpoint='no'/>\
         <disk name='sda' checkpoint='no'/></disks></domaincheckpoint>"
    );
    let server = "<server transport='unix' socket='/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock'/>";
    assert_eq!(
        said,
        format!(
            "web01 /dev/fd/3 /dev/fd/4\n<domainbackup mode='pull'>{server}{disks}</domainbackup>\n{point}"
        )
    );
    // Without a checkpoint; of a VM with a long name; over TLS where that is allowed.
    let mut bare = job(RUN);
    bare.checkpoint = None;
    let (said, _) = says(&script, &words::begin(LONG, &bare).unwrap());
    assert!(
        said.starts_with(&format!("{LONG} /dev/fd/3\n<domainbackup")),
        "{said}"
    );
    assert!(
        said.contains("/domain-7-a-name-that-is-longe/sr-0123abcd.sock'"),
        "{said}"
    );
    bare.listener = Listener::Tls {
        address: "192.0.2.1".into(),
        port: 10810,
    };
    let tls = words::begin("web01", &bare).unwrap();
    assert_eq!(says(&script, &tls), (String::new(), Some(126)));
    rights.nbd_tls = Some(("0.0.0.0".parse().unwrap(), 10809..=10810));
    let script = rights.jobs_script();
    let (said, _) = says(&script, &tls);
    assert!(
        said.contains("<server transport='tcp' tls='yes' name='0.0.0.0' port='10810'/>"),
        "{said}"
    );
    for port in ["10808", "10811", "010810", "99999999999", "-1", "10810.0"] {
        let other = tls.replace(" 10810 ", &format!(" {port} "));
        assert_eq!(says(&script, &other), (String::new(), Some(126)), "{other}");
    }
    // A job that does not come from one run of ours is not asked for.
    let mut odd = job(RUN);
    odd.disks[1].scratch = "/x/else".into();
    words::begin("web01", &odd).unwrap_err();
}

/// Row R1: there is no word by which anything else could be named.
#[test]
fn words_are_names_and_nothing_else() {
    let mut rights = rights(&["web01", "db.1"]);
    rights.own = Some("backup1".into());
    rights.check().unwrap();
    let script = rights.jobs_script();
    let vda = format!("begin web01 {RUN} unix none vda:full:no");
    assert_eq!(says(&script, &vda).1, Some(0));
    let attach = words::attach("backup1", "web01", "0123abcd", "vda", "vdsb");
    let socket = "/var/lib/libvirt/qemu/domain-3-web01/sr-0123abcd.sock";
    let attached = format!(
        "virsh attach-disk backup1 vda vdsb --live --sourcetype network --source-protocol nbd --source-host-transport unix \
         --source-host-socket {socket} --targetbus virtio --driver qemu --subdriver raw --cache none --mode readonly \
         --serial sr-0123abcd-vda"
    );
    let old = "strongroom-20261129T010203Z-89abcdef";
    for (asked, done) in [
        (attach.clone(), attached.as_str()),
        (
            words::detach("backup1", "vdsp"),
            "virsh detach-disk backup1 vdsp --live",
        ),
        (
            words::forget("web01", old, false),
            "virsh checkpoint-delete web01 strongroom-20261129T010203Z-89abcdef",
        ),
        (
            words::forget("web01", old, true),
            "virsh checkpoint-delete web01 strongroom-20261129T010203Z-89abcdef --metadata",
        ),
    ] {
        assert_eq!(says(&script, &asked), (done.to_owned(), Some(0)));
    }
    let long = "a".repeat(300);
    let mut bad: Vec<String> = [
        "",
        "sh",
        "id",
        "libvirt list",
        "listed web01",
        "fail x",
        "begin",
        "end",
        "resume",
        "attach",
        "detach",
        "forget",
        "end web02",
        "end web01 db.1",
        "end backup1",
        "end --all",
        "end web01\nend db.1",
        "end 'web01'",
        "end *",
        "end web0?",
        "resume backup1",
        "detach web01 vdsb",
        "detach backup1 vda",
        "detach backup1 vdsb --config",
        "detach backup1 vdsq",
        "forget web01 theirs",
        "forget web01 strongroom-",
        "forget web01 strongroom-x --children",
        "forget web01 --current",
        "forget web01 strongroom-x.y",
        "forget backup1 strongroom-x",
        "forget web01 strongroom-x metadata metadata",
        "virsh -q -c qemu:///system domjobabort web01",
        "virt-ssh-helper qemu:///system",
    ]
    .map(str::to_owned)
    .to_vec();
    for (from, to) in [
        ("web01", "web02"),
        ("web01", "backup1"),
        ("web01", ""),
        ("web01", "--"),
        ("web01", "../web01"),
        ("web01", &long),
        ("web01", "$(id)"),
        ("web01", "`id`"),
        ("web01", "web01;id"),
        ("web01", "web01|id"),
        ("web01", "web01&"),
        (RUN, "../../x-0123abcd"),
        (RUN, "20261130T010203Z-0123abc"),
        (RUN, "20261130T010203Z-0123abcg"),
        (RUN, &long),
        (RUN, "x"),
        (RUN, "20261130T010203Z-'/>0123"),
        (RUN, "20261130T0102+3Z-0123abcd"),
        ("unix", "/tmp/sock"),
        ("unix", "tcp"),
        ("unix", "10809"),
        ("unix", "0.0.0.0"),
        ("unix", "unix unix"),
        ("none", "some"),
        ("none", "--reuse-external"),
        ("vda", ""),
        ("vda", "/etc/passwd"),
        ("vda", "vd a"),
        ("vda", "VDA"),
        ("vda", "vda'"),
        ("vda", &long),
        ("vda", "*"),
        (":full", ":theirs"),
        (":full", ":strongroom-a'b"),
        (":full", ":strongroom-"),
        (":full", ":strongroom-a/b"),
        (":full", ""),
        (":no", ""),
        (":no", ":maybe"),
        (":no", ":no:no:x"),
        (":no", ":no \u{a0}"),
    ] {
        bad.push(vda.replace(from, to));
    }
    for (from, to) in [
        ("backup1", "web01"),
        ("web01", "web02"),
        ("web01", "backup1"),
        ("0123abcd", "0123abc"),
        ("0123abcd", "../../x"),
        (" vda ", " /dev/sda "),
        (" vda ", " vda --config "),
        (" vda ", "  "),
        ("vdsb", "vda"),
        ("vdsb", "vdsb --config"),
    ] {
        bad.push(attach.replace(from, to));
    }
    for bad in &bad {
        assert_eq!(says(&script, bad), (String::new(), Some(126)), "{bad}");
    }
    // Names that libvirt does not know, twice the same one, a VM that is off.
    for bad in [
        vda.replace("vda", "vdz"),
        format!("{vda} vda:full:yes"),
        vda.replace("web01", "db.1"),
        words::attach("backup1", "db.1", "0123abcd", "vda", "vdsb"),
    ] {
        assert_eq!(says(&script, &bad), (String::new(), Some(1)), "{bad}");
    }
    // No VM that disks may be attached to.
    rights.own = None;
    let script = rights.jobs_script();
    for bad in [attach, words::detach("backup1", "vdsb"), "detach  vdsb".into()] {
        assert_eq!(says(&script, &bad), (String::new(), Some(126)), "{bad}");
    }
}

/// Row R1: no state of a VM or of a job can be named.
#[test]
fn only_what_is_ours_is_ended_and_only_what_storage_stopped_runs_on() {
    let script = rights(&["web01"]).jobs_script();
    let asked = |asked: &str, name: &str, value: &str| {
        let (said, code) = run(&script, asked, b"", &[(name, value)]);
        (String::from_utf8(said).unwrap(), code)
    };
    let end = words::end("web01");
    let ended = ("virsh domjobabort web01\n".to_owned(), Some(0));
    assert_eq!(asked(&end, "SCRATCH", "strongroom-1-vda.scratch"), ended);
    for other in [
        "theirs",
        "strongroom-1-vda.scratch2",
        "x-strongroom-1-vda.scratch",
    ] {
        assert_eq!(asked(&end, "SCRATCH", other), (String::new(), Some(1)), "{other}");
    }
    let resume = words::resume("web01");
    let resumed = ("virsh resume web01\n".to_owned(), Some(0));
    assert_eq!(asked(&resume, "STATE", "paused (I/O error)"), resumed);
    for other in ["paused (user)", "running (booted)", "shut off (crashed)", ""] {
        assert_eq!(
            asked(&resume, "STATE", other),
            (String::new(), Some(1)),
            "{other}"
        );
    }
    let begin = words::begin("web01", &job(RUN)).unwrap();
    assert_eq!(asked(&begin, "CHECKPOINTS", "63").1, Some(0));
    assert_eq!(asked(&begin, "CHECKPOINTS", "64"), (String::new(), Some(1)));
}

#[test]
fn names_that_could_be_something_else_are_refused() {
    for bad in [
        "a b",
        "a\"b",
        "-a",
        "a*",
        "über",
        "",
        "12",
        "5b2bfb62-7d2d-4c3f-9d0b-2d9b0a0f3c11",
    ] {
        assert!(rights(&[bad]).check().is_err(), "{bad}");
    }
    let mut odd = rights(&["web"]);
    for key in [
        "",
        "hello",
        "ssh-ed25519 short",
        "ssh-ed25519 AAAA\nssh-ed25519 AAAA",
    ] {
        odd.key = key.into();
        assert!(odd.check().is_err(), "{key}");
    }
    assert!(rights(&[]).check().is_err());
    let mut odd = rights(&["web"]);
    for images in ["images", "/srv/a b", "/srv/$x", ""] {
        odd.images = images.into();
        assert!(odd.check().is_err(), "{images}");
    }
}
