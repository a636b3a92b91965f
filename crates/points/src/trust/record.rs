//! What is remembered of a VM's restore points where the repository cannot reach it: by us, at the witness, and in its newest
//! restore point.

use std::collections::HashSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::manifest::{LostPoint, MAX_SEQUENCE, Manifest};

/// The version of a remembered head.
const FORMAT: u32 = 1;

/// Counters that an unknown past may have used: 2^44, 256 TiB of data, of the 2^64 that there are.
const UNKNOWN_COUNTERS: u64 = 1 << 44;

/// What is remembered of a restore point when it is made: by us, and by the witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Version of this record.
    pub format: u32,
    /// The VM's name.
    pub vm: String,
    /// The repository's id, in hexadecimal.
    pub repository: String,
    /// The archive's name.
    pub archive: String,
    /// Its number.
    pub sequence: u64,
    /// SHA-256 of its manifest.
    pub hash: String,
    /// The time of the repository's own manifest after the commit: it only ever grows.
    pub committed: Timestamp,
    /// The first encryption counter that was not used then. Absent in what version 0.1.0 wrote, and where the repository is
    /// not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<u64>,
}

impl Head {
    /// What is to be remembered of an archive.
    pub fn of(
        manifest: &Manifest,
        archive: &str,
        hash: String,
        repository: &str,
        committed: Timestamp,
    ) -> Self {
        Self {
            format: FORMAT,
            vm: manifest.vm.name.clone(),
            repository: repository.to_owned(),
            archive: archive.to_owned(),
            sequence: manifest.sequence,
            hash,
            committed,
            counter: None,
        }
    }

    /// Reads one record; whatever is not one is an error.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let head: Self = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if head.format != FORMAT {
            return Err(format!(
                "its format is {}, this version knows {FORMAT}",
                head.format
            ));
        }
        if head.sequence > MAX_SEQUENCE {
            return Err(format!(
                "its number is {}, {MAX_SEQUENCE} is the largest",
                head.sequence
            ));
        }
        Ok(head)
    }

    /// One line of JSON.
    pub fn line(&self) -> String {
        // Strings, numbers and a time: JSON can hold all of them.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// The restore point, as one that is gone.
    pub fn lost(&self) -> LostPoint {
        LostPoint {
            sequence: self.sequence,
            archive: self.archive.clone(),
            sha256: self.hash.clone(),
        }
    }
}

/// What is remembered of a VM, here, at the witness and in its newest restore point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// Restore points that were the newest when they were made or seen.
    pub heads: Vec<Head>,
    /// Those of this repository that were gone when a next one was made.
    pub lost: Vec<LostPoint>,
    /// Those of this repository whose loss has been acknowledged.
    pub acknowledged: Vec<LostPoint>,
    /// Those of other repositories that need not be looked for any more.
    pub left_behind: Vec<LostPoint>,
}

impl Records {
    /// The digests of those that may be gone.
    pub fn excused(&self) -> HashSet<&str> {
        let acknowledged = self.acknowledged.iter();
        acknowledged.map(|lost| lost.sha256.as_str()).collect()
    }

    /// What is remembered of this repository alone.
    #[must_use]
    pub fn of(&self, repository: &str) -> Self {
        let mut here = self.clone();
        here.heads.retain(|head| head.repository == repository);
        here
    }

    /// Below which no encryption counter may be used, with `newest` the newest number that is there. What is on record as
    /// newer has used counters that the repository does not know of any more, and so may have runs that were given up
    /// after it: then many are left out.
    pub fn counter_floor(&self, newest: u64) -> u64 {
        let counters = self.heads.iter().filter_map(|head| head.counter);
        let known = counters.max().unwrap_or_default();
        if self.heads.iter().any(|head| head.sequence > newest) {
            known.saturating_add(UNKNOWN_COUNTERS)
        } else {
            known
        }
    }

    /// Whether the record itself vouches for a manifest with this digest.
    pub fn vouches(&self, sha256: &str) -> bool {
        self.heads.iter().any(|head| head.hash == sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::chain::tests::head;

    #[test]
    fn a_record_is_read_as_it_was_written_or_not_at_all() {
        assert_eq!(Head::parse(head(3).line().trim().as_bytes()), Ok(head(3)));
        for bad in ["", "{}", "[]", "{\"format\":1}"] {
            Head::parse(bad.as_bytes()).unwrap_err();
        }
        let newer = head(3).line().replace("\"format\":1", "\"format\":2");
        Head::parse(newer.as_bytes()).unwrap_err();
        let endless = head(3)
            .line()
            .replace("\"sequence\":3", &format!("\"sequence\":{}", u64::MAX));
        Head::parse(endless.as_bytes()).unwrap_err();
        let last = Head {
            sequence: MAX_SEQUENCE,
            ..head(3)
        };
        assert_eq!(Head::parse(last.line().trim().as_bytes()), Ok(last));
    }

    #[test]
    fn what_is_known_of_another_repository_is_left_out() {
        let mut other = head(4);
        other.repository = "s".into();
        let records = Records {
            heads: vec![head(3), other],
            lost: vec![head(1).lost()],
            ..Records::default()
        };
        let here = records.of("r");
        assert_eq!((here.heads, here.lost), (vec![head(3)], records.lost));
    }

    /// R9: the line carries the counter; what 0.1.0 wrote is read.
    #[test]
    fn counters_start_above_what_is_on_record() {
        let old = r#"{"format":1,"vm":"vm","repository":"r","archive":"vm-3","sequence":3,"hash":"h3","committed":"1970-01-01T00:50:00Z"}"#;
        assert_eq!(Head::parse(old.as_bytes()), Ok(head(3)));
        assert_eq!(head(3).line().trim(), old);
        let counted = |sequence, counter| Head {
            counter: Some(counter),
            ..head(sequence)
        };
        let line = counted(3, 9).line();
        assert_eq!(Head::parse(line.trim().as_bytes()), Ok(counted(3, 9)));

        let floor = |heads: Vec<Head>, newest| {
            let records = Records {
                heads,
                ..Records::default()
            };
            records.counter_floor(newest)
        };
        assert_eq!(floor(vec![], 0), 0);
        assert_eq!(floor(vec![head(3)], 3), 0);
        assert_eq!(floor(vec![counted(2, 5), counted(3, 9)], 3), 9);
        assert_eq!(floor(vec![counted(3, 9)], 7), 9);
        // An old copy: what is on record was used, and more may have been.
        assert_eq!(floor(vec![counted(2, 5), counted(3, 9)], 2), 9 + UNKNOWN_COUNTERS);
        assert_eq!(floor(vec![counted(2, 5), head(3)], 2), 5 + UNKNOWN_COUNTERS);
        assert_eq!(floor(vec![head(3)], 2), UNKNOWN_COUNTERS);
        assert_eq!(floor(vec![counted(3, u64::MAX)], 2), u64::MAX);
    }
}
