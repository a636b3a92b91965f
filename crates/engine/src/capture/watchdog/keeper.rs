//! The watchdog's own process: waits on the pipe, and thaws.
//!
//! A thaw that is answered after the freeze was answered settles the matter. Where the freeze was *not* seen to be
//! answered it may still be on its way: held back by the hypervisor's daemon, or lying in the channel of an agent that
//! hangs, to be carried out minutes later with no process left to undo it. Then the watchdog goes on asking for a thaw
//! until the agent has answered one after that can no longer be: for as long as the daemon may hold a request back
//! ([`Keeper::settle`]), and, with an agent that does not answer, for an hour ([`Keeper::patience`]). It ends earlier
//! only if the domain is gone or shut off.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_hypervisor::Agent;
use uuid::Uuid;

use super::{Message, Reply, Thaw};

/// How long the agent may take to answer a ping, and a thaw.
const PING: Duration = Duration::from_secs(5);
const THAW: Duration = Duration::from_secs(5);

/// How the guest is watched.
pub struct Keeper<'a> {
    /// The guest's agent.
    pub agent: &'a dyn Agent,
    /// The guest.
    pub domain: Uuid,
    /// Whether it is off, or no more: then nothing of it is frozen.
    pub is_off: &'a dyn Fn() -> bool,
    /// How long it may be frozen.
    pub budget: Duration,
    /// How long a freeze that was not answered may still be on its way, with an agent that answers.
    pub settle: Duration,
    /// How long an agent that does not answer is waited for.
    pub patience: Duration,
}

impl<'a> Keeper<'a> {
    /// Watches over a guest that may be frozen for so long.
    pub fn new(agent: &'a dyn Agent, domain: Uuid, is_off: &'a dyn Fn() -> bool, budget: Duration) -> Self {
        Self {
            agent,
            domain,
            is_off,
            budget,
            // libvirt's daemon holds a call back for up to 30 seconds while another one is under way, then takes
            // five to find its place in the conversation with the agent; and the agent may take the whole budget.
            settle: budget + Duration::from_secs(40),
            patience: Duration::from_hours(1),
        }
    }

    /// Does all of it. Returns when nothing can be frozen by this run any more, or patience is over.
    pub fn stand(&self, messages: &Receiver<Message>, reply: &mut dyn FnMut(&Reply)) {
        if let Err(error) = self.agent.agent_ping(self.domain, PING) {
            return reply(&Reply::Failed(error.to_string()));
        }
        reply(&Reply::Ready);
        if messages.recv() != Ok(Message::Freeze) {
            return;
        }
        let armed = Instant::now();
        reply(&Reply::Armed);
        let mut watch = Watch {
            keeper: self,
            armed,
            answered: false,
            alone: false,
        };
        if watch.until_due(messages) == Due::Never {
            return reply(&Reply::Done);
        }
        watch.thaw(messages, reply);
    }
}

/// What the run has sent so far.
struct Watch<'a> {
    keeper: &'a Keeper<'a>,
    armed: Instant,
    /// The freeze was answered.
    answered: bool,
    /// The run is no more.
    alone: bool,
}

/// Whether it is for the watchdog to thaw.
#[derive(PartialEq, Eq)]
enum Due {
    Never,
    Now,
}

impl Watch<'_> {
    /// Waits until the run has thawed, or is over its budget, or in doubt, or gone.
    fn until_due(&mut self, messages: &Receiver<Message>) -> Due {
        loop {
            let left = self.keeper.budget.saturating_sub(self.armed.elapsed());
            match messages.recv_timeout(left) {
                Ok(Message::Thawed) => return Due::Never,
                Ok(Message::Frozen) => self.answered = true,
                Ok(Message::Freeze) => {}
                Ok(Message::Unknown) | Err(RecvTimeoutError::Timeout) => return Due::Now,
                Err(RecvTimeoutError::Disconnected) => {
                    self.alone = true;
                    return Due::Now;
                }
            }
        }
    }

    /// Thaws until that is certain.
    fn thaw(&mut self, messages: &Receiver<Message>, reply: &mut dyn FnMut(&Reply)) {
        let mut told = false;
        loop {
            let none_on_its_way = self.answered || self.armed.elapsed() >= self.keeper.settle;
            let began = self.armed.elapsed();
            match self.keeper.agent.thaw(self.keeper.domain, THAW) {
                Ok(count) => {
                    if count > 0 || !told {
                        told = true;
                        reply(&Reply::Thawed(Thaw {
                            count,
                            began,
                            answered: self.armed.elapsed(),
                        }));
                    }
                    if none_on_its_way {
                        break;
                    }
                }
                Err(_) if (self.keeper.is_off)() => break,
                Err(_) => {}
            }
            if self.armed.elapsed() >= self.keeper.patience {
                break;
            }
            if self.pause(messages) == Due::Never {
                return reply(&Reply::Done);
            }
        }
        // The run may still ask what was done.
        while !self.alone {
            match messages.recv() {
                Ok(Message::Thawed) => return reply(&Reply::Done),
                Ok(_) => {}
                Err(_) => self.alone = true,
            }
        }
    }

    /// Waits before the next attempt: briefly at first, longer with an agent that has not answered for long.
    fn pause(&mut self, messages: &Receiver<Message>) -> Due {
        let pause = match self.armed.elapsed().as_secs() {
            0..10 => Duration::from_millis(200),
            10..60 => Duration::from_secs(1),
            _ => Duration::from_secs(5),
        };
        if self.alone {
            thread::sleep(pause);
            return Due::Now;
        }
        match messages.recv_timeout(pause) {
            Ok(Message::Thawed) => return Due::Never,
            Ok(Message::Frozen) => self.answered = true,
            Ok(Message::Freeze | Message::Unknown) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.alone = true,
        }
        Due::Now
    }
}

#[cfg(test)]
mod tests;
