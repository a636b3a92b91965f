//! `strongroom hypervisor-rights`.

use strongroom_libvirt::rights::{Rights, jobs_account};

use crate::args::HypervisorRights;
use crate::documents::{self, JobsRights};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;

/// Prints a script for the hypervisor's administrator.
pub fn run(settings: &Settings, args: &HypervisorRights) -> Result<Exit, Failure> {
    let vms = if args.vms.is_empty() {
        Settings::chosen(&*settings.resolve()?, &[])?
    } else {
        args.vms.clone()
    };
    let key = std::fs::read_to_string(&args.key)
        .map_err(|error| Failure::usage(format!("read the key {}: {error}", args.key.display())))?;
    let rights = Rights {
        account: args.account.clone(),
        group: args.group.clone(),
        vms,
        key,
        pool: args.pool.clone(),
        own: args.own_domain.clone(),
        images: args.images.clone(),
        nbd_tls: args.nbd_tls.clone(),
    };
    rights
        .check()
        .map_err(|error| Failure::usage(format!("make rules: {error}")))?;
    if settings.ui.json() {
        Ui::document(&documents::HypervisorRights {
            polkit: rights.polkit(),
            authorized_keys: rights.authorized_key(),
            script: rights.reach_script(),
            jobs: JobsRights {
                account: jobs_account(&rights.account),
                authorized_keys: rights.jobs_authorized_key(),
                script: rights.jobs_script(),
            },
            commands: rights.commands(),
        });
        return Ok(Exit::Done);
    }
    let script = format!(
        "#!/bin/sh\n# For root on the hypervisor.\nset -e\n{}",
        rights.commands().join("\n")
    );
    script.lines().for_each(Ui::out);
    Ok(Exit::Done)
}
