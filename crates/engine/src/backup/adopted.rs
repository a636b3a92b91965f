//! What a new restore point follows and takes over: whose chain it is, whether the repository is what is on record, and whether
//! it still has what the chain refers to.

use std::collections::{BTreeSet, HashSet};

use strongroom_hypervisor::Domain;
use strongroom_points::archive::PointError;
use strongroom_points::catalog::{Catalog, Entry};
use strongroom_points::headers::Headers;
use strongroom_points::manifest::VmIdentity;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::{ChunkId, Repository};
use strongroom_points::trust::chain::{ChainProblem, Records};
use strongroom_points::trust::ledger::{Ledger, Left};
use strongroom_points::trust::order::Order;
use strongroom_points::trust::{self, Standing};
use uuid::Uuid;

use super::BackupError;
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::plan::RunId;

/// The newest restore point of the VM that can be read and is vouched for, all that is on record of this repository, and the
/// times of all. A repository with another VM's chain, or one that was rolled back, is an error: nothing was encrypted yet.
pub fn newest(
    context: &Context<'_>,
    repository: &mut Repository,
    domain: &Domain,
    run: &RunId,
    made_anew: bool,
) -> Result<(Option<RestorePoint>, Records, Order), BackupError> {
    let (here, vm) = (context.here(), &domain.name);
    let catalog = Catalog::look(repository, context.state.path())?;
    for (_, why) in &catalog.unreadable {
        context.warn(Code::ArchivePassedOver, format!("passed over: failed to {why}"));
    }
    let chain = catalog.chain(vm, domain.uuid);
    let id = repository.id().to_string();
    let known = trust::recall(&here.grounds(), vm, &id, &trust::witnessed(&here.grounds()));
    let records = known.of(&id);
    let standing = Standing::of(&here.grounds(), repository, &chain, &known);
    // Of the chain the newest that is believed, or else whatever there is.
    let before = if chain.is_empty() {
        catalog.entries.last()
    } else {
        standing.newest
    };
    if let Some(before) = before
        && !follows(&domain.name, domain.uuid, &before.manifest.vm, made_anew)
    {
        return Err(BackupError::OtherVm {
            vm: vm.clone(),
            uuid: domain.uuid,
            archive: before.name(),
            other: before.manifest.vm.name.clone(),
            other_uuid: before.manifest.vm.uuid,
        });
    }
    for problem in &standing.problems {
        match problem {
            ChainProblem::Rollback { .. } | ChainProblem::Replayed { .. } => {
                return Err(BackupError::RolledBack {
                    vm: vm.clone(),
                    problem: problem.clone(),
                });
            }
            ChainProblem::Elsewhere { .. } => context.warn(Code::RestorePointMissing, format!(
                "{problem}, and this backup goes to {id}; if that was meant: `strongroom verify {vm} --acknowledge`"
            )),
            // Said when the next one takes its place.
            _ => {}
        }
    }
    doubtful(context, vm, &standing);
    if let Some(ahead) = standing.newest.filter(|newest| newest.info.time > run.started) {
        context.warn(Code::Clock, format!(
            "the clock says {}, and restore point {} was made at {}: one of the two is wrong. Restore points are ordered by \
             number, this one is the newest; rules of `borg prune` go by time",
            run.started,
            ahead.name(),
            ahead.info.time
        ));
    }
    let order = Order::new(&chain, &records);
    let mut candidates = chain.iter().rev().filter(|entry| {
        let newest = standing.newest.map_or(0, Entry::number);
        entry.number() <= newest && !standing.doubtful.iter().any(|(name, _)| *name == entry.name())
    });
    // What is listed can be damaged all the same.
    let point = loop {
        let Some(entry) = candidates.next() else {
            break None;
        };
        match RestorePoint::read(repository, &entry.info) {
            Ok(point) => break Some(point),
            Err(error @ PointError::Repository(_)) if !error.concerns_one_archive() => {
                return Err(error.into());
            }
            Err(error) => context.warn(Code::ArchivePassedOver, format!("passed over: failed to {error}")),
        }
    };
    Ok((point, records, order))
}

