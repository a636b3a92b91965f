//! What a restore asks before it uses anything of a repository: is the newest restore point the newest, and who vouches for
//! the one that is wanted?

use jiff::Timestamp;
use strongroom_points::catalog::{Catalog, Entry};
use strongroom_points::manifest::HeadersRecord;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::selector::Selector;
use strongroom_points::store::Repository;
use strongroom_points::trust::order::{self, Order};
use strongroom_points::trust::signature::{self, NAMESPACE, Signer, Untrusted};
use strongroom_points::trust::{self, Standing};

use super::{Request, RestoreError};
use crate::run::context::Context;
use crate::run::event::Code;

/// Compares the repository with what is on record, before its newest restore point is believed. One that was named is
/// restored all the same, with a word. Returns the newest headers that there have to be, and the times of all.
pub fn compare(
    context: &Context<'_>,
    request: &Request,
    repository: &Repository,
    chain: &[&Entry],
) -> Result<(Option<HeadersRecord>, Order), RestoreError> {
    let (here, vm) = (context.here(), &request.point.vm);
    let id = repository.id().to_string();
    let records = trust::recall(&here.grounds(), vm, &id, &trust::witnessed(&here.grounds()));
    let standing = Standing::of(&here.grounds(), repository, chain, &records);
    let may_stop = request.point.when == Selector::Latest && !request.allow_rollback;
    if let Some(problem) = standing.hidden().filter(|_| may_stop) {
        return Err(RestoreError::NotTheNewest {
            vm: vm.clone(),
            problem: problem.clone(),
        });
    }
    if let Some(line) = standing.line(vm) {
        context.warn(Code::RestorePointMissing, line);
    }
    let newest = standing.newest.map_or(0, Entry::number);
    let mut believed = chain.iter().rev().filter(|entry| entry.number() <= newest);
    let headers = believed.find_map(|entry| entry.manifest.headers.clone());
    Ok((headers, Order::new(chain, &records.of(&id))))
}

/// Before anything of the archive is used: the manifest is signed by a trusted key, and for this archive. Only
/// the operator can do without, explicitly. Returns whether it is vouched for.
pub fn trust(
    context: &Context<'_>,
    request: &Request,
    repository: &Repository,
    catalog: &Catalog,
    point: &RestorePoint,
    order: &Order,
) -> Result<bool, RestoreError> {
    let signing = context.settings.signing.as_ref();
    let Some(signing) = signing.filter(|signing| signing.allowed_signers.is_some()) else {
        return Ok(false);
    };
    let (manifest, archive) = (&point.manifest, point.name());
    let at = order.of(
        manifest.sequence,
        &point.link,
        manifest.captured,
        Timestamp::now(),
    );
    let signature = point.signature.as_deref();
    let mut signer = signature::check(signing, NAMESPACE, signature, &point.bytes, at, context.cancel);
    if signer.is_err() && at != manifest.captured {
        // A clock was wrong: what came after it says how long that may count.
        let chain = catalog.of(&manifest.vm.name).into_iter();
        let chain: Vec<&Entry> = chain
            .filter(|entry| entry.number() >= manifest.sequence)
            .collect();
        let signers = order::signers(&context.here().grounds(), &chain, order);
        if let Some(Ok(found)) = signers.get(&point.link) {
            signer = Ok(found.clone());
        }
    }
    let place = point.place(&repository.id().to_string());
    match judge(&archive, signer, place) {
        Ok(signer) => {
            context.note(format!("signed by {} ({})", signer.identity, signer.key));
            Ok(true)
        }
        Err(error) if request.unsigned && !context.cancel.is_cancelled() => {
            context.warn(
                Code::NotTrusted,
                format!("it is restored all the same, as asked: failed to {error}"),
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether a restore point is signed by a trusted key, and in its place.
fn judge(
    archive: &str,
    signer: Result<Signer, Untrusted>,
    place: Result<(), String>,
) -> Result<Signer, RestoreError> {
    let archive = archive.to_owned();
    let signer = signer.map_err(|source| RestoreError::Untrusted {
        archive: archive.clone(),
        source,
    })?;
    match place {
        Ok(()) => Ok(signer),
        Err(why) => Err(RestoreError::Misplaced { archive, why }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mutants of `trust`: signature and place, each by itself.
    #[test]
    fn what_is_restored_is_signed_and_in_its_place() {
        let signer = || {
            Ok(Signer {
                identity: "me".into(),
                key: "k".into(),
            })
        };
        judge("a", signer(), Ok(())).unwrap();
        let unsigned = judge("a", Err(Untrusted::Missing), Ok(()));
        assert!(matches!(unsigned, Err(RestoreError::Untrusted { .. })));
        let moved = judge("a", signer(), Err("elsewhere".into()));
        assert!(matches!(moved, Err(RestoreError::Misplaced { .. })));
    }
}
