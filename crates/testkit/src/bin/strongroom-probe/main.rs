//! What runs inside a test guest: it writes data that can be verified, measures how long the
//! guest's own writes take, and obeys one-line commands on a virtio-serial port.
//!
//! `strongroom-probe DIR PORT [--shell]` keeps its files in DIR. A request is `ID COMMAND…\n`;
//! the answer is one line of JSON with the same `id` and `ok`. A request with the `ID` of a recent
//! one is not obeyed again, only answered again. The probe writes to the port only to answer,
//! because such a write blocks while the other end does not read.
//!
//! It uses the standard library alone, so that plain `rustc` builds it, statically linked.

mod json;
mod load;
mod meter;
mod pattern;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use json::{number, quote};
use load::Load;
use meter::Meter;
use pattern::Writer;

/// The longest request; anything longer is answered with an error.
const MAX_REQUEST: usize = 64 * 1024;

/// How many answers are kept for requests that are repeated.
const KEPT_ANSWERS: usize = 32;

/// What a command answers: the fields of a JSON object without its braces, or an error text.
type Answer = Result<String, String>;

struct Probe {
    dir: PathBuf,
    meter: Arc<Meter>,
    pattern: Writer,
    load: Load,
    shell: bool,
    /// Recent requests' ids and their answers.
    answered: VecDeque<(String, String)>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.as_slice() {
        [dir, port] => serve(dir, port, false),
        [dir, port, flag] if flag == "--shell" => serve(dir, port, true),
        _ => Err(io::Error::other("usage: strongroom-probe DIR PORT [--shell]")),
    };
    if let Err(e) = result {
        // The guest's console is the only place left to say it; failing to write there changes nothing.
        let _ = writeln!(io::stderr(), "strongroom-probe: {e}");
        std::process::exit(1);
    }
}

fn serve(dir: &str, port: &str, shell: bool) -> io::Result<()> {
    let mut port = open_port(Path::new(port))?;
    let meter = Meter::start();
    let mut probe = Probe {
        dir: PathBuf::from(dir),
        pattern: Writer::new(Path::new(dir), Arc::clone(&meter)),
        load: Load::new(Path::new(dir)),
        meter,
        shell,
        answered: VecDeque::new(),
    };
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // Zero bytes mean that no host is connected at the moment.
        let n = port.read(&mut buffer)?;
        if n == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        for byte in buffer.iter().take(n) {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            let answer = probe.answer(&line);
            line.clear();
            port.write_all(answer.as_bytes())?;
        }
        if line.len() > MAX_REQUEST {
            return Err(io::Error::other("request too long"));
        }
    }
}

