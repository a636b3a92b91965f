//! What a warning is about, as a word that programs can rely on: its text may change, its code does not.
//!
//! `docs/reference/warnings.md` says of each code what it means and what to do; a test holds the two together.

use std::fmt;

use serde::{Serialize, Serializer};
use strongroom_points::trust::Doubt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What a warning is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code as it is written.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

codes! {
    /// An archive cannot be read, and something older is used instead.
    ArchivePassedOver = "archive-passed-over",
    /// A restored VM does not start with its host.
    AutostartLost = "autostart-lost",
    /// A dirty bitmap of ours could not be removed.
    BitmapLeft = "bitmap-left",
    /// The map of changes missed a change.
    ChangeMapWrong = "change-map-wrong",
    /// A checkpoint of ours could not be removed.
    CheckpointLeft = "checkpoint-left",
    /// The clock and the restore points disagree.
    Clock = "clock",
    /// The level of consistency that was asked for was not reached.
    ConsistencyMissed = "consistency-missed",
    /// Damaged chunks cannot be stored anew: the VM no longer has their content.
    DamageStays = "damage-stays",
    /// Which chunks are damaged is not known here, so that they are not stored anew.
    DamageUnknown = "damage-unknown",
    /// A domain was defined, although the call failed.
    DefinedAnyway = "defined-anyway",
    /// Another domain has the same name, address or the like.
    DefinitionConflict = "definition-conflict",
    /// The hypervisor lacks something that the definition asks for.
    DefinitionFit = "definition-fit",
    /// A VM runs with disks that are not those of its stored definition.
    DiskDiffers = "disk-differs",
    /// Another running domain writes to a disk.
    DiskShared = "disk-shared",
    /// It is not known whether another domain writes to a disk.
    DiskUseUnknown = "disk-use-unknown",
    /// A file was kept, because a domain may have it.
    FileKept = "file-kept",
    /// A file was not removed.
    FileLeft = "file-left",
    /// A file may not outlast a power cut yet.
    FileNotSynced = "file-not-synced",
    /// UEFI variables or the state of a TPM could not be taken along.
    FirmwareMissing = "firmware-missing",
    /// A step after the VM was made has failed.
    FollowUpFailed = "follow-up-failed",
    /// The guest may still be frozen.
    GuestMayBeFrozen = "guest-may-be-frozen",
    /// The guest may be stopped because its storage was full.
    GuestMayBeStopped = "guest-may-be-stopped",
    /// The guest was frozen by an earlier run, and is thawed now.
    GuestThawedLate = "guest-thawed-late",
    /// The guest was stopped because its storage was full, and runs on.
    GuestWasStopped = "guest-was-stopped",
    /// The header of a LUKS volume stays in the restore point.
    HeaderInside = "header-inside",
    /// A LUKS volume has lost its header, or has another volume key.
    HeaderLost = "header-lost",
    /// The archive with the headers of the newest restore point is gone.
    HeadersMissing = "headers-missing",
    /// LUKS headers could not be read.
    HeadersUnreadable = "headers-unreadable",
    /// The restore points and the records tell different histories.
    HistoryForked = "history-forked",
    /// The host's encryption of an image does not come back with a restore.
    HostEncryptionLost = "host-encryption-lost",
    /// A disk could not be attached to this machine, and is read another way.
    HotAddFailed = "hot-add-failed",
    /// A disk may still be attached to this machine.
    HotAddLeft = "hot-add-left",
    /// The hypervisor lets us do less, or more, than it should.
    HypervisorRights = "hypervisor-rights",
    /// A backup was interrupted; what it left is undone.
    InterruptedBackup = "interrupted-backup",
    /// A restore was interrupted; what it left is put right.
    InterruptedRestore = "interrupted-restore",
    /// A backup job may still run.
    JobLeft = "job-left",
    /// The definition named a wrong image for the next start, and was corrected.
    NextStartCorrected = "next-start-corrected",
    /// A restore point is not trusted, and is used all the same, as asked.
    NotTrusted = "not-trusted",
    /// Objects that restore points need are not in the repository any more.
    ObjectsMissing = "objects-missing",
    /// Disks may not be on their own images.
    OverlayLeft = "overlay-left",
    /// A post script has failed.
    PostScriptFailed = "post-script-failed",
    /// A program that was started does not end.
    ProcessLeft = "process-left",
    /// Our own records could not be read or written.
    Records = "records",
    /// An attestation report may be an old one.
    ReportMayBeOld = "report-may-be-old",
    /// The repository did not close cleanly after the commit.
    RepositoryClose = "repository-close",
    /// The repository's server complains.
    RepositoryServer = "repository-server",
    /// A restore point is missing, or the newest is not the one on record.
    RestorePointMissing = "restore-point-missing",
    /// Other VMs may write to a disk while it is read.
    ShareableDisk = "shareable-disk",
    /// Snapshots inside the images and checkpoints are in each other's way.
    SnapshotConflict = "snapshot-conflict",
    /// Guests may write more than is free.
    StorageOvercommitted = "storage-overcommitted",
    /// The storage of images cannot be looked at.
    StorageUnknown = "storage-unknown",
    /// The layout of a swap disk is not known; it comes back blank.
    SwapLayoutUnknown = "swap-layout-unknown",
    /// A template cannot be read.
    TemplateUnreadable = "template-unreadable",
    /// The next run has to tidy up.
    TidyUpLeft = "tidy-up-left",
    /// A newer archive is not trusted, and is passed over.
    UntrustedArchive = "untrusted-archive",
    /// What was verified is sound, but something about it is to be known.
    VerifyNote = "verify-note",
    /// A VM cannot be looked at, or something about its protection is not right.
    VmProblem = "vm-problem",
    /// The witness could not be asked.
    WitnessNotAsked = "witness-not-asked",
    /// The witness could not be told of a restore point.
    WitnessNotTold = "witness-not-told",
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

impl From<Doubt> for Code {
    fn from(doubt: Doubt) -> Self {
        match doubt {
            Doubt::RestorePointMissing => Self::RestorePointMissing,
            Doubt::HistoryForked => Self::HistoryForked,
            Doubt::Records => Self::Records,
            Doubt::WitnessNotAsked => Self::WitnessNotAsked,
            Doubt::WitnessNotTold => Self::WitnessNotTold,
            Doubt::DamageStays => Self::DamageStays,
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn each_code_is_one_word_and_is_explained() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/warnings.md");
        let page = std::fs::read_to_string(page).unwrap();
        let explained: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(code, _)| code)
            .collect();
        let words: Vec<&str> = Code::ALL.iter().map(|code| code.word()).collect();
        let mut sorted = words.clone();
        sorted.sort_unstable();
        assert_eq!(words, sorted, "in the order of the alphabet");
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
        assert!(
            words
                .iter()
                .all(|word| { word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') })
        );
        assert_eq!(explained, words, "docs/reference/warnings.md");
    }
}
