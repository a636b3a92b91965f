//! The host's end of the probe's port.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a connection may stay silent before the request is repeated on a new one. A guest's
/// driver sometimes misses that the host has connected, and then holds its answer back until the
/// next connection; the probe answers a repeated request without obeying it twice.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends one command and waits for its answer. A guest that is still booting answers as soon as
/// its probe runs: QEMU holds the request until then.
pub fn ask(socket: &Path, command: &str, limit: Duration) -> Result<Value, String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let id = format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        match exchange(socket, &id, command) {
            Ok(Some(answer)) if answer["ok"] == true => return Ok(answer),
            Ok(Some(answer)) => {
                let text = answer["error"].as_str().unwrap_or("a malformed answer");
                return Err(format!("probe command '{command}': {text}"));
            }
            Ok(None) => {}
            Err(e) => {
                return Err(format!(
                    "probe command '{command}' through {}: {e}",
                    socket.display()
                ));
            }
        }
    }
    Err(format!("probe command '{command}': no answer within {limit:?}"))
}

/// One connection: the answer, or nothing when it does not come in time.
fn exchange(socket: &Path, id: &str, command: &str) -> io::Result<Option<Value>> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    (&stream).write_all(format!("{id} {command}\n").as_bytes())?;
    for line in BufReader::new(&stream).split(b'\n') {
        let line = match line {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            result => result?,
        };
        // Answers to requests that were given up are skipped.
        if let Ok(answer) = serde_json::from_slice::<Value>(&line)
            && answer["id"] == id
        {
            return Ok(Some(answer));
        }
    }
    Err(io::Error::other("the guest has gone"))
}
