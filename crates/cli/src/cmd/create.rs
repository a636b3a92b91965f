//! `strongroom create`.

use std::fs::File;
use std::path::Path;

use strongroom_engine::config::{Config, Vm};
use strongroom_engine::provision::create::machine::{Limits, Typed};
use strongroom_engine::provision::create::{self, Created, MARK, Request, input, tang};
use strongroom_engine::provision::template::Description;
use strongroom_engine::run::event::Code;
use strongroom_guest::protocol::{self, Backups};
use strongroom_hypervisor::{Accelerator, Creation as _, Extras, Firmware, LaunchSecurity, Network};
use strongroom_points::store::Encryption;

use super::{init, template};
use crate::args::{Create, Extra, Firmware as Wanted, Unlock, VirtType};
use crate::config_file;
use crate::documents;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::prompt;
use crate::settings::{Parts, Settings};
use crate::ui::human::bytes;

/// What a machine is for that makes backups of others.
pub struct Role<'a> {
    /// What it is told.
    pub backups: Backups,
    /// Ports for disks that are attached to it.
    pub ports: u8,
    /// Whether a template is one for such a machine.
    pub fits: &'a dyn Fn(&Description) -> Result<(), Failure>,
}

/// Makes a machine, puts it into the configuration, makes its repository, and starts it if that is wanted.
pub fn run(settings: &Settings, args: &Create) -> Result<Exit, Failure> {
    let made = make(settings, args, None)?;
    if settings.ui.json() {
        settings
            .ui
            .document_with_warnings(documents::Created { created: &made });
    }
    Ok(Exit::Done)
}

/// The same, and what the machine is for. One that makes backups is not backed up by the one that makes it.
pub(super) fn make(settings: &Settings, args: &Create, role: Option<&Role<'_>>) -> Result<Created, Failure> {
    let resolved = settings.resolve()?;
    let parts = settings.parts(&resolved, resolved.default_hypervisor())?;
    let name = &args.name;
    if resolved.is_configured(name) {
        return Err(
            Failure::usage(format!("make {name}: it is in the configuration already")).hint(format!(
                "choose another name, or remove [vm.{name}] from {}",
                settings.path.display()
            )),
        );
    }
    // All that you may be asked for comes first.
    let mut request = request(settings, &parts, args)?;
    if let Some(role) = role {
        request.backups = Some(role.backups.clone());
        request.spare_ports = role.ports;
    }
    let typed = typed(args)?;
    settings.signals.undo_first();
    let (store, signing) = template::store(&resolved);
    settings.ui.info(format!(
        "{name}: compare template {} with its signature",
        args.template
    ));
    let template = store.open(&args.template, &signing, settings.signals.cancel())?;
    role.map_or(Ok(()), |role| (role.fits)(&template.description))?;
    let context = settings.context(&parts);
    let made = create::run(&context, &template, &request, typed)?;
    report(settings, &made, &request);
    if role.is_none() {
        protect(settings, &parts, &made);
    }
    if args.start {
        start(settings, &parts, &made);
    }
    Ok(made)
}

