//! What our own process holds when it is about to end, and what files hold afterwards.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::fcntl_setpipe_size;
use serde_json::Value;

/// Runs a program whose last act is to print a document, and gives that with the program's memory at that moment: its
/// standard output is a pipe that is full.
pub fn at_exit(program: &mut Command) -> (Value, Vec<u8>) {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let size = fcntl_setpipe_size(&writer, 4096).unwrap();
    writer.write_all(&vec![b' '; size]).unwrap();
    let mut child = program
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    // Ours is the last other writer; the command keeps one until it gets something else.
    program.stdout(Stdio::null());
    let patience = Instant::now() + Duration::from_mins(10);
    let waits = Path::new("/proc").join(child.id().to_string()).join("wchan");
    while std::fs::read_to_string(&waits).is_ok_and(|place| !place.contains("pipe_write")) {
        assert!(Instant::now() < patience, "it does not come to its end");
        assert!(child.try_wait().unwrap().is_none(), "it has failed");
        std::thread::sleep(Duration::from_millis(50));
    }
    let memory = memory_of(child.id());
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    (serde_json::from_str(&text).unwrap(), memory)
}

/// All memory of a process that can be read.
fn memory_of(pid: u32) -> Vec<u8> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let file = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let (start, end) = range.split_once('-').unwrap();
        let (start, end) = (
            u64::from_str_radix(start, 16).unwrap(),
            u64::from_str_radix(end, 16).unwrap(),
        );
        if !rights.starts_with("rw") || line.ends_with("[vvar]") {
            continue;
        }
        let before = all.len();
        all.resize(before + (end - start) as usize, 0);
        if file.read_exact_at(&mut all[before..], start).is_err() {
            all.truncate(before);
        }
    }
    assert!(all.len() > 1 << 20, "there is more to a process than that");
    all
}

/// Whether these bytes are in there.
pub fn contains(all: &[u8], wanted: &[u8]) -> bool {
    memchr::memmem::find(all, wanted).is_some()
}

/// Makes sure that no file below a directory holds one of these, but those that are kept elsewhere: the operator's key
/// and Tang's.
pub fn search_files(directory: &Path, secrets: &[&[u8]]) {
    let entries = match std::fs::read_dir(directory) {
        // Gone meanwhile: other tests' domains have theirs beside ours.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        read => read.unwrap(),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && entry.file_name() != "tang" {
            search_files(&path, secrets);
        } else if kind.is_file() && path.extension().is_none_or(|kind| kind != "raw") {
            let bytes = match std::fs::read(&path) {
                // Gone meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                read => read.unwrap(),
            };
            for secret in secrets {
                assert!(!contains(&bytes, secret), "a secret is in {}", path.display());
            }
        }
    }
}
