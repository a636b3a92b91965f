//! `manifest.json`: what an archive holds and how it came about.
//!
//! The format is described in `docs/reference/formats/manifest.md`. It is written as compact JSON with the fields in the
//! order of these structures, so the same facts always give the same bytes. A reader refuses a `format` above its
//! own and ignores fields that it does not know.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strongroom_disk::luks::LARGEST_AREA;
use strongroom_disk::{Extent, RangeSet, SwapLayout};
use strongroom_hypervisor::Identity;
use strongroom_hypervisor::names::is_target;
use uuid::Uuid;

use crate::digest;
use crate::names::is_vm_name;

/// The newest format that this version reads. What has no header area of its own is written as [`PLAIN_FORMAT`].
pub const FORMAT: u32 = 2;

/// The format of a manifest whose disks are complete by themselves: what versions without [`LuksRecord::header`] read.
pub const PLAIN_FORMAT: u32 = 1;

/// The largest number that a restore point can have: the largest that every reader of JSON holds exactly.
pub const MAX_SEQUENCE: u64 = (1 << 53) - 1;

/// The largest manifest that is read, in bytes.
pub const MAX_BYTES: u64 = 16 << 20;

/// Path of the manifest inside an archive.
pub const MANIFEST_PATH: &str = "manifest.json";
/// Path of the manifest's signature inside an archive.
pub const SIGNATURE_PATH: &str = "manifest.json.sig";
/// Path of the domain's definition inside an archive.
pub const DOMAIN_PATH: &str = "domain.xml";
/// Path of the UEFI variable store inside an archive.
pub const NVRAM_PATH: &str = "nvram.fd";

/// Path of a disk inside an archive.
pub fn disk_path(target: &str) -> String {
    format!("disks/{target}.raw")
}

/// The disk's target device name, by its path inside an archive; nothing for other paths.
pub fn disk_of(path: &str) -> Option<&str> {
    let target = path.strip_prefix("disks/")?.strip_suffix(".raw")?;
    is_target(target).then_some(target)
}

/// The whole of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Which VM this is.
    pub vm: VmIdentity,
    /// The run that made the archive; also part of its checkpoint's name.
    pub run: String,
    /// The archive's name. Absent in what early versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// The archive's time in Borg's listing: the start of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// The repository's id, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// 1 for the first archive of a repository, then one more each time.
    pub sequence: u64,
    /// SHA-256 of the previous archive's manifest, in hexadecimal; absent in the first.
    pub previous: Option<String>,
    /// Restore points that were the newest and were gone when a next one was made, as long as it has not been acknowledged
    /// that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostPoint>,
    /// The instant whose state the disks show.
    pub captured: Timestamp,
    /// How the disks were held still.
    pub method: Method,
    /// Why, where that was not the first choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method_reason: Option<String>,
    /// The level of consistency that was reached.
    pub consistency: Consistency,
    /// How long the hypervisor took to switch to the frozen view, in microseconds: an upper bound of the pause
    /// that the guest could see. 0 for a VM that was shut off.
    pub stall_us: u64,
    /// How long the guest's file systems were frozen, in microseconds; 0 if they were not.
    #[serde(default)]
    pub frozen_us: u64,
    /// Why a higher level of consistency, which the configuration asks for, was not reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
    /// The checkpoint made at that instant, if any.
    pub checkpoint: Option<String>,
    /// The disks in the archive, in the order of the domain's definition.
    pub disks: Vec<DiskRecord>,
    /// The disks that are not in the archive, and why.
    pub excluded: Vec<ExcludedDisk>,
    /// Where the header areas are that the disks lack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersRecord>,
    /// SHA-256 of each other file in the archive, in hexadecimal.
    pub files: Vec<FileRecord>,
    /// The VM starts with its host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autostart: bool,
    /// What belongs to the VM and could not be had (`nvram.fd`, `tpm/`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// All VMs that were configured at the time.
    pub inventory: Vec<String>,
    /// The program that wrote this.
    pub producer: String,
}

/// Which VM an archive is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmIdentity {
    /// libvirt's name.
    pub name: String,
    /// libvirt's UUID.
    pub uuid: Uuid,
}

