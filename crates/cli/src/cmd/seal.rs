//! `strongroom seal` and `strongroom verify-image`.

use std::io::Read as _;
use std::sync::Arc;

use strongroom_engine::config::Signing;
use strongroom_engine::inspect::image_seal::vm::{self, disk_name};
use strongroom_engine::inspect::image_seal::{self, Place, SealError};
use strongroom_engine::run::event::{Event, Kind, Observer as _};
use strongroom_engine::run::settings::{self as resolved, VmJob};
use strongroom_engine::run::state::StateDirectory;
use strongroom_hypervisor::{Disk, DiskSource, Domain, Hypervisor as _, MachineFiles, RunState};
use strongroom_libvirt::{Libvirt, machine};
use uuid::Uuid;

use crate::args::{Seal, VerifyImage};
use crate::documents::{CheckedImages, CheckedVm, Sealed, SealedVm};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::{Settings, connect};

/// The largest definition that is read, in bytes.
const MAX_DEFINITION: u64 = 16 << 20;

impl From<SealError> for Failure {
    fn from(error: SealError) -> Self {
        let hint = match &error {
            SealError::NoKey => Some("`strongroom init --signing-key FILE` makes a key and has it trusted"),
            SealError::Missing { .. } => Some("`strongroom seal VM` seals a VM that is shut off"),
            SealError::Altered { .. } => Some(
                "if it was you (a start without the hook, a change of a disk), look at the VM and seal it again; if not, \
                 restore it",
            ),
            _ => None,
        };
        let failure = Self::failed(error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// Seals the images of VMs that are shut off, or puts their seals aside.
pub fn run(settings: &Settings, args: &Seal) -> Result<Exit, Failure> {
    let resolved = settings.resolve()?;
    let vms = Settings::chosen(&resolved, &args.vms)?;
    let mut documents = Vec::new();
    if args.used {
        let state = StateDirectory::open(&resolved.state_directory).map_err(Failure::failed)?;
        for vm in &vms {
            let there = Place::of_vm(&state, vm).use_up()?;
            settings.ui.info(format!(
                "{vm}: {}",
                if there {
                    "the seal is used up"
                } else {
                    "there is no seal"
                }
            ));
            documents.push(SealedVm::Used { vm, used: there });
        }
    } else {
        for vm in &vms {
            let parts = Settings::parts(&resolved, &resolved.job(vm).hypervisor)?;
            let (seal, place) = seal(settings, &resolved, &parts.hypervisor, &parts.state, vm, args)?;
            settings.ui.info(format!(
                "{vm}: sealed ({}), as {}",
                seal.files
                    .iter()
                    .map(|file| file.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
                place.statement().display()
            ));
            documents.push(SealedVm::Sealed {
                vm,
                seal,
                file: place.statement(),
            });
        }
    }
    if settings.ui.json() {
        settings.ui.document_with_warnings(Sealed { vms: documents });
    }
    Ok(Exit::Done)
}

fn seal(
    settings: &Settings,
    resolved: &resolved::Settings,
    hypervisor: &Libvirt,
    state: &StateDirectory,
    vm: &str,
    args: &Seal,
) -> Result<(image_seal::Seal, Place), Failure> {
    if !hypervisor.is_local() {
        return Err(Failure::usage(format!(
            "seal {vm}: its images lie on another machine; run strongroom there"
        )));
    }
    let domain = at_rest(hypervisor, vm)?;
    let machine = hypervisor
        .machine(&domain.xml)
        .map_err(|reason| Failure::failed(format!("seal {vm}: {reason}")))?;
    let job = job(resolved, vm, Some(domain.uuid));
    let files = vm::files(&machine, |disk| args.with_swap || !disk.is_swap(&job.swap))?;
    let signing = signing(resolved);
    let cancel = settings.signals.cancel();
    let (seal, signed) = image_seal::make(&signing, vm::subject(&machine), &files, &*settings.ui, cancel)?;
    // What was measured is what the next start finds only if there was none meanwhile, and the same images are meant.
    if at_rest(hypervisor, vm)?.xml != domain.xml {
        return Err(Failure::failed(format!(
            "seal {vm}: its definition was changed meanwhile"
        )));
    }
    let place = Place::of_vm(state, vm);
    place.write(&signed)?;
    Ok((seal, place))
}

/// The domain, if nothing is about to change its images.
fn at_rest(hypervisor: &Libvirt, vm: &str) -> Result<Domain, Failure> {
    let domain = hypervisor.domain(vm).map_err(Failure::failed)?;
    let why = if domain.state != RunState::ShutOff {
        "it runs; shut it down first"
    } else if domain.saved {
        "its memory is saved, the next start resumes it; start it and shut it down first"
    } else {
        return match &domain.busy {
            Some(busy) => Err(Failure::failed(format!("seal {vm}: {busy}"))),
            None => Ok(domain),
        };
    };
    Err(Failure::failed(format!("seal {vm}: {why}")))
}

/// Checks the images of VMs against their seals.
pub fn verify(settings: &Settings, args: &VerifyImage) -> Result<Exit, Failure> {
    let resolved = settings.resolve()?;
    if args.definition.is_some() && args.vms.len() != 1 {
        return Err(Failure::usage("verify several VMs: a definition is that of one"));
    }
    let state = StateDirectory::open(&resolved.state_directory).map_err(Failure::failed)?;
    let mut documents = Vec::new();
    let mut worst = Exit::Done;
    let vms = Settings::chosen(&resolved, &args.vms)?;
    for vm in &vms {
        match verify_one(settings, &resolved, &state, vm, args) {
            Ok(Some((seal, signer))) => {
                settings
                    .ui
                    .info(format!("{vm}: as it was sealed at {} by {signer}", seal.sealed));
                documents.push(CheckedVm::Good {
                    vm,
                    ok: true,
                    seal,
                    signer,
                });
            }
            Ok(None) => {
                settings.ui.info(format!("{vm}: not sealed, and need not be"));
                let (ok, seal) = (true, ());
                documents.push(CheckedVm::NotSealed { vm, ok, seal });
            }
            Err(failure) => {
                settings.ui.failure(&failure);
                worst = failure.exit;
                let (ok, error) = (false, failure.message);
                documents.push(CheckedVm::Failed { vm, ok, error });
            }
        }
        settings.signals.cancel().check().map_err(Failure::failed)?;
    }
    if settings.ui.json() {
        settings
            .ui
            .document_with_warnings(CheckedImages { vms: documents });
    }
    Ok(worst)
}

/// Gives the seal that holds and who vouches for it; nothing if there is none and none is asked for.
fn verify_one(
    settings: &Settings,
    resolved: &resolved::Settings,
    state: &StateDirectory,
    vm: &str,
    args: &VerifyImage,
) -> Result<Option<(image_seal::Seal, String)>, Failure> {
    // libvirt's hook asks by name, and may be the first to do so.
    let early = resolved
        .has_uuids()
        .then(|| definition(settings, resolved, vm, args))
        .transpose()?;
    let job = job(resolved, vm, early.as_ref().and_then(|machine| machine.uuid));
    let place = Place::of_vm(state, vm);
    let Some(signed) = place.read()? else {
        if args.if_required && !job.require_seal {
            return Ok(None);
        }
        return Err(SealError::Missing {
            name: vm.to_owned(),
            path: place.statement(),
        }
        .into());
    };
    let machine = match early {
        Some(machine) => machine,
        None => definition(settings, resolved, vm, args)?,
    };
    let cancel = settings.signals.cancel();
    let (seal, signer) = image_seal::open(&signing(resolved), &vm::subject(&machine), &signed, cancel)?;
    // Swap counts if it was sealed.
    let sealed = |name: &str| seal.files.iter().any(|file| file.name == name);
    let files = vm::files(&machine, |disk| {
        sealed(&disk_name(&disk.target)) || !disk.is_swap(&job.swap)
    })?;
    image_seal::check(&seal, &files, &*settings.ui, cancel)?;
    Ok(Some((seal, format!("{} ({})", signer.identity, signer.key))))
}

/// What the configuration says about this VM, by whatever it names it.
fn job(resolved: &resolved::Settings, vm: &str, uuid: Option<Uuid>) -> Arc<VmJob> {
    let by_uuid = uuid.and_then(|uuid| resolved.of_uuid(uuid)).cloned();
    by_uuid.unwrap_or_else(|| resolved.job(vm))
}

/// What the next start uses: the definition that was handed in, or libvirt's.
fn definition(
    settings: &Settings,
    resolved: &resolved::Settings,
    vm: &str,
    args: &VerifyImage,
) -> Result<MachineFiles, Failure> {
    let failed = |reason: String| Failure::failed(format!("verify {vm}: {reason}"));
    let found = match &args.definition {
        None => {
            let hypervisor = connect(&resolved.job(vm).hypervisor).map_err(Failure::failed)?;
            let xml = at_rest(&hypervisor, vm)?.xml;
            hypervisor.machine(&xml)
        }
        Some(path) => {
            let mut text = String::new();
            let read = if path.as_os_str() == "-" {
                std::io::stdin().take(MAX_DEFINITION).read_to_string(&mut text)
            } else {
                std::fs::File::open(path).and_then(|file| file.take(MAX_DEFINITION).read_to_string(&mut text))
            };
            read.map_err(|error| failed(format!("read {}: {error}", path.display())))?;
            machine(&text)
        }
    };
    let found = found.map_err(failed)?;
    let volume = |disk: &&Disk| matches!(disk.source, DiskSource::Volume { .. });
    if let (Some(_), Some(disk)) = (&args.definition, found.disks.iter().find(volume)) {
        return Err(failed(format!(
            "disk {} is {}, and only libvirt knows where that lies, which may not be asked from its hook",
            disk.target,
            disk.source.words()
        ))
        .hint("name the file in the definition (`<disk type='file'>`), or verify without --definition"));
    }
    if found.name != vm {
        return Err(failed(format!("the definition is that of {:?}", found.name)));
    }
    settings
        .ui
        .event(&Event::now(Some(vm), Kind::note("looking at its images")));
    Ok(found)
}

fn signing(resolved: &resolved::Settings) -> Signing {
    resolved.signing.clone().unwrap_or_default()
}