/// Opens the port, which udev or the init script may still be about to create.
fn open_port(path: &Path) -> io::Result<File> {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

impl Probe {
    fn answer(&mut self, line: &[u8]) -> String {
        let line = String::from_utf8_lossy(line);
        let (id, request) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        if let Some((_, answer)) = self.answered.iter().find(|(answered, _)| answered == id) {
            return answer.clone();
        }
        let body = match self.run(request) {
            Ok(fields) if fields.is_empty() => r#""ok":true"#.to_owned(),
            Ok(fields) => format!(r#""ok":true,{fields}"#),
            Err(text) => format!(r#""ok":false,"error":{}"#, quote(&text)),
        };
        let answer = format!("{{\"id\":{},{body}}}\n", quote(id));
        self.answered.truncate(KEPT_ANSWERS - 1);
        self.answered.push_front((id.to_owned(), answer.clone()));
        answer
    }

    fn run(&mut self, request: &str) -> Answer {
        let (command, rest) = request.split_once(' ').unwrap_or((request, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (command, words.as_slice()) {
            ("ping", []) => Ok(String::new()),
            ("pattern", ["start", ms]) => text(self.pattern.start(Duration::from_millis(parse(ms)?))),
            ("pattern", ["stop"]) => text(self.pattern.stop()),
            ("write", [mib]) => self.write(parse(mib)?),
            ("load", ["start", rate]) => text(self.load.start(parse(rate)?)),
            ("load", ["stop"]) => text(self.load.stop()).map(|mib| number("mib", mib)),
            ("stats", ["reset"]) => {
                self.meter.reset();
                Ok(String::new())
            }
            ("stats", []) => Ok(self.meter.report()),
            ("stats", ["samples"]) => Ok(format!("{},{}", self.meter.report(), self.meter.samples())),
            ("verify", []) => self.verify(),
            ("hash", [file]) => self.hash(file),
            ("delete", [file]) => self.delete(file),
            ("sync", []) => call(&mut Command::new("sync")).map(|_| String::new()),
            ("sh", _) if self.shell => shell(rest),
            _ => Err(format!("unknown command: {request}")),
        }
    }

    fn write(&self, mib: u64) -> Answer {
        let start = Instant::now();
        let name = text(pattern::write_file(&self.dir, mib))?;
        let micros = start.elapsed().as_micros();
        Ok(format!(
            r#""file":{},"bytes":{},"us":{micros}"#,
            quote(&name),
            mib << 20
        ))
    }

    fn verify(&self) -> Answer {
        let files = text(pattern::verify_files(&self.dir))?;
        let found = text(self.pattern.verify())?;
        Ok(format!(
            r#""slots":{},"records":{},"files":{files}"#,
            found.slots, found.records
        ))
    }

    fn hash(&self, file: &str) -> Answer {
        call(&mut Command::new("sync"))?;
        let output = call(Command::new("sha256sum").arg(self.dir.join(file)))?;
        let digest = output.split_whitespace().next().unwrap_or_default();
        Ok(format!(r#""sha256":{}"#, quote(digest)))
    }

    fn delete(&self, file: &str) -> Answer {
        if file.contains('/') {
            return Err(format!("not a plain file name: {file}"));
        }
        text(fs::remove_file(self.dir.join(file)))?;
        call(&mut Command::new("sync"))?;
        call(Command::new("fstrim").arg(&self.dir)).map(|_| String::new())
    }
}

fn text<T>(result: io::Result<T>) -> Result<T, String>
where
    T: Sized,
{
    result.map_err(|e| e.to_string())
}

fn parse(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("not a number: {word}"))
}

/// Runs a command that has to succeed and returns what it printed.
fn call(command: &mut Command) -> Result<String, String> {
    let output = text(command.output())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?}: {} {}", output.status, stderr.trim()))
    }
}

/// Runs a shell command; its exit status is part of the answer, not an error.
fn shell(command: &str) -> Answer {
    let output = text(Command::new("sh").args(["-c", command]).output())?;
    let all = [output.stdout, output.stderr].concat();
    let status = output.status.code().unwrap_or(-1);
    Ok(format!(
        r#""status":{status},"output":{}"#,
        quote(&String::from_utf8_lossy(&all))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_request_is_answered_again_but_not_obeyed_again() {
        let dir = tempfile::tempdir().unwrap();
        let meter = Meter::start();
        let mut probe = Probe {
            dir: dir.path().to_owned(),
            pattern: Writer::new(dir.path(), Arc::clone(&meter)),
            load: Load::new(dir.path()),
            meter,
            shell: false,
            answered: VecDeque::new(),
        };
        let answer = probe.answer(b"1 write 1");
        assert!(
            answer.starts_with(r#"{"id":"1","ok":true,"file":"data-"#),
            "{answer}"
        );
        assert_eq!(probe.answer(b"1 write 1"), answer);
        assert!(probe.answer(b"2 verify").contains(r#""files":1"#));
        assert!(
            probe.answer(b"3 sh true").contains(r#""ok":false"#),
            "the shell is off unless asked for"
        );
        for id in 4..4 + KEPT_ANSWERS {
            probe.answer(format!("{id} ping").as_bytes());
        }
        assert_ne!(
            probe.answer(b"1 write 1"),
            answer,
            "only recent requests count as repeated"
        );
    }
}
