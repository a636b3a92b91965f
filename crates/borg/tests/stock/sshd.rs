//! An sshd of our own on the loopback device, with keys of its own.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use strongroom_borg::Settings;

pub struct Sshd {
    child: Child,
    pub port: u16,
    pub user: String,
}

impl Sshd {
    /// Starts it with its files in `dir`, and makes `settings` use it.
    pub fn start(dir: &Path, settings: &mut Settings) -> Self {
        std::fs::create_dir(dir).unwrap();
        let path = |name: &str| dir.join(name).display().to_string();
        for key in ["host", "user"] {
            let keygen = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)])
                .status()
                .unwrap();
            assert!(keygen.success());
        }
        std::fs::copy(path("user.pub"), path("authorized")).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 100\n\
             SetEnv BORG_BASE_DIR={} BORG_SELFTEST=disabled\n",
            path("host"),
            path("authorized"),
            path("server")
        );
        std::fs::write(path("config"), config).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &path("config")])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd is installed");
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < deadline,
                "{}",
                std::fs::read_to_string(path("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        settings.rsh = format!(
            "ssh -F none -i '{}' -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o \"UserKnownHostsFile={}\"",
            path("user"),
            path("known_hosts")
        );
        let id = Command::new("id").arg("-un").output().unwrap();
        Self {
            child,
            port,
            user: String::from_utf8(id.stdout).unwrap().trim().to_owned(),
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
