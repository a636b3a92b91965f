//! Parties of a backup that hang (R10), and what has to hold afterwards.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use strongroom_engine::config::CaptureMethod;
use strongroom_testkit::{Lab, run, virsh};

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
        let mount = Self { place, server };
        let begin = Instant::now();
        while !mount.is_there() {
            assert!(begin.elapsed() < PATIENCE, "fuse2fs does not mount");
            sleep(Duration::from_millis(50));
        }
        mount
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
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A VM without a guest, backed up slowly enough to be caught at it.
pub struct Ward<'a> {
    pub lab: &'a Lab,
    pub bench: Bench,
    pub tiny: Tiny,
}

impl<'a> Ward<'a> {
    pub fn new(lab: &'a Lab, method: CaptureMethod) -> Self {
        let tiny = Tiny::with_disks(lab, "ward", &[("vda", 12)]);
        tiny.set("vda", &noise(7, 10 * MIB));
        run(&mut virsh(["start", "--paused", &tiny.name]));
        let mut bench = Bench::new(lab, &[&tiny.name]);
        bench.config.limits.free_mib = 0;
        let mut ward = Self { lab, bench, tiny };
        ward.by(method);
        ward
    }

    pub fn by(&mut self, method: CaptureMethod) {
        let name = self.tiny.name.clone();
        self.bench.config.vm.entry(name).or_default().method = method;
    }

    /// Starts a slow backup, and waits until it says this.
    #[track_caller]
    pub fn at(&mut self, step: &str, arguments: &[&str]) -> Running {
        self.bench.config.reader.limit_mib = 1;
        let mut program = self.bench.program(self.lab);
        let mut running = Running::start(program.args(["-v", "backup", &self.tiny.name]).args(arguments));
        running.wait_for(step);
        running
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
        let image = self.tiny.disk("vda").display().to_string();
        for options in [&[][..], &["--inactive"]] {
            let disks = run(virsh(["domblklist", &self.tiny.name]).args(options));
            assert!(disks.contains(&image) && !disks.contains("overlay"), "{disks}");
        }
        self.bench.guest_at_rest(self.lab, &self.tiny.name);
    }

    /// The next backup is good.
    #[track_caller]
    pub fn recovers(&mut self) {
        self.bench.config.reader.limit_mib = 0;
        let said = self.bench.says(self.lab, &["backup", &self.tiny.name]);
        assert!(matches!(said.code, Some(0 | 3)), "{}", said.err);
        self.home();
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
    use std::os::unix::fs::PermissionsExt as _;
    let text = format!(
        "#!/bin/sh\nenv | sed 's/^/{name} /' >> '{}'\n{then}\n",
        log.display()
    );
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