fn request(settings: &Settings, parts: &Parts, args: &Create) -> Result<Request, Failure> {
    let recovery = args.recovery_to.as_deref().map(recipient).transpose()?;
    let authorized_keys = match &args.ssh_key {
        Some(path) => input::authorized_keys(&text_of(path)?).map_err(Failure::usage)?,
        None => Vec::new(),
    };
    let default = create::default_kdf(args.memory, args.vcpus);
    let kdf = protocol::Kdf {
        memory_kib: args.argon2_memory.map_or(default.memory_kib, |size| {
            u32::try_from(size >> 10).unwrap_or(u32::MAX)
        }),
        iterations: args.argon2_iterations,
        ..default
    };
    let network = match args.network.as_str() {
        "none" => Network::None,
        "user" => Network::User,
        other => match other.strip_prefix("bridge:") {
            Some(bridge) => Network::Bridge(bridge.to_owned()),
            None => Network::Libvirt(other.to_owned()),
        },
    };
    let launch_security = match (args.sev, args.sev_snp) {
        (_, true) => Some(LaunchSecurity::SevSnp),
        (true, _) => Some(LaunchSecurity::Sev),
        (false, false) => None,
    };
    let mut request = Request {
        name: args.name.clone(),
        hostname: args
            .hostname
            .clone()
            .unwrap_or_else(|| input::hostname_of(&args.name)),
        size: args.size,
        swap: args.swap,
        memory: args.memory,
        vcpus: args.vcpus,
        unlock: protocol::Unlock::Passphrase {
            asked: args.passphrase_fd.is_none(),
        },
        recovery,
        authorized_keys,
        discard: !args.no_discard,
        kdf,
        directory: args.to.clone().unwrap_or_else(|| parts.settings.images.clone()),
        accelerator: args.virt_type.map(|kind| match kind {
            VirtType::Kvm => Accelerator::Kvm,
            VirtType::Qemu => Accelerator::Tcg,
        }),
        firmware: match args.firmware {
            None if launch_security.is_some() => Firmware::Uefi,
            None | Some(Wanted::Bios) => Firmware::Bios,
            Some(Wanted::Uefi) => Firmware::Uefi,
            Some(Wanted::SecureBoot) => Firmware::SecureBoot,
        },
        tpm: args.tpm,
        network,
        extras: Extras {
            graphics: args.with.contains(&Extra::Graphics),
            clipboard: args.with.contains(&Extra::Clipboard),
            usb: args.with.contains(&Extra::Usb),
            balloon: args.with.contains(&Extra::Balloon),
        },
        launch_security,
        backups: None,
        spare_ports: 0,
        channels: args.channel.clone(),
        limits: Limits::default(),
    };
    input::check(&request).map_err(Failure::usage)?;
    match &args.unlock {
        Unlock::Passphrase if !args.tang_thumbprint.is_empty() => {
            return Err(Failure::usage("use the thumbprint: no Tang server is named"));
        }
        Unlock::Passphrase => {}
        Unlock::Tang(_) if args.passphrase_fd.is_some() => {
            return Err(Failure::usage(
                "use --passphrase-fd: Tang opens the disk, no passphrase is made",
            ));
        }
        Unlock::Tang(servers) => {
            request.unlock = protocol::Unlock::Tang {
                threshold: args.tang_threshold,
                servers: servers
                    .iter()
                    .enumerate()
                    .map(|(at, url)| trusted(settings, args, at, url))
                    .collect::<Result<_, _>>()?,
            };
            input::check(&request).map_err(Failure::usage)?;
        }
    }
    Ok(request)
}

/// Asks a Tang server for its key, and you whether that is the one.
fn trusted(settings: &Settings, args: &Create, at: usize, url: &str) -> Result<protocol::Tang, Failure> {
    let pins = &args.tang_thumbprint;
    if let Some(odd) = pins.iter().find(|pin| !tang::is_thumbprint(pin)) {
        return Err(Failure::usage(format!(
            "use the thumbprint {odd:?}: 43 letters, digits, dashes and underscores are needed"
        ))
        .hint("`tang-show-keys PORT` on the Tang server prints it"));
    }
    let advertisement = match args.tang_advertisement.get(at) {
        Some(file) => tang::read(url, file).map_err(Failure::usage)?,
        None => tang::fetch(url, settings.signals.cancel()).map_err(|error| {
            Failure::failed(error)
                .hint("nothing was made; where only the VM's network reaches it, use --tang-advertisement")
        })?,
    };
    let thumbprint = if let Some(pin) = pins.get(at) {
        advertisement.pin(url, pin).map_err(|error| {
            Failure::failed(error).hint("this is not the server that you know, or its keys have been changed")
        })?;
        pin.clone()
    } else {
        let found = &advertisement.thumbprints[0];
        let shown = advertisement.thumbprints.join(", ");
        let question = format!("Tang server {url} has the keys {shown}.\nIs this so (yes/no)? ");
        let ask = || prompt::confirmed(&question, settings.signals.cancel());
        match settings.ui.suspended(|| settings.signals.in_order(ask)) {
            Some(true) => found.clone(),
            Some(false) => return Err(Failure::failed(format!("trust Tang server {url}: you said no"))),
            None => {
                return Err(Failure::failed(format!(
                    "trust Tang server {url}: it has the keys {shown}, and there is no terminal to confirm them"
                ))
                .hint(format!(
                    "compare with `tang-show-keys` on the server, then use --tang-thumbprint {found}"
                )));
            }
        }
    };
    Ok(protocol::Tang {
        url: url.to_owned(),
        thumbprint,
        advertisement: advertisement.text,
    })
}

