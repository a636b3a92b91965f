//! Parties of a backup that hang (R10), and what has to hold afterwards.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use strongroom_engine::config::CaptureMethod;
use strongroom_testkit::{Lab, Sshd, run, virsh};

use super::Bench;
use super::running::{Running, Said, signal};
use super::tiny::{MIB, Tiny, noise};

/// How long a run may take to end once it is told to, whatever hangs: see `docs/operate/hangs.md`.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A process that is stopped again and again, so that it does not even go on when it is asked to end. It goes on when this
/// is dropped.
pub struct Held {
    process: u32,
    over: Arc<AtomicBool>,
    holder: Option<JoinHandle<()>>,
}

impl Held {
    pub fn stop(process: u32) -> Self {
        signal(process, "STOP");
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let holder = spawn(move || {
            let id = Pid::from_raw(process.cast_signed()).unwrap();
            while !seen.load(Ordering::SeqCst) && kill_process(id, Signal::STOP).is_ok() {
                sleep(Duration::from_millis(1));
            }
        });
        Self {
            process,
            over,
            holder: Some(holder),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.holder.take().map(JoinHandle::join);
        if let Some(id) = Pid::from_raw(self.process.cast_signed()) {
            let _ = kill_process(id, Signal::CONT);
        }
    }
}

/// A file system whose server is a process here, so that it can hang as a dead network share does.
pub struct Mount {
    pub place: PathBuf,
    server: Child,
    /// What the kernel says of the connection to the server, and takes orders for it.
    control: PathBuf,
}

impl Mount {
    pub fn new(lab: &Lab) -> Self {
        let (image, place) = (lab.path("mount.img"), lab.path("mount"));
        std::fs::create_dir(&place).unwrap();
        std::fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-O", "^has_journal"])
            .arg(&image));
        let server = Command::new("fuse2fs")
            .args(["-f", "-o", "rw"])
            .args([&image, &place])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut mount = Self {
            place,
            server,
            control: PathBuf::new(),
        };
        let begin = Instant::now();
        while !mount.is_there() {
            assert!(begin.elapsed() < PATIENCE, "fuse2fs does not mount");
            sleep(Duration::from_millis(50));
        }
        let connections = lab.path("connections");
        std::fs::create_dir(&connections).unwrap();
        run(Command::new("mount")
            .args(["-t", "fusectl", "fusectl"])
            .arg(&connections));
        let device = std::fs::metadata(&mount.place).unwrap().dev();
        mount.control = connections.join(rustix::fs::minor(device).to_string());
        mount
    }

    /// Stops the server while it has nothing to do. What is asked of it then waits in its queue, and can be killed there; what it
    /// had begun to answer could not, and would hold its process.
    pub fn stop_idle(&self) -> Held {
        let waiting = || std::fs::read_to_string(self.control.join("waiting")).unwrap();
        for _ in 0..1000 {
            let held = Held::stop(self.server.id());
            if waiting().trim() == "0" {
                return held;
            }
            drop(held);
            sleep(Duration::from_millis(1));
        }
        panic!("the server is never idle")
    }

