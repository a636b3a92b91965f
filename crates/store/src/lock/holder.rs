//! Who holds a lock: `HOST.PID-THREAD`, the thread in hex and always 0.
//!
//! HOST is `NAME@NODE`, or what `BORG_HOST_ID` says. It has to be stock Borg's to the letter: only holders of the
//! same host are ever judged to be gone.

use std::fmt;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::sys;

/// What stock Borg calls this host.
pub fn host_id() -> String {
    if let Some(id) = std::env::var("BORG_HOST_ID").ok().filter(|id| !id.is_empty()) {
        return id;
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = sys::canonical_name(&name).unwrap_or(name);
    // Borg makes a random number up where there is no address, so that its locks there are never stale. This
    // program's are not, either: a number that no other process has will do.
    let node = sys::hardware_address().unwrap_or_else(|| 1 << 47 | u64::from(std::process::id()));
    format!("{name}@{node}")
}

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) host: String,
    pub(super) pid: i64,
    pub(super) thread: i64,
}

impl Holder {
    pub(super) fn this_process(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            pid: std::process::id().into(),
            thread: 0,
        }
    }

    /// Reads the name of a file in `lock.exclusive`.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (rest, thread) = name.rsplit_once('-')?;
        let (host, pid) = rest.rsplit_once('.')?;
        Some(Self {
            host: host.to_owned(),
            pid: pid.parse().ok()?,
            thread: i64::from_str_radix(thread, 16).ok()?,
        })
    }

    /// False if it is certain that the process is gone. What has our own name is left from an earlier process.
    pub(super) fn may_live(&self, me: &Self) -> bool {
        if self == me {
            return false;
        }
        if self.host != me.host || self.thread != 0 {
            return true;
        }
        match i32::try_from(self.pid)
            .ok()
            .filter(|pid| *pid > 0)
            .and_then(Pid::from_raw)
        {
            Some(pid) => test_kill_process(pid) != Err(Errno::SRCH),
            None => true,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}-{:x}", self.host, self.pid, self.thread)
    }
}
