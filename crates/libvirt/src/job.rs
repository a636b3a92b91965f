//! Backup jobs and checkpoints in libvirt's XML (`formatbackup`, `formatcheckpoint`).

use strongroom_hypervisor::names::CHECKPOINT_DESCRIPTION;
use strongroom_hypervisor::{BackupJob, Disk, JobDisk, Listener, RunningJob};

use crate::sockets::MAX_SOCKET;
use crate::tree::Element;
use crate::xml::{child, children, parse, writable_path};

/// What a backup begins with.
#[derive(Debug)]
pub struct Request {
    /// `<domainbackup>`.
    pub backup: String,
    /// `<domaincheckpoint>`, if one is to be made.
    pub checkpoint: Option<String>,
}

/// Writes a job for a domain with these disks. Every disk that is not in the job is excluded by name: left out,
/// libvirt would decide about it.
pub fn request(job: &BackupJob, domain: &[Disk]) -> Result<Request, String> {
    check(job, domain)?;
    let mut backup_disks = Element::new("disks");
    let mut checkpoint_disks = Element::new("disks");
    for disk in domain {
        let asked = job.disks.iter().find(|asked| asked.target == disk.target);
        let backup = match asked {
            Some(asked) => exported(asked)?,
            None => Element::new("disk")
                .with("name", &disk.target)
                .with("backup", "no"),
        };
        let kind = if asked.is_some_and(|asked| asked.checkpoint) {
            "bitmap"
        } else {
            "no"
        };
        backup_disks = backup_disks.with_child(backup);
        checkpoint_disks = checkpoint_disks.with_child(
            Element::new("disk")
                .with("name", &disk.target)
                .with("checkpoint", kind),
        );
    }
    let backup = Element::new("domainbackup")
        .with("mode", "pull")
        .with_child(server(&job.listener)?)
        .with_child(backup_disks);
    let checkpoint = match &job.checkpoint {
        None => None,
        Some(name) => Some(describe(name, checkpoint_disks)?),
    };
    Ok(Request {
        backup: backup.to_xml()?,
        checkpoint,
    })
}

fn server(listener: &Listener) -> Result<Element, String> {
    let server = Element::new("server");
    Ok(match listener {
        Listener::Socket(path) => server
            .with("transport", "unix")
            .with("socket", writable_path("the socket", path)?),
        Listener::Tls { address, port } => server
            .with("transport", "tcp")
            .with("tls", "yes")
            .with("name", address)
            .with("port", &port.to_string()),
    })
}

/// Writes a checkpoint of these disks for a domain with those.
pub fn checkpoint(name: &str, targets: &[String], domain: &[Disk]) -> Result<String, String> {
    describe(name, checkpoint_disks(targets, domain)?)
}

/// The same of a checkpoint that is there: when it was made (seconds since 1970) is part of what is defined again.
pub fn redefined(name: &str, targets: &[String], domain: &[Disk], made: i64) -> Result<String, String> {
    Element::new("domaincheckpoint")
        .with_child(Element::new("name").with_text(checkpoint_name(name)?))
        .with_child(Element::new("description").with_text(CHECKPOINT_DESCRIPTION))
        .with_child(Element::new("creationTime").with_text(&made.to_string()))
        .with_child(checkpoint_disks(targets, domain)?)
        .to_xml()
}

fn checkpoint_disks(targets: &[String], domain: &[Disk]) -> Result<Element, String> {
    if let Some(target) = targets
        .iter()
        .find(|target| !domain.iter().any(|disk| disk.target == **target))
    {
        return Err(format!("it has no disk {target}"));
    }
    if targets.is_empty() {
        return Err("no disk was asked for".into());
    }
    let mut disks = Element::new("disks");
    for disk in domain {
        let kind = if targets.contains(&disk.target) {
            "bitmap"
        } else {
            "no"
        };
        disks = disks.with_child(
            Element::new("disk")
                .with("name", &disk.target)
                .with("checkpoint", kind),
        );
    }
    Ok(disks)
}

fn describe(name: &str, disks: Element) -> Result<String, String> {
    Element::new("domaincheckpoint")
        .with_child(Element::new("name").with_text(checkpoint_name(name)?))
        .with_child(Element::new("description").with_text(CHECKPOINT_DESCRIPTION))
        .with_child(disks)
        .to_xml()
}