    fn is_there(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&self.place.display().to_string())
    }

    pub fn id(&self) -> u32 {
        self.server.id()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Nothing waits for the server any longer, whatever has become of it.
        let _ = std::fs::write(self.control.join("abort"), "1");
        for place in [Some(self.place.as_path()), self.control.parent()]
            .into_iter()
            .flatten()
        {
            let _ = Command::new("umount").arg("-l").arg(place).status();
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A VM without a guest, backed up slowly enough to be caught at it.
pub struct Ward<'a> {
    pub lab: &'a Lab,
    pub bench: Bench,
    pub tiny: Tiny,
    /// What the program's environment has beside Borg's.
    pub environment: Vec<(&'static str, String)>,
}

impl<'a> Ward<'a> {
    pub fn new(lab: &'a Lab, method: CaptureMethod) -> Self {
        let tiny = Tiny::with_disks(lab, "ward", &[("vda", 12)]);
        tiny.set("vda", &noise(7, 10 * MIB));
        run(&mut virsh(["start", "--paused", &tiny.name]));
        let mut bench = Bench::new(lab, &[&tiny.name]);
        bench.config.limits.free_mib = 0;
        let mut ward = Self {
            lab,
            bench,
            tiny,
            environment: Vec::new(),
        };
        ward.by(method);
        ward
    }

    pub fn by(&mut self, method: CaptureMethod) {
        let name = self.tiny.name.clone();
        self.bench.config.vm.entry(name).or_default().method = method;
    }

    fn program(&self) -> Command {
        let mut program = self.bench.program(self.lab);
        program.envs(self.environment.iter().map(|(name, value)| (name, value)));
        program
    }

    /// Starts a slow backup, and waits until it says this.
    #[track_caller]
    pub fn at(&mut self, step: &str, arguments: &[&str]) -> Running {
        self.bench.config.reader.limit_mib = 1;
        let mut program = self.program();
        let mut running = Running::start(program.args(["-v", "backup", &self.tiny.name]).args(arguments));
        running.wait_for(step);
        running
    }

    /// Puts the repository behind ssh. Returns how the server beyond is found.
    pub fn over_ssh(&mut self, sshd: &Sshd) -> PathBuf {
        let (there, place) = (self.lab.path("borg-there"), self.lab.path("there"));
        let borg = run(Command::new("sh").args(["-c", "command -v borg"]));
        std::os::unix::fs::symlink(borg, &there).unwrap();
        self.bench.config.repository = sshd.url(&place.join("{vm}"));
        std::fs::create_dir(place).unwrap();
        let settings = &mut self.bench.repositories.settings;
        settings.rsh = sshd.rsh();
        settings.remote_borg = there.display().to_string();
        self.environment = vec![
            ("BORG_RSH", sshd.rsh()),
            ("BORG_REMOTE_PATH", there.display().to_string()),
        ];
        let (name, method) = (
            self.tiny.name.clone(),
            self.bench.config.vm[&self.tiny.name].method,
        );
        self.bench.add_vm(&name);
        self.by(method);
        there
    }

    /// Has the program call this instead of ssh-keygen: it hangs as long as the file that this gives is there, which it marks
    /// by one beside it, `.seen`.
    pub fn with_own_keygen(&mut self, before: &str) -> PathBuf {
        let (directory, hang) = (self.lab.path("programs"), self.lab.path("hang"));
        std::fs::create_dir(&directory).unwrap();
        let real = run(Command::new("sh").args(["-c", "command -v ssh-keygen"]));
        let text = format!(
            "#!/bin/sh\n[ ! -e {0} ] || {{ touch {0}.seen; exec sleep 600; }}\n{before}\nexec {real} \"$@\"\n",
            hang.display()
        );
        program(&directory, "ssh-keygen", &text);
        let path = std::env::var("PATH").unwrap();
        self.environment = vec![("PATH", format!("{}:{path}", directory.display()))];
        hang
    }

    /// The run fails in time, and for this reason. The guest is on its own image then, without a job, and no run is open.
    #[track_caller]
    pub fn undone(&self, running: Running, reason: &str) -> Said {
        let said = Self::given_up(running, reason);
        self.home();
        said
    }

    /// The run fails in time, and for this reason.
    #[track_caller]
    pub fn given_up(running: Running, reason: &str) -> Said {
        let begin = Instant::now();
        let said = running.end();
        let took = begin.elapsed();
        assert_eq!(said.code, Some(1), "{}", said.err);
        assert!(said.err.contains(reason), "{reason:?} is not in\n{}", said.err);
        assert!(!said.err.contains("panicked"), "{}", said.err);
        assert!(took < PATIENCE, "{took:?}: {}", said.err);
        said
    }

    #[track_caller]
    pub fn home(&self) {
        self.on_its_image();
        self.bench.guest_at_rest(self.lab, &self.tiny.name);
    }

    /// The guest is on its own image, and there is no job, whatever the run is still up to.
    #[track_caller]
    pub fn on_its_image(&self) {
        let image = self.tiny.disk("vda").display().to_string();
        for options in [&[][..], &["--inactive"]] {
            let disks = run(virsh(["domblklist", &self.tiny.name]).args(options));
            assert!(disks.contains(&image) && !disks.contains("overlay"), "{disks}");
        }
        let job = run(&mut virsh(["domjobinfo", &self.tiny.name]));
        assert_eq!(job.split_whitespace().last(), Some("None"), "{job}");
    }

    /// The next backup is good, and leaves the guest at home.
    #[track_caller]
    pub fn backs_up(&mut self) {
        self.bench.config.reader.limit_mib = 0;
        let said = Said::of(self.program().args(["backup", &self.tiny.name]));
        assert!(matches!(said.code, Some(0 | 3)), "{}", said.err);
        self.home();
    }

    /// The same, and stock Borg lists what it has made.
    #[track_caller]
    pub fn recovers(&mut self) {
        self.backs_up();
        let archives = self.bench.archives(&self.tiny.name);
        let newest = archives.last().unwrap();
        let repository = self.bench.repository(&self.tiny.name).display().to_string();
        let listed = self
            .bench
            .borg
            .run(["list", "--short", &format!("{repository}::{newest}")]);
        assert!(listed.contains("vda"), "{listed}");
    }
}

/// A program that notes its environment, and goes on as the real one, or as it is told.
pub fn spy(directory: &Path, name: &str, log: &Path, then: &str) {
    let text = format!(
        "#!/bin/sh\nenv | sed 's/^/{name} /' >> '{}'\n{then}\n",
        log.display()
    );
    program(directory, name, &text);
}

/// Makes a program of a text.
fn program(directory: &Path, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
