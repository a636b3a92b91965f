//! A real `sshd` on loopback, for one test.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::patience::patience;
use crate::run::{output_of, run, ssh_keygen};

/// An `sshd` that lets in the user who runs the test, by a key made for it, and others as they have it in their home
/// directories. Killed on drop.
pub struct Sshd {
    dir: TempDir,
    port: u16,
    process: Child,
}

impl Sshd {
    /// Starts the daemon on a free port of 127.0.0.1 and waits until it accepts connections.
    pub fn start() -> Self {
        // Another program may take the port between our look and sshd's bind.
        (0..5)
            .find_map(|_| Self::try_start())
            .expect("sshd does not start: see its messages above")
    }

    fn try_start() -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("sr-sshd-")
            .tempdir()
            .expect("make a directory for sshd");
        let file = |name: &str| dir.path().join(name).display().to_string();
        let host_key = ssh_keygen(Path::new(&file("host")), "host");
        ssh_keygen(Path::new(&file("user")), "user");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind to loopback");
        let port = listener.local_addr().expect("the address just bound").port();
        drop(listener);

        let known = fs::read_to_string(host_key).expect("read the host key");
        fs::write(file("known_hosts"), format!("[127.0.0.1]:{port} {known}")).expect("write known_hosts");
        let server = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {} {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nUseDNS no\nMaxStartups 100\n\
             Match User *,!{}\n  AuthorizedKeysFile .ssh/authorized_keys\n",
            file("host"),
            file("user.pub"),
            file("authorized"),
            user(),
        );
        fs::write(file("sshd_config"), server).expect("write sshd_config");
        let client = format!(
            "Host *\n  Port {port}\n  IdentityFile {}\n  IdentitiesOnly yes\n  IdentityAgent none\n  \
             UserKnownHostsFile {}\n  StrictHostKeyChecking yes\n  BatchMode yes\n",
            file("user"),
            file("known_hosts"),
        );
        fs::write(file("ssh_config"), client).expect("write ssh_config");
        let program = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$*\" >>{}\nexec ssh -F {} \"$@\"\n",
            file("calls"),
            file("ssh_config")
        );
        fs::write(file("ssh"), program).expect("write the ssh program");
        fs::set_permissions(file("ssh"), fs::Permissions::from_mode(0o755)).expect("make it a program");

        let mut process = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &file("sshd_config")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(file("log")).expect("make sshd's log"))
            .spawn()
            .expect("run /usr/sbin/sshd");
        let deadline = Instant::now() + patience(Duration::from_secs(10));
        while process.try_wait().expect("look after sshd").is_none() && Instant::now() < deadline {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(Self { dir, port, process });
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = process.kill();
        let _ = process.wait();
        let log = fs::read_to_string(file("log")).unwrap_or_default();
        assert!(
            log.contains("Bind to port") || log.contains("Address already in use"),
            "sshd: {log}"
        );
        None
    }

    /// The ssh command that reaches the daemon, for `BORG_RSH`.
    pub fn rsh(&self) -> String {
        format!("ssh -F {}", self.dir.path().join("ssh_config").display())
    }

    /// A program with ssh's arguments that reaches the daemon, for `STRONGROOM_SSH`.
    pub fn program(&self) -> PathBuf {
        self.dir.path().join("ssh")
    }

    /// The arguments that [`Sshd::program`] was called with, a line each.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Lets in another key as well, for the user who runs the test, as this line of `authorized_keys` says.
    pub fn let_in(&self, line: &str) {
        let path = self.dir.path().join("authorized");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, format!("{before}{line}\n")).expect("write authorized_keys");
    }

    /// What a client has to know of its host key that reaches it at this address.
    pub fn known_hosts(&self, address: &str) -> String {
        let known = fs::read_to_string(self.dir.path().join("known_hosts")).expect("read known_hosts");
        known.replace("127.0.0.1", address)
    }

    /// The private key that it lets in.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("user")
    }

    /// The URI of the system's libvirtd by way of the daemon, as if it were another machine's.
    pub fn libvirt(&self) -> String {
        self.libvirt_as(&user())
    }

    /// The same for another account, which has to let in the test's key.
    pub fn libvirt_as(&self, account: &str) -> String {
        format!(
            "qemu+ssh://{account}@127.0.0.1:{}/system?command={}",
            self.port,
            self.program().display()
        )
    }

    /// `ssh://USER@127.0.0.1:PORT` followed by an absolute path.
    pub fn url(&self, path: &Path) -> String {
        format!("ssh://{}@127.0.0.1:{}{}", user(), self.port, path.display())
    }

    /// The scp-like form of the same, `USER@127.0.0.1:PATH`; the port is in the ssh configuration.
    pub fn scp_url(&self, path: &Path) -> String {
        format!("{}@127.0.0.1:{}", user(), path.display())
    }

    /// Cuts all connections, as a network does that breaks down. New ones can be made.
    pub fn cut(&self) {
        for session in children(self.process.id()) {
            // It may be over already.
            let _ = output_of(Command::new("kill").args(["-KILL", &session.to_string()]));
        }
    }

    /// The port that the daemon listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn children(process: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let own = list.split_whitespace().filter_map(|id| id.parse().ok());
    own.flat_map(|id| children(id).into_iter().chain([id])).collect()
}

fn user() -> String {
    run(Command::new("id").arg("-un"))
}
