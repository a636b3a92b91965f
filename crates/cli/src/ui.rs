//! The terminal: what is said, where, and how loud. Data goes to standard output, everything else to standard error.

pub mod human;
pub mod of_vm;
pub mod output;
mod progress;

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use strongroom_borg::{Event as BorgEvent, Level};
use strongroom_engine::run::event::{Event, Step};
use strongroom_engine::run::plan::Plan;

use crate::args::Global;
use crate::failure::Failure;
use human::{bytes, printable};
use progress::Progress;
use strongroom_points::manifest::Mode;

/// What the user hears.
pub struct Ui {
    json: bool,
    quiet: bool,
    verbose: u8,
    progress: Option<Progress>,
    warnings: AtomicUsize,
    said: Mutex<Vec<String>>,
}

impl Ui {
    /// Speaks as the global options ask for.
    pub fn new(global: &Global) -> Self {
        let bars = std::io::stderr().is_terminal() && !global.quiet && !global.json;
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            progress: bars.then(Progress::new),
            warnings: AtomicUsize::new(0),
            said: Mutex::default(),
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
        self.said.lock().map(|said| said.clone()).unwrap_or_default()
    }

    /// Prints a line of the result.
    pub fn out(line: impl AsRef<str>) {
        output::write(format!("{}\n", printable(line.as_ref())).as_bytes());
    }

    /// Prints the result as JSON.
    pub fn document(document: &serde_json::Value) {
        output::write(format!("{document:#}\n").as_bytes());
    }

    /// Says something about the work, unless it should be quiet.
    pub fn info(&self, line: impl AsRef<str>) {
        if !self.quiet && !self.json {
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
    pub fn warn(&self, text: &str) {
        self.warnings.fetch_add(1, Ordering::SeqCst);
        if let Ok(mut said) = self.said.lock() {
            said.push(text.to_owned());
        }
        self.err(&format!("strongroom: warning: {text}"));
    }

    /// Says why something failed.
    pub fn failure(&self, failure: &Failure) {
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
    pub fn repository(&self, event: &BorgEvent) {
        if let Some(text) = Self::complaint(event) {
            return self.warn(&text);
        }
        match event {
            BorgEvent::Log { message, .. } if self.verbose > 0 => self.info(format!("repository: {message}")),
            BorgEvent::Progress { message } if self.verbose > 1 => {
                self.info(format!("repository: {message}"));
            }
            _ => {}
        }
    }

    /// What of that is a warning.
    fn complaint(event: &BorgEvent) -> Option<String> {
        match event {
            BorgEvent::Log {
                level: Level::Warning | Level::Error,
                message,
            } => Some(format!("the repository's server says: {message}")),
            _ => None,
        }
    }

    /// Takes what the engine says.
    pub fn engine(&self, event: &Event<'_>) {
        self.about(None, event);
    }

    /// Takes what the engine says about a VM, with the VM's name before each line.
    fn about(&self, vm: Option<&str>, event: &Event<'_>) {
        let named = |what: &str| vm.map_or_else(|| what.to_owned(), |vm| format!("{vm} {what}"));
        match event {
            Event::Warning(text) => self.warn(text),
            Event::Note(text) if self.verbose > 0 => self.info(text),
            Event::Stage(text) => self.info(text),
            Event::Step(step) if self.verbose > 0 => self.info(match vm {
                Some(vm) => format!("{vm}: {}", step_name(*step)),
                None => step_name(*step).to_owned(),
            }),
            Event::Planned(plan) => self.planned(plan),
            Event::Captured { call, .. } if self.verbose > 0 => {
                let words = format!("frozen view taken in {:.0} ms", call.as_secs_f64() * 1000.0);
                self.info(vm.map_or_else(|| words.clone(), |vm| format!("{vm}: {words}")));
            }
            Event::DiskStarted { target, bytes } => {
                if let Some(progress) = &self.progress {
                    progress.start(&named(target), *bytes);
                }
            }
            Event::DiskProgress { target, bytes } => {
                if let Some(progress) = &self.progress {
                    progress.advance(&named(target), *bytes);
                }
            }
            Event::Verified { target, bytes: good } => {
                if let Some(progress) = &self.progress {
                    progress.finish(&named(target));
                }
                self.info(format!("{target}: {} read and found good", bytes(*good)));
            }
            Event::DiskDone { target, read, stored } => {
                if let Some(progress) = &self.progress {
                    progress.finish(&named(target));
                }
                self.info(format!(
                    "{}: {} read, {} written",
                    named(target),
                    bytes(*read),
                    bytes(*stored)
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
