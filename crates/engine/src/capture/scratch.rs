//! Room for scratch files and overlays. When they cannot grow any more, QEMU pauses the *guest*; so the backup gives way early.
//!
//! While disks are read, a thread looks at the storage that holds these files. If there is less free space than
//! the configured floor, or a file has grown beyond its limit, it ends the backup job at once: the files are gone, the
//! guest goes on, and the reading fails. In a backup by snapshot it breaks the reading off, and the overlays are merged
//! early. A look takes microseconds and sees files and storage alike; QEMU's block thresholds would tell of one file each, and
//! of its storage nothing. Of storage on another machine only that it is full can be told, by the guest that was stopped.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use strongroom_points::manifest::Method;
use strongroom_points::store::Canceller;

use super::CaptureError;
use super::end_job;
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::plan::Plan;
use crate::run::settings::Limits;
use crate::run::state::Run;

/// Between two looks. A guest that writes 1 GB/s meanwhile fills a quarter of the default floor.
const PERIOD: Duration = Duration::from_millis(250);

/// Whether there is room to begin.
pub fn check(context: &Context<'_>, plan: &Plan, run: &Run, limits: &Limits) -> Result<(), CaptureError> {
    match shortage(context, plan, run, limits) {
        Some(reason) => Err(CaptureError::Scratch {
            vm: plan.vm.clone(),
            reason,
        }),
        None => Ok(()),
    }
}

/// Does the work, which is broken off as soon as there is no room any more: the backup job is ended, the context that the work
/// has is cancelled, and the repository let go of, as the work may be waiting for it.
pub fn watched<T, E: From<CaptureError>>(
    context: &Context<'_>,
    plan: &Plan,
    run: &Run,
    limits: &Limits,
    repository: &Canceller,
    work: impl FnOnce(&Context<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let done = AtomicBool::new(false);
    let part = context.cancel.within(None);
    let break_off = || {
        part.cancel.cancel();
        repository.cancel();
    };
    thread::scope(|scope| {
        let watch = scope.spawn(|| watch(context, plan, run, limits, break_off, &done));
        let ended = Done(&done, watch.thread());
        let result = work(&Context {
            cancel: &part.cancel,
            ..context.clone()
        });
        drop(ended);
        match watch.join() {
            // Why the reading failed; and if it was over already, the repository that it went to is let go of.
            Ok(Some(reason)) => Err(CaptureError::Scratch {
                vm: plan.vm.clone(),
                reason,
            }
            .into()),
            _ => result,
        }
    })
}

/// Tells the watching thread to end, also when the work panics.
struct Done<'a>(&'a AtomicBool, &'a Thread);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        self.1.unpark();
    }
}

fn watch(
    context: &Context<'_>,
    plan: &Plan,
    run: &Run,
    limits: &Limits,
    break_off: impl Fn(),
    done: &AtomicBool,
) -> Option<String> {
    let mut reason = None;
    let mut said = None;
    while !done.load(Ordering::SeqCst) {
        reason = reason.or_else(|| shortage(context, plan, run, limits));
        if let Some(reason) = &reason {
            if plan.method == Method::Snapshot {
                // What reads the images has to end before the overlays can be merged: that follows.
                break_off();
                break;
            }
            match end_job(context, plan.uuid, run) {
                Ok(()) => {
                    break_off();
                    break;
                }
                Err(error) => {
                    let text = format!("{reason}, and the backup job does not end: {error}");
                    // It is tried again and again.
                    if said.as_ref() != Some(&text) {
                        context.warn(Code::JobLeft, text.clone());
                        said = Some(text);
                    }
                }
            }
        }
        thread::park_timeout(PERIOD);
    }
    reason
}

/// What there is too little of, if anything.
fn shortage(context: &Context<'_>, plan: &Plan, run: &Run, limits: &Limits) -> Option<String> {
    if plan.method == Method::Offline {
        return None;
    }
    if !context.hypervisor.is_local() {
        return stopped(context, plan, run);
    }
    let overlays = run.overlays.iter().map(|entry| &entry.overlay);
    run.scratch
        .iter()
        .chain(overlays)
        .find_map(|file| shortage_at(file, limits))
}

/// Of another machine's storage there is no news before it is full: then QEMU has stopped the guest, and it runs on as soon
/// as the job has ended.
fn stopped(context: &Context<'_>, plan: &Plan, run: &Run) -> Option<String> {
    let stopped = run.running && context.hypervisor.stopped_by_io_error(plan.uuid).ok()?;
    stopped.then(|| {
        format!(
            "the storage of {} is full, and its guest was stopped",
            context.hypervisor.uri()
        )
    })
}

fn shortage_at(scratch: &Path, limits: &Limits) -> Option<String> {
    const MIB: u64 = 1 << 20;
    // st_blocks counts units of 512 bytes, whatever the file system's block size (stat(2)).
    let used = std::fs::metadata(scratch).map_or(0, |file| file.blocks() * 512);
    if let Some(most) = limits.scratch.filter(|most| used > *most) {
        return Some(format!(
            "{} has grown beyond {} MiB",
            scratch.display(),
            most / MIB
        ));
    }
    let directory = scratch.parent()?;
    // Storage that cannot be asked is no reason to give up.
    let storage = rustix::fs::statvfs(directory).ok()?;
    let free = storage.f_bavail.saturating_mul(storage.f_frsize);
    if free < limits.free {
        let (directory, left, floor) = (directory.display(), free / MIB, limits.free / MIB);
        return Some(format!(
            "{directory} has {left} MiB left, and at least {floor} MiB are to stay free"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn limits_are_on_the_file_and_on_its_storage() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = directory.path().join("scratch");
        let limits = |scratch_mib, free_mib| {
            let file = config::Limits {
                scratch_mib,
                free_mib,
                ..config::Limits::default()
            };
            Limits::from(&file)
        };
        assert_eq!(shortage_at(&scratch, &limits(1, 0)), None, "not there yet");
        std::fs::write(&scratch, vec![1; 2 << 20]).unwrap();
        assert!(
            shortage_at(&scratch, &limits(1, 0))
                .unwrap()
                .contains("beyond 1 MiB")
        );
        assert_eq!(shortage_at(&scratch, &limits(4, 0)), None);
        assert!(
            shortage_at(&scratch, &limits(0, u64::MAX))
                .unwrap()
                .contains("stay free")
        );
    }
}
