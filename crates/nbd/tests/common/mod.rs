//! Real servers and scripted ones for the tests.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use strongroom_nbd::Target;

pub const MIB: u64 = 1 << 20;

/// Runs a tool that has to be there and to succeed.
pub fn run<S: AsRef<std::ffi::OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let output = Command::new(program).env("LC_ALL", "C").args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A qcow2 image, with what `qemu-io` is told done to it.
pub fn qcow2(path: &Path, size: u64, commands: &[&str]) {
    strongroom_nbd::create_qcow2(path, size).unwrap();
    qemu_io(path, commands);
}

pub fn qemu_io(path: &Path, commands: &[&str]) {
    if !commands.is_empty() {
        let args = commands.iter().flat_map(|command| ["-c", command]);
        run(
            "qemu-io",
            ["-f", "qcow2"]
                .into_iter()
                .chain(args)
                .chain([path.to_str().unwrap()]),
        );
    }
}

/// The bytes of a disk as `qemu-img convert` sees them.
pub fn raw(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("check.raw");
    run(
        "qemu-img",
        [
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            image.to_str().unwrap(),
            raw.to_str().unwrap(),
        ],
    );
    fs::read(raw).unwrap()
}

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "waited in vain for {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// An `nbdkit` that ends with the test.
pub struct Nbdkit {
    child: Child,
    dir: tempfile::TempDir,
}

impl Nbdkit {
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(dir.path().join("s"))
            .arg("-P")
            .arg(dir.path().join("pid"))
            .args(args)
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("nbdkit is needed for this test: {error}"));
        let ready = dir.path().join("pid");
        let nbdkit = Self { child, dir };
        // The file with its number is written once it listens.
        wait_for("nbdkit", || ready.exists());
        nbdkit
    }

    pub fn target(&self) -> Target {
        Target::Unix {
            path: self.dir.path().join("s"),
            export: String::new(),
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A server that does what a test says, for one connection.
pub struct Peer {
    pub target: Target,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Peer {
    pub fn start(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || script(&mut listener.accept().unwrap().0));
        Self {
            target: Target::Unix {
                path,
                export: String::new(),
            },
            thread: Some(thread),
            _dir: dir,
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its writes may fail when the client turns away: that is no failure of the test.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Negotiates like a good server: structured replies, `base:allocation` as context 1, the dirty bitmap `b` as
/// context 2 if it is wanted, `size` bytes.
pub fn negotiate(stream: &mut UnixStream, size: u64) {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
    read::<4>(stream);
    loop {
        assert_eq!(&read::<8>(stream), b"IHAVEOPT");
        let option = u32::from_be_bytes(read(stream));
        let mut data = vec![0; u32::from_be_bytes(read(stream)) as usize];
        stream.read_exact(&mut data).unwrap();
        let mut reply = |kind: u32, data: &[u8]| {
            let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            reply.extend(
                [
                    option.to_be_bytes(),
                    kind.to_be_bytes(),
                    (data.len() as u32).to_be_bytes(),
                ]
                .concat(),
            );
            reply.extend(data);
            stream.write_all(&reply).unwrap();
        };
        match option {
            8 => reply(1, &[]),
            10 => {
                reply(4, b"\0\0\0\x01base:allocation");
                if data.ends_with(b"qemu:dirty-bitmap:b") {
                    reply(4, b"\0\0\0\x02qemu:dirty-bitmap:b");
                }
                reply(1, &[]);
            }
            7 => {
                let flags: u16 = 1 | 2 | 1 << 2; // has flags, read-only, takes flushes
                reply(
                    3,
                    &[&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat(),
                );
                reply(1, &[]);
                return;
            }
            _ => reply(0x8000_0001, &[]),
        }
    }
}

/// Reads one request: its cookie, offset and length.
pub fn request(stream: &mut UnixStream) -> ([u8; 8], u64, u32) {
    let request = read::<28>(stream);
    let number = |at: usize| u32::from_be_bytes(request[at..at + 4].try_into().unwrap());
    let offset = u64::from_be_bytes(request[16..24].try_into().unwrap());
    (request[8..16].try_into().unwrap(), offset, number(24))
}

/// Sends one chunk of a structured reply.
pub fn chunk(stream: &mut UnixStream, done: bool, kind: u16, cookie: [u8; 8], data: &[u8]) {
    let mut chunk = 0x668e_33ef_u32.to_be_bytes().to_vec();
    chunk.extend(u16::from(done).to_be_bytes());
    chunk.extend(kind.to_be_bytes());
    chunk.extend(cookie);
    chunk.extend((data.len() as u32).to_be_bytes());
    chunk.extend(data);
    stream.write_all(&chunk).unwrap();
}

pub fn read<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
