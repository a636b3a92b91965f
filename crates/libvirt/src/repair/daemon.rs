//! Stops the libvirt daemon of this machine, and starts it as it was. Guests run on without it.
//!
//! One that is a unit of systemd is stopped and started as one, together with the sockets that would start it again. Any
//! other is asked to end, and called again by the words that it was called by.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use strongroom_child::Needs;

/// Where the daemons that may serve `qemu:///system` write their process ids.
const PID_FILES: [&str; 2] = ["/run/libvirt/virtqemud.pid", "/run/libvirt/libvirtd.pid"];
/// How long it may take to end: libvirtd gives its calls half a minute.
const LIMIT: Duration = Duration::from_mins(1);
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
    Command(PathBuf, Vec<String>, Vec<(String, String)>),
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
            Started::Units(units) => systemctl("stop", units)?,
            Started::Command(..) => {
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
            Started::Units(units) => systemctl("start", units),
            Started::Command(program, arguments, environment) => {
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
                match command.status() {
                    Ok(status) if status.success() => Ok(()),
                    Ok(status) => Err(format!("start {}: {status}", program.display())),
                    Err(error) => Err(format!("start {}: {error}", program.display())),
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
    let output = strongroom_child::command("systemctl", Needs::Nothing)
        .args(["show", "--property=TriggeredBy", "--value", unit])
        .output()
        .map_err(|error| format!("ask systemctl about {unit}: {error}"))?;
    let named = String::from_utf8_lossy(&output.stdout).into_owned();
    let active = |socket: &&str| {
        let asked = strongroom_child::command("systemctl", Needs::Nothing)
            .args(["--quiet", "is-active", socket])
            .status();
        asked.is_ok_and(|status| status.success())
    };
    Ok(named
        .split_whitespace()
        .filter(active)
        .map(str::to_owned)
        .collect())
}

fn systemctl(verb: &str, units: &[String]) -> Result<(), String> {
    let failed = |why: String| format!("systemctl {verb} {}: {why}", units.join(" "));
    match strongroom_child::command("systemctl", Needs::Nothing)
        .arg(verb)
        .args(units)
        .output()
    {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
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
    Ok(Started::Command(
        program,
        list("cmdline")?.into_iter().skip(1).collect(),
        variables.collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::unit_of;

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
