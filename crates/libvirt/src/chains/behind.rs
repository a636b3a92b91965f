//! The repair for a snapshot that libvirt has forgotten: QEMU itself merges the overlay into its base.
//!
//! Killed inside the snapshot call, libvirtd may come back with QEMU on the overlay and both definitions on the base.
//! It refuses to commit what it does not know. Done behind its back, the commit brings QEMU to where libvirt believes
//! it is. The job has a name of libvirt's pattern, which libvirt ignores because it did not start it.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::qemu::nodes::{Drive, Job, Node};
use crate::qemu::{Monitor, MonitorError};

/// Between two looks at the job: libvirt sends no event for a job that it does not know.
const POLL: Duration = Duration::from_millis(100);

/// Commits `overlay`, which QEMU has on top of `base` for this disk, and switches to the base. Done again after a
/// death in between, it goes on where the job is.
pub fn commit(
    monitor: Monitor<'_>,
    target: &str,
    alias: &str,
    overlay: &Path,
    base: &Path,
) -> Result<(), MonitorError> {
    let id = format!("commit-{target}-strongroom");
    let drive = drive(monitor, alias)?;
    let [top, below] = [0, 1].map(|at| drive.images.get(at).map(AsRef::as_ref));
    if top == Some(base) && !drive.images.iter().any(|image| image == overlay) {
        dismiss(monitor, &id)?;
        return close(monitor, overlay);
    }
    if (top, below) != (Some(overlay), Some(base)) {
        return Err(format!("QEMU has the images {:?} for the disk", drive.images).into());
    }
    let jobs = monitor.jobs()?;
    if let Some(other) = jobs.iter().find(|job| job.is_on(target) && job.id != id) {
        return Err(format!("QEMU runs another job on the disk: {}", other.id).into());
    }
    match jobs.iter().find(|job| job.id == id) {
        Some(job) if job.status != "concluded" => {}
        _ => {
            dismiss(monitor, &id)?;
            start(monitor, &id, &drive.node, base)?;
        }
    }
    let mut completing = false;
    while let Some(job) = job(monitor, &id)? {
        match job.status.as_str() {
            "concluded" => {
                dismiss(monitor, &id)?;
                if let Some(error) = job.error {
                    return Err(error.into());
                }
                break;
            }
            "ready" if !completing => {
                monitor.ask("job-complete", &json!({ "id": id }))?;
                completing = true;
            }
            _ => sleep(POLL),
        }
    }
    let images = self::drive(monitor, alias)?.images;
    if images.first().map(AsRef::as_ref) != Some(base) {
        return Err(format!("the job has ended, and QEMU has the images {images:?} for the disk").into());
    }
    close(monitor, overlay)
}

fn drive(monitor: Monitor<'_>, alias: &str) -> Result<Drive, MonitorError> {
    let mut drives = monitor.drives()?.into_iter();
    let found = drives.find(|drive| drive.is(alias));
    found.ok_or_else(|| format!("QEMU has no drive {alias}").into())
}

fn job(monitor: Monitor<'_>, id: &str) -> Result<Option<Job>, MonitorError> {
    Ok(monitor.jobs()?.into_iter().find(|job| job.id == id))
}

/// Makes QEMU forget a job that has ended. It keeps them until told, so that no client misses the end.
fn dismiss(monitor: Monitor<'_>, id: &str) -> Result<(), MonitorError> {
    if job(monitor, id)?.is_some_and(|job| job.status == "concluded") {
        monitor.ask("job-dismiss", &json!({ "id": id }))?;
    }
    Ok(())
}

fn start(monitor: Monitor<'_>, id: &str, overlay: &str, base: &Path) -> Result<(), MonitorError> {
    // QEMU refuses a base that is not below the overlay, and would take the lowest if none were named.
    let base = top_node(&monitor.nodes()?, base)?;
    let arguments = json!({
        "job-id": id,
        "device": overlay,
        "base-node": base,
        "auto-dismiss": false,
    });
    monitor.ask("block-commit", &arguments)?;
    Ok(())
}

/// The node through which an image is used: that of its format, or of the file where there is no other (raw).
fn top_node(nodes: &[Node], image: &Path) -> Result<String, String> {
    let of_image = || nodes.iter().filter(|node| node.file.as_deref() == Some(image));
    let formats: Vec<&Node> = of_image().filter(|node| !node.is_storage()).collect();
    let storages: Vec<&Node> = of_image().filter(|node| node.is_storage()).collect();
    match (formats.as_slice(), storages.as_slice()) {
        ([node], _) | ([], [node]) => Ok(node.name.clone()),
        _ => Err(format!(
            "QEMU has {} block nodes for {}, so that it is not clear which one is meant",
            formats.len() + storages.len(),
            image.display()
        )),
    }
}

/// Closes what QEMU still has open of the overlay. What is in use it keeps, and a file that stays open does no harm.
pub fn close(monitor: Monitor<'_>, overlay: &Path) -> Result<(), MonitorError> {
    let mut nodes = monitor.nodes()?;
    nodes.retain(|node| node.file.as_deref() == Some(overlay));
    nodes.sort_by_key(Node::is_storage);
    for node in nodes {
        let _ = monitor.ask("blockdev-del", &json!({ "node-name": node.name }));
    }
    Ok(())
}
