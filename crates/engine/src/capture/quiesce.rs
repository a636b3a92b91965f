//! Brings the guest to rest around the instant of the capture.
//!
//! | level | what happens |
//! |---|---|
//! | `crash` | nothing |
//! | `filesystem` | the agent freezes the file systems · the hypervisor's call · thaw |
//! | `application` | `pre` · freeze, if there is an agent · the hypervisor's call · thaw · `post` |
//!
//! What the guest is owed for it, a thaw and `post`, is on record before it is incurred, and is paid on every way out:
//! at the end, after a failure, in a panic, and by the next run if this one died ([`settle`]). A guest is frozen only
//! under the eyes of a [`crate::capture::watchdog`], which thaws when the budget is over or this process is no more.
//!
//! What is reached is judged afterwards, and doubt counts against it: a freeze of which it is not certain that it held
//! until the call had returned has not been one.

mod freeze;
mod script;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use strongroom_base::cancel::Cancelled;
use strongroom_hypervisor::{Domain, HypervisorError, RunState};
use strongroom_points::manifest::Consistency;

use self::freeze::{Freeze, Freezer};
use self::script::{Failure, Phase, Script};
use crate::config::{IfMissed, Level};
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::settings::Quiesce;
use crate::run::state::{StateError, VmState};

/// How long the agent may take to give a sign of life, and to thaw.
const PING: Duration = Duration::from_secs(5);
const THAW: Duration = Duration::from_secs(5);

/// Why there shall be no backup of a guest in this state.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    /// Ctrl-C, or a time limit.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// What the guest is owed could not be put on record.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest was not brought to rest as it has to be.
    #[error("back up {vm}: consistency {level} was not reached, and `if_missed` is \"fail\": {reason}")]
    NotAtRest {
        /// The VM.
        vm: String,
        /// The level asked for.
        level: &'static str,
        /// Why it was not reached.
        reason: String,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuiesceOutcome {
    /// The level that was reached.
    pub consistency: Consistency,
    /// Why it is not the one that was asked for.
    pub missed: Option<String>,
    /// How long file systems were frozen.
    pub frozen: Duration,
}

/// How a guest is brought to rest, and whether that worked. Dropped, the guest goes on.
pub struct Quiescer<'a> {
    context: &'a Context<'a>,
    domain: &'a Domain,
    settings: &'a Quiesce,
    run: &'a str,
    state: &'a mut VmState,
    freezer: Freezer<'a>,
    pre: Result<(), Failure>,
    /// `pre` may have been started, and `post` has not been.
    post_pending: bool,
    /// When the call had returned.
    pub at: Option<Timestamp>,
}

impl<'a> Quiescer<'a> {
    /// Everything that can be done beforehand, slow or not.
    pub fn prepare(
        context: &'a Context<'a>,
        domain: &'a Domain,
        settings: &'a Quiesce,
        run: &'a str,
        state: &'a mut VmState,
    ) -> Result<Self, QuiesceError> {
        let mut quiescer = Self {
            context,
            domain,
            settings,
            run,
            state,
            freezer: Freezer::new(context, domain, settings.budget),
            pre: Ok(()),
            post_pending: false,
            at: None,
        };
        quiescer.get_ready()?;
        Ok(quiescer)
    }

    /// Whether there is anything to be done.
    fn is_asked(&self) -> bool {
        self.settings.level > Level::Crash && self.domain.state != RunState::ShutOff
    }

    fn get_ready(&mut self) -> Result<(), QuiesceError> {
        if !self.is_asked() {
            return Ok(());
        }
        self.freezer.get_ready();
        if self.freezer.outcome == Freeze::Absent && self.settings.level == Level::Application {
            self.context
                .note("there is no guest agent, only the scripts bring it to rest");
        }
        // What cannot be reached any more need not be tried.
        let missed = match &self.freezer.outcome {
            Freeze::Possible => None,
            known => judge(self.settings.level, None, known).1,
        };
        self.insist(missed.as_deref())
    }

    /// Makes one call to the hypervisor, the one that captures, with the guest at rest. The guest goes on as soon as
    /// the call has returned. For another attempt it is brought to rest anew, and that one counts.
    pub fn during<T>(
        &mut self,
        call: impl FnOnce() -> Result<T, HypervisorError>,
    ) -> Result<Result<T, HypervisorError>, QuiesceError> {
        if self.at.is_some() {
            self.get_ready()?;
        }
        if self.is_asked() {
            self.begin_application()?;
            self.freezer.freeze(self.state)?;
        }
        let called = call();
        self.at = Some(Timestamp::now());
        self.end(Instant::now());
        Ok(called)
    }

