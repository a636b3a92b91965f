//! The archive around the disks: definition, firmware variables, manifest; and the commit.

use jiff::Timestamp;
use strongroom_borg::{ArchiveWriter, Item, Repository, Summary};
use strongroom_disk::SwapLayout;
use strongroom_nbd::{Client, Format, Options, QemuNbd, Serve};

use super::BackupError;
use super::disk::DiskResult;
use super::plan::Plan;
use crate::context::Context;
use crate::digest;
use crate::firmware::{self, FirmwareFile};
use crate::history::Point;
use crate::manifest::{
    DOMAIN_PATH, DiskRecord, ExcludedDisk, Exclusion, FORMAT, FileRecord, MANIFEST_PATH, Manifest,
    SIGNATURE_PATH, VmIdentity, disk_path,
};
use crate::quiesce::Reached;
use crate::trust::{self, NAMESPACE, signature};
use crate::vm::Domain;

/// What the capture was like.
#[derive(Debug, Clone)]
pub struct Instant {
    /// When.
    pub at: Timestamp,
    /// How long the switch took.
    pub call: std::time::Duration,
    /// How far the guest was at rest.
    pub reached: Reached,
    /// When the run started: the archive's time.
    pub started: Timestamp,
}

/// Adds everything but the disks' data to the archive and commits it. Gives the manifest as well.
pub fn seal(
    context: &Context<'_>,
    domain: &Domain,
    plan: &Plan,
    instant: Instant,
    disks: Vec<DiskResult>,
    newest: Option<&Point>,
    mut writer: ArchiveWriter,
) -> Result<(Repository, Summary, Manifest), BackupError> {
    let mut files = vec![FirmwareFile {
        path: DOMAIN_PATH.to_owned(),
        bytes: domain.xml.clone().into_bytes(),
    }];
    let (firmware, missing) = firmware::collect(context, domain);
    files.extend(firmware);
    let file_record = |file: &FirmwareFile| FileRecord {
        path: file.path.clone(),
        sha256: digest::sha256(&file.bytes),
    };
    let repository_id = writer.repository_id().to_string();
    let (sequence, previous) = trust::successor(context, &domain.name, &repository_id, newest);
    let mut manifest = Manifest {
        format: FORMAT,
        vm: VmIdentity {
            name: domain.name.clone(),
            uuid: domain.uuid,
        },
        run: plan.run.clone(),
        archive: Some(plan.archive.clone()),
        started: Some(instant.started),
        repository: Some(repository_id),
        sequence,
        previous,
        captured: instant.at,
        method: plan.method,
        method_reason: plan.method_reason.clone(),
        consistency: instant.reached.consistency,
        stall_us: instant.call.as_micros() as u64,
        frozen_us: instant.reached.frozen.as_micros() as u64,
        missed: instant.reached.missed,
        checkpoint: plan.checkpoint.clone(),
        disks: Vec::new(),
        excluded: excluded(context, domain, plan),
        files: files.iter().map(file_record).collect(),
        missing,
        inventory: context.config.vm.keys().cloned().collect(),
        producer: concat!("strongroom ", env!("CARGO_PKG_VERSION")).into(),
    };
    let mut items = Vec::new();
    for (disk, result) in plan.disks.iter().zip(disks) {
        manifest.disks.push(DiskRecord {
            target: disk.target.clone(),
            size: disk.size,
            source_format: disk.format.clone(),
            host_encrypted: disk.host_encrypted,
            mode: result.mode,
            reason: result.reason,
            parent: result.parent,
            tracked: disk.tracked,
            digest: digest::of_chunks(&result.chunks),
            chunks: result.chunks.len() as u64,
            audited: result.audited,
            map_wrong_at: result.map_wrong_at,
            bytes_read: result.read,
            bytes_stored: result.stored,
            luks: result.luks,
        });
        items.push(Item::regular(&disk_path(&disk.target), result.chunks));
    }
    // The manifest and its signature come first: whoever wants only those need not read the disks' lists of chunks.
    let bytes = manifest.to_bytes()?;
    let signature = sign(context, &bytes, instant.at)?;
    let first = [(MANIFEST_PATH, Some(bytes)), (SIGNATURE_PATH, signature)];
    let first = first.into_iter().filter_map(|(path, bytes)| {
        let path = path.to_owned();
        bytes.map(|bytes| FirmwareFile { path, bytes })
    });
    files.splice(0..0, first);
    for file in files {
        let chunks = file
            .bytes
            .chunks(1 << 20)
            .map(|part| writer.put_data(part))
            .collect::<Result<_, _>>()?;
        writer.add_item(&Item::regular(&file.path, chunks))?;
    }
    for item in &items {
        writer.add_item(item)?;
    }
    let (repository, summary) = writer.commit()?;
    Ok((repository, summary, manifest))
}

/// The manifest's signature, if the configuration asks for one: then there is one, or no restore point.
fn sign(context: &Context<'_>, bytes: &[u8], at: Timestamp) -> Result<Option<Vec<u8>>, BackupError> {
    let Some(signing) = &context.config.signing else {
        return Ok(None);
    };
    let Some(key) = &signing.key else {
        return Ok(None);
    };
    let signature = signature::sign(signing, key, NAMESPACE, bytes, at, context.cancel)?;
    Ok(Some(signature))
}

fn excluded(context: &Context<'_>, domain: &Domain, plan: &Plan) -> Vec<ExcludedDisk> {
    plan.excluded
        .iter()
        .map(|excluded| {
            let disk = domain.disks.iter().find(|disk| disk.target == excluded.target);
            let layout = match (excluded.why, disk) {
                (Exclusion::Swap, Some(disk)) => swap_layout(context, disk),
                _ => None,
            };
            ExcludedDisk {
                target: excluded.target.clone(),
                why: excluded.why,
                size: disk.and_then(|disk| disk.size),
                layout,
            }
        })
        .collect()
}

/// The partition table and labels by which a guest finds its swap: sectors that hold no swapped-out page.
fn swap_layout(context: &Context<'_>, disk: &crate::vm::Disk) -> Option<SwapLayout> {
    let read = || -> Result<SwapLayout, String> {
        let path = disk
            .source
            .path()
            .ok_or("it is neither a file nor a block device")?;
        if !context.hypervisor.is_local() {
            return Err("it lies on another machine".into());
        }
        let format = if disk.format == "qcow2" {
            Format::Qcow2
        } else {
            Format::Raw
        };
        let server = QemuNbd::start(path, &Serve::peek(format)).map_err(|error| error.to_string())?;
        let mut client =
            Client::connect(&server.target(), &Options::default()).map_err(|error| error.to_string())?;
        SwapLayout::read(&mut client).map_err(|error| format!("{error} (it has {} bytes)", client.size()))
    };
    match read() {
        Ok(layout) => Some(layout),
        Err(error) => {
            context.warn(format!(
                "swap disk {}: its layout cannot be told, it will come back blank: {error}",
                disk.target
            ));
            None
        }
    }
}
