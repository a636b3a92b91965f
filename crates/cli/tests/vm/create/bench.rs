//! A configuration with a template, a Tang server, and ways into a machine.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_testkit::{Borg, Lab, output_of, run, virsh};

use crate::common::running::Said;
use crate::common::template::Templates;

/// Parameters for slow machines, and for tests only.
pub const SMALL: [&str; 4] = ["--argon2-memory", "1M", "--memory", "512M"];

pub struct Bench {
    pub lab: Lab,
    pub templates: Templates,
    borg: Borg,
}

impl Bench {
    pub fn new() -> Self {
        let (lab, templates) = (Lab::new(), Templates::get());
        let place = lab.dir().display();
        let config = format!(
            "repository = '{place}/repo-{{vm}}'\nstate = '{place}/state'\nimages = '{place}/images'\ncompression = 'lz4'\n{}",
            templates.config()
        );
        fs::write(lab.path("strongroom.toml"), config).unwrap();
        Self {
            lab,
            templates,
            borg: Borg::packaged(),
        }
    }

    pub fn name(&self, name: &str) -> String {
        self.lab.name(name)
    }

    pub fn image(&self, name: &str, what: &str) -> PathBuf {
        self.lab.path(&format!("images/{}-{what}.qcow2", self.name(name)))
    }

    pub fn xml(&self, name: &str) -> String {
        run(&mut virsh(["dumpxml", &self.name(name)]))
    }

