//! A real domain without an operating system: its disks are written through QEMU's own I/O tester.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use strongroom_hypervisor::{BackupJob, Domain, Hypervisor, HypervisorError, JobDisk, Listener};
use strongroom_libvirt::Libvirt;
use tempfile::TempDir;
use uuid::Uuid;

/// Where all domains of these tests live.
pub const URI: &str = "qemu:///system";

/// A domain with a system disk `vda`, a swap disk `vdb`, a raw disk `vdc`, an old qcow2 `vdd` and an empty drive
/// `sda`. All of it goes away when this is dropped.
pub struct Guest {
    pub name: String,
    pub uuid: Uuid,
    pub libvirt: Libvirt,
    pub dir: TempDir,
    _cleanup: Cleanup,
}

impl Guest {
    /// Defines it, with `label` at the end of its name.
    pub fn define(label: &str) -> Self {
        let (name, cleanup) = unique_name(label);
        let dir = tempfile::Builder::new()
            .prefix("sr-lv-test-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in("/var/tmp")
            .unwrap();
        let libvirt = Libvirt::connect(URI).expect("libvirtd must run: scripts/setup starts it");
        let mut disks = String::new();
        for (target, format, options, size) in [
            ("vda", "qcow2", "compat=1.1", "64M"),
            ("vdb", "qcow2", "compat=1.1", "16M"),
            ("vdc", "raw", "preallocation=off", "16M"),
            ("vdd", "qcow2", "compat=0.10", "16M"),
        ] {
            let file = dir.path().join(format!("{target}.{format}"));
            let mut command = Command::new("qemu-img");
            command
                .args(["create", "-q", "-f", format, "-o", options])
                .arg(&file)
                .arg(size);
            expect(&mut command);
            let element = format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}' discard='unmap'/>\
                 <source file='{}'/><target dev='{target}' bus='virtio'/><serial>S-{target}</serial></disk>",
                file.display()
            );
            disks.push_str(&element);
        }
        let xml = format!(
            "<domain type='qemu'><name>{}</name><memory unit='MiB'>128</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os><on_poweroff>destroy</on_poweroff>\
             <devices>{disks}<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>\
             <interface type='user'/></devices></domain>",
            name.replace('&', "&amp;").replace('<', "&lt;")
        );
        let uuid = libvirt.define(&xml, false).unwrap();
        Self {
            name,
            uuid,
            libvirt,
            dir,
            _cleanup: cleanup,
        }
    }

    /// Defines and starts it.
    pub fn start(label: &str) -> Self {
        let guest = Self::define(label);
        guest.virsh(&["start"], &[]);
        guest
    }

    pub fn facts(&self) -> Domain {
        self.libvirt.domain(&self.name).unwrap()
    }

    /// Runs `virsh VERB DOMAIN ARGUMENTS`, which has to succeed.
    pub fn virsh(&self, verb: &[&str], arguments: &[&str]) -> String {
        expect(virsh().args(verb).arg(self.uuid.to_string()).args(arguments))
    }

    /// Writes into a virtio disk as its device would.
    pub fn write(&self, target: &str, pattern: u8, offset: &str, length: &str) {
        let number = target.as_bytes()[2] - b'a';
        let device = format!("/machine/peripheral/virtio-disk{number}/virtio-backend");
        let command = format!("qemu-io -d {device} \"write -P {pattern} {offset} {length}\"");
        let answer = self.virsh(&["qemu-monitor-command"], &["--hmp", &command]);
        assert!(answer.trim().is_empty(), "{answer}");
    }

    /// Stops QEMU as a crash would, and waits until libvirt has noticed.
    pub fn kill(&self) {
        self.signal("-KILL");
        while self.virsh(&["domstate"], &[]).trim() != "shut off" {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Makes QEMU stand still until the result is dropped.
    pub fn freeze(&self) -> impl Drop {
        struct Frozen<'a>(&'a Guest);
        impl Drop for Frozen<'_> {
            fn drop(&mut self) {
                self.0.signal("-CONT");
            }
        }
        self.signal("-STOP");
        Frozen(self)
    }

    /// Sends a signal to QEMU. Only for names that libvirt does not escape.
    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(format!("/run/libvirt/qemu/{}.pid", self.name)).unwrap();
        expect(Command::new("kill").args([signal, pid.trim()]));
    }

    pub fn socket(&self) -> PathBuf {
        socket_of(&self.libvirt, self.uuid, "strongroom.sock").unwrap()
    }

    pub fn scratch(&self, target: &str) -> PathBuf {
        self.dir.path().join(format!("{target}.scratch"))
    }

    /// One disk of a job.
    pub fn disk(&self, target: &str, since: Option<&str>, checkpoint: bool) -> JobDisk {
        JobDisk {
            target: target.into(),
            scratch: self.scratch(target),
            since: since.map(Into::into),
            checkpoint,
        }
    }

    pub fn job(&self, checkpoint: Option<&str>, disks: Vec<JobDisk>) -> BackupJob {
        BackupJob {
            disks,
            checkpoint: checkpoint.map(Into::into),
            listener: Listener::Socket(self.socket()),
        }
    }

    /// Makes a checkpoint of `vda` in a job that is ended at once.
    pub fn checkpoint(&self, name: &str) {
        let job = self.job(Some(name), vec![self.disk("vda", None, true)]);
        self.libvirt.begin_backup(self.uuid, &job).unwrap();
        self.libvirt.end_backup(self.uuid).unwrap();
    }
}

