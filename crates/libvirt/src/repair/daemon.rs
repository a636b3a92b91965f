//! Stops the libvirt daemon of this machine, and starts it as it was. Guests run on without it.
//!
//! One that is a unit of systemd is stopped and started as one, together with the sockets that would start it again. Any
//! other is asked to end, and called again by the words that it was called by.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use strongroom_child::{Limits, Needs, Output, Why};

/// Where the daemons that may serve `qemu:///system` write their process ids.
const PID_FILES: [&str; 2] = ["/run/libvirt/virtqemud.pid", "/run/libvirt/libvirtd.pid"];
/// How long it may take to end: libvirtd gives its calls half a minute.
const LIMIT: Duration = Duration::from_mins(1);
/// How long systemd may take to answer a question; and to stop or start a service, which it gives a minute and a half each.
const TALK: Duration = Duration::from_secs(30);
const JOB: Duration = Duration::from_mins(4);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// A daemon that was found running, and how to start it again.
#[derive(Debug)]
pub struct Daemon {
    id: i32,
    file: PathBuf,
    started: Started,
}

#[derive(Debug)]
enum Started {
    /// Units of systemd: the service last.
    Units(Vec<String>),
    /// By a command with these words, in this environment.
    Words(PathBuf, Vec<String>, Vec<(String, String)>),
}

impl Daemon {
    /// The one that runs.
    pub fn find() -> Result<Self, String> {
        let running = PID_FILES.iter().find_map(|file| {
            let id: i32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
            matches!(name.trim(), "libvirtd" | "virtqemud").then(|| (PathBuf::from(file), id))
        });
        let (file, id) = running.ok_or("no libvirt daemon was found running on this machine")?;
        let started = match unit(id) {
            Some(unit) => {
                let mut units = triggers(&unit)?;
                units.push(unit);
                Started::Units(units)
            }
            None => command(id)?,
        };
        Ok(Self { id, file, started })
    }

    /// Stops it, and waits until it is gone.
    pub fn stop(&self) -> Result<(), String> {
        match &self.started {
            Started::Units(units) => change("stop", units)?,
            Started::Words(..) => {
                let id = Pid::from_raw(self.id).ok_or("it has no process id")?;
                kill_process(id, Signal::TERM).map_err(|error| format!("stop libvirtd: {error}"))?;
            }
        }
        let begin = Instant::now();
        while Path::new("/proc").join(self.id.to_string()).exists() {
            if begin.elapsed() > LIMIT {
                return Err(format!("libvirtd (process {}) does not end", self.id));
            }
            sleep(LOOK);
        }
        Ok(())
    }

    /// Starts it again.
    pub fn start(&self) -> Result<(), String> {
        match &self.started {
            Started::Units(units) => change("start", units),
            Started::Words(program, arguments, environment) => {
                // Left behind by one that ended by force, it would be in the way.
                let _ = fs::remove_file(&self.file);
                let mut command = strongroom_child::command(program, Needs::Nothing);
                command
                    .args(arguments)
                    .env_clear()
                    .envs(environment.iter().cloned());
                if !arguments.iter().any(|word| word == "-d" || word == "--daemon") {
                    command.arg("--daemon");
                }
                command.current_dir("/").process_group(0);
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                let failed = |why: String| format!("start {}: {why}", program.display());
                let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
                // What it leaves behind is the daemon; it itself ends when that is ready.
                match strongroom_child::wait(&mut child, LIMIT) {
                    Ok(Some(status)) if status.success() => Ok(()),
                    Ok(Some(status)) => Err(failed(status.to_string())),
                    Ok(None) => {
                        let _ = strongroom_child::kill(&mut child, &program.display().to_string());
                        Err(failed(format!("it is not ready after {} s", LIMIT.as_secs())))
                    }
                    Err(error) => Err(failed(error.to_string())),
                }
            }
        }
    }
}

/// The unit of systemd that a process belongs to.
fn unit(id: i32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{id}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    unit_of(path).filter(|_| Path::new("/run/systemd/system").exists())
}

fn unit_of(path: &str) -> Option<String> {
    let last = path.rsplit('/').find(|part| !part.is_empty())?;
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.@:".contains(c);
    (last.ends_with(".service") && last.chars().all(fit)).then(|| last.to_owned())
}

/// The active sockets that would start a service again.
fn triggers(unit: &str) -> Result<Vec<String>, String> {
    let output = systemctl(&["show", "--property=TriggeredBy", "--value", unit], TALK)?;
    let named = String::from_utf8_lossy(&output.out).into_owned();
    let active = |socket: &&str| {
        let asked = systemctl(&["--quiet", "is-active", socket], TALK);
        asked.is_ok_and(|output| output.status.success())
    };
    Ok(named
        .split_whitespace()
        .filter(active)
        .map(str::to_owned)
        .collect())
}

/// Stops or starts units.
fn change(verb: &str, units: &[String]) -> Result<(), String> {
    let words: Vec<&str> = [verb]
        .into_iter()
        .chain(units.iter().map(String::as_str))
        .collect();
    let output = systemctl(&words, JOB)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.err).trim().to_owned();
    Err(format!("systemctl {}: {said}", words.join(" ")))
}

fn systemctl(words: &[&str], time: Duration) -> Result<Output, String> {
    bounded(
        strongroom_child::command("systemctl", Needs::Nothing).args(words),
        time,
    )
    .map_err(|why| format!("systemctl {}: {why}", words.join(" ")))
}

/// Runs a command that is not interrupted: between a stop and a start there is no daemon.
fn bounded(command: &mut Command, time: Duration) -> Result<Output, String> {
    let limits = Limits { time, bytes: 1 << 20 };
    strongroom_child::run(command, b"", limits, &|| false).map_err(|failure| match failure.why {
        Why::Spawn(error) | Why::Io(error) => error.to_string(),
        Why::Limit => format!("it says more than {} bytes", limits.bytes),
        Why::Time | Why::Stopped => format!("it has not ended after {} s", time.as_secs()),
    })
}

/// The words and the environment that a process was started with.
fn command(id: i32) -> Result<Started, String> {
    let failed = |error: std::io::Error| format!("look at libvirtd's process {id}: {error}");
    let list = |name: &str| -> Result<Vec<String>, String> {
        let bytes = fs::read(format!("/proc/{id}/{name}")).map_err(failed)?;
        let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Ok(words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect())
    };
    let program = fs::read_link(format!("/proc/{id}/exe")).map_err(failed)?;
    let environment = list("environ")?;
    let variables = environment
        .iter()
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok(Started::Words(
        program,
        list("cmdline")?.into_iter().skip(1).collect(),
        variables.collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R10.
    #[test]
    fn a_systemd_that_hangs_is_waited_for_no_longer_than_this() {
        let mut hangs = strongroom_child::command("sh", Needs::Nothing);
        let error = bounded(hangs.args(["-c", "exec sleep 600"]), Duration::from_millis(200)).unwrap_err();
        assert!(error.contains("it has not ended"), "{error}");
    }

    #[test]
    fn a_service_is_told_by_its_control_group() {
        assert_eq!(
            unit_of("/system.slice/libvirtd.service").as_deref(),
            Some("libvirtd.service")
        );
        for other in [
            "/",
            "",
            "/user.slice/session-1.scope",
            "/system.slice/a b.service",
        ] {
            assert_eq!(unit_of(other), None, "{other}");
        }
    }
}
