//! The part of the port that talks to the guest agent.
//!
//! The agent is the guest's: it can be absent, hang, or lie. Every call has a time limit; the hypervisor may need some
//! seconds more to find its place in the conversation with an agent that did not answer before.
//!
//! Silence and an answer are told apart. [`HypervisorError::Refused`] is an answer: what was asked was not done and
//! will not be. After any other error of [`Agent::freeze`] nothing is known: the request may lie in the agent's
//! channel and be carried out much later. Requests are carried out in their order, so that once the agent has
//! answered a later [`Agent::thaw`], no earlier request is left in the channel.

use std::time::Duration;

use uuid::Uuid;

use crate::HypervisorError;

/// What the agent says of its file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeStatus {
    /// They take writes.
    Thawed,
    /// They are frozen.
    Frozen,
}

/// How a command in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestExit {
    /// Its exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// The end of what it wrote to standard output, followed by that of standard error. Hostile input.
    pub output: String,
}

/// The guest agent of running domains.
pub trait Agent {
    /// Whether the definition has an agent channel and the guest has opened it.
    fn agent_connected(&self, domain: Uuid) -> Result<bool, HypervisorError>;

    /// Asks for a sign of life, and waits at most this long.
    fn agent_ping(&self, domain: Uuid, at_most: Duration) -> Result<(), HypervisorError>;

    /// Freezes all mounted file systems that can be. Returns how many.
    fn freeze(&self, domain: Uuid, at_most: Duration) -> Result<u32, HypervisorError>;

    /// Thaws whatever is frozen; nothing being frozen is no error. Returns how many were thawed.
    fn thaw(&self, domain: Uuid, at_most: Duration) -> Result<u32, HypervisorError>;

    /// Whether file systems are frozen.
    fn freeze_status(&self, domain: Uuid, at_most: Duration) -> Result<FreezeStatus, HypervisorError>;

    /// Runs a shell command in the guest (`/bin/sh -c`) as the agent's user, and waits for its end at most this long; a
    /// command that runs longer is left to itself, and an error returned.
    fn run_in_guest(
        &self,
        domain: Uuid,
        command: &str,
        at_most: Duration,
    ) -> Result<GuestExit, HypervisorError>;
}
