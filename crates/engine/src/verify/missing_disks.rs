//! Disks that a restore point has and those after it lack: left out by the configuration, or gone from the VM. Who meant
//! that cannot be told, so it is reported until it is acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use strongroom_points::manifest::{Exclusion, Manifest};
use strongroom_points::restore_point::RestorePoint;

/// What the restore points of a VM say of its disks. Only those that a trusted key has signed count.
#[derive(Debug, Default)]
pub struct Disks(BTreeMap<u64, Seen>);

#[derive(Debug)]
struct Seen {
    archive: String,
    captured: Timestamp,
    held: BTreeSet<String>,
    excluded: BTreeMap<String, Exclusion>,
}

/// A disk that is not backed up any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingDisk {
    /// Its target device name.
    pub disk: String,
    /// The last archive that has it.
    pub last: String,
    /// The first one after that, which lacks it.
    pub archive: String,
    /// That one's number.
    pub sequence: u64,
    /// Why, as that one says; nothing if the VM has no such disk any more.
    pub why: Option<Exclusion>,
    /// The instants of the two.
    #[serde(skip)]
    pub between: (Timestamp, Timestamp),
}

impl MissingDisk {
    /// In words.
    pub fn text(&self) -> String {
        let why = match self.why {
            Some(Exclusion::Configured) => "the configuration leaves it out",
            Some(Exclusion::Swap) => "it is called a swap disk",
            Some(Exclusion::Removable) => "it is removable or read-only",
            Some(Exclusion::Transient) => "it is transient",
            None => "the VM does not have it any more",
        };
        format!(
            "disk {} is not backed up since {} (number {}): {why}; {} is the last restore point that has it",
            self.disk, self.archive, self.sequence, self.last
        )
    }
}

impl Disks {
    /// Takes note of a restore point.
    pub fn add(&mut self, point: &RestorePoint) {
        self.note(&point.name(), &point.manifest);
    }

    fn note(&mut self, archive: &str, manifest: &Manifest) {
        let excluded = manifest.excluded.iter();
        let seen = Seen {
            archive: archive.to_owned(),
            captured: manifest.captured,
            held: manifest.disks.iter().map(|disk| disk.target.clone()).collect(),
            excluded: excluded.map(|disk| (disk.target.clone(), disk.why)).collect(),
        };
        self.0.insert(manifest.sequence, seen);
    }

    /// The disks that some restore point has and the newest one lacks.
    pub fn missing(&self) -> Vec<MissingDisk> {
        let Some((_, newest)) = self.0.last_key_value() else {
            return Vec::new();
        };
        let mut missing: BTreeMap<&String, MissingDisk> = BTreeMap::new();
        for ((_, before), (sequence, after)) in self.0.iter().zip(self.0.iter().skip(1)) {
            for disk in before.held.difference(&after.held) {
                let drop = MissingDisk {
                    disk: disk.clone(),
                    last: before.archive.clone(),
                    archive: after.archive.clone(),
                    sequence: *sequence,
                    why: after.excluded.get(disk).copied(),
                    between: (before.captured, after.captured),
                };
                missing.insert(disk, drop);
            }
        }
        let gone = missing
            .into_iter()
            .filter(|(disk, _)| !newest.held.contains(*disk));
        gone.map(|(_, missing)| missing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(second: i64, held: &[&str], excluded: &[(&str, Exclusion)]) -> Seen {
        let excluded = excluded.iter();
        Seen {
            archive: format!("vm-{second}"),
            captured: Timestamp::from_second(second).unwrap(),
            held: held.iter().map(|disk| (*disk).to_owned()).collect(),
            excluded: excluded.map(|(disk, why)| ((*disk).to_owned(), *why)).collect(),
        }
    }

    #[test]
    fn a_disk_is_missed_from_the_restore_point_on_that_lacks_it() {
        let mut disks = Disks::default();
        assert_eq!(disks.missing(), []);
        disks.0.insert(1, seen(1, &["vda", "vdb", "vdc"], &[]));
        disks.0.insert(2, seen(2, &["vda", "vdb"], &[]));
        assert_eq!(disks.missing()[0].text().matches("does not have it").count(), 1);
        // One that comes back is not missed.
        disks.0.insert(3, seen(3, &["vda", "vdb", "vdc"], &[]));
        assert_eq!(disks.missing(), []);
        disks
            .0
            .insert(5, seen(5, &["vda"], &[("vdb", Exclusion::Configured)]));
        disks.0.insert(6, seen(6, &["vda"], &[("vdb", Exclusion::Swap)]));
        let missing = disks.missing();
        let found: Vec<_> = missing
            .iter()
            .map(|missing| (missing.disk.as_str(), missing.sequence, missing.why))
            .collect();
        assert_eq!(found, [("vdb", 5, Some(Exclusion::Configured)), ("vdc", 5, None)]);
        assert_eq!(
            (missing[0].last.as_str(), missing[0].archive.as_str()),
            ("vm-3", "vm-5")
        );
    }
}