/// A restore point that is on record and is not there any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostPoint {
    /// Its number.
    pub sequence: u64,
    /// Its archive's name.
    pub archive: String,
    /// SHA-256 of its manifest, in hexadecimal.
    pub sha256: String,
}

/// How the disks were held still while they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A pull-mode backup job of the running VM.
    Checkpoint,
    /// An external snapshot of the running VM, whose overlays were merged back.
    Snapshot,
    /// The VM was shut off.
    Offline,
}

/// What a guest finds when it boots from the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// What it would find after a power cut at that instant.
    Crash,
    /// File systems that the guest had brought to rest.
    Filesystem,
    /// Applications that scripts had brought to rest.
    Application,
    /// What it left when it shut down.
    Clean,
}

/// Whether all of a disk was read or only what had changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All allocated extents.
    Full,
    /// What had changed since the parent archive.
    Incremental,
}

/// One disk in an archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Target device name (`vda`).
    pub target: String,
    /// Guest-visible size in bytes; also the size of the item in the archive.
    pub size: u64,
    /// The image's format on the hypervisor.
    pub source_format: String,
    /// The hypervisor encrypted the image. What is here is what the guest saw; a restored image is not encrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_encrypted: bool,
    /// Full or incremental.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// Name of the archive that unchanged chunks were taken over from.
    pub parent: Option<String>,
    /// Whether this disk is part of the archive's checkpoint.
    pub tracked: bool,
    /// Which disk it was. Absent in what version 0.1.0 wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The GUID of its partition table, if it has one with a GUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Uuid>,
    /// Digest over the ordered list of chunks, see [`digest::of_chunks`].
    pub digest: String,
    /// Length of that list.
    pub chunks: u64,
    /// Chunks that the map of changes called unchanged, that were read all the same, and that were unchanged.
    #[serde(default)]
    pub audited: u64,
    /// Where on the disk, in bytes, a chunk began that had changed though the map of changes called it unchanged: then
    /// the disk was read in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_wrong_at: Option<u64>,
    /// Bytes read from the hypervisor.
    pub bytes_read: u64,
    /// Bytes that the repository had to store for this disk.
    pub bytes_stored: u64,
    /// The LUKS volumes on it: never keys.
    pub luks: Vec<LuksRecord>,
}

/// Public facts of a LUKS volume, from its header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LuksRecord {
    /// Where the header starts on the disk, in bytes.
    pub offset: u64,
    /// LUKS version, 1 or 2.
    pub version: u16,
    /// The volume's UUID.
    pub uuid: String,
    /// Digests of the volume key (salted; equal keys do not show as equal digests).
    pub digests: Vec<String>,
    /// Types of the tokens (`clevis`, `systemd-tpm2` …).
    pub tokens: Vec<String>,
    /// The header area, if it is not in this archive but in one of its own: it reads as zeroes in the disk's item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderRecord>,
}

/// A header area that is kept apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRecord {
    /// Bytes from the start of the header to the first byte of data.
    pub length: u64,
    /// Which headers open the data, see [`strongroom_disk::HeaderArea::binding`].
    pub binding: String,
    /// SHA-256 of the area at the instant of the capture, in hexadecimal.
    pub sha256: String,
}

impl LuksRecord {
    /// The part of the disk that reads as zeroes, if there is one.
    pub fn area(&self) -> Option<Extent> {
        let header = self.header.as_ref()?;
        Extent::new(self.offset, header.length).ok()
    }
}

/// The archive that holds the header areas of the same instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadersRecord {
    /// Its name.
    pub archive: String,
    /// SHA-256 of its `headers.json`, in hexadecimal.
    pub sha256: String,
}

impl DiskRecord {
    /// The parts that read as zeroes because they are header areas that are kept apart.
    pub fn areas(&self) -> impl Iterator<Item = Extent> {
        self.luks.iter().filter_map(LuksRecord::area)
    }

    fn check_areas(&self) -> Result<(), &'static str> {
        let mut taken = RangeSet::new();
        for luks in self.luks.iter().filter(|luks| luks.header.is_some()) {
            let area = luks.area().filter(|area| area.length() > 0);
            let area = area.ok_or("one is empty, or passes the end of all disks")?;
            if area.end() > self.size || area.length() > LARGEST_AREA {
                return Err("one is larger than it can be");
            }
            if taken.overlaps(area) {
                return Err("two overlap");
            }
            taken.insert(area);
        }
        Ok(())
    }
}

