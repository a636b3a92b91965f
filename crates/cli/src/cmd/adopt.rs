//! `strongroom adopt`.

use serde_json::json;
use strongroom_engine::config::Config;
use strongroom_engine::inspect::audit;
use strongroom_hypervisor::Hypervisor as _;
use strongroom_libvirt::Libvirt;

use super::audit as audit_command;
use super::init;
use crate::args::{Adopt, Init};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;

/// Puts an existing VM under protection as `init` does, and says what is unsafe about it.
pub fn run(settings: &Settings, args: &Adopt) -> Result<Exit, Failure> {
    let mut protect = args.protect.clone();
    let configured = settings.path.exists().then(|| settings.config()).transpose()?;
    let known = configured
        .as_ref()
        .is_some_and(|config| config.vm.contains_key(&args.vm));
    if !known {
        let config = configured.unwrap_or_else(|| settings.with_uri(Config::new(String::new())));
        let hypervisor = Libvirt::connect(&config.hypervisor).map_err(Failure::failed)?;
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
    let config = settings.config()?;
    let parts = Settings::parts(config.on(config.hypervisor_of(&args.vm)))?;
    let report = audit_command::report(settings, &parts, std::slice::from_ref(&args.vm), args.max_age)?;
    if settings.ui.json() {
        Ui::document(
            &json!({ "configuration": settings.path, "audit": report, "warnings": settings.ui.said() }),
        );
    }
    Ok(audit_command::exit(&report))
}
