//! Freezes a guest's file systems, and thaws them again.

use std::thread;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{Domain, FreezeStatus, HypervisorError, RunState};

use super::{PING, THAW};
use crate::capture::watchdog::{Message, Watchdog};
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::state::{StateError, VmState};

/// How long a thaw is tried again: the hypervisor's daemon may be restarting. The watchdog tries for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(200);

/// What became of a freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freeze {
    /// There is no agent.
    Absent,
    /// The agent lives, and the watchdog is ready.
    Possible,
    /// So many file systems are frozen, since then.
    Frozen(u32, Instant),
    /// They were frozen until the call had returned.
    Held,
    /// They were not, and why.
    Missed(String),
}

/// The agent of one guest, and the watchdog beside it.
pub struct Freezer<'a> {
    context: &'a Context<'a>,
    domain: &'a Domain,
    budget: Duration,
    watchdog: Option<Watchdog>,
    /// When the watchdog was told that its budget begins.
    armed: Instant,
    /// How it stands.
    pub outcome: Freeze,
    /// How long file systems were frozen.
    pub frozen: Duration,
}

impl<'a> Freezer<'a> {
    /// For a guest that may be frozen for so long. Nothing is done yet.
    pub fn new(context: &'a Context<'a>, domain: &'a Domain, budget: Duration) -> Self {
        Self {
            context,
            domain,
            budget,
            watchdog: None,
            armed: Instant::now(),
            outcome: Freeze::Absent,
            frozen: Duration::ZERO,
        }
    }

    /// Looks whether the agent answers, and starts the watchdog.
    pub fn get_ready(&mut self) {
        self.frozen = Duration::ZERO;
        self.outcome = match self.meet_agent() {
            Ok(true) => self.call_watchdog(),
            Ok(false) => Freeze::Absent,
            Err(missed) => Freeze::Missed(missed),
        };
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
            FreezeStatus::Frozen => Err("another program has frozen its file systems already".into()),
        }
    }

    fn call_watchdog(&mut self) -> Freeze {
        let command = (self.context.watchdog)(self.domain.uuid, self.budget);
        match Watchdog::start(command) {
            Ok(watchdog) => {
                self.watchdog = Some(watchdog);
                Freeze::Possible
            }
            Err(error) => Freeze::Missed(format!("there is no watchdog to thaw it: failed to {error}")),
        }
    }

    /// Freezes the file systems, if that is possible.
    pub fn freeze(&mut self, state: &mut VmState) -> Result<(), StateError> {
        if self.outcome == Freeze::Possible {
            self.outcome = self.try_freeze(state)?;
        }
        Ok(())
    }

    fn try_freeze(&mut self, state: &mut VmState) -> Result<Freeze, StateError> {
        let (hypervisor, uuid) = (self.context.hypervisor, self.domain.uuid);
        // A script may have taken its time: a request to an agent that hangs would stay in its channel.
        if let Err(error) = hypervisor.agent_ping(uuid, PING) {
            return Ok(Freeze::Missed(format!("failed to {error}")));
        }
        let Some(watchdog) = &mut self.watchdog else {
            return Ok(Freeze::Absent);
        };
        state.set_pending(|pending| pending.thaw = true)?;
        self.context.note("freezing its file systems");
        self.armed = Instant::now();
        if let Err(error) = watchdog.arm() {
            state.set_pending(|pending| pending.thaw = false)?;
            return Ok(Freeze::Missed(format!("the watchdog is gone: failed to {error}")));
        }
        let since = Instant::now();
        let answer = hypervisor.freeze(uuid, self.budget);
        watchdog.send(message_about(&answer));
        match answer {
            Ok(count) => Ok(Freeze::Frozen(count, since)),
            Err(error) => {
                if matches!(error, HypervisorError::Refused { .. }) {
                    // What was frozen by halves is thawed.
                    self.thaw(state, 0, since);
                }
                Ok(Freeze::Missed(format!("failed to {error}")))
            }
        }
    }

    /// Thaws what is frozen. `called` is when the call had returned.
    pub fn end(&mut self, state: &mut VmState, called: Instant) {
        let Freeze::Frozen(count, since) = self.outcome else {
            return;
        };
        let until = self.thaw(state, count, since);
        self.outcome = judge(count, until, called, self.budget);
    }

    /// Thaws so many file systems that are frozen since then. Returns until when they are known to have been frozen;
    /// nothing if no thaw was answered.
    fn thaw(&mut self, state: &mut VmState, count: u32, since: Instant) -> Option<Instant> {
        let mut watchdog = self.watchdog.take()?;
        let deadline = Instant::now() + PATIENCE;
        let mut told = None;
        let thawed = loop {
            let begun = Instant::now();
            match self.context.hypervisor.thaw(self.domain.uuid, THAW) {
                Ok(thawed) => break Ok((thawed, begun)),
                Err(error) if Instant::now() >= deadline => break Err(error),
                Err(_) => thread::sleep(RETRY),
            }
            // It has another connection, and may have come through.
            told = told.or_else(|| watchdog.has_thawed());
        };
        self.frozen = since.elapsed();
        match thawed {
            Ok((thawed, begun)) => {
                let told = told.or(watchdog.release());
                if let Err(error) = state.set_pending(|pending| pending.thaw = false) {
                    self.context.warn(Code::Records, format!("failed to {error}"));
                }
                if let Some(thaw) = told {
                    self.frozen = (self.armed + thaw.answered).saturating_duration_since(since);
                    return Some(self.armed + thaw.began);
                }
                Some(frozen_until(thawed, count, begun, since))
            }
            Err(error) => {
                watchdog.send(Message::Unknown);
                let vm = &self.domain.name;
                self.context.warn(Code::GuestMayBeFrozen, format!(
                    "its file systems may still be frozen: failed to {error}; the watchdog goes on trying, and \
                     `virsh domfsthaw {vm}` may help"
                ));
                None
            }
        }
    }
}