/// One disk that is not in an archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExcludedDisk {
    /// Target device name.
    pub target: String,
    /// Why it is not there.
    pub why: Exclusion,
    /// Guest-visible size in bytes, if it has a medium.
    pub size: Option<u64>,
    /// For a swap disk, the partitions and labels that the guest looks for.
    pub layout: Option<SwapLayout>,
    /// Which disk it was. Absent in what version 0.1.0 wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// Why a disk is not in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exclusion {
    /// It holds nothing but swap.
    Swap,
    /// The configuration leaves it out.
    Configured,
    /// A CD-ROM or floppy drive, or a read-only disk.
    Removable,
    /// What is written to it is thrown away when the VM goes off.
    Transient,
}

impl Exclusion {
    /// Why, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Swap => "swap",
            Self::Configured => "left out by the configuration",
            Self::Removable => "removable or read-only",
            Self::Transient => "transient",
        }
    }
}

/// One file beside the disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path in the archive.
    pub path: String,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of this shape.
    #[error("understand {MANIFEST_PATH}: {0}")]
    Parse(#[from] serde_json::Error),
    /// Written by a newer version.
    #[error("understand {MANIFEST_PATH}: its format is {0}, this version knows up to {FORMAT}")]
    Format(u32),
    /// A value that no writer of ours produces.
    #[error("understand {MANIFEST_PATH}: {0}")]
    Invalid(String),
}

