//! The archives of LUKS headers: is each signed, in its place and whole, and is there one that opens each restore point?

use std::collections::BTreeSet;

use strongroom_points::headers::{AreaRecord, Headers};
use strongroom_points::manifest::HeadersRecord;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::{ArchiveInfo, Repository};

use super::{Problem, Work};

/// What the archives of headers hold, and what the restore points need.
#[derive(Debug, Default)]
pub struct HeaderInventory {
    /// Bindings of the areas that can be used, with their lengths.
    good: BTreeSet<(String, u64)>,
    /// Archives of headers that are there: name and digest of the statement.
    there: Vec<HeadersRecord>,
    /// Restore points: number, name, the archive of headers of the same instant.
    points: Vec<(u64, String, HeadersRecord)>,
    /// What is needed: restore point, disk, volume, binding and length.
    needed: Vec<(String, String, String, (String, u64))>,
}

impl HeaderInventory {
    /// Takes note of what a restore point needs.
    pub fn needs(&mut self, point: &RestorePoint) {
        let archive = point.name();
        for disk in &point.manifest.disks {
            for luks in &disk.luks {
                if let Some(header) = &luks.header {
                    let key = (header.binding.clone(), header.length);
                    self.needed
                        .push((archive.clone(), disk.target.clone(), luks.uuid.clone(), key));
                }
            }
        }
        if let Some(record) = &point.manifest.headers {
            self.points
                .push((point.manifest.sequence, archive, record.clone()));
        }
    }

    /// Whether an archive of headers was made with one of the restore points.
    pub fn belongs(&self, info: &ArchiveInfo) -> bool {
        let mut points = self.points.iter();
        points.any(|(.., record)| info.name.as_str() == Some(&record.archive))
    }

    /// What is missing. With `all` restore points at hand, the newest one's own headers have to be there: no retention
    /// removes those.
    pub fn problems(&self, all: bool) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (archive, disk, uuid, key) in &self.needed {
            if !self.good.contains(key) {
                problems.push(Problem {
                    disk: Some(disk.clone()),
                    ..Problem::of(
                        "header",
                        archive,
                        format!("disk {disk}: no header that is there opens LUKS volume {uuid}"),
                    )
                });
            }
        }
        let newest = self.points.iter().map(|(number, ..)| *number).max();
        for (number, archive, record) in &self.points {
            match self.there.iter().find(|there| there.archive == record.archive) {
                Some(there) if there.sha256 == record.sha256 => {}
                Some(_) => problems.push(Problem::of(
                    "header",
                    archive,
                    format!(
                        "{} is not the archive of headers that was made with it",
                        record.archive
                    ),
                )),
                None if all && Some(*number) == newest => problems.push(Problem::of(
                    "header",
                    archive,
                    format!("{}, the newest archive of headers, is gone", record.archive),
                )),
                // Pruned, which is what they are apart for.
                None => {}
            }
        }
        problems
    }
}

impl Work<'_> {
    /// One archive of headers. Without `report`, only whether it can be used matters.
    pub(super) fn headers(&mut self, repository: &Repository, headers: &Headers, report: bool) {
        let archive = headers.name();
        let mut problems = Vec::new();
        let mut problem = |kind, text: String| problems.push(Problem::of(kind, &archive, text));
        let signing = self.here.settings.signing.clone().unwrap_or_default();
        if let Err(error) = headers.signer(&signing, &self.order, self.here.cancel) {
            problem("signature", error.to_string());
        }
        if let Err(why) = headers.place(&repository.id().to_string(), &self.report.vm) {
            problem("place", why);
        }
        if !headers.archive.authenticated {
            problem(
                "archive",
                "Borg's own authentication of the archive is missing".into(),
            );
        }
        for name in headers.strange.iter().chain(undescribed(headers)) {
            problem("items", format!("{name}: nothing of ours, or not described"));
        }
        let (whole, altered): (Vec<&AreaRecord>, Vec<&AreaRecord>) = headers
            .statement
            .areas
            .iter()
            .partition(|area| headers.chunks(area).is_some());
        for area in altered {
            problem(
                "disk",
                format!(
                    "{}: it is missing, or not what its statement describes",
                    area.path()
                ),
            );
        }
        let good = problems.is_empty();
        if report {
            self.problems(problems);
            for (path, item) in &headers.items {
                self.chunks_of(&archive, path, item);
            }
        }
        let usable = whole.into_iter().filter(|area| {
            let chunks = headers.chunks(area).unwrap_or_default();
            good && chunks.iter().all(|chunk| self.ids.contains(&chunk.id))
        });
        let usable: Vec<_> = usable.map(|area| (area.binding.clone(), area.length)).collect();
        self.header_inventory.good.extend(usable);
        self.header_inventory.there.push(HeadersRecord {
            archive,
            sha256: headers.link(),
        });
    }
}

/// Items that the statement does not describe.
fn undescribed(headers: &Headers) -> impl Iterator<Item = &String> {
    use strongroom_points::headers::{SIGNATURE_PATH, STATEMENT_PATH};
    let described: BTreeSet<String> = headers.statement.areas.iter().map(AreaRecord::path).collect();
    headers
        .items
        .keys()
        .filter(move |path| *path != STATEMENT_PATH && *path != SIGNATURE_PATH && !described.contains(*path))
}
