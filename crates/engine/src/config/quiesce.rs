//! How a guest is brought to rest.

use serde::{Deserialize, Serialize};

/// How a guest is brought to rest at the instant of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quiesce {
    /// The level of consistency to reach.
    pub level: Level,
    /// What to do when it is not reached.
    pub if_missed: IfMissed,
    /// How long the guest's file systems may stay frozen, in milliseconds; then they are thawed, whatever happens.
    pub budget_ms: u64,
    /// Run the scripts over `ssh` with this destination (`root@web01`, or a `Host` of `~/.ssh/config`); without it they
    /// are run by the guest agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<String>,
    /// Shell command that brings the application to rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre: Option<String>,
    /// Shell command that lets the application go on. Runs whenever `pre` may have been started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post: Option<String>,
    /// How long either command may take, in seconds.
    pub timeout_s: u64,
}

impl Default for Quiesce {
    fn default() -> Self {
        Self {
            level: Level::default(),
            if_missed: IfMissed::default(),
            budget_ms: 1000,
            ssh: None,
            pre: None,
            post: None,
            timeout_s: 60,
        }
    }
}

impl Quiesce {
    /// Whether the values make sense, and fit each other.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(50..=60_000).contains(&self.budget_ms) {
            return Err("budget_ms: 50 to 60000 milliseconds".into());
        }
        if !(1..=3600).contains(&self.timeout_s) {
            return Err("timeout_s: 1 to 3600 seconds".into());
        }
        let application = self.level == Level::Application;
        let scripts = [&self.pre, &self.post];
        if application && self.pre.is_none() {
            return Err("level application needs a script `pre`".into());
        }
        if !application && (scripts.iter().any(|script| script.is_some()) || self.ssh.is_some()) {
            return Err("`pre`, `post` and `ssh` belong to level application".into());
        }
        if scripts
            .into_iter()
            .flatten()
            .any(|script| script.trim().is_empty() || script.contains('\0'))
        {
            return Err("`pre` and `post` are shell commands".into());
        }
        if let Some(ssh) = &self.ssh
            && (ssh.is_empty()
                || ssh.starts_with('-')
                || ssh.contains(|c: char| c.is_whitespace() || c.is_control()))
        {
            return Err(format!("ssh: {ssh:?} is not a destination such as root@web01"));
        }
        Ok(())
    }
}

/// A level of consistency that a running guest can be brought to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As after a power cut.
    #[default]
    Crash,
    /// File systems frozen by the guest agent.
    Filesystem,
    /// The application brought to rest by scripts, and file systems frozen where there is an agent.
    Application,
}

/// What to do when a level of consistency is not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IfMissed {
    /// Back up all the same, with a warning (exit code 3) and the level that was reached on record.
    #[default]
    Degrade,
    /// No backup.
    Fail,
}
