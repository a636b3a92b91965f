//! `strongroom backup`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use strongroom_child::{Limits, Needs, command};
use strongroom_engine::backup::{self, Outcome, Report, ready};
use strongroom_engine::fleet::{self, FleetError, Work};
use strongroom_engine::run::settings::{Arguments, VmJob};

use crate::args::Backup;
use crate::cmd::thaw_watchdog;
use crate::documents::{BackupOutcome, Backups, Failed, OneBackup, Warned};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Settings, connect};
use crate::ui::human::bytes;
use crate::ui::of_vm::OfVm;

impl From<FleetError> for Failure {
    fn from(error: FleetError) -> Self {
        let hint = match &error {
            FleetError::RecordsHang(_) => "put it on storage of this machine: `state` in the configuration",
            FleetError::NoAnswer { .. } => {
                "QEMU or libvirtd hangs: `virsh domstate VM`, `virsh domcontrol VM`; limits.answer_s is how long it is waited for"
            }
            _ => {
                return match error {
                    FleetError::Backup(error) => error.into(),
                    other => Self::failed(other),
                };
            }
        };
        Self::failed(error).hint(hint)
    }
}

/// Backs up the VMs, some of them at the same time. One that fails does not keep the others from their turn.
pub fn run(settings: &Settings, args: &Backup) -> Result<Exit, Failure> {
    let resolved = settings.resolve_live_with(&Arguments {
        time_limit: args.time_limit,
        disks_confirmed: args.confirm_disks,
        ..settings.arguments.clone()
    })?;
    let vms = Settings::chosen(&resolved, &args.vms)?;
    let jobs = args.jobs.map_or(resolved.at_once, usize::from);
    ready::check(&resolved, settings.signals.cancel())?;
    // A hypervisor that cannot be reached is said once, and while there is nothing to undo; of several it is the matter of its VMs.
    // The first VM gets that connection.
    let mut first = None;
    if let [(only, _)] = resolved.by_hypervisor(&vms).as_slice() {
        first = Some(connect(only).map_err(Failure::failed)?);
    }
    let first = Mutex::new(first);
    let connected = move |job: &VmJob| {
        let ready = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        ready.map_or_else(|| connect(&job.hypervisor), Ok)
    };
    yield_the_disk();
    settings.signals.undo_first();
    let work = Work {
        settings: resolved,
        repositories: settings.repositories.clone(),
        connect: Arc::new(connected),
        watchdog: Arc::new(thaw_watchdog::launch),
        cancel: settings.signals.cancel().clone(),
        request: backup::Request {
            dry_run: args.dry_run,
            made_anew: args.made_anew,
        },
    };
    let observer = |vm: &str| Arc::new(OfVm::new(Arc::clone(&settings.ui), vm));
    let mut done = Vec::new();
    fleet::run(&work, &vms, jobs, observer, |one| {
        let warnings = one.observer.map(|observer| observer.warned()).unwrap_or_default();
        let result = one.result.map_err(Failure::from);
        match &result {
            Ok(Outcome::Done(report)) => summary(settings, report),
            Ok(Outcome::Planned(_)) => {}
            Err(failure) => settings.ui.failure(&Failure {
                message: format!("back up {}: {}", one.vm, failure.message),
                hint: failure.hint.clone(),
                exit: failure.exit,
            }),
        }
        done.push(Done {
            turn: one.turn,
            vm: one.vm,
            result,
            warnings,
        });
    });
    done.sort_by_key(|one| one.turn);
    if settings.ui.json() {
        let backups = done.iter().map(document).collect();
        settings.ui.document_with_warnings(Backups { backups });
    }
    let exits = || {
        done.iter()
            .filter_map(|one| one.result.as_ref().err().map(|why| why.exit))
    };
    let failed = exits().find(|exit| *exit == Exit::Failed);
    Ok(failed.or_else(|| exits().next()).unwrap_or(Exit::Done))
}

/// What came of one VM.
struct Done {
    turn: usize,
    vm: String,
    result: Result<Outcome, Failure>,
    warnings: Vec<Warned>,
}

fn document(one: &Done) -> OneBackup<'_> {
    OneBackup {
        vm: &one.vm,
        outcome: match &one.result {
            Ok(Outcome::Planned(plan)) => BackupOutcome::Planned { plan },
            Ok(Outcome::Done(backup)) => BackupOutcome::Done { backup },
            Err(failure) => BackupOutcome::Failed(Failed {
                error: &failure.message,
                hint: failure.hint.as_deref(),
            }),
        },
        warnings: one.warnings.iter().map(|warned| warned.text.as_str()).collect(),
        warning_details: &one.warnings,
    }
}

/// Lets the disk serve others first: this process and whatever it starts, `qemu-nbd` among them, get the lowest priority
/// that is still served under load (`ioprio_set(2)`: best-effort 7). A priority that was set before stays. What is started
/// from here on inherits it; where it cannot be set, the depth of the reading has to do.
fn yield_the_disk() {
    let ionice = |arguments: &[&str]| {
        let id = std::process::id().to_string();
        let mut command = command("ionice", Needs::Nothing);
        command.args(arguments).args(["-p", &id]).env("LC_ALL", "C");
        let limits = Limits {
            time: Duration::from_secs(10),
            bytes: 1 << 16,
        };
        strongroom_child::run(&mut command, b"", limits, &|| false)
    };
    let unset = ionice(&[]).is_ok_and(|said| said.out.starts_with(b"none"));
    if unset {
        let _ = ionice(&["-c", "2", "-n", "7"]);
    }
}

fn summary(settings: &Settings, report: &Report) {
    if settings.ui.json() {
        return;
    }
    let read: u64 = report.manifest.disks.iter().map(|disk| disk.bytes_read).sum();
    settings.ui.info(format!(
        "{}: {} in {:.1} s, {} read, {} stored",
        report.vm,
        report.archive,
        report.seconds,
        bytes(read),
        bytes(report.bytes_stored),
    ));
    settings.ui.detail(format!(
        "{}: {} NBD requests, {} calls of the repository's server",
        report.vm, report.requests.nbd, report.requests.repository
    ));
}
