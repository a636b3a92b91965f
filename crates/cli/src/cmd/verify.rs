//! `strongroom verify`.

use strongroom_engine::run::event::Code;
use strongroom_engine::run::state::StateDirectory;
use strongroom_engine::verify::{self, Problem, Report, Request, Scope, Share, VmReport};
use strongroom_points::selector::PointName;

use crate::args::Verify;
use crate::documents::Verified;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;
use crate::ui::human::{self, bytes};

/// Verifies restore points. Needs no hypervisor.
pub fn run(settings: &Settings, args: &Verify) -> Result<Exit, Failure> {
    let resolved = settings.resolve_stored()?;
    if args.all && resolved.names().len() == 0 {
        return Err(Failure::usage(
            "verify all VMs: the configuration names none, so there is nothing to begin with",
        )
        .hint("add one [vm.NAME]; the inventory in its newest restore point names the others"));
    }
    if matches!(args.part, Some(Share::Next(_))) && args.what.iter().any(|scope| scope.when.is_some()) {
        return Err(Failure::usage(
            "verify the next part: a cycle is kept for a whole VM, not for one of its restore points",
        )
        .hint("--part K/N"));
    }
    if args.acknowledge && args.what.iter().any(|scope| scope.when.is_some()) {
        return Err(Failure::usage(
            "acknowledge what is missing: that concerns a whole VM, not one of its restore points",
        ));
    }
    let named = |scope: &Scope| -> Result<Scope, Failure> {
        // A configured VM may have an `@` in its name, or be named by its UUID.
        let Some(when) = &scope.when else {
            return Ok(Scope {
                vm: Settings::named(&resolved, &scope.vm)?,
                when: None,
            });
        };
        let asked = PointName {
            vm: scope.vm.clone(),
            when: when.clone(),
        };
        let found = Settings::point(&resolved, &asked)?;
        let whole = found.vm == asked.to_string();
        Ok(Scope {
            vm: found.vm,
            when: (!whole).then_some(found.when),
        })
    };
    let what = args.what.iter().map(named).collect::<Result<_, _>>()?;
    let state = StateDirectory::open(&resolved.state_directory).map_err(Failure::failed)?;
    let here = settings.here(&resolved, &state);
    let request = Request {
        what,
        all: args.all,
        data: args.data,
        part: args.part,
        acknowledge: args.acknowledge,
    };
    let report = verify::run(&here, &request).map_err(Failure::failed)?;
    for vm in &report.vms {
        for note in &vm.notes {
            settings.ui.warn(Code::VerifyNote, Some(&vm.vm), note);
        }
    }
    if settings.ui.json() {
        settings.ui.document_with_warnings(Verified { verify: &report });
    } else {
        print(settings, &report, args);
    }
    Ok(if report.ok { Exit::Done } else { Exit::Failed })
}

fn print(settings: &Settings, report: &Report, args: &Verify) {
    let fail = |vm: &str, problem: &Problem| {
        let archive = problem.archive.as_deref().map(|archive| format!("{archive}: "));
        settings.ui.failure(&Failure::failed(format!(
            "verify {vm}: {}{}",
            archive.unwrap_or_default(),
            problem.text
        )));
    };
    for problem in &report.problems {
        fail("all", problem);
    }
    for vm in &report.vms {
        for problem in &vm.problems {
            fail(&vm.vm, problem);
        }
        for text in &vm.acknowledged {
            Ui::out(format!("{}: acknowledged: {text}", vm.vm));
        }
        if args.acknowledge && vm.acknowledged.is_empty() {
            Ui::out(format!(
                "{}: nothing is missing that could be acknowledged",
                vm.vm
            ));
        }
        Ui::out(line(vm, args.data));
    }
    for vm in &report.given_up {
        Ui::out(format!("{vm}: not looked for, it was given up"));
    }
}

/// One line a VM.
fn line(vm: &VmReport, data: bool) -> String {
    let problems = vm.problems.len() as u64 + vm.more_problems;
    let verdict = match problems {
        0 => "ok".to_owned(),
        1 => "FAILED, 1 problem".to_owned(),
        many => format!("FAILED, {many} problems"),
    };
    let mut parts = vec![format!("{} restore points", vm.points.len())];
    if let Some(newest) = vm.points.iter().max_by_key(|point| point.sequence) {
        parts.push(format!(
            "newest number {} of {} UTC",
            newest.sequence,
            human::time(newest.captured)
        ));
    }
    parts.push(format!("{} chunks", vm.chunks));
    if data {
        let share = vm.part.map(|part| format!(", part {part}"));
        parts.push(format!(
            "{} read{}",
            bytes(vm.verified_bytes),
            share.unwrap_or_default()
        ));
    }
    if !vm.removed.is_empty() {
        let ranges = vm.removed.iter().map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first} to {last}")
            }
        });
        parts.push(format!(
            "pruned or removed: {}",
            ranges.collect::<Vec<_>>().join(", ")
        ));
    }
    format!("{}: {verdict} ({})", vm.vm, parts.join(", "))
}
