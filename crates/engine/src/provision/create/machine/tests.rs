//! The throwaway VM does anything: a script in QEMU's place speaks over the sockets that QEMU would have got.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use strongroom_guest::protocol::{Kdf, Unlock, VERSION};
use strongroom_points::trust::signature::Signer;

use super::*;
use crate::provision::template::Description;

struct Lab {
    directory: tempfile::TempDir,
    template: Template,
    disk: File,
}

impl Lab {
    fn new() -> Self {
        let file = || tempfile::tempfile().unwrap();
        let description = Description {
            format: 1,
            name: "test".into(),
            created: jiff::Timestamp::UNIX_EPOCH,
            source: "test".into(),
            protocol: VERSION,
            kernel: "6.1".into(),
            root_size: 100,
            packages: Vec::new(),
            files: std::collections::BTreeMap::new(),
        };
        // Another user has to be able to start it.
        let directory = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        Self {
            directory,
            template: Template {
                description,
                signer: Signer {
                    identity: "me".into(),
                    key: "SHA256:x".into(),
                },
                root: file(),
                kernel: file(),
                initrd: file(),
            },
            disk: file(),
        }
    }

    /// Runs a script with the socket of the words as descriptors 3 (to read) and 4 (to write).
    fn run(&self, script: &str, silence: Duration, cancel: &Cancel) -> Result<Report, MachineError> {
        let program: PathBuf = self.directory.path().join("qemu");
        // Written whole under another name first: a file that is open for writing cannot be started.
        let draft = self.directory.path().join("draft");
        std::fs::write(
            &draft,
            format!(
                "#!/bin/bash\nfd=$(sed 's/.*id=words,fd=\\([0-9]*\\).*/\\1/' <<<\"$*\")\n\
                 exec 3<&$fd 4>&$fd\n{script}\n"
            ),
        )
        .unwrap();
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&draft, &program).unwrap();
        let machine = Machine {
            name: "web",
            template: &self.template,
            system: &self.disk,
            swap: None,
            memory_mib: 1,
            accelerator: Accelerator::Tcg,
            qemu: program.as_os_str(),
            limits: Limits {
                whole: Duration::from_secs(30),
                silence,
            },
        };
        super::run(&machine, &order(), Typed::Nothing, &(), cancel)
    }
}

fn order() -> Order {
    Order {
        version: VERSION,
        hostname: "web".into(),
        swap: false,
        discard: true,
        kdf: Kdf {
            memory_kib: 32,
            iterations: 4,
            parallel: 1,
        },
        unlock: Unlock::Passphrase { asked: false },
        recovery: None,
        authorized_keys: Vec::new(),
        backups: None,
    }
}

const HELLO: &str = r#"echo '{"hello":{"version":1}}' >&4; read -r order <&3"#;
const DONE: &str = r#"echo '{"done":{"luks_uuid":"0f7ae4c8-32e4-4e4e-a5c8-000000000001","recovery":null,"ssh_host_key":"ssh-ed25519 AAAA","ssh_fingerprint":"SHA256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}}' >&4"#;
const LONG: Duration = Duration::from_secs(25);

#[test]
fn a_machine_that_does_its_work_is_believed_so_far() {
    let lab = Lab::new();
    let script = format!(
        "{HELLO}\n[[ $order == *'\"hostname\":\"web\"'* ]] || exit 1\necho '{{\"step\":\"copy\"}}' >&4\n\
         echo '{{\"progress\":{{\"done\":999999999,\"total\":1}}}}' >&4\n{DONE}"
    );
    let report = lab.run(&script, LONG, &Cancel::new()).unwrap();
    assert_eq!(report.ssh_host_key, "ssh-ed25519 AAAA");
}

