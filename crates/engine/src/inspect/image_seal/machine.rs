//! Sealing a VM that is shut off, and checking one before its start: which of its disks count, and when nothing may change them.

use strongroom_hypervisor::{Domain, Hypervisor, MachineFiles, RunState};

use super::vm::{disk_name, files, subject};
use super::{Seal, SealError, SealPath, check as compare, make, open};
use crate::run::context::{Context, Surroundings};

/// The domain, if nothing is about to change its images.
pub fn at_rest(hypervisor: &dyn Hypervisor, vm: &str) -> Result<Domain, SealError> {
    let refused = |reason: &str| SealError::Refused {
        name: vm.to_owned(),
        reason: reason.to_owned(),
    };
    let domain = hypervisor.domain(vm)?;
    if domain.state != RunState::ShutOff {
        return Err(refused("it runs; shut it down first"));
    }
    if domain.saved {
        return Err(refused(
            "its memory is saved, the next start resumes it; start it and shut it down first",
        ));
    }
    match &domain.busy {
        Some(busy) => Err(refused(busy)),
        None => Ok(domain),
    }
}

/// Seals a VM. `machine` tells what a definition says of its files. Swap is sealed as well if that is asked for.
pub fn seal(
    context: &Context<'_>,
    vm: &str,
    with_swap: bool,
    machine: impl Fn(&str) -> Result<MachineFiles, String>,
) -> Result<(Seal, SealPath), SealError> {
    if !context.hypervisor.is_local() {
        return Err(SealError::Remote(vm.to_owned()));
    }
    let refused = |reason: String| SealError::Refused {
        name: vm.to_owned(),
        reason,
    };
    let domain = at_rest(context.hypervisor, vm)?;
    let machine = machine(&domain.xml).map_err(refused)?;
    let job = context.settings.job_with(vm, Some(domain.uuid));
    let files = files(&machine, |disk| with_swap || !disk.is_swap(&job.swap))?;
    let signing = context.settings.signing.clone().unwrap_or_default();
    let (observer, cancel) = (context.observer, context.cancel);
    let (seal, signed) = make(&signing, subject(&machine), &files, observer, cancel)?;
    // What was measured is what the next start finds only if there was none meanwhile, and the same images are meant.
    if at_rest(context.hypervisor, vm)?.xml != domain.xml {
        return Err(refused("its definition was changed meanwhile".into()));
    }
    let path = SealPath::of_vm(context.state, vm);
    path.write(&signed)?;
    Ok((seal, path))
}

/// Checks a VM's images against its seal. `machine` tells what the next start uses. Returns the seal that holds and who vouches
/// for it; nothing if there is none, and `if_required` asks for one only where the settings require it.
pub fn check<E: From<SealError>>(
    here: &Surroundings<'_>,
    vm: &str,
    if_required: bool,
    machine: impl Fn() -> Result<MachineFiles, E>,
) -> Result<Option<(Seal, String)>, E> {
    // libvirt's hook asks by name, and may be the first to do so.
    let early = here.settings.has_uuids().then(&machine).transpose()?;
    let uuid = early.as_ref().and_then(|machine| machine.uuid);
    let job = here.settings.job_with(vm, uuid);
    let path = SealPath::of_vm(here.state, vm);
    let Some(signed) = path.read()? else {
        if if_required && !job.require_seal {
            return Ok(None);
        }
        let (name, path) = (vm.to_owned(), path.statement());
        return Err(SealError::Missing { name, path }.into());
    };
    let machine = match early {
        Some(machine) => machine,
        None => machine()?,
    };
    let signing = here.settings.signing.clone().unwrap_or_default();
    let (seal, signer) = open(&signing, &subject(&machine), &signed, here.cancel)?;
    // Swap counts if it was sealed.
    let sealed = |name: &str| seal.files.iter().any(|file| file.name == name);
    let files = files(&machine, |disk| {
        sealed(&disk_name(&disk.target)) || !disk.is_swap(&job.swap)
    })?;
    compare(&seal, &files, here.observer, here.cancel)?;
    Ok(Some((seal, format!("{} ({})", signer.identity, signer.key))))
}