/// A recipient, or the content of a public key's file.
fn recipient(given: &str) -> Result<String, Failure> {
    let text = if given.starts_with("age1") || given.starts_with("ssh-") {
        given.to_owned()
    } else {
        text_of(Path::new(given))?
    };
    input::recipient(&text).map_err(Failure::usage)
}

fn text_of(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("read the public key {}: {error}", path.display())))
}

/// Where the passphrase comes from. Nothing is read here.
fn typed(args: &Create) -> Result<Typed, Failure> {
    match (&args.unlock, args.passphrase_fd) {
        (Unlock::Tang(_), _) => Ok(Typed::Nothing),
        (Unlock::Passphrase, Some(number)) => File::open(format!("/dev/fd/{number}"))
            .map(|file| Typed::Descriptor(file.into()))
            .map_err(|error| Failure::usage(format!("use descriptor {number}: {error}"))),
        (Unlock::Passphrase, None) if File::open("/dev/tty").is_ok() => Ok(Typed::Terminal),
        (Unlock::Passphrase, None) => Err(Failure::usage("ask for a passphrase: there is no terminal")
            .hint("--passphrase-fd N takes it from a descriptor")),
    }
}

fn report(settings: &Settings, made: &Created, request: &Request) {
    let ui = &settings.ui;
    let name = &made.name;
    ui.info(format!(
        "{name}: made in {:.0} s; {} has {} of {}",
        made.seconds,
        made.system.display(),
        bytes(made.allocated),
        bytes(request.size)
    ));
    ui.info(format!("{name}: LUKS2 volume {}", made.luks.uuid));
    ui.info(format!("{name}: SSH host key {}", made.ssh_fingerprint));
    if let Some(path) = &made.recovery {
        ui.info(format!(
            "{name}: the recovery secret is in {}, encrypted; `age --decrypt -i KEY` shows it: keep a copy elsewhere",
            path.display()
        ));
    }
}

/// The machine is there. What fails from here on can be done again by hand, so it is a warning.
fn warn(settings: &Settings, failure: Failure) {
    let hint = failure.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    settings.ui.warn(
        Code::FollowUpFailed,
        None,
        format!("failed to {}{hint}", failure.message),
    );
}

/// Puts it into the configuration and makes its repository.
fn protect(settings: &Settings, parts: &Parts, made: &Created) {
    let name = &made.name;
    let file = Config::read(&settings.path).ok();
    let vm = Vm {
        hypervisor: file.and_then(|file| settings.own_hypervisor(&file)),
        ..Vm::default()
    };
    let protected = config_file::add_vm(&settings.path, name, vm)
        .and_then(|()| init::repository(settings, &parts.settings.job(name), Encryption::STANDARD));
    match protected {
        Ok(()) => settings
            .ui
            .info(format!("{name}: `strongroom backup {name}` backs it up")),
        Err(failure) => warn(
            settings,
            failure.hint(format!("`strongroom init {name}` makes its repository")),
        ),
    }
}

fn start(settings: &Settings, parts: &Parts, made: &Created) {
    match parts.hypervisor.start(made.uuid, MARK) {
        Ok(()) => settings.ui.info(format!("{}: started", made.name)),
        Err(error) => warn(settings, Failure::failed(error)),
    }
}
