//! The frozen view of a running VM as its images below the overlays of an external snapshot.
//!
//! The guest writes to the overlays from the snapshot on, so that its images stand still and can be read by servers of
//! our own. Those lock the images against writes: no program can merge an overlay while its base is read.
//!
//! For the next incremental backup a checkpoint is made right *before* the snapshot. Its bitmap then holds what changed
//! since the frozen state, and a little more: what changed between the two calls is read once more, which costs little
//! and misses nothing. The changes since the last checkpoint are in the base's own bitmap, which QEMU writes into
//! the image when the overlay goes on top, and are served from there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_hypervisor::names::PREFIX;
use strongroom_hypervisor::{HypervisorError, Overlay, SnapshotDisk};
use strongroom_nbd::{Backing, Format, QemuNbd, Serve, image_info};
use strongroom_points::manifest::Mode;

use super::CaptureError;
use super::offline::format_of;
use super::{Begun, Server};
use crate::capture::overlay::{Job, SUFFIX, Top, Views};
use crate::capture::quiesce::Quiescer;
use crate::files::stamp::Stamps;
use crate::run::context::Context;
use crate::run::event::OpenExport;
use crate::run::plan::{DiskPlan, Plan, beside};
use crate::run::state::Run;

/// How often the views are read until all three name the overlays.
const LOOKS: usize = 5;

/// The overlays that will be made, for the journal. Refuses what is not as it should be before anything is touched.
pub fn overlays(context: &Context<'_>, plan: &Plan) -> Result<Vec<Overlay>, CaptureError> {
    let unfit = |target: &str, reason: String| CaptureError::Snapshot {
        vm: plan.vm.clone(),
        disk: target.to_owned(),
        reason,
    };
    if !context.hypervisor.is_local() {
        return Err(CaptureError::SnapshotRemote(plan.vm.clone()));
    }
    let domain = context.hypervisor.domain(&plan.uuid.to_string())?;
    let chains = context.hypervisor.chains(plan.uuid)?;
    let mut overlays = Vec::new();
    for disk in &plan.disks {
        let target = &disk.target;
        let defined = domain.disks.iter().find(|defined| defined.target == *target);
        let Some(base) = defined
            .and_then(|defined| defined.source.path())
            .map(Path::to_owned)
        else {
            return Err(unfit(target, "it is neither a file nor a block device".into()));
        };
        format_of(disk)?;
        let directory = defined
            .and_then(|defined| beside(&defined.source))
            .unwrap_or(&context.settings.images);
        let entry = Overlay {
            overlay: directory.join(format!("{PREFIX}{}-{target}{SUFFIX}", plan.run)),
            target: target.clone(),
            base,
            format: disk.format.clone(),
            pivoting: false,
        };
        let views = Views::of(&chains, &entry, true);
        if views.job != Job::None || views.job_in_qemu {
            return Err(unfit(target, "a block job runs on it".into()));
        }
        if (views.qemu, views.live, views.inactive) != (Top::Base, Top::Base, Top::Base) {
            let chain = chains.iter().find(|chain| chain.target == *target);
            if chain.is_some_and(|chain| chain.live.is_empty() && chain.inactive.is_empty()) {
                return Err(unfit(
                    target,
                    "the definitions name no file for it, as it is a volume of a storage pool; take `method = \"checkpoint\"`, or \
                     name its file in the definition"
                        .into(),
                ));
            }
            let says =
                |view: Option<&PathBuf>| view.map_or("nothing".into(), |path| path.display().to_string());
            let of = |view: fn(&strongroom_hypervisor::Chain) -> &Vec<PathBuf>| {
                says(chain.and_then(|chain| view(chain).first()))
            };
            return Err(unfit(
                target,
                format!(
                    "QEMU writes to {}, the live definition names {}, the inactive one {}",
                    of(|chain| &chain.qemu),
                    of(|chain| &chain.live),
                    of(|chain| &chain.inactive)
                ),
            ));
        }
        overlays.push(entry);
    }
    Ok(overlays)
}

/// Takes the snapshot and serves what lies below it.
pub fn begin(
    context: &Context<'_>,
    plan: &mut Plan,
    run: &Run,
    quiescer: &mut Quiescer<'_>,
) -> Result<Begun, CaptureError> {
    checkpoint(context, plan)?;
    let disks: Vec<SnapshotDisk> = run
        .overlays
        .iter()
        .map(|entry| SnapshotDisk {
            target: entry.target.clone(),
            overlay: entry.overlay.clone(),
        })
        .collect();
    let started = std::time::Instant::now();
    let taken = quiescer.during(|| context.hypervisor.take_snapshot(plan.uuid, &disks))?;
    let took = started.elapsed();
    verify(context, plan, run, &taken)?;
    let call = taken.unwrap_or(took);
    let mut exports = Vec::new();
    let mut servers = Vec::new();
    for (disk, entry) in plan.disks.iter_mut().zip(&run.overlays) {
        let (export, server) = serve(context, disk, &entry.base)?;
        exports.push(export);
        servers.push(server);
    }
    Ok((call, exports, servers))
}