/// Whether a VM's restore point may follow one of that VM: a chain belongs to one, by its UUID; a VM that was made anew under
/// the same name takes it over only if that is said.
fn follows(name: &str, uuid: Uuid, before: &VmIdentity, made_anew: bool) -> bool {
    before.uuid == uuid || (made_anew && before.name == name)
}

/// Newer ones that no trusted key has signed: with the repository's key alone they can be given any number.
fn doubtful(context: &Context<'_>, vm: &str, standing: &Standing<'_>) {
    let Some((archive, why)) = standing.doubtful.first() else {
        return;
    };
    let others = match standing.doubtful.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    context.warn(Code::UntrustedArchive, format!(
        "passed over: archive {archive} is newer than all that are trusted, but is not trusted itself: {why}{others}; \
         another writer may have made it, in the place of a genuine one; `strongroom verify {vm}` has details"
    ));
}

/// Objects that are referred to and are not in the repository any more.
#[derive(Debug, Default)]
pub struct Gone {
    /// Chunks of disks and of headers.
    pub data: BTreeSet<ChunkId>,
    /// Pieces of the archives' metadata.
    pub metadata: HashSet<ChunkId>,
}

/// Asks the repository's index for what would be taken over, unless it is as the last backup has left it: then no other has
/// written to it. That is told by its manifest's time, which every commit moves on, and by the number of its objects,
/// since a repair removes some and leaves the manifest alone.
pub fn gone(
    context: &Context<'_>,
    repository: &mut Repository,
    vm: &str,
    points: [Option<&RestorePoint>; 2],
    headers: Option<&Headers>,
) -> Result<Gone, BackupError> {
    let points = || points.into_iter().flatten();
    let metadata: HashSet<ChunkId> = points()
        .flat_map(|point| &point.archive.item_ids)
        .chain(headers.iter().flat_map(|headers| &headers.archive.item_ids))
        .copied()
        .collect();
    if metadata.is_empty() {
        return Ok(Gone::default());
    }
    let left = Ledger::open(context.state.path(), vm)
        .ok()
        .and_then(|ledger| ledger.left().cloned());
    if left.is_some() && left == Some(now(repository)?) {
        return Ok(Gone::default());
    }
    let items = points().flat_map(|point| point.items.values());
    let items = items.chain(headers.iter().flat_map(|headers| headers.items.values()));
    let data = items.flat_map(|item| item.chunks.iter().flatten().map(|chunk| chunk.id));
    let lacking = repository.lacking(metadata.iter().copied().chain(data).collect())?;
    context.cancel.check()?;
    if !lacking.is_empty() {
        context.warn(Code::ObjectsMissing, format!(
            "{} objects that earlier restore points need are not in the repository any more: what the VM still has of them \
             is read anew; `strongroom verify {vm} --data` says what is damaged",
            lacking.len()
        ));
    }
    let (metadata, data): (Vec<ChunkId>, Vec<ChunkId>) =
        lacking.into_iter().partition(|id| metadata.contains(id));
    Ok(Gone {
        data: data.into_iter().collect(),
        metadata: metadata.into_iter().collect(),
    })
}

fn now(repository: &mut Repository) -> Result<Left, BackupError> {
    Ok(Left {
        repository: repository.id().to_string(),
        manifest: repository.timestamp(),
        objects: repository.object_count()?,
    })
}

/// Remembers how this backup leaves the repository. Without that, the next one asks for everything.
pub fn leave(context: &Context<'_>, repository: &mut Repository, vm: &str) {
    let kept = now(repository)
        .map(|left| Ledger::open(context.state.path(), vm).and_then(|mut ledger| ledger.leave(left)));
    if !matches!(kept, Ok(Ok(()))) {
        context.note("the next backup asks the repository for everything that it takes over");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R15: a repository that was moved here, or a VM that was made anew, and no option says so.
    #[test]
    fn a_chain_belongs_to_one_vm() {
        let [web, db] = [1, 2].map(Uuid::from_u128);
        let before = |name: &str, uuid| VmIdentity {
            name: name.into(),
            uuid,
        };
        assert!(follows("web", web, &before("web", web), false));
        // It was renamed.
        assert!(follows("web", web, &before("old", web), false));
        assert!(!follows("web", web, &before("web", db), false));
        assert!(follows("web", web, &before("web", db), true));
        assert!(!follows("web", web, &before("db", db), true));
    }
}