/// What the watchdog has to know of how a freeze was answered: whether one may be on its way still.
fn message_about(answer: &Result<u32, HypervisorError>) -> Message {
    match answer {
        Ok(_) | Err(HypervisorError::Refused { .. }) => Message::Frozen,
        Err(_) => Message::Unknown,
    }
}

/// Until when file systems were frozen of which so many were thawed by a thaw that began then.
fn frozen_until(thawed: u32, count: u32, begun: Instant, since: Instant) -> Instant {
    // Fewer than were frozen: another thaw came before, it is not known when.
    if thawed >= count { begun } else { since }
}

/// What became of a freeze of so many file systems, which were frozen until then, when the call had returned at that time.
fn judge(count: u32, until: Option<Instant>, called: Instant, budget: Duration) -> Freeze {
    match until {
        _ if count == 0 => Freeze::Missed("the guest agent found no file system to freeze".into()),
        Some(until) if until >= called => Freeze::Held,
        Some(_) => Freeze::Missed(format!(
            "the file systems did not stay frozen until the view was taken: {} ms were over, or another program thawed them",
            budget.as_millis()
        )),
        None => Freeze::Missed("it is not certain that the file systems were frozen, or are thawed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_counts_only_if_it_lasted_until_the_view_was_taken() {
        let called = Instant::now() + Duration::from_secs(10);
        let judge = |count, until| judge(count, until, called, Duration::from_secs(1));
        let (before, after) = (
            called.checked_sub(Duration::from_millis(1)).unwrap(),
            called + Duration::from_millis(1),
        );
        assert_eq!(judge(2, Some(after)), Freeze::Held);
        assert_eq!(judge(2, Some(called)), Freeze::Held);
        for (count, until) in [(2, Some(before)), (2, None), (0, Some(after))] {
            assert!(
                matches!(judge(count, until), Freeze::Missed(_)),
                "{count} {until:?}"
            );
        }
    }

    #[test]
    fn a_thaw_that_finds_less_than_was_frozen_came_too_late() {
        let since = Instant::now();
        let begun = since + Duration::from_secs(1);
        assert_eq!(frozen_until(2, 2, begun, since), begun);
        assert_eq!(frozen_until(3, 2, begun, since), begun);
        assert_eq!(frozen_until(1, 2, begun, since), since);
    }

    #[test]
    fn the_watchdog_stays_after_a_freeze_that_was_not_answered() {
        let what = || "freeze".to_owned();
        let refused = HypervisorError::Refused {
            what: what(),
            message: "no".into(),
        };
        let failed = HypervisorError::Failed {
            what: what(),
            message: "timed out".into(),
        };
        assert_eq!(message_about(&Ok(0)), Message::Frozen);
        assert_eq!(message_about(&Err(refused)), Message::Frozen);
        assert_eq!(message_about(&Err(failed)), Message::Unknown);
    }
}