/// Makes the checkpoint that the next incremental backup starts from. Without one the next backup reads everything.
fn checkpoint(context: &Context<'_>, plan: &mut Plan) -> Result<(), CaptureError> {
    let Some(name) = plan.checkpoint.clone() else {
        return Ok(());
    };
    let targets: Vec<String> = plan
        .disks
        .iter()
        .filter(|disk| disk.tracked)
        .map(|disk| disk.target.clone())
        .collect();
    if let Err(error) = context.hypervisor.create_checkpoint(plan.uuid, &name, &targets) {
        context.note(format!("the next backup reads everything: failed to {error}"));
        // It may be there all the same.
        context.hypervisor.delete_checkpoint(plan.uuid, &name)?;
        plan.checkpoint = None;
        for disk in &mut plan.disks {
            disk.tracked = false;
        }
    }
    Ok(())
}

/// Makes sure that QEMU and both definitions name the overlays, whatever the call has said.
fn verify(
    context: &Context<'_>,
    plan: &Plan,
    run: &Run,
    taken: &Result<Duration, HypervisorError>,
) -> Result<(), CaptureError> {
    let unfit = |disk: &str, reason: String| CaptureError::Snapshot {
        vm: plan.vm.clone(),
        disk: disk.to_owned(),
        reason,
    };
    let mut wrong = None;
    for _ in 0..LOOKS {
        let chains = context.hypervisor.chains(plan.uuid)?;
        wrong = None;
        for entry in &run.overlays {
            let views = Views::of(&chains, entry, true);
            if (views.qemu, views.live, views.inactive) == (Top::Overlay, Top::Overlay, Top::Base) {
                // The next start would go back in time. Only seen when libvirtd was killed inside the call.
                context
                    .hypervisor
                    .set_inactive_image(plan.uuid, &entry.target, &entry.overlay, "qcow2")?;
            }
            if (views.qemu, views.live, views.inactive) != (Top::Overlay, Top::Overlay, Top::Overlay) {
                wrong = Some((entry, views));
            }
        }
        match wrong {
            None => return Ok(()),
            Some((_, views)) if views.qemu != Top::Overlay => break,
            Some(_) => {}
        }
    }
    let Some((entry, views)) = wrong else {
        return Ok(());
    };
    if let Err(error) = taken {
        return Err(CaptureError::SnapshotRefused {
            vm: plan.vm.clone(),
            reason: error.to_string(),
        });
    }
    Err(unfit(
        &entry.target,
        format!(
            "after the snapshot QEMU and libvirt disagree about {}: {views:?}",
            entry.overlay.display()
        ),
    ))
}

/// Serves a frozen image, with its bitmap where it is read incrementally. A bitmap that is not as it should be makes
/// the disk full.
fn serve(
    context: &Context<'_>,
    disk: &mut DiskPlan,
    base: &Path,
) -> Result<(OpenExport, Server), CaptureError> {
    let format = format_of(disk)?;
    if let (Mode::Incremental, Some(since)) = (disk.mode, &disk.since)
        && let Err(why) = healthy(base, format, since)
    {
        read_all(disk, &why);
    }
    let settings = |disk: &DiskPlan| Serve {
        export: disk.target.clone(),
        backing: Backing::Follow,
        bitmaps: disk.since.iter().cloned().collect(),
        ..Serve::read_only(format)
    };
    let stamps = Stamps::take(base, format);
    let started = match QemuNbd::start(base, &settings(disk)) {
        Err(error) if disk.since.is_some() => {
            context.note(format!(
                "disk {}: trying again without its bitmap: {error}",
                disk.target
            ));
            read_all(disk, &error.to_string());
            QemuNbd::start(base, &settings(disk))
        }
        started => started,
    };
    let process = started.map_err(|source| CaptureError::Export {
        disk: disk.target.clone(),
        source,
    })?;
    let export = OpenExport {
        target: disk.target.clone(),
        at: process.target(),
    };
    let server = Server {
        _process: process,
        stamps,
    };
    Ok((export, server))
}

fn read_all(disk: &mut DiskPlan, why: &str) {
    disk.mode = Mode::Full;
    disk.parent = None;
    disk.since = None;
    disk.reason = format!("the map of changes in the image cannot be used: {why}");
}

/// Whether the bitmap is in the image, whole, and was recording until the image was frozen.
fn healthy(base: &Path, format: Format, name: &str) -> Result<(), String> {
    // The VM has the image open, too, for reading.
    let info = image_info(base, format, true).map_err(|error| error.to_string())?;
    let Some(bitmap) = info.bitmaps.iter().find(|bitmap| bitmap.name == name) else {
        return Err(format!("bitmap {name} is not in it"));
    };
    if !bitmap.is_consistent() {
        return Err(format!("bitmap {name} was not closed properly"));
    }
    if !bitmap.flags.iter().any(|flag| flag == "auto") {
        return Err(format!("bitmap {name} was not recording"));
    }
    Ok(())
}
