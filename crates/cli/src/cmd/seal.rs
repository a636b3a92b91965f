//! `strongroom seal` and `strongroom verify-image`.

use std::io::Read as _;

use strongroom_engine::inspect::image_seal::{self, SealError, SealPath};
use strongroom_engine::run::event::{Event, Kind, Observer as _};
use strongroom_engine::run::settings as resolved;
use strongroom_engine::run::state::StateDirectory;
use strongroom_hypervisor::{Disk, DiskSource, MachineFiles};
use strongroom_libvirt::machine;

use crate::args::{Seal, VerifyImage};
use crate::documents::{CheckedImages, CheckedVm, Sealed, SealedVm};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;

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
        let failure = match &error {
            SealError::Remote(_) => Self::usage(error),
            _ => Self::failed(error),
        };
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
            let there = SealPath::of_vm(&state, vm).use_up()?;
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
            let parts = settings.parts(&resolved, &resolved.job(vm).hypervisor)?;
            let context = settings.context(&parts);
            let machine = |xml: &str| parts.hypervisor.inner().machine(xml);
            let (seal, path) = image_seal::machine::seal(&context, vm, args.with_swap, machine)?;
            settings.ui.info(format!(
                "{vm}: sealed ({}), as {}",
                seal.files
                    .iter()
                    .map(|file| file.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
                path.statement().display()
            ));
            documents.push(SealedVm::Sealed {
                vm,
                seal,
                file: path.statement(),
            });
        }
    }
    if settings.ui.json() {
        settings.ui.document_with_warnings(Sealed { vms: documents });
    }
    Ok(Exit::Done)
}

/// Checks the images of VMs against their seals.
pub fn verify(settings: &Settings, args: &VerifyImage) -> Result<Exit, Failure> {
    let resolved = settings.resolve()?;
    if args.definition.is_some() && args.vms.len() != 1 {
        return Err(Failure::usage("verify several VMs: a definition is that of one"));
    }
    let state = StateDirectory::open(&resolved.state_directory).map_err(Failure::failed)?;
    let here = settings.here(&resolved, &state);
    let mut documents = Vec::new();
    let mut worst = Exit::Done;
    let vms = Settings::chosen(&resolved, &args.vms)?;
    for vm in &vms {
        let found = image_seal::machine::check(&here, vm, args.if_required, || {
            definition(settings, &resolved, vm, args)
        });
        match found {
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
            let hypervisor = settings.hypervisor(resolved, &resolved.job(vm).hypervisor)?;
            let xml = image_seal::machine::at_rest(&*hypervisor, vm)?.xml;
            hypervisor.inner().machine(&xml)
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
