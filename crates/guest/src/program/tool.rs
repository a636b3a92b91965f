//! Running the template's tools.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use super::Failed;

/// What a tool may say, in bytes; the rest is read and dropped.
const MAX_OUTPUT: u64 = 1 << 20;

/// What tools get to see. There is no udev: the device mapper makes its nodes itself.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("DM_DISABLE_UDEV", "1"),
];

/// Runs a tool without input; gives its output.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, Failed> {
    run_with(program, arguments, b"")
}

/// Runs a tool; gives its output. Secrets go in here, as input, and nowhere else.
pub fn run_with(program: &str, arguments: &[&str], input: &[u8]) -> Result<String, Failed> {
    let failed = |error: std::io::Error| format!("run {program}: {error}");
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let input = Zeroizing::new(input.to_vec());
    let feed = std::thread::spawn(move || {
        // A tool that does not read to the end says itself what it misses.
        stdin.map(|mut pipe| pipe.write_all(&input))
    });
    let listen = std::thread::spawn(move || stderr.map(heard).unwrap_or_default());
    let out = stdout.map(heard).unwrap_or_default();
    let status = child.wait().map_err(failed)?;
    let _ = feed.join();
    let words = listen.join().unwrap_or_default();
    if status.success() {
        return Ok(out);
    }
    let last: Vec<&str> = words
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let last = last[last.len().saturating_sub(3)..].join("; ");
    Err(format!("run {program} {}: {status}: {last}", arguments.join(" ")))
}

fn heard(mut pipe: impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.by_ref().take(MAX_OUTPUT).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_fed_and_its_last_words_are_kept() {
        assert_eq!(run_with("tr", &["a-z", "A-Z"], b"hello").unwrap(), "HELLO");
        let failed = run("sh", &["-c", "echo one >&2; echo two >&2; exit 3"]).unwrap_err();
        assert!(failed.ends_with("one; two"), "{failed}");
        // What is not read does not hold anything up.
        run_with("true", &[], &vec![0; 1 << 20]).unwrap();
        assert!(run("no-such-tool", &[]).unwrap_err().contains("no-such-tool"));
    }
}
