//! `strongroom restore`.

use strongroom_engine::restore::{self, ImageFormat, Outcome, Report, Request, RestorePlan};

use crate::args::{Format, Restore};
use crate::documents::{RestorePlanned, Restored};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;
use crate::ui::human::bytes;

/// Restores a VM, or some of its disks.
pub fn run(settings: &Settings, args: &Restore) -> Result<Exit, Failure> {
    let resolved = settings.resolve_stored_live()?;
    let point = Settings::point(&resolved, &args.point)?;
    let parts = settings.parts(&resolved, &resolved.job(&point.vm).hypervisor)?;
    settings.signals.undo_first();
    let request = Request {
        point,
        rename: args.rename.clone(),
        disks: args.disks.clone(),
        to: args.to.clone(),
        onto: args.onto.clone(),
        format: match args.format {
            Format::Qcow2 => ImageFormat::Qcow2,
            Format::Raw => ImageFormat::Raw,
        },
        overwrite: args.overwrite,
        keep_going: args.keep_going,
        unsigned: args.unsigned,
        allow_rollback: args.allow_rollback,
        headers: args.headers.clone(),
        own_headers: args.own_headers,
        tight: args.tight,
        trust_definition: args.trust_definition,
        dry_run: args.dry_run,
    };
    match restore::run(&settings.context(&parts), &request)? {
        Outcome::Planned(plan) => planned(settings, &plan),
        Outcome::Done(report) => done(settings, &report),
    }
    Ok(Exit::Done)
}

fn planned(settings: &Settings, plan: &RestorePlan) {
    if settings.ui.json() {
        return Ui::document(&RestorePlanned { plan });
    }
    for disk in &plan.disks {
        Ui::out(format!(
            "{}: {} to {}",
            disk.target,
            bytes(disk.size),
            disk.path.display()
        ));
    }
    for left in &plan.left_out {
        Ui::out(format!("{}: left out; {}", left.target, left.what));
    }
    for change in &plan.changes {
        Ui::out(format!("{}: {change}", plan.vm));
    }
    for power in &plan.powers {
        Ui::out(format!(
            "{}: has to be trusted (--trust-definition): {power}",
            plan.vm
        ));
    }
}

fn done(settings: &Settings, report: &Report) {
    if settings.ui.json() {
        return settings.ui.document_with_warnings(Restored { restore: report });
    }
    for disk in &report.disks {
        let what = if disk.fresh {
            "made anew".into()
        } else {
            format!("{} of data", bytes(disk.bytes_written))
        };
        settings
            .ui
            .info(format!("{}: {} ({what})", disk.target, disk.path.display()));
    }
    for left in &report.left_out {
        settings
            .ui
            .info(format!("{}: left out; {}", left.target, left.what));
    }
    for change in &report.changes {
        settings.ui.info(format!("{}: {change}", report.vm));
    }
    let defined = report
        .uuid
        .map(|uuid| format!(", defined as {uuid}"))
        .unwrap_or_default();
    settings.ui.info(format!(
        "{}: {} restored in {:.1} s{defined}",
        report.vm, report.archive, report.seconds
    ));
}