impl Manifest {
    /// The bytes of `manifest.json`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        if bytes.len() as u64 > MAX_BYTES {
            return Err(ManifestError::Invalid(format!(
                "it has {} bytes, {MAX_BYTES} are the limit",
                bytes.len()
            )));
        }
        // What is written can be read: whatever a guest or a definition put into it.
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads `manifest.json`. Everything in it that is later used as a name is checked here.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_slice(bytes)?;
        if format == 0 || format > FORMAT {
            return Err(ManifestError::Format(format));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.sequence > MAX_SEQUENCE {
            return Err(ManifestError::Invalid(format!(
                "its number is {}, {MAX_SEQUENCE} is the largest",
                manifest.sequence
            )));
        }
        let names = || manifest.inventory.iter().chain([&manifest.vm.name]);
        if let Some(odd) = names().find(|name| !is_vm_name(name)) {
            return Err(ManifestError::Invalid(format!("{odd:?} is not a VM's name")));
        }
        let mut seen = std::collections::BTreeSet::new();
        let targets = manifest.disks.iter().map(|disk| &disk.target);
        for target in targets.chain(manifest.excluded.iter().map(|disk| &disk.target)) {
            if !is_target(target) {
                return Err(ManifestError::Invalid(format!(
                    "{target:?} is not a disk's target name"
                )));
            }
            if !seen.insert(target) {
                return Err(ManifestError::Invalid(format!("disk {target} is there twice")));
            }
        }
        for disk in &manifest.disks {
            disk.check_areas().map_err(|why| {
                ManifestError::Invalid(format!("the header areas of disk {}: {why}", disk.target))
            })?;
        }
        let apart = manifest.disks.iter().any(|disk| disk.areas().next().is_some());
        if apart != manifest.headers.is_some() || (apart && format < FORMAT) {
            return Err(ManifestError::Invalid(
                "what it says of header areas does not fit together".into(),
            ));
        }
        Ok(manifest)
    }

    /// The disk of this target name.
    pub fn disk(&self, target: &str) -> Option<&DiskRecord> {
        self.disks.iter().find(|disk| disk.target == target)
    }

    /// What the next manifest of the chain names as [`Manifest::previous`].
    pub fn link(bytes: &[u8]) -> String {
        digest::sha256(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A manifest of `vda` with one header area apart, and of the excluded `vdb`.
    fn good() -> Value {
        json!({
            "format": 2, "vm": {"name": "web", "uuid": Uuid::nil()}, "run": "r", "archive": "web-1", "sequence": 1,
            "previous": null, "captured": "2026-01-01T00:00:00Z", "method": "checkpoint", "consistency": "crash",
            "stall_us": 0, "checkpoint": null, "files": [], "inventory": ["web", "db"], "producer": "p",
            "headers": {"archive": "web-1.headers", "sha256": ""},
            "disks": [{"target": "vda", "size": 8192, "source_format": "qcow2", "mode": "full", "reason": "",
                "parent": null, "tracked": true, "digest": "", "chunks": 0, "bytes_read": 0, "bytes_stored": 0,
                "luks": [area(0, 4096)]}],
            "excluded": [{"target": "vdb", "why": "swap", "size": 512, "layout": null}],
        })
    }

    fn area(offset: u64, length: u64) -> Value {
        json!({"offset": offset, "version": 2, "uuid": "", "digests": [], "tokens": [],
            "header": {"length": length, "binding": "", "sha256": ""}})
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<Manifest, String> {
        let mut value = good();
        change(&mut value);
        Manifest::parse(value.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let manifest = read(|_| ()).unwrap();
        let bytes = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
        assert_eq!(Manifest::link(&bytes), digest::sha256(&bytes));
        assert_eq!(manifest.disk("vda").map(|disk| disk.size), Some(8192));
        assert_eq!(manifest.disk("vdb"), None);
        let areas: Vec<Extent> = manifest.disks[0].areas().collect();
        assert_eq!(areas, [Extent::new(0, 4096).unwrap()]);
        // As far as a disk reaches, and as far as numbers go.
        read(|value| value["disks"][0]["luks"] = json!([area(0, 4096), area(4096, 4096)])).unwrap();
        read(|value| value["sequence"] = MAX_SEQUENCE.into()).unwrap();
        read(|value| {
            value["disks"][0]["size"] = LARGEST_AREA.into();
            value["disks"][0]["luks"] = json!([area(0, LARGEST_AREA)]);
        })
        .unwrap();
        // Nothing apart, as in the first format.
        read(|value| {
            value["format"] = 1.into();
            value["headers"] = Value::Null;
            value["disks"][0]["luks"] = json!([]);
        })
        .unwrap();
    }

    #[test]
    fn what_no_backup_writes_is_refused() {
        let refused = |change: fn(&mut Value), says: &str| {
            let why = read(change).unwrap_err();
            assert!(why.contains(says), "{why}");
        };
        refused(|value| value["format"] = 0.into(), "its format is 0");
        refused(|value| value["format"] = 3.into(), "its format is 3");
        refused(
            |value| value["sequence"] = (MAX_SEQUENCE + 1).into(),
            "is the largest",
        );
        refused(|value| value["vm"]["name"] = "../x".into(), "not a VM's name");
        refused(|value| value["inventory"][1] = "a/b".into(), "not a VM's name");
        refused(|value| value["disks"][0]["target"] = "../x".into(), "target name");
        refused(|value| value["excluded"][0]["target"] = "".into(), "target name");
        refused(
            |value| value["excluded"][0]["target"] = "vda".into(),
            "is there twice",
        );
        let areas = |luks: Value| {
            let why = read(|value| value["disks"][0]["luks"] = luks).unwrap_err();
            assert!(why.contains("the header areas of disk vda"), "{why}");
        };
        areas(json!([area(0, 0)]));
        areas(json!([area(u64::MAX, 4096)]));
        areas(json!([area(4096, 4097)]));
        areas(json!([area(0, 4096), area(4095, 1)]));
        let larger = read(|value| {
            value["disks"][0]["size"] = u64::MAX.into();
            value["disks"][0]["luks"] = json!([area(0, LARGEST_AREA + 1)]);
        });
        assert!(larger.unwrap_err().contains("larger than it can be"));
        for change in [
            |value: &mut Value| value["headers"] = Value::Null,
            |value: &mut Value| value["disks"][0]["luks"] = json!([]),
            |value: &mut Value| value["format"] = 1.into(),
        ] {
            assert!(read(change).unwrap_err().contains("does not fit together"));
        }
    }

    #[test]
    fn only_a_targets_image_is_a_disk() {
        assert_eq!(disk_of(&disk_path("vda")), Some("vda"));
        for path in ["disks/vda", "vda.raw", "disks/../vda.raw", "disks/.raw"] {
            assert_eq!(disk_of(path), None, "{path}");
        }
    }
}
