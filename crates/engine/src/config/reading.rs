//! How disks are read: how hard, within which limits, and how the map of changes is checked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How hard a running guest's disk is read. Requests in flight are what its own requests have to queue behind; how many there
/// are follows from how long those take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reader {
    /// Requests of at most 1 MiB in flight, at most.
    pub depth: usize,
    /// How long the guest's own requests may take on average, in milliseconds, before less is read at once; 0 does not
    /// look at them. On storage that is slower than that by itself, twice what they took before.
    pub latency_ms: u64,
    /// Bytes a second at most, in MiB; 0 for no limit.
    pub limit_mib: u64,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            depth: 4,
            latency_ms: 10,
            limit_mib: 200,
        }
    }
}

/// What a backup may take: of the storage that holds a running VM's disks, and of time. Beyond that it gives up, before the
/// storage is full and the guest stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Size of a scratch file, in MiB; 0 for no limit.
    pub scratch_mib: u64,
    /// Free space that has to stay, in MiB; 0 for none.
    pub free_mib: u64,
    /// How long the backup of a VM may take, in seconds; 0 for no limit.
    pub run_s: u64,
    /// How long the repository's server may give no sign of life to a call that waits for it, in seconds; 0 for no limit.
    pub repository_s: u64,
    /// How long the hypervisor may take to answer one call, in seconds; then the VM is given up; 0 for no limit.
    pub answer_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            scratch_mib: 0,
            free_mib: 1024,
            run_s: 0,
            repository_s: 3600,
            answer_s: 600,
        }
    }
}

/// How much of what has not changed is read all the same, to find out whether that is true.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpotCheck {
    /// With which probability a map of changes that is wrong is noticed; 0 for no spot check.
    pub confidence: f64,
    /// Within how many incremental backups.
    pub runs: u32,
    /// How wrong it is: the share of the chunks called unchanged that have changed.
    pub share: f64,
    /// So many chunks a disk and run instead, whatever that is worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<usize>,
}

impl Default for SpotCheck {
    fn default() -> Self {
        Self {
            confidence: 0.99,
            runs: 7,
            share: 0.1,
            chunks: None,
        }
    }
}

impl SpotCheck {
    /// How many chunks of a disk to read in each run. A sample of `k` chunks misses a share `s` of wrong ones with
    /// probability `(1 - s)^k`, `n` runs with `(1 - s)^(k n)`; that must not be more than `1 - confidence`.
    pub fn count(&self) -> usize {
        if let Some(chunks) = self.chunks {
            return chunks;
        }
        let needed = (1.0 - self.confidence).ln() / (1.0 - self.share).ln();
        (needed / f64::from(self.runs.max(1))).ceil() as usize
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if !(0.0..1.0).contains(&self.confidence) {
            return Err("audit.confidence: a probability from 0 to less than 1".into());
        }
        if !(0.000_001..=0.9).contains(&self.share) {
            return Err("audit.share: 0.000001 to 0.9".into());
        }
        if self.runs == 0 {
            return Err("audit.runs: at least 1".into());
        }
        Ok(())
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "up to {} requests in flight", self.depth)?;
        if self.limit_mib > 0 {
            write!(out, ", {} MiB/s at most", self.limit_mib)?;
        }
        Ok(())
    }
}
