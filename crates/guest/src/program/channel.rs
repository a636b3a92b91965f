//! The serial port on which the host listens.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Failed;
use crate::protocol::{Message, PORT, Step, line};

/// Both directions, shared between threads.
pub struct Channel {
    port: File,
    step: Mutex<Step>,
    turn: Mutex<()>,
}

impl Channel {
    /// Opens the port of the protocol.
    pub fn open() -> Result<Self, Failed> {
        Ok(Self {
            port: port(PORT)?,
            step: Mutex::new(Step::Start),
            turn: Mutex::default(),
        })
    }

    /// Where the host's order comes in.
    pub fn reader(&self) -> &File {
        &self.port
    }

    /// Says a word. When the host stops listening, it ends this VM.
    pub fn say(&self, word: &Message) {
        let _turn = self.turn.lock();
        let _ = (&self.port).write_all(&line(word));
    }

    /// A step begins.
    pub fn begin(&self, step: Step) {
        if let Ok(mut now) = self.step.lock() {
            *now = step;
        }
        self.say(&Message::Step(step));
    }

    /// What is being done.
    pub fn step(&self) -> Step {
        self.step.lock().map_or(Step::Start, |step| *step)
    }
}

/// Opens a virtio-serial port by its name. It takes a moment until the kernel has found it.
pub fn port(name: &str) -> Result<File, Failed> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let ports = std::fs::read_dir("/sys/class/virtio-ports").into_iter().flatten();
        for entry in ports.flatten() {
            let found = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if found.trim() == name {
                let device = std::path::Path::new("/dev").join(entry.file_name());
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&device)
                    .map_err(|error| format!("open {}: {error}", device.display()));
            }
        }
        if Instant::now() > end {
            return Err(format!("find the port {name}: there is none"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
