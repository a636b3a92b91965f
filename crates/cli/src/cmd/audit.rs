//! `strongroom audit`.

use std::sync::Arc;

use jiff::SignedDuration;
use strongroom_engine::inspect::audit::{self, Level, Report, VmReport};
use strongroom_engine::run::settings::{self as resolved, HypervisorSettings};
use strongroom_hypervisor::Hypervisor as _;

use crate::args::Audit;
use crate::documents::{Audited, ProblemOfHypervisor};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Parts, Settings};
use crate::ui::Ui;
use crate::ui::human;

/// Says what is unsafe about VMs.
pub fn run(settings: &Settings, args: &Audit) -> Result<Exit, Failure> {
    let resolved = settings.resolve_live()?;
    let groups = if args.all {
        // Each hypervisor that the configuration names, and all that it has.
        let mut groups = resolved.by_hypervisor(&resolved.names().cloned().collect::<Vec<_>>());
        let default = resolved.default_hypervisor();
        if groups.iter().all(|(other, _)| other != default) {
            groups.push((default.clone(), Vec::new()));
        }
        groups
    } else {
        resolved.by_hypervisor(&Settings::chosen(&resolved, &args.vms)?)
    };
    let mut report = Report::default();
    // A hypervisor that cannot be reached does not keep the VMs of the others from being looked at.
    let (alone, mut unreached) = (groups.len() == 1, Vec::new());
    for (hypervisor, names) in groups {
        let uri = hypervisor.uri.clone();
        match of_one(settings, &resolved, &hypervisor, names, args) {
            Ok(found) => report.extend(found),
            Err(failure) if alone => return Err(failure),
            Err(mut failure) => {
                settings.signals.cancel().check().map_err(Failure::failed)?;
                failure
                    .message
                    .insert_str(0, &format!("audit the VMs of {uri}: "));
                settings.ui.failure(&failure);
                unreached.push(ProblemOfHypervisor {
                    hypervisor: uri,
                    error: failure.message,
                });
            }
        }
    }
    let reached = unreached.is_empty();
    if settings.ui.json() {
        settings.ui.document_with_warnings(Audited {
            audit: &report,
            problems: unreached,
        });
    }
    Ok(if reached { exit(&report) } else { Exit::Failed })
}

/// Looks at these VMs of one hypervisor, or at all that it has.
fn of_one(
    settings: &Settings,
    resolved: &Arc<resolved::Settings>,
    hypervisor: &HypervisorSettings,
    mut names: Vec<String>,
    args: &Audit,
) -> Result<Report, Failure> {
    let parts = settings.parts(resolved, hypervisor)?;
    if args.all {
        names = parts.hypervisor.domain_names().map_err(Failure::failed)?;
    }
    report(settings, &parts, &names, args.max_age)
}

/// Looks at VMs, and says in words what was found unless a document is wanted. A backup may be so many hours old.
pub(super) fn report(
    settings: &Settings,
    parts: &Parts,
    names: &[String],
    max_age: u32,
) -> Result<Report, Failure> {
    let max_age = SignedDuration::from_hours(max_age.into());
    let report = audit::run(&settings.context(parts), names, max_age).map_err(Failure::failed)?;
    for vm in &report.vms {
        for problem in &vm.problems {
            settings
                .ui
                .failure(&Failure::failed(format!("audit {}: {problem}", vm.vm)));
        }
    }
    for other in &report.not_compared {
        settings.ui.info(format!("not compared: {other}"));
    }
    if !settings.ui.json() {
        print(&report);
    }
    Ok(report)
}

/// 1 where something could not be looked at, 3 where something is unsafe.
pub(super) fn exit(report: &Report) -> Exit {
    if report.is_incomplete() {
        Exit::Failed
    } else if report.is_unsafe() {
        Exit::Warnings
    } else {
        Exit::Done
    }
}

fn print(report: &Report) {
    let rows: Vec<Vec<String>> = report.vms.iter().flat_map(rows).collect();
    for line in human::table(&["VM", "LEVEL", "DISK", "FINDING", "WHAT"], &rows) {
        Ui::out(line);
    }
    for vm in &report.vms {
        Ui::out(verdict(vm));
    }
}

fn rows(vm: &VmReport) -> Vec<Vec<String>> {
    let row = |finding: &audit::Finding| {
        vec![
            vm.vm.clone(),
            level(finding.level).to_owned(),
            finding.disk.clone().unwrap_or_else(|| "-".into()),
            finding.code.to_owned(),
            finding.text.clone(),
        ]
    };
    vm.findings.iter().map(row).collect()
}

fn verdict(vm: &VmReport) -> String {
    let count = |wanted| {
        vm.findings
            .iter()
            .filter(|finding| finding.level == wanted)
            .count()
    };
    let found = match (count(Level::Unsafe), count(Level::Warning)) {
        (0, 0) => "nothing unsafe".to_owned(),
        (bad, odd) => format!("{bad} unsafe, {odd} warnings"),
    };
    let doubt = if vm.problems.is_empty() {
        String::new()
    } else {
        format!("; {} could not be looked at", vm.problems.len())
    };
    format!("{}: {found}{doubt}", vm.vm)
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Unsafe => "UNSAFE",
        Level::Warning => "warning",
        Level::Note => "note",
    }
}
