//! Brings the guest to rest around the instant of the capture.
//!
//! | level | what happens |
//! |---|---|
//! | `crash` | nothing |
//! | `filesystem` | the agent freezes the file systems · capture · thaw |
//! | `application` | `pre` · freeze, if there is an agent · capture · thaw · `post` |
//!
//! What the guest is owed for it, a thaw and `post`, is on record before it is incurred, and is paid on every way out:
//! at the end, after a failure, in a panic, and by the next run if this one died ([`settle`]). A guest is frozen only
//! under the eyes of a [`Watchdog`], which thaws when the budget is over or this process is no more.
//!
//! What is reached is judged afterwards, and doubt counts against it: a freeze of which it is not certain that it held
//! until the capture was complete has not been one.

mod script;

use std::time::{Duration, Instant};

use self::script::{Failure, Phase, Script};
use crate::backup::BackupError;
use crate::config::{IfMissed, Level, Quiesce};
use crate::context::Context;
use crate::manifest::Consistency;
use crate::state::{StateError, VmState};
use crate::vm::{Domain, FreezeStatus, HypervisorError, RunState};
use crate::watchdog::Watchdog;

/// How long the agent may take to give a sign of life, and to thaw.
const PING: Duration = Duration::from_secs(5);
const THAW: Duration = Duration::from_secs(5);
/// How long a thaw is tried again: the hypervisor's daemon may be restarting. The watchdog tries for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(200);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The level that was reached.
    pub consistency: Consistency,
    /// Why it is not the one that was asked for.
    pub missed: Option<String>,
    /// How long file systems were frozen.
    pub frozen: Duration,
}

/// Captures while the guest is at rest, as far as its settings ask for that. An error of the capture goes before one of
/// the level.
pub fn around<T>(
    context: &Context<'_>,
    domain: &Domain,
    run: &str,
    state: &mut VmState,
    capture: impl FnOnce() -> Result<T, BackupError>,
) -> Result<(T, Reached), BackupError> {
    let settings = &context.config.vm(&domain.name)?.0.quiesce;
    if settings.level == Level::Crash || domain.state == RunState::ShutOff {
        return Ok((capture()?, of_one_at_rest(settings.level, domain)));
    }
    let mut rest = Rest::prepare(context, domain, settings, run, state)?;
    rest.begin()?;
    let captured = capture();
    rest.end(Instant::now());
    let captured = captured?;
    let reached = rest.reached();
    rest.insist(reached.missed.as_deref())?;
    if let Some(missed) = &reached.missed {
        context.warn(format!(
            "{}: consistency {}, and not {}: {missed}{}",
            domain.name,
            word(reached.consistency),
            word(settings.level.into()),
            rest.pre.as_ref().err().map(Failure::words).unwrap_or_default(),
        ));
    }
    Ok((captured, reached))
}

/// The level of a guest that nothing is done to.
fn of_one_at_rest(asked: Level, domain: &Domain) -> Reached {
    let consistency = if domain.shut_down {
        Consistency::Clean
    } else {
        Consistency::Crash
    };
    let unknown = asked > Level::Crash && consistency == Consistency::Crash;
    Reached {
        consistency,
        missed: unknown.then(|| "it was off, and it is not known that its guest had shut down".into()),
        frozen: Duration::ZERO,
    }
}

/// What became of the freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Freeze {
    /// There is no agent, or nothing has been asked of it yet.
    Absent,
    /// The agent lives, and the watchdog is ready.
    Possible,
    /// So many file systems are frozen, since then.
    Frozen(u32, Instant),
    /// They were frozen until the capture was complete.
    Held,
    /// They were not, and why.
    Missed(String),
}

/// A guest that is at rest, or about to be. Dropped, it goes on.
struct Rest<'a> {
    context: &'a Context<'a>,
    domain: &'a Domain,
    settings: &'a Quiesce,
    run: &'a str,
    state: &'a mut VmState,
    watchdog: Option<Watchdog>,
    /// When the watchdog was told that its budget begins.
    armed: Instant,
    freeze: Freeze,
    frozen: Duration,
    pre: Result<(), Failure>,
    /// `pre` may have been started, and `post` has not been.
    owes_post: bool,
}

