//! The archive around the disks: definition, firmware variables, manifest; and the commit.

use jiff::Timestamp;
use strongroom_disk::SwapLayout;
use strongroom_hypervisor::Domain;
use strongroom_nbd::{Client, Format, Options, QemuNbd, Serve};
use strongroom_points::archive::archive_name;
use strongroom_points::digest;
use strongroom_points::headers::{self, AreaRecord, Statement};
use strongroom_points::manifest::{
    DOMAIN_PATH, DiskRecord, ExcludedDisk, Exclusion, FORMAT, FileRecord, HeadersRecord, MANIFEST_PATH,
    Manifest, ManifestError, PLAIN_FORMAT, SIGNATURE_PATH, VmIdentity, disk_path,
};
use strongroom_points::store::{ArchiveOptions, ArchiveWriter, ChunkRef, Item, Repository, Summary};
use strongroom_points::trust::{NAMESPACE, Successor, signature};

use super::BackupError;
use super::disk::DiskResult;
use super::firmware::{self, FirmwareFile};
use crate::capture::quiesce::QuiesceOutcome;
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::plan::Plan;

/// What the capture was like.
#[derive(Debug, Clone)]
pub struct Instant {
    /// When.
    pub at: Timestamp,
    /// How long the switch took.
    pub call: std::time::Duration,
    /// How far the guest was at rest.
    pub quiesce: QuiesceOutcome,
    /// When the run started: the archive's time.
    pub started: Timestamp,
}

/// Adds everything but the disks' data to the archive and commits it. Returns the manifest as well.
pub fn commit(
    context: &Context<'_>,
    domain: &Domain,
    plan: &Plan,
    instant: Instant,
    disks: Vec<DiskResult>,
    next: Successor,
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
    let mut manifest = Manifest {
        format: PLAIN_FORMAT,
        vm: VmIdentity {
            name: domain.name.clone(),
            uuid: domain.uuid,
        },
        run: plan.run.clone(),
        archive: Some(plan.archive.clone()),
        started: Some(instant.started),
        repository: Some(repository_id),
        sequence: next.sequence,
        previous: next.previous,
        lost: next.lost,
        captured: instant.at,
        method: plan.method,
        method_reason: plan.method_reason.clone(),
        consistency: instant.quiesce.consistency,
        stall_us: instant.call.as_micros() as u64,
        frozen_us: instant.quiesce.frozen.as_micros() as u64,
        missed: instant.quiesce.missed,
        checkpoint: plan.checkpoint.clone(),
        disks: Vec::new(),
        excluded: excluded(context, domain, plan),
        headers: None,
        files: files.iter().map(file_record).collect(),
        autostart: domain.autostart,
        missing,
        inventory: inventory(context, domain),
        producer: concat!("strongroom ", env!("CARGO_PKG_VERSION")).into(),
    };
    let mut items = Vec::new();
    let mut areas = Vec::new();
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
            identity: Some(disk.identity.clone()),
            table: result.table,
            digest: digest::of_chunks(&result.chunks),
            chunks: result.chunks.len() as u64,
            audited: result.audited,
            map_wrong_at: result.map_wrong_at,
            bytes_read: result.read,
            bytes_stored: result.stored,
            luks: result.luks,
        });
        items.push(Item::regular(&disk_path(&disk.target), result.chunks));
        areas.extend(result.areas);
    }
    if !areas.is_empty() {
        manifest.format = FORMAT;
        manifest.headers = Some(headers(context, &manifest, plan, areas, &mut writer)?);
    }
    // The manifest and its signature come first: a reader that wants only those need not read the disks' lists of chunks.
    let bytes = manifest.to_bytes()?;
    let signature = sign(context, NAMESPACE, &bytes, instant.at)?;
    let first = [(MANIFEST_PATH, Some(bytes)), (SIGNATURE_PATH, signature)];
    for (path, bytes) in first {
        if let Some(bytes) = bytes {
            let item = small_item(&mut writer, path, &bytes)?;
            writer.add_item(&item)?;
        }
    }
    for file in files {
        let item = small_item(&mut writer, &file.path, &file.bytes)?;
        writer.add_item(&item)?;
    }
    for item in &items {
        writer.add_item(item)?;
    }
    let (repository, summary) = writer.commit()?;
    Ok((repository, summary, manifest))
}

