//! The terminal: what is said, where, and how loud. Data goes to standard output, everything else to standard error.

pub mod human;
mod lines;
pub mod of_vm;
pub mod output;
mod progress;

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use strongroom_engine::run::event::{Code, Event, Kind, Observer, Step};
use strongroom_engine::run::plan::Plan;
use strongroom_points::store::{Event as StoreEvent, Level};

use crate::args::{Global, Progress as Wanted};
use crate::documents::{Warned, WithWarnings};
use crate::failure::Failure;
use human::{bytes, printable};
use lines::Lines;
use progress::Progress;
use strongroom_points::manifest::Mode;

/// What the user hears.
pub struct Ui {
    json: bool,
    quiet: bool,
    verbose: u8,
    progress: Option<Progress>,
    /// Where each event is a line of JSON, and nothing else is written.
    lines: Option<Lines>,
    warnings: AtomicUsize,
    warned: Mutex<Vec<Warned>>,
}

impl Ui {
    /// Speaks as the global options ask for.
    pub fn new(global: &Global) -> Self {
        let lines = global.progress == Wanted::Json;
        let bars = std::io::stderr().is_terminal() && !global.quiet && !global.json && !lines;
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            progress: bars.then(Progress::new),
            lines: lines.then(Lines::default),
            warnings: AtomicUsize::new(0),
            warned: Mutex::default(),
        }
    }

    /// Whether the result is wanted as JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// How many warnings there were.
    pub fn warnings(&self) -> usize {
        self.warnings.load(Ordering::SeqCst)
    }

    /// The warnings so far, for JSON documents.
    pub fn said(&self) -> Vec<String> {
        self.warned().iter().map(Warned::line).collect()
    }

    /// The same with their codes.
    pub fn warned(&self) -> Vec<Warned> {
        self.warned
            .lock()
            .map(|warned| warned.clone())
            .unwrap_or_default()
    }

    /// Prints a line of the result.
    pub fn out(line: impl AsRef<str>) {
        output::write(format!("{}\n", printable(line.as_ref())).as_bytes());
    }

    /// Prints the result as JSON.
    pub fn document(document: &impl Serialize) {
        // Keys in the order of the alphabet. Strings, numbers and string keys: nothing that JSON cannot hold.
        let document = serde_json::to_value(document).unwrap_or_default();
        output::write(format!("{document:#}\n").as_bytes());
    }

    /// Prints the result as JSON, with all warnings.
    pub fn document_with_warnings(&self, document: impl Serialize) {
        Self::document(&WithWarnings {
            document,
            warnings: self.said(),
            warning_details: self.warned(),
        });
    }

    /// Says something about the work, unless it should be quiet.
    pub fn info(&self, line: impl AsRef<str>) {
        if !self.quiet && !self.json && self.lines.is_none() {
            self.err(line.as_ref());
        }
    }

    /// Says something that matters to those who want to know all.
    pub fn detail(&self, line: impl AsRef<str>) {
        if self.verbose > 0 {
            self.info(line);
        }
    }

    /// Warns: at the end the exit code says so too.
    pub fn warn(&self, code: Code, vm: Option<&str>, text: impl Into<String>) {
        self.event(&Event::now(vm, Kind::warning(code, text)));
    }

    fn warning(&self, code: Code, vm: Option<&str>, text: &str) {
        self.warnings.fetch_add(1, Ordering::SeqCst);
        let warned = Warned {
            code,
            vm: vm.map(str::to_owned),
            text: text.to_owned(),
        };
        if self.lines.is_none() {
            self.err(&format!("strongroom: warning: {}", warned.line()));
        }
        if let Ok(mut all) = self.warned.lock() {
            all.push(warned);
        }
    }

    /// Says why something failed.
    pub fn failure(&self, failure: &Failure) {
        if self.lines.is_some() {
            return self.err(&Lines::failure(failure));
        }
        self.err(&format!("strongroom: failed to {}", failure.message));
        if let Some(hint) = &failure.hint {
            self.err(&format!("strongroom: hint: {hint}"));
        }
    }

    /// Runs something that uses the terminal itself, with the progress bars out of its way.
    pub fn suspended<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.progress {
            Some(progress) => progress.suspended(work),
            None => work(),
        }
    }

    fn err(&self, line: &str) {
        self.suspended(|| {
            let _ = writeln!(std::io::stderr().lock(), "{}", printable(line));
        });
    }

    /// Takes what the repository's server and the Borg client say.
    pub fn repository(&self, event: &StoreEvent) {
        if let Some(text) = Self::complaint(event) {
            return self.warn(Code::RepositoryServer, None, text);
        }
        match event {
            StoreEvent::Log { message, .. } if self.verbose > 0 => {
                self.info(format!("repository: {message}"));
            }
            StoreEvent::Progress { message } if self.verbose > 1 => {
                self.info(format!("repository: {message}"));
            }
            _ => {}
        }
    }

    /// What of that is a warning.
    fn complaint(event: &StoreEvent) -> Option<String> {
        match event {
            StoreEvent::Log {
                level: Level::Warning | Level::Error,
                message,
            } => Some(format!("the repository's server says: {message}")),
            _ => None,
        }
    }

    /// The line that people read about a VM.
    fn of_vm(vm: Option<&str>, text: &str) -> String {
        vm.map_or_else(|| text.to_owned(), |vm| format!("{vm}: {text}"))
    }

    fn show(&self, event: &Event<'_>) {
        let vm = event.vm;
        let named = |what: &str| vm.map_or_else(|| what.to_owned(), |vm| format!("{vm} {what}"));
        match &event.kind {
            Kind::Warning { code, text } => self.warning(*code, vm, text),
            Kind::Note { text } if self.verbose > 0 => self.info(Self::of_vm(vm, text)),
            Kind::Stage { text } => self.info(Self::of_vm(vm, text)),
            Kind::Step { step } if self.verbose > 0 => self.info(Self::of_vm(vm, step_name(*step))),
            Kind::Planned { plan } => self.planned(plan),
            Kind::Captured { call, .. } if self.verbose > 0 => {
                let words = format!("frozen view taken in {:.0} ms", call.as_secs_f64() * 1000.0);
                self.info(Self::of_vm(vm, &words));
            }
            Kind::DiskStarted { target, bytes } => {
                if let Some(progress) = &self.progress {
                    progress.start(&named(target), *bytes);
                }
            }
            Kind::DiskProgress { target, bytes } => {
                if let Some(progress) = &self.progress {
                    progress.advance(&named(target), *bytes);
                }
            }
            Kind::Verified { target, bytes: good } => {
                if let Some(progress) = &self.progress {
                    progress.finish(&named(target));
                }
                self.info(format!("{target}: {} read and found good", bytes(*good)));
            }
            Kind::DiskRead {
                target,
                read,
                stored: written,
            }
            | Kind::DiskWritten {
                target,
                read,
                written,
            } => {
                if let Some(progress) = &self.progress {
                    progress.finish(&named(target));
                }
                self.info(format!(
                    "{}: {} read, {} written",
                    named(target),
                    bytes(*read),
                    bytes(*written)
                ));
            }
            _ => {}
        }
    }

    fn planned(&self, plan: &Plan) {
        if let Some(why) = &plan.method_reason {
            self.info(format!("{}: by snapshot ({why})", plan.vm));
        }
        for disk in &plan.disks {
            let mode = match disk.mode {
                Mode::Full => "full",
                Mode::Incremental => "incremental",
            };
            self.info(format!(
                "{} {}: {mode}, {} ({})",
                plan.vm,
                disk.target,
                bytes(disk.size),
                disk.reason
            ));
        }
        for disk in plan.excluded.iter().filter(|_| self.verbose > 0) {
            self.info(format!(
                "{} {}: left out ({})",
                plan.vm,
                disk.target,
                human::exclusion(disk.why)
            ));
        }
    }
}

impl Observer for Ui {
    fn event(&self, event: &Event<'_>) {
        if let Some(lines) = &self.lines {
            for line in lines.of(event) {
                self.err(&line);
            }
        }
        self.show(event);
    }
}

fn step_name(step: Step) -> &'static str {
    match step {
        Step::Reconcile => "looking for leftovers of an interrupted run",
        Step::Plan => "opening the repository",
        Step::Capture => "taking the frozen view",
        Step::Stream => "reading",
        Step::Seal => "writing the archive",
        Step::Release => "tidying up",
        Step::Restore => "writing disks",
    }
}