impl<'a> Rest<'a> {
    /// Everything that can be done beforehand, slow or not.
    fn prepare(
        context: &'a Context<'a>,
        domain: &'a Domain,
        settings: &'a Quiesce,
        run: &'a str,
        state: &'a mut VmState,
    ) -> Result<Self, BackupError> {
        let mut rest = Self {
            context,
            domain,
            settings,
            run,
            state,
            watchdog: None,
            armed: Instant::now(),
            freeze: Freeze::Absent,
            frozen: Duration::ZERO,
            pre: Ok(()),
            owes_post: false,
        };
        rest.freeze = match rest.meet_agent() {
            Ok(true) => rest.call_watchdog(),
            Ok(false) => Freeze::Absent,
            Err(missed) => Freeze::Missed(missed),
        };
        if rest.freeze == Freeze::Absent && settings.level == Level::Application {
            context.note(format!(
                "{}: there is no guest agent, only the scripts bring it to rest",
                domain.name
            ));
        }
        // What cannot be reached any more need not be tried.
        let missed = match &rest.freeze {
            Freeze::Possible => None,
            known => judge(settings.level, None, known).1,
        };
        rest.insist(missed.as_deref())?;
        Ok(rest)
    }

    /// Whether there is an agent that answers; why it cannot be used, if there is one that cannot.
    fn meet_agent(&self) -> Result<bool, String> {
        let (hypervisor, uuid) = (self.context.hypervisor, self.domain.uuid);
        if self.domain.state != RunState::Running {
            return Err("the VM is paused".into());
        }
        let words = |error: HypervisorError| format!("failed to {error}");
        if !hypervisor.agent_connected(uuid).map_err(words)? {
            return Ok(false);
        }
        hypervisor.agent_ping(uuid, PING).map_err(words)?;
        match hypervisor.freeze_status(uuid, PING).map_err(words)? {
            FreezeStatus::Thawed => Ok(true),
            FreezeStatus::Frozen => Err("somebody else has frozen its file systems already".into()),
        }
    }

    fn call_watchdog(&mut self) -> Freeze {
        let command = (self.context.watchdog)(self.domain.uuid, self.budget());
        match Watchdog::start(command) {
            Ok(watchdog) => {
                self.watchdog = Some(watchdog);
                Freeze::Possible
            }
            Err(error) => Freeze::Missed(format!("there is no watchdog to thaw it: failed to {error}")),
        }
    }

    fn budget(&self) -> Duration {
        Duration::from_millis(self.settings.budget_ms)
    }

