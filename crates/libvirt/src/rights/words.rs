//! The sentences that the key may say as the account for jobs. What they may consist of, `jobs.sh` decides on the hypervisor.

use std::fmt::Write as _;

use strongroom_hypervisor::names::PREFIX;
use strongroom_hypervisor::{BackupJob, Listener};

/// What the targets are called under which exports are attached: this, and one of [`HOTADD_TARGETS`].
pub const HOTADD_PREFIX: &str = "vds";
/// So many can be attached at the same time.
pub const HOTADD_TARGETS: [char; 16] = [
    'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p',
];

/// Begins a backup job.
pub fn begin(vm: &str, job: &BackupJob) -> Result<String, String> {
    let run = run_of(job).ok_or("its scratch files are not named after one run")?;
    let place = match &job.listener {
        Listener::Socket(_) => "unix".to_owned(),
        Listener::Tls { port, .. } => port.to_string(),
    };
    let point = match &job.checkpoint {
        None => "none",
        Some(name) if name.strip_prefix(PREFIX) == Some(run) => "point",
        Some(name) => return Err(format!("checkpoint {name} is not named after its run")),
    };
    let mut words = format!("begin {vm} {run} {place} {point}");
    for disk in &job.disks {
        let since = disk.since.as_deref().unwrap_or("full");
        let tracked = if disk.checkpoint { "yes" } else { "no" };
        // Writing to a String cannot fail.
        let _ = write!(words, " {}:{since}:{tracked}", disk.target);
    }
    Ok(words)
}

/// The run that a job belongs to, as all its scratch files say.
fn run_of(job: &BackupJob) -> Option<&str> {
    let mut runs = job.disks.iter().map(|disk| {
        let name = disk.scratch.file_name()?.to_str()?;
        let end = format!("-{}.scratch", disk.target);
        name.strip_prefix(PREFIX)?.strip_suffix(&end)
    });
    let first = runs.next()??;
    runs.all(|run| run == Some(first)).then_some(first)
}

/// Ends a VM's backup job.
pub fn end(vm: &str) -> String {
    format!("end {vm}")
}

/// Deletes a checkpoint; its metadata alone where its bitmaps are broken.
pub fn forget(vm: &str, checkpoint: &str, metadata: bool) -> String {
    format!(
        "forget {vm} {checkpoint}{}",
        if metadata { " metadata" } else { "" }
    )
}

/// Lets a VM run on that an I/O error has stopped.
pub fn resume(vm: &str) -> String {
    format!("resume {vm}")
}

/// Attaches an export of a VM to the VM that makes the backups: of the run that ends in these digits.
pub fn attach(own: &str, vm: &str, digits: &str, export: &str, target: &str) -> String {
    format!("attach {own} {vm} {digits} {export} {target}")
}

/// Detaches it.
pub fn detach(own: &str, target: &str) -> String {
    format!("detach {own} {target}")
}