fn check(job: &BackupJob, domain: &[Disk]) -> Result<(), String> {
    if job.disks.is_empty() {
        return Err("no disk was asked for".into());
    }
    for (at, asked) in job.disks.iter().enumerate() {
        let target = &asked.target;
        if !domain.iter().any(|disk| disk.target == *target) {
            return Err(format!("it has no disk {target}"));
        }
        if job.disks.iter().take(at).any(|other| other.target == *target) {
            return Err(format!("disk {target} was asked for twice"));
        }
    }
    if job.checkpoint.is_some() && !job.disks.iter().any(|disk| disk.checkpoint) {
        return Err("a checkpoint was asked for, but no disk for it".into());
    }
    if let Some(socket) = job.listener.socket()
        && socket.as_os_str().len() > MAX_SOCKET
    {
        return Err(format!(
            "the path of the socket {} has {} bytes, more than {MAX_SOCKET}",
            socket.display(),
            socket.as_os_str().len()
        ));
    }
    Ok(())
}

/// libvirt takes letters, digits, `_`, `-` and, except at the beginning, `.` (`domaincheckpoint.rng`).
fn checkpoint_name(name: &str) -> Result<&str, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(format!(
            "{name:?} cannot be the name of a checkpoint: only letters, digits and _-. can be in it"
        ));
    }
    Ok(name)
}

fn exported(asked: &JobDisk) -> Result<Element, String> {
    let disk = Element::new("disk")
        .with("name", &asked.target)
        .with("backup", "yes")
        .with("type", "file")
        .with("exportname", &asked.target);
    let disk = match &asked.since {
        None => disk.with("backupmode", "full"),
        Some(since) => disk
            .with("backupmode", "incremental")
            .with("incremental", checkpoint_name(since)?),
    };
    let scratch = writable_path("the scratch file", &asked.scratch)?;
    Ok(disk
        .with_child(Element::new("driver").with("type", "qcow2"))
        .with_child(Element::new("scratch").with("file", scratch)))
}

/// A job as libvirt describes it, and the disks that take part.
#[derive(Debug, PartialEq, Eq)]
pub struct Described {
    /// What identifies it.
    pub running: RunningJob,
    /// Targets of its disks, sorted.
    pub targets: Vec<String>,
}

/// Reads a `<domainbackup>` that runs.
pub fn described(xml: &str) -> Result<Described, String> {
    let document = parse(xml, "domainbackup")?;
    let job = document.root_element();
    let socket = child(job, "server")
        .and_then(|server| server.attribute("socket"))
        .map(Into::into);
    let disks = || children(job, "disks").flat_map(|disks| children(disks, "disk"));
    let scratch = disks()
        .filter_map(|disk| child(disk, "scratch"))
        .filter_map(|scratch| scratch.attribute("file").or(scratch.attribute("dev")))
        .map(Into::into)
        .collect();
    let mut targets: Vec<String> = disks()
        .filter(|disk| disk.attribute("backup") != Some("no"))
        .filter_map(|disk| disk.attribute("name").map(str::to_owned))
        .collect();
    targets.sort_unstable();
    Ok(Described {
        running: RunningJob { socket, scratch },
        targets,
    })
}

/// Reads a `<domaincheckpoint>` that was asked for with sizes: the disks for which libvirt found no usable bitmap.
///
/// libvirt gives no size, and no error, where a bitmap is missing, inconsistent or not recording. Disks that the
/// domain no longer has do not count, unless none is left.
pub fn without_size(xml: &str, domain: &[Disk]) -> Result<Vec<String>, String> {
    let document = parse(xml, "domaincheckpoint")?;
    let mut found = false;
    let mut broken = Vec::new();
    for disk in children(document.root_element(), "disks").flat_map(|disks| children(disks, "disk")) {
        let name = disk.attribute("name").unwrap_or_default();
        if disk.attribute("checkpoint") != Some("bitmap") || !domain.iter().any(|disk| disk.target == name) {
            continue;
        }
        found = true;
        if disk.attribute("size").is_none() {
            broken.push(name.to_owned());
        }
    }
    if found {
        Ok(broken)
    } else {
        Err("it includes none of the domain's disks".into())
    }
}

#[cfg(test)]
mod tests;