    /// Takes a machine out of the configuration.
    pub fn forget(&self, name: &str) {
        let file = self.lab.path("strongroom.toml");
        let text = fs::read_to_string(&file).unwrap();
        let table = format!("[vm.{}]", self.name(name));
        assert!(text.contains(&table), "{text}");
        fs::write(&file, text.replace(&table, "")).unwrap();
    }

    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        program
            .args(arguments)
            .env("STRONGROOM_CONFIG", self.lab.path("strongroom.toml"))
            .envs(self.borg.environment())
            .env_remove("BORG_REPO");
        program
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        Said::of(&mut self.program(arguments))
    }

    /// `create`, with a passphrase that is read from a pipe. The program inherits that, so it has to live until then.
    pub fn by_passphrase(&self, name: &str, passphrase: &str, more: &[&str]) -> (Command, OwnedFd) {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writeln!(writer, "{passphrase}").unwrap();
        let inherited = rustix::io::dup(&reader).unwrap();
        let name = self.name(name);
        let number = inherited.as_raw_fd().to_string();
        let mut program = self.program(&["create", &name, "--network", "none"]);
        program
            .args(["--unlock", "passphrase", "--passphrase-fd", &number])
            .args(more);
        // What was not said.
        for pair in [["--template", "base"], ["--virt-type", "qemu"]] {
            if !more.contains(&pair[0]) {
                program.args(pair);
            }
        }
        program.args(SMALL);
        (program, inherited)
    }

    /// `create`, with a terminal that answers.
    pub fn by_terminal(&self, name: &str, more: &[&str]) -> Command {
        let name = self.name(name);
        let mut program = self.program(&["create", &name, "--network", "none", "--virt-type", "qemu"]);
        program.args(more).args(SMALL);
        program
    }

    pub fn create_by_passphrase(&self, name: &str, passphrase: &str, more: &[&str]) -> Said {
        let (mut program, _inherited) = self.by_passphrase(name, passphrase, more);
        Said::of(&mut program)
    }

    pub fn wait_for_agent(&self, name: &str, patience: Duration) {
        let end = Instant::now() + patience;
        let name = self.name(name);
        while let Err(text) = output_of(&mut agent(&name, r#"{"execute":"guest-ping"}"#)) {
            assert!(Instant::now() < end, "{text}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Runs a shell command inside; gives its output.
    #[track_caller]
    pub fn inside(&self, name: &str, command: &str) -> String {
        let name = self.name(name);
        let ask = |request: Value| -> Value {
            let answer = run(&mut agent(&name, &request.to_string()));
            serde_json::from_str::<Value>(&answer).unwrap()["return"].clone()
        };
        let started = ask(json!({"execute": "guest-exec", "arguments":
            {"path": "/bin/sh", "arg": ["-c", command], "capture-output": true}}));
        let end = Instant::now() + Duration::from_mins(5);
        loop {
            let status = ask(json!({"execute": "guest-exec-status", "arguments": {"pid": started["pid"]}}));
            if status["exited"] == true {
                let text = |field: &str| {
                    let out = status[field].as_str().unwrap_or_default();
                    run(Command::new("sh").args(["-c", &format!("echo '{out}' | base64 -d")]))
                };
                assert_eq!(
                    status["exitcode"],
                    0,
                    "{command}: {} {}",
                    text("out-data"),
                    text("err-data")
                );
                return text("out-data");
            }
            assert!(Instant::now() < end, "{command} does not end");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A request to the guest agent.
pub fn agent(domain: &str, request: &str) -> Command {
    virsh(["qemu-agent-command", "--timeout", "10", domain, request])
}

/// What a file takes on its storage.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Whether a process runs: one that has ended and waits to be looked at does not.
pub fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|text| !text.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

/// A Tang server on the loopback, which guests with a user network reach at 10.0.2.2.
pub struct Tang {
    child: Child,
    port: u16,
}

impl Tang {
    pub fn start(directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        let program = ["/usr/libexec/tangd", "/usr/lib/x86_64-linux-gnu/tangd"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("tang is installed by scripts/setup");
        run(Command::new(format!("{program}-keygen")).arg(directory));
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let child = Command::new("socat")
            .arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"))
            .arg(format!("EXEC:{program} {}", directory.display()))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("socat is installed by scripts/setup");
        let tang = Self { child, port };
        let end = Instant::now() + Duration::from_secs(30);
        while output_of(&mut tang.ask()).is_err() {
            assert!(Instant::now() < end, "Tang does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        tang
    }

    fn ask(&self) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sf", &format!("{}/adv", self.url())]);
        command
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn url_in_guest(&self) -> String {
        format!("http://10.0.2.2:{}", self.port)
    }

    pub fn advertisement(&self) -> String {
        run(&mut self.ask())
    }

    /// As Tang's own tool prints it.
    pub fn thumbprint(&self) -> String {
        run(Command::new("tang-show-keys").arg(self.port.to_string()))
    }

    pub fn stop(&mut self) {
        let _ = output_of(Command::new("kill").args(["--", &format!("-{}", self.child.id())]));
        let _ = self.child.wait();
    }
}

impl Drop for Tang {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A machine's serial console, or a program's terminal.
pub struct Console {
    to: Box<dyn Write>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Console {
    /// Runs a program on a terminal of its own.
    pub fn of(program: &Command) -> (Self, Child) {
        let words = std::iter::once(program.get_program()).chain(program.get_args());
        let quoted: Vec<String> = words
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--flush", "--command"])
            .arg(format!("exec {}", quoted.join(" ")))
            .arg("/dev/null")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        (Self::new(from, to), child)
    }

    fn new(mut from: impl Read + Send + 'static, to: impl Write + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                all.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Self {
            to: Box::new(to),
            seen,
        }
    }

    pub fn open(domain: &str) -> Self {
        let path = run(&mut virsh(["ttyconsole", domain]));
        let terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
            .open(path)
            .unwrap();
        let mut modes = rustix::termios::tcgetattr(&terminal).unwrap();
        modes.make_raw();
        rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &modes).unwrap();
        Self::new(terminal.try_clone().unwrap(), terminal)
    }

    /// Waits for a text in what comes from now on. Returns what came before it.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> String {
        let end = Instant::now() + patience;
        loop {
            let mut seen = self.seen.lock().unwrap();
            if let Some(at) = seen.windows(text.len()).position(|part| part == text.as_bytes()) {
                let before = String::from_utf8_lossy(&seen[..at]).into_owned();
                seen.drain(..at + text.len());
                return before;
            }
            let all = String::from_utf8_lossy(&seen).into_owned();
            drop(seen);
            assert!(Instant::now() < end, "no {text:?} on the console:\n{all}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn line(&mut self, text: &str) {
        self.to.write_all(format!("{text}\n").as_bytes()).unwrap();
    }
}
