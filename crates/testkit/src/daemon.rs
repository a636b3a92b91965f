//! A libvirtd of a test's own, for tests that kill it.
//!
//! It lives with the test in mount and process namespaces of their own, with private copies of the directories that
//! libvirt's programs and clients use. Inside, `qemu:///system` is this daemon; outside, nothing of it is to be seen,
//! and no other test is disturbed. When the test ends, however it ends, the kernel takes everything down that runs
//! inside.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::patience::patience;
use crate::run::{output_of, run, virsh};

/// How everything begins that tests make.
pub const PREFIX: &str = "sr-test-";
/// Set inside, to the id that the test's process has outside.
const INSIDE: &str = "STRONGROOM_OWN_LIBVIRTD";
/// Where the private directories are: each replaces the one that it is named after.
pub(crate) const DIRECTORIES: [(&str, &str); 5] = [
    ("run", "/run/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("etc", "/etc/libvirt"),
    ("log", "/var/log/libvirt"),
    ("cache", "/var/cache/libvirt"),
];
const DAEMONS: [&str; 2] = ["virtlogd", "libvirtd"];
/// How long a daemon may take to start or to end; libvirtd ends by force after half a minute.
const LIMIT: Duration = Duration::from_mins(1);

/// The daemon of the test that runs inside.
#[derive(Default)]
pub struct OwnLibvirtd {
    /// It takes connections over TLS.
    listens: bool,
}

impl OwnLibvirtd {
    /// Called first in the test function of this name in `module` (`module_path!()`). Outside it runs the function once more, inside, to its end, and
    /// gives nothing; inside it gives the daemon. Needs root.
    #[must_use = "outside there is nothing left to do"]
    pub fn enter(module: &str, test: &str) -> Option<Self> {
        // What libtest calls it: without the name of the test binary.
        let test = match module.split_once("::") {
            Some((_, module)) => format!("{module}::{test}"),
            None => test.to_owned(),
        };
        if std::env::var_os(INSIDE).is_some() {
            let daemon = Self::default();
            daemon.start();
            return Some(daemon);
        }
        let id = std::process::id();
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{id}-libvirtd-"))
            .tempdir_in("/var/tmp")
            .expect("make a directory in /var/tmp");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
        prepare(directory.path());
        let mounts: Vec<String> = DIRECTORIES
            .iter()
            .map(|(name, target)| format!("mount --bind {}/{name} {target}", directory.path().display()))
            .collect();
        // The shell stays: the first process of the namespace has to bury the daemons' and QEMU's dead.
        let script = format!("set -e; {}; \"$@\"; exit $?", mounts.join("; "));
        let status = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["--mount-proc", "bash", "-c", &script, "bash"])
            .arg(std::env::current_exe().expect("the test's own program"))
            .args(["--exact", &test, "--nocapture", "--include-ignored"])
            .env(INSIDE, id.to_string())
            .status()
            .expect("run unshare");
        assert!(status.success(), "{test}, inside: {status}");
        None
    }

    /// Sends libvirtd a signal and waits until its process is gone. Guests run on.
    pub fn end(&self, signal: &str) {
        let id = fs::read_to_string("/run/libvirt/libvirtd.pid").expect("libvirtd's pid file");
        // It may be dead already.
        let _ = output_of(Command::new("kill").args([&format!("-{signal}"), id.trim()]));
        wait("libvirtd does not end", || {
            !Path::new("/proc").join(id.trim()).exists()
        });
    }

    /// Has libvirtd take connections over TLS at a port of 127.0.0.1, and QEMU show the same certificate, from a directory
    /// that its user can read ([`crate::certificates`]). It is started again.
    pub fn listen(&mut self, certificates: &Path, port: u16) {
        let at = |name: &str| certificates.join(name).display().to_string();
        let append = |file: &str, text: String| {
            let file = Path::new("/etc/libvirt").join(file);
            let before = fs::read_to_string(&file).unwrap_or_default();
            fs::write(&file, format!("{before}\n{text}")).expect("write libvirt's configuration");
        };
        append(
            "libvirtd.conf",
            format!(
                "listen_tls = 1\nlisten_tcp = 0\nlisten_addr = \"127.0.0.1\"\ntls_port = \"{port}\"\n\
                 key_file = \"{}\"\ncert_file = \"{}\"\nca_file = \"{}\"\n",
                at("server-key.pem"),
                at("server-cert.pem"),
                at("ca-cert.pem")
            ),
        );
        append(
            "qemu.conf",
            format!("default_tls_x509_cert_dir = \"{}\"\n", certificates.display()),
        );
        self.listens = true;
        self.end("TERM");
        self.start();
    }

    /// Starts what does not run, and waits until it answers.
    pub fn start(&self) {
        for daemon in DAEMONS {
            let file = format!("/run/libvirt/{daemon}.pid");
            let runs = fs::read_to_string(&file).is_ok_and(|id| Path::new("/proc").join(id.trim()).exists());
            if !runs {
                let _ = fs::remove_file(&file);
                run(Command::new("env")
                    .args(["-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"])
                    .args(["TMPDIR=/var/cache/libvirt/tmp", "sh", "-c"])
                    .arg("cd / && umask 022 && exec setsid \"$0\" -d -p \"$@\" </dev/null >/dev/null 2>&1")
                    .args([daemon, &file])
                    .args((daemon == "libvirtd" && self.listens).then_some("--listen")));
            }
        }
        wait("libvirtd does not answer", || {
            output_of(&mut virsh(["uri"])).is_ok()
        });
    }
}

/// The id that tells this test's objects from others': that of its process, outside.
pub fn owner() -> u32 {
    inside().unwrap_or_else(std::process::id)
}

/// The id outside, if this is inside.
pub fn inside() -> Option<u32> {
    std::env::var(INSIDE).ok()?.parse().ok()
}

/// Fills the private directories: the configuration is the system's, without its networks, pools and domains.
pub(crate) fn prepare(directory: &Path) {
    for (name, target) in DIRECTORIES {
        fs::create_dir(directory.join(name)).expect("make a private directory");
        run(Command::new("mkdir").args(["-p", target]));
    }
    run(Command::new("cp")
        .args(["-a", "/etc/libvirt/."])
        .arg(directory.join("etc")));
    for own in ["qemu", "storage", "secrets", "nwfilter"] {
        let _ = fs::remove_dir_all(directory.join("etc").join(own));
    }
    let temporary = directory.join("cache/tmp");
    fs::create_dir(&temporary).expect("make a directory for temporary files");
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)).expect("open it");
}

/// Waits for something to become true.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < patience(LIMIT), "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}