    /// An error if a level is missed without which there shall be no backup.
    fn insist(&self, missed: Option<&str>) -> Result<(), BackupError> {
        match missed {
            Some(missed) if self.settings.if_missed == IfMissed::Fail => Err(BackupError::NotAtRest {
                vm: self.domain.name.clone(),
                level: word(self.settings.level.into()),
                reason: missed.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Brings the guest to rest.
    fn begin(&mut self) -> Result<(), BackupError> {
        self.begin_application()?;
        if self.freeze == Freeze::Possible {
            self.freeze = self.freeze()?;
        }
        Ok(())
    }

    fn begin_application(&mut self) -> Result<(), BackupError> {
        if self.settings.level != Level::Application {
            return Ok(());
        }
        let run = self.run.to_owned();
        self.state.owe(|debt| debt.post = Some(run))?;
        self.owes_post = true;
        let cancel = self.context.cancel;
        self.pre = self.script(Phase::Pre).run(self.context.hypervisor, Some(cancel));
        cancel.check()?;
        let missed = self.pre.as_ref().err().map(ToString::to_string);
        self.insist(missed.as_deref())
    }

    fn script(&self, phase: Phase) -> Script<'a> {
        Script {
            domain: self.domain.uuid,
            vm: &self.domain.name,
            run: self.run,
            phase,
            settings: self.settings,
        }
    }

    /// Freezes the file systems, under the watchdog's eyes.
    fn freeze(&mut self) -> Result<Freeze, StateError> {
        let (hypervisor, uuid) = (self.context.hypervisor, self.domain.uuid);
        // The script may have taken its time: a request to an agent that hangs would stay in its channel.
        if let Err(error) = hypervisor.agent_ping(uuid, PING) {
            return Ok(Freeze::Missed(format!("failed to {error}")));
        }
        let Some(watchdog) = &mut self.watchdog else {
            return Ok(Freeze::Absent);
        };
        self.state.owe(|debt| debt.thaw = true)?;
        self.context
            .note(format!("{}: freezing its file systems", self.domain.name));
        self.armed = Instant::now();
        if let Err(error) = watchdog.arm() {
            self.state.owe(|debt| debt.thaw = false)?;
            return Ok(Freeze::Missed(format!("the watchdog is gone: failed to {error}")));
        }
        let since = Instant::now();
        match hypervisor.freeze(uuid, Duration::from_millis(self.settings.budget_ms)) {
            Ok(count) => {
                watchdog.frozen();
                Ok(Freeze::Frozen(count, since))
            }
            Err(error @ HypervisorError::Refused { .. }) => {
                // It is answered for: none is on its way, and what was frozen by halves is thawed.
                watchdog.frozen();
                self.thaw(0, since);
                Ok(Freeze::Missed(format!("failed to {error}")))
            }
            Err(error) => {
                watchdog.unknown();
                Ok(Freeze::Missed(format!("failed to {error}")))
            }
        }
    }

    /// Lets the guest go on. `captured` is when the capture was complete.
    fn end(&mut self, captured: Instant) {
        if let Freeze::Frozen(count, since) = self.freeze {
            self.freeze = match self.thaw(count, since) {
                Some(until) if until >= captured => Freeze::Held,
                Some(_) => Freeze::Missed(format!(
                    "the file systems did not stay frozen until the view was taken: {} ms were over, or somebody else \
                     thawed them",
                    self.settings.budget_ms
                )),
                None => Freeze::Missed(
                    "it is not certain that the file systems were frozen, or are thawed".into(),
                ),
            };
            if count == 0 {
                self.freeze = Freeze::Missed("the guest agent found no file system to freeze".into());
            }
        }
        if std::mem::take(&mut self.owes_post) {
            let script = self.script(Phase::Post);
            let paid = post(self.context, &script, self.state);
            self.warn_unless(paid);
        }
    }

    /// Thaws so many file systems that are frozen since then. Gives until when they are known to have been frozen;
    /// nothing if no thaw was answered.
    fn thaw(&mut self, count: u32, since: Instant) -> Option<Instant> {
        let mut watchdog = self.watchdog.take()?;
        let deadline = Instant::now() + PATIENCE;
        let mut told = None;
        let thawed = loop {
            let begun = Instant::now();
            match self.context.hypervisor.thaw(self.domain.uuid, THAW) {
                Ok(thawed) => break Ok((thawed, begun)),
                Err(error) if Instant::now() >= deadline => break Err(error),
                Err(_) => std::thread::sleep(RETRY),
            }
            // It has another connection, and may have come through.
            told = told.or_else(|| watchdog.has_thawed());
        };
        match thawed {
            Ok((thawed, begun)) => {
                self.frozen = since.elapsed();
                let told = told.or(watchdog.release());
                let paid = self.state.owe(|debt| debt.thaw = false);
                self.warn_unless(paid);
                if let Some(thaw) = told {
                    self.frozen = (self.armed + thaw.answered).saturating_duration_since(since);
                    return Some(self.armed + thaw.began);
                }
                // Fewer than were frozen: somebody was there before, it is not known when.
                Some(if thawed >= count { begun } else { since })
            }
            Err(error) => {
                self.frozen = since.elapsed();
                watchdog.unknown();
                self.context.warn(format!(
                    "{}: its file systems may still be frozen: failed to {error}; the watchdog goes on trying, and \
                     `virsh domfsthaw {}` may help",
                    self.domain.name, self.domain.name
                ));
                None
            }
        }
    }

    fn warn_unless(&self, done: Result<(), StateError>) {
        if let Err(error) = done {
            self.context.warn(format!("failed to {error}"));
        }
    }

    fn reached(&self) -> Reached {
        let pre = self.pre.as_ref().err().map(|failure| failure.why.as_str());
        let (consistency, missed) = judge(self.settings.level, pre, &self.freeze);
        Reached {
            consistency,
            missed,
            frozen: self.frozen,
        }
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        // Nothing to do where it has ended as it should.
        self.end(Instant::now());
    }
}

/// Which level is reached, and why it is not the one asked for.
fn judge(asked: Level, pre: Option<&str>, freeze: &Freeze) -> (Consistency, Option<String>) {
    let no_agent = || "the guest agent is not connected".to_owned();
    match (asked, pre, freeze) {
        (Level::Crash, ..) => (Consistency::Crash, None),
        (Level::Filesystem, _, Freeze::Held) => (Consistency::Filesystem, None),
        (Level::Application, None, Freeze::Held | Freeze::Absent) => (Consistency::Application, None),
        (Level::Application, Some(pre), Freeze::Held) => (Consistency::Filesystem, Some(pre.to_owned())),
        (Level::Application, Some(pre), Freeze::Missed(why)) => {
            (Consistency::Crash, Some(format!("{pre}; and {why}")))
        }
        (_, _, Freeze::Missed(why)) => (Consistency::Crash, Some(why.clone())),
        (_, Some(pre), _) => (Consistency::Crash, Some(pre.to_owned())),
        (_, None, _) => (Consistency::Crash, Some(no_agent())),
    }
}

/// Runs `post`, which is owed until it has succeeded.
fn post(context: &Context<'_>, script: &Script<'_>, state: &mut VmState) -> Result<(), StateError> {
    match script.run(context.hypervisor, None) {
        Ok(()) => state.owe(|debt| debt.post = None),
        Err(failure) => {
            context.warn(format!("{}: {failure}; the next run tries again", script.vm));
            Ok(())
        }
    }
}

/// Pays what an earlier run left owing. What cannot be paid now stays on record, with a warning.
pub fn settle(context: &Context<'_>, domain: &Domain, state: &mut VmState) -> Result<(), StateError> {
    let debt = state.records().debt.clone();
    if debt.thaw {
        settle_thaw(context, domain, state)?;
    }
    let Some(run) = debt.post else { return Ok(()) };
    let settings = context
        .config
        .vm(&domain.name)
        .ok()
        .map(|(vm, _)| &vm.quiesce)
        .filter(|settings| settings.post.is_some());
    let Some(settings) = settings else {
        context.note(format!(
            "{}: the configuration has no post script any more",
            domain.name
        ));
        return state.owe(|debt| debt.post = None);
    };
    if settings.ssh.is_none() && !domain.state.is_active() {
        context.note(format!(
            "{}: its post script waits until it runs again",
            domain.name
        ));
        return Ok(());
    }
    context.note(format!(
        "{}: running the post script that an earlier run owes it",
        domain.name
    ));
    let script = Script {
        domain: domain.uuid,
        vm: &domain.name,
        run: &run,
        phase: Phase::Post,
        settings,
    };
    post(context, &script, state)
}

fn settle_thaw(context: &Context<'_>, domain: &Domain, state: &mut VmState) -> Result<(), StateError> {
    if !domain.state.is_active() {
        return state.owe(|debt| debt.thaw = false);
    }
    let hypervisor = context.hypervisor;
    let thawed = hypervisor
        .agent_ping(domain.uuid, PING)
        .and_then(|()| hypervisor.thaw(domain.uuid, THAW));
    match thawed {
        Ok(count) => {
            if count > 0 {
                context.warn(format!(
                    "{}: {count} of its file systems were still frozen by an earlier run, and are thawed now",
                    domain.name
                ));
            }
            state.owe(|debt| debt.thaw = false)
        }
        Err(error) => {
            context.warn(format!(
                "{}: its file systems may still be frozen by an earlier run: failed to {error}; the next run tries again, \
                 and `virsh domfsthaw {}` may help",
                domain.name, domain.name
            ));
            Ok(())
        }
    }
}

impl From<Level> for Consistency {
    fn from(level: Level) -> Self {
        match level {
            Level::Crash => Self::Crash,
            Level::Filesystem => Self::Filesystem,
            Level::Application => Self::Application,
        }
    }
}

fn word(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Crash => "crash",
        Consistency::Filesystem => "filesystem",
        Consistency::Application => "application",
        Consistency::Clean => "clean",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_reached_only_if_all_of_it_is() {
        use Level::{Application as A, Crash as C, Filesystem as F};
        let missed = Freeze::Missed("it hangs".into());
        let pre = Some("pre failed");
        for (asked, pre, freeze, reached, why) in [
            (C, None, &Freeze::Absent, Consistency::Crash, None),
            (F, None, &Freeze::Held, Consistency::Filesystem, None),
            (
                F,
                None,
                &Freeze::Absent,
                Consistency::Crash,
                Some("the guest agent is not connected"),
            ),
            (F, None, &missed, Consistency::Crash, Some("it hangs")),
            (A, None, &Freeze::Held, Consistency::Application, None),
            (A, None, &Freeze::Absent, Consistency::Application, None),
            (A, None, &missed, Consistency::Crash, Some("it hangs")),
            (A, pre, &Freeze::Held, Consistency::Filesystem, Some("pre failed")),
            (A, pre, &Freeze::Absent, Consistency::Crash, Some("pre failed")),
            (
                A,
                pre,
                &missed,
                Consistency::Crash,
                Some("pre failed; and it hangs"),
            ),
        ] {
            let judged = judge(asked, pre, freeze);
            assert_eq!(
                judged,
                (reached, why.map(str::to_owned)),
                "{asked:?} {pre:?} {freeze:?}"
            );
            assert_eq!(
                judged.0 == asked.into(),
                judged.1.is_none(),
                "a reason exactly if there is less"
            );
        }
    }
}
