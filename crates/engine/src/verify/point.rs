//! One restore point: is it signed, in its place, and does it hold exactly what its manifest describes?

use strongroom_points::archive::PointError;
use strongroom_points::digest;
use strongroom_points::firmware;
use strongroom_points::manifest::{DOMAIN_PATH, DiskRecord, MANIFEST_PATH, SIGNATURE_PATH, disk_path};
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::Repository;
use strongroom_points::trust::Signer;

use super::Problem;

/// The largest definition that is read, in bytes.
const MAX_DOMAIN_XML: u64 = 16 << 20;

/// Returns which key vouches, if one does, and everything that is wrong. Chunks of disks are not read here. An error means that
/// the connection is lost.
pub fn check(
    repository: &mut Repository,
    vm: &str,
    point: &RestorePoint,
    signer: Option<Result<Signer, String>>,
) -> Result<(Option<String>, Vec<Problem>), PointError> {
    let archive = point.name();
    let mut problems = Vec::new();
    let mut problem = |kind, text: String| problems.push(Problem::of(kind, &archive, text));

    let signer = match signer.unwrap_or_else(|| Err("its signature was not looked at".into())) {
        Ok(signer) => Some(format!("{} ({})", signer.identity, signer.key)),
        Err(error) => {
            problem("signature", error);
            None
        }
    };
    if let Err(why) = point.place(&repository.id().to_string()) {
        problem("place", why);
    }
    let manifest = &point.manifest;
    if manifest.vm.name != vm {
        problem("place", format!("it is of VM {:?}", manifest.vm.name));
    }
    if !point.archive.authenticated {
        problem(
            "archive",
            "Borg's own authentication of the archive is missing".into(),
        );
    }
    for name in &point.strange {
        problem("items", format!("{name}: nothing of ours, or there twice"));
    }
    for part in &manifest.missing {
        problem(
            "missing-part",
            format!("{part} could not be had when it was made"),
        );
    }

    for disk in &manifest.disks {
        if let Some(why) = disk_problem(point, disk) {
            problems.push(Problem {
                disk: Some(disk.target.clone()),
                ..Problem::of("disk", &archive, format!("disk {}: {why}", disk.target))
            });
        }
    }
    let mut problem = |kind, text: String| problems.push(Problem::of(kind, &archive, text));
    if !manifest.files.iter().any(|file| file.path == DOMAIN_PATH) {
        problem("file", format!("{DOMAIN_PATH}: its manifest does not list it"));
    }
    for file in &manifest.files {
        let limit = if file.path == DOMAIN_PATH {
            Some(MAX_DOMAIN_XML)
        } else {
            firmware::limit(&file.path)
        };
        let read = limit.map(|limit| point.file(repository, &file.path, limit));
        match read {
            None => problem("file", format!("{}: not a file of ours", file.path)),
            Some(Ok(Some(bytes))) if digest::sha256(&bytes) == file.sha256 => {}
            Some(Ok(Some(_))) => {
                problem("file", format!("{}: not what its manifest describes", file.path));
            }
            Some(Ok(None)) => problem("file", format!("{}: it is missing", file.path)),
            Some(Err(PointError::Repository(error))) if error.is_connection_lost() => {
                return Err(error.into());
            }
            Some(Err(error)) => problem("file", format!("{}: failed to {error}", file.path)),
        }
    }
    for path in point.items.keys() {
        let described = path == MANIFEST_PATH
            || path == SIGNATURE_PATH
            || manifest.files.iter().any(|file| file.path == *path)
            || manifest.disks.iter().any(|disk| disk_path(&disk.target) == *path);
        if !described {
            problem("items", format!("{path}: its manifest does not describe it"));
        }
    }
    Ok((signer, problems))
}

/// What is wrong with a disk's list of chunks.
fn disk_problem(point: &RestorePoint, disk: &DiskRecord) -> Option<&'static str> {
    let Some(item) = point.items.get(&disk_path(&disk.target)) else {
        return Some("it is missing");
    };
    if item.repaired {
        return Some("`borg check --repair` has put zeroes in place of lost chunks");
    }
    let Some(chunks) = point.chunks(&disk.target) else {
        return Some("its item is not a whole file");
    };
    let size: u64 = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    if size != disk.size || digest::of_chunks(chunks) != disk.digest {
        return Some("its list of chunks is not the one that its manifest describes");
    }
    None
}