/// Writes the archive of header areas beside the restore point.
fn headers(
    context: &Context<'_>,
    manifest: &Manifest,
    plan: &Plan,
    areas: Vec<(AreaRecord, Vec<ChunkRef>)>,
    writer: &mut ArchiveWriter,
) -> Result<HeadersRecord, BackupError> {
    let archive = archive_name(&plan.archive);
    let started = headers::archive_time(manifest.started.unwrap_or(manifest.captured));
    let mut items = Vec::new();
    let mut listed = Vec::new();
    for (area, chunks) in areas {
        items.push(Item::regular(&area.path(), chunks));
        listed.push(area);
    }
    let statement = Statement {
        format: headers::FORMAT,
        vm: manifest.vm.clone(),
        archive: archive.clone(),
        started,
        repository: manifest.repository.clone().unwrap_or_default(),
        point: plan.archive.clone(),
        sequence: manifest.sequence,
        captured: manifest.captured,
        areas: listed,
        producer: manifest.producer.clone(),
    };
    let bytes = statement.to_bytes().map_err(ManifestError::Invalid)?;
    let sha256 = digest::sha256(&bytes);
    let signature = sign(context, headers::NAMESPACE, &bytes, manifest.captured)?;
    let mut first = vec![small_item(writer, headers::STATEMENT_PATH, &bytes)?];
    if let Some(signature) = signature {
        first.push(small_item(writer, headers::SIGNATURE_PATH, &signature)?);
    }
    items.splice(0..0, first);
    let mut options = ArchiveOptions::new(&archive);
    options.started = started;
    writer.add_archive(options, &items)?;
    Ok(HeadersRecord { archive, sha256 })
}

/// An item with the bytes of a file that is no disk.
fn small_item(writer: &mut ArchiveWriter, path: &str, bytes: &[u8]) -> Result<Item, BackupError> {
    let chunks = bytes
        .chunks(1 << 20)
        .map(|part| writer.put_data(part))
        .collect::<Result<_, _>>()?;
    Ok(Item::regular(path, chunks))
}

/// A signature, if the configuration asks for one: then there is one, or no restore point.
fn sign(
    context: &Context<'_>,
    namespace: &str,
    bytes: &[u8],
    at: Timestamp,
) -> Result<Option<Vec<u8>>, BackupError> {
    let Some(signing) = &context.settings.signing else {
        return Ok(None);
    };
    let Some(key) = &signing.key else {
        return Ok(None);
    };
    let signature = signature::sign(signing, key, namespace, bytes, at, context.cancel)?;
    Ok(Some(signature))
}

/// All VMs that the configuration names, this one by the name that it has now.
fn inventory(context: &Context<'_>, domain: &Domain) -> Vec<String> {
    context.settings.inventory(domain.uuid, &domain.name)
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
                identity: disk.map(|disk| disk.identity.clone()),
            }
        })
        .collect()
}

/// The partition table and labels by which a guest finds its swap: sectors that hold no swapped-out page.
fn swap_layout(context: &Context<'_>, disk: &strongroom_hypervisor::Disk) -> Option<SwapLayout> {
    if !context.hypervisor.is_local() {
        context.note(format!(
            "swap disk {} lies on another machine: its layout is unknown, it will come back blank",
            disk.target
        ));
        return None;
    }
    let read = || -> Result<SwapLayout, String> {
        let path = disk
            .source
            .path()
            .ok_or("it is neither a file nor a block device")?;
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
            context.warn(
                Code::SwapLayoutUnknown,
                format!(
                    "swap disk {}: its layout is unknown, it will come back blank: {error}",
                    disk.target
                ),
            );
            None
        }
    }
}
