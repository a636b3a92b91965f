//! `strongroom adopt`.

use strongroom_engine::config::Config;
use strongroom_engine::inspect::audit;
use strongroom_hypervisor::Hypervisor as _;

use super::audit as audit_command;
use super::init;
use crate::args::{Adopt, Init};
use crate::documents::Adopted;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;

/// Puts an existing VM under protection as `init` does, and says what is unsafe about it.
pub fn run(settings: &Settings, args: &Adopt) -> Result<Exit, Failure> {
    let mut protect = args.protect.clone();
    let configured = settings.path.exists().then(|| settings.resolve()).transpose()?;
    let known = configured
        .as_ref()
        .is_some_and(|resolved| resolved.is_configured(&args.vm));
    if !known {
        let resolved = match configured {
            Some(resolved) => resolved,
            None => settings.resolve_draft(&Config::new(String::new()))?,
        };
        let hypervisor = settings.hypervisor(&resolved, resolved.default_hypervisor())?;
        if hypervisor.is_local() {
            let domain = hypervisor.domain(&args.vm).map_err(Failure::failed)?;
            let found = audit::swap_disks(&domain).into_iter();
            protect
                .swap
                .extend(found.filter(|target| !args.protect.swap.contains(target)));
        }
    }
    let wanted = Init {
        vms: vec![args.vm.clone()],
        protect,
        signing_key: None,
        unprotected_signing_key: false,
    };
    init::add(settings, &wanted)?;
    let resolved = settings.resolve()?;
    let parts = settings.parts(&resolved, &resolved.job(&args.vm).hypervisor)?;
    let report = audit_command::report(settings, &parts, std::slice::from_ref(&args.vm), args.max_age)?;
    if settings.ui.json() {
        settings.ui.document_with_warnings(Adopted {
            configuration: &settings.path,
            audit: &report,
        });
    }
    Ok(audit_command::exit(&report))
}