#[test]
fn a_machine_that_dies_says_what_was_on_its_console() {
    let lab = Lab::new();
    for script in [
        "echo 'no such disk' >&2; exit 1".to_owned(),
        format!("{HELLO}\necho 'no such disk' >&2; exit 0"),
    ] {
        let error = lab.run(&script, LONG, &Cancel::new()).unwrap_err();
        assert!(matches!(error, MachineError::Died(_)), "{error}");
        assert!(error.to_string().contains("no such disk"), "{error}");
    }
    // It reports, and then QEMU fails: what it wrote may be lost.
    let error = lab
        .run(&format!("{HELLO}\n{DONE}\nexit 1"), LONG, &Cancel::new())
        .unwrap_err();
    assert!(matches!(error, MachineError::Died(_)), "{error}");
}

#[test]
fn a_machine_that_hangs_is_ended() {
    let lab = Lab::new();
    let short = Duration::from_millis(500);
    for script in ["exec sleep 60".to_owned(), format!("{HELLO}\nexec sleep 60")] {
        let begin = Instant::now();
        let error = lab.run(&script, short, &Cancel::new()).unwrap_err();
        assert!(matches!(error, MachineError::Silent { .. }), "{error}");
        assert!(begin.elapsed() < LONG);
    }
}

#[test]
fn a_machine_that_lies_is_not_believed() {
    let lab = Lab::new();
    let lies = [
        "echo hello >&4".to_owned(),
        "exec yes '{\"hello\":{\"version\":1}}' >&4".to_owned(),
        "exec cat /dev/zero >&4".to_owned(),
        DONE.to_owned(),
        "echo '{\"hello\":{\"version\":2}}' >&4".to_owned(),
        format!("{HELLO}\n{}", DONE.replace("0f7ae4c8", "../../..")),
        format!("{HELLO}\n{}", DONE.replace("null", "\"my secret\"")),
    ];
    for script in lies {
        let error = lab
            .run(&format!("{script}\nsleep 20"), LONG, &Cancel::new())
            .unwrap_err();
        assert!(matches!(error, MachineError::Protocol(_)), "{script}: {error}");
    }
    let words = format!(
        "{HELLO}\necho '{{\"failed\":{{\"step\":\"copy\",\"message\":\"write:\\u001b[31m disk\"}}}}' >&4; sleep 20"
    );
    let error = lab.run(&words, LONG, &Cancel::new()).unwrap_err();
    assert!(matches!(error, MachineError::Failed { .. }), "{error}");
    assert!(!error.to_string().contains('\u{1b}'));
}

#[test]
fn interrupted_it_is_gone() {
    let lab = Lab::new();
    let pid = lab.directory.path().join("pid");
    std::fs::set_permissions(lab.directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let cancel = Cancel::new();
    let stop = cancel.clone();
    let seen = pid.clone();
    let waiting = thread::spawn(move || {
        while std::fs::read_to_string(&seen).unwrap_or_default().is_empty() {
            thread::sleep(LOOK);
        }
        stop.cancel();
    });
    let script = format!("echo $$ >{}\n{HELLO}\nexec sleep 60", pid.display());
    let error = lab.run(&script, LONG, &cancel).unwrap_err();
    waiting.join().unwrap();
    assert!(matches!(error, MachineError::Cancelled(_)), "{error}");
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
}

#[test]
fn nothing_is_given_to_qemu_but_open_files() {
    let lab = Lab::new();
    let seen = lab.directory.path().join("arguments");
    std::fs::set_permissions(lab.directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let script = format!("echo \"$*\" >{}\n{HELLO}\n{DONE}", seen.display());
    lab.run(&script, LONG, &Cancel::new()).unwrap();
    let arguments = std::fs::read_to_string(seen).unwrap();
    assert!(
        arguments.contains("-nodefaults") && arguments.contains("-sandbox on"),
        "{arguments}"
    );
    assert!(
        !arguments.contains("netdev") && !arguments.contains("virtio-net"),
        "{arguments}"
    );
    for path in arguments
        .split([' ', '=', ','])
        .filter(|word| word.starts_with('/'))
    {
        assert!(
            path.starts_with("/dev/fdset/") || path.starts_with("/proc/self/fd/") || path == "/dev/urandom",
            "{path}"
        );
    }
}