    fn begin_application(&mut self) -> Result<(), QuiesceError> {
        if self.settings.level != Level::Application {
            return Ok(());
        }
        let run = self.run.to_owned();
        self.state.set_pending(|pending| pending.post = Some(run))?;
        self.post_pending = true;
        let cancel = self.context.cancel;
        let hypervisor = self.context.hypervisor;
        self.pre = self.script(Phase::Pre).run(hypervisor, Some(cancel));
        cancel.check()?;
        let missed = self.pre.as_ref().err().map(ToString::to_string);
        self.insist(missed.as_deref())
    }

    /// Lets the guest go on, if it does not already. `called` is when the call had returned.
    fn end(&mut self, called: Instant) {
        self.freezer.end(self.state, called);
        if std::mem::take(&mut self.post_pending) {
            let script = self.script(Phase::Post);
            if let Err(error) = post(self.context, &script, self.state) {
                self.context.warn(Code::Records, format!("failed to {error}"));
            }
        }
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

    /// An error if a level is missed without which there shall be no backup.
    fn insist(&self, missed: Option<&str>) -> Result<(), QuiesceError> {
        match missed {
            Some(missed) if self.settings.if_missed == IfMissed::Fail => Err(QuiesceError::NotAtRest {
                vm: self.domain.name.clone(),
                level: word(self.settings.level.into()),
                reason: missed.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// What came of it. An error, or a warning, if it is less than was asked for.
    pub fn outcome(self) -> Result<QuiesceOutcome, QuiesceError> {
        if !self.is_asked() {
            return Ok(of_one_at_rest(self.settings.level, self.domain));
        }
        let failure = self.pre.as_ref().err();
        let why = failure.map(|failure| failure.why.as_str());
        let (consistency, missed) = judge(self.settings.level, why, &self.freezer.outcome);
        self.insist(missed.as_deref())?;
        if let Some(missed) = &missed {
            self.context.warn(
                Code::ConsistencyMissed,
                format!(
                    "consistency {}, and not {}: {missed}{}",
                    word(consistency),
                    word(self.settings.level.into()),
                    failure.map(Failure::words).unwrap_or_default(),
                ),
            );
        }
        Ok(QuiesceOutcome {
            consistency,
            missed,
            frozen: self.freezer.frozen,
        })
    }
}

impl Drop for Quiescer<'_> {
    fn drop(&mut self) {
        // Nothing to do where it has ended as it should.
        self.end(Instant::now());
    }
}

/// The level of a guest that nothing is done to.
fn of_one_at_rest(asked: Level, domain: &Domain) -> QuiesceOutcome {
    let consistency = if domain.shut_down {
        Consistency::Clean
    } else {
        Consistency::Crash
    };
    let unknown = asked > Level::Crash && consistency == Consistency::Crash;
    QuiesceOutcome {
        consistency,
        missed: unknown.then(|| "it was off, and it is not known that its guest had shut down".into()),
        frozen: Duration::ZERO,
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

/// Runs `post`, which is pending until it has succeeded.
fn post(context: &Context<'_>, script: &Script<'_>, state: &mut VmState) -> Result<(), StateError> {
    match script.run(context.hypervisor, None) {
        Ok(()) => state.set_pending(|pending| pending.post = None),
        Err(failure) => {
            context.warn(
                Code::PostScriptFailed,
                format!("{failure}; the next run tries again"),
            );
            Ok(())
        }
    }
}

/// Does what an earlier run left pending. What cannot be done now stays on record, with a warning.
pub fn settle(
    context: &Context<'_>,
    domain: &Domain,
    settings: Option<&Quiesce>,
    state: &mut VmState,
) -> Result<(), StateError> {
    let pending = state.records().pending.clone();
    if pending.thaw {
        settle_thaw(context, domain, state)?;
    }
    let Some(run) = pending.post else { return Ok(()) };
    let Some(settings) = settings.filter(|settings| settings.post.is_some()) else {
        context.note("the configuration has no post script any more");
        return state.set_pending(|pending| pending.post = None);
    };
    if settings.ssh.is_none() && !domain.state.is_active() {
        context.note("its post script waits until it runs again");
        return Ok(());
    }
    context.note("running the post script that an earlier run owes it");
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
        return state.set_pending(|pending| pending.thaw = false);
    }
    let hypervisor = context.hypervisor;
    let thawed = hypervisor
        .agent_ping(domain.uuid, PING)
        .and_then(|()| hypervisor.thaw(domain.uuid, THAW));
    match thawed {
        Ok(count) => {
            if count > 0 {
                context.warn(
                    Code::GuestThawedLate,
                    format!(
                        "{count} of its file systems were still frozen by an earlier run, and are thawed now"
                    ),
                );
            }
            state.set_pending(|pending| pending.thaw = false)
        }
        Err(error) => {
            context.warn(Code::GuestMayBeFrozen, format!(
                "its file systems may still be frozen by an earlier run: failed to {error}; the next run tries again, \
                 and `virsh domfsthaw {}` may help",
                domain.name
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
