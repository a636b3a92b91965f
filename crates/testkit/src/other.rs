//! A second libvirtd beside a test's own: another host, as far as libvirt can tell, to migrate to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{DIRECTORIES, OwnLibvirtd, prepare, wait};
use crate::run::{output_of, run};

/// The daemon of another host. It shares this one's files outside libvirt's own directories, and ends with the test.
pub struct OtherHost {
    directory: PathBuf,
}

impl OwnLibvirtd {
    /// Starts the other host's daemon, with its directories below this one, which has to be open to QEMU.
    pub fn other_host(&self, directory: &Path) -> OtherHost {
        let directory = directory.join("other");
        fs::create_dir(&directory).expect("make a directory");
        prepare(&directory);
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a UUID");
        let file = directory.join("etc/libvirtd.conf");
        let text = fs::read_to_string(&file).unwrap_or_default();
        // Two hosts with one UUID are one host, which nothing can migrate to.
        let text = format!("{text}\nhost_uuid = \"{}\"\n", uuid.trim());
        fs::write(&file, text).expect("write the daemon's configuration");
        let mounts: Vec<String> = DIRECTORIES
            .iter()
            .map(|(name, target)| format!("mount --bind {}/{name} {target}", directory.display()))
            .collect();
        let script = format!(
            "set -e; {}; cd /; umask 022; for daemon in virtlogd libvirtd; do \
             env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TMPDIR=/var/cache/libvirt/tmp \
             setsid $daemon -d -p /run/libvirt/$daemon.pid </dev/null >/dev/null 2>&1; done",
            mounts.join("; ")
        );
        run(Command::new("unshare").args(["--mount", "--propagation", "private", "bash", "-c", &script]));
        let host = OtherHost { directory };
        wait("the other libvirtd does not answer", || {
            output_of(&mut host.virsh(&["uri"])).is_ok()
        });
        host
    }
}

impl OtherHost {
    /// Its libvirt URI, from here.
    pub fn uri(&self) -> String {
        format!(
            "qemu+unix:///system?socket={}/run/libvirt-sock",
            self.directory.display()
        )
    }

    /// `virsh`, speaking to it.
    pub fn virsh(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command
            .args(["--quiet", "--connect", &self.uri()])
            .args(arguments);
        command
    }
}