/// Where a socket of this name would be.
pub fn socket_of(libvirt: &Libvirt, domain: Uuid, name: &str) -> Result<PathBuf, HypervisorError> {
    let listener = libvirt.listener(domain, name)?;
    Ok(listener.socket().expect("a socket").to_owned())
}

/// Removes a domain of that name, whatever made it in the test, also after a panic.
pub struct Cleanup(String);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = virsh().args(["destroy", &self.0]).output();
        let _ = virsh()
            .args(["undefine", "--managed-save", "--checkpoints-metadata", &self.0])
            .output();
    }
}

/// A domain name of this test run, and what removes the domain again.
pub fn unique_name(label: &str) -> (String, Cleanup) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("sr-lv-test-{}-{number}{label}", std::process::id());
    (name.clone(), Cleanup(name))
}

/// An export on a socket, as an NBD URI.
pub fn nbd_uri(socket: &Path, export: &str) -> String {
    let path = socket.to_str().unwrap().bytes();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte);
    let path: String = path
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    format!("nbd+unix:///{export}?socket={path}")
}

/// Names of the exports on a socket, sorted.
pub fn exports(socket: &Path) -> Vec<String> {
    let list = expect(Command::new("nbdinfo").args(["--list", &nbd_uri(socket, "")]));
    let name = |line: &str| Some(line.strip_prefix("export=\"")?.strip_suffix("\":")?.to_owned());
    let mut names: Vec<String> = list.lines().filter_map(name).collect();
    names.sort_unstable();
    names
}

/// Offsets and lengths of the dirty extents of an export.
pub fn dirty(socket: &Path, target: &str) -> Vec<(u64, u64)> {
    let context = format!("--map=qemu:dirty-bitmap:{}", BackupJob::dirty_bitmap(target));
    let map = expect(Command::new("nbdinfo").arg(context).arg(nbd_uri(socket, target)));
    let mut extents = Vec::new();
    for line in map.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [offset, length, flags, _] = fields[..] else {
            panic!("{line}")
        };
        if flags == "1" {
            extents.push((offset.parse().unwrap(), length.parse().unwrap()));
        }
    }
    extents
}

/// Whether an export holds that byte in the whole range.
pub fn holds(socket: &Path, export: &str, pattern: u8, offset: &str, length: &str) -> bool {
    let read = format!("read -P {pattern} {offset} {length}");
    let output = Command::new("qemu-io")
        .args(["-r", "-f", "raw", "-c", &read])
        .arg(nbd_uri(socket, export))
        .output();
    let output = output.unwrap();
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("verification failed")
}

pub fn virsh() -> Command {
    let mut command = Command::new("virsh");
    command.args(["-q", "-c", URI]).env("LC_ALL", "C");
    command
}

/// Runs a command that has to succeed; gives its output.
pub fn expect(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    assert!(
        status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&stderr)
    );
    String::from_utf8(stdout).unwrap()
}
