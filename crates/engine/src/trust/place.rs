//! A new restore point's place in the chain, and the memory of it.

use std::collections::BTreeSet;

use strongroom_borg::{ChunkId, Repository};

use super::chain::Head;
use super::memory::Memory;
use super::witness;
use crate::context::Context;
use crate::history::Point;
use crate::manifest::Manifest;

/// Number and predecessor of the next restore point: after the newest one that is there or on record, so that no number
/// is ever given twice. A repository that has lost its newest ones gets a new one all the same, and a warning.
pub fn successor(
    context: &Context<'_>,
    vm: &str,
    repository: &str,
    newest: Option<&Point>,
) -> (u64, Option<String>) {
    let there = newest.map_or(0, |point| point.manifest.sequence);
    let known = recorded(context, vm)
        .into_iter()
        .filter(|head| head.vm == vm && head.repository == repository)
        .max_by_key(|head| head.sequence);
    match known {
        Some(head) if head.sequence > there => {
            context.warn(format!(
                "restore point {} (number {}) was made and cannot be read or is not there any more: somebody may have put \
                 back an old copy of the repository, or removed it; `strongroom verify {vm}` says more",
                head.archive, head.sequence
            ));
            (head.sequence + 1, Some(head.hash))
        }
        _ => (there + 1, newest.map(|point| point.link.clone())),
    }
}

/// What we know ourselves; what the witness knows, where we know nothing.
fn recorded(context: &Context<'_>, vm: &str) -> Vec<Head> {
    match Memory::open(context.state, vm) {
        Ok(memory) if memory.head().is_some() => return memory.head().cloned().into_iter().collect(),
        Ok(_) => {}
        Err(error) => context.warn(format!("failed to {error}")),
    }
    let asked = context
        .config
        .witness
        .as_ref()
        .map(|asked| witness::ask(asked, context.cancel));
    match asked {
        None => Vec::new(),
        Some(Ok(heads)) => heads,
        Some(Err(error)) => {
            context.warn(format!("failed to {error}"));
            Vec::new()
        }
    }
}

/// Remembers a restore point that has just been committed, here and at the witness, and says what has become of chunks
/// that were damaged. Nothing of this undoes the restore point: what fails is a warning.
pub fn remember(
    context: &Context<'_>,
    repository: &Repository,
    manifest: &Manifest,
    damaged: &BTreeSet<ChunkId>,
    healed: &BTreeSet<ChunkId>,
) {
    let vm = &manifest.vm.name;
    let (Ok(bytes), Some(archive)) = (manifest.to_bytes(), &manifest.archive) else {
        return;
    };
    let id = repository.id().to_string();
    let head = Head::of(
        manifest,
        archive,
        Manifest::link(&bytes),
        &id,
        repository.timestamp(),
    );
    let kept = Memory::open(context.state, vm).and_then(|mut memory| {
        memory.looked_at(&BTreeSet::new(), |id| healed.contains(id))?;
        memory.advance(head.clone())
    });
    if let Err(error) = kept {
        context.warn(format!(
            "the restore point is not on record here: failed to {error}"
        ));
    }
    if let Some(asked) = &context.config.witness
        && let Err(error) = witness::tell(asked, &head, context.cancel)
    {
        context.warn(format!(
            "the restore point is not on record at the witness: failed to {error}"
        ));
    }
    if !healed.is_empty() {
        context.note(format!("{} damaged chunks have been stored anew", healed.len()));
    }
    let lost = damaged.len() - healed.len();
    if lost > 0 {
        context.warn(format!(
            "{lost} damaged chunks cannot be stored anew, because {vm} no longer has their content: the older restore points \
             that need them stay damaged; `strongroom verify {vm} --data` names them"
        ));
    }
}
