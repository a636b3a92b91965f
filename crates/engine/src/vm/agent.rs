//! The part of the port that talks to the guest agent.
//!
//! The agent is the guest's: it can be absent, hang, or lie. Every call has a time limit, and an error of
//! [`Agent::freeze`] says nothing about whether the guest is, or is going to be, frozen: the request may lie in the
//! agent's channel and be carried out much later.

use std::time::Duration;

use uuid::Uuid;

use super::HypervisorError;

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
    /// The beginning of what it wrote to standard output and standard error. Hostile input.
    pub output: String,
}

/// The guest agent of running domains.
pub trait Agent {
    /// Whether the definition has an agent channel and the guest has opened it.
    fn agent_connected(&self, domain: Uuid) -> Result<bool, HypervisorError>;

    /// Asks for a sign of life, and waits at most this long.
    fn agent_ping(&self, domain: Uuid, at_most: Duration) -> Result<(), HypervisorError>;

    /// Freezes all mounted file systems that can be. Gives how many.
    fn freeze(&self, domain: Uuid, at_most: Duration) -> Result<u32, HypervisorError>;

    /// Thaws whatever is frozen; nothing being frozen is no error. Gives how many were thawed.
    fn thaw(&self, domain: Uuid, at_most: Duration) -> Result<u32, HypervisorError>;

    /// Whether file systems are frozen.
    fn freeze_status(&self, domain: Uuid, at_most: Duration) -> Result<FreezeStatus, HypervisorError>;

    /// Runs a shell command in the guest (`/bin/sh -c`) as the agent's user, with these variables, and waits for its
    /// end at most this long; a command that runs longer is left to itself, and an error returned.
    fn run_in_guest(
        &self,
        domain: Uuid,
        command: &str,
        environment: &[(String, String)],
        at_most: Duration,
    ) -> Result<GuestExit, HypervisorError>;
}
