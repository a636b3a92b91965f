//! `strongroom backup-vm`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use strongroom_engine::config::{Config, Signing, Vm};
use strongroom_engine::provision::template::Description;
use strongroom_guest::protocol::{ALLOWED_SIGNERS, Backups, SIGNING_KEY};

use super::create::{self, Role};
use super::template;
use crate::args::{BackupVm, BackupVmCommand, CreateBackupVm, Release, Template, TemplateCommand};
use crate::documents::Created;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::ui::Ui;

/// What a machine needs that makes backups, beyond the program itself.
const PACKAGES: [&str; 5] = [
    "borgbackup",
    "libnbd0",
    "libvirt0",
    "openssh-client",
    "qemu-utils",
];
/// Disks that can be attached to it at the same time.
const PORTS: u8 = 12;
const SERVICE: &str = include_str!("../../../../dist/systemd/strongroom-backup.service");
const TIMER: &str = include_str!("../../../../dist/systemd/strongroom-backup.timer");

/// Does it.
pub fn run(settings: &Settings, args: &BackupVm) -> Result<Exit, Failure> {
    match &args.command {
        BackupVmCommand::Template { release, name } => make_template(settings, *release, name),
        BackupVmCommand::Create(args) => create(settings, args),
    }
}

/// A template with this very program, what it calls, and a timer.
fn make_template(settings: &Settings, release: Release, name: &str) -> Result<Exit, Failure> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("put the template's files together: {error}"));
    let tree = tempfile::Builder::new()
        .prefix("strongroom-")
        .tempdir()
        .map_err(failed)?;
    files(tree.path()).map_err(failed)?;
    let hook = format!(
        "cp -a --no-preserve=ownership '{}'/. \"$1\"/",
        tree.path().display()
    );
    let packages: Vec<String> = PACKAGES.map(str::to_owned).into();
    let command = TemplateCommand::Build {
        release,
        name: Some(name.to_owned()),
        packages,
        customize_hook: Some(hook),
    };
    template::run(settings, &Template { command })
}

fn files(tree: &Path) -> std::io::Result<()> {
    let (programs, units) = (tree.join("usr/bin"), tree.join("etc/systemd/system"));
    let wanted = units.join("timers.target.wants");
    for directory in [&programs, &wanted] {
        fs::create_dir_all(directory)?;
    }
    // The copy keeps their modes: directories of the system's must not become this user's alone.
    for directory in ["", "usr", "usr/bin", "etc", "etc/systemd", "etc/systemd/system"] {
        fs::set_permissions(tree.join(directory), fs::Permissions::from_mode(0o755))?;
    }
    let program = programs.join("strongroom");
    fs::copy("/proc/self/exe", &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::write(units.join("strongroom-backup.service"), SERVICE)?;
    fs::write(units.join("strongroom-backup.timer"), TIMER)?;
    symlink(
        "/etc/systemd/system/strongroom-backup.timer",
        wanted.join("strongroom-backup.timer"),
    )
}

fn create(settings: &Settings, args: &CreateBackupVm) -> Result<Exit, Failure> {
    let config = configuration(args)?;
    let known_hosts = match &args.known_hosts {
        None => String::new(),
        Some(path) => fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("read the host keys {}: {error}", path.display())))?,
    };
    let role = Role {
        backups: Backups {
            configuration: config.to_toml(),
            known_hosts,
        },
        ports: PORTS,
        fits: &fits,
    };
    let made = create::make(settings, &args.create, Some(&role))?;
    let ui = &settings.ui;
    let name = &made.name;
    if settings.ui.json() {
        ui.document_with_warnings(Created { created: &made });
        return Ok(Exit::Done);
    }
    if let Some(path) = &made.passphrase {
        ui.info(format!(
            "{name}: the repositories' passphrase is in {}, encrypted like the recovery secret: without a copy of it elsewhere \
             nothing can be restored when {name} is lost",
            path.display()
        ));
    }
    let key = made.ssh_key.as_deref().unwrap_or_default();
    let signing = made.signing_key.as_deref().unwrap_or_default();
    let vms = args.vms.join(" ");
    for line in [
        format!(
            "# The SSH key of {name}, made in it. On the hypervisor (account and rights, see hypervisor-rights(1)):"
        ),
        format!("echo '{key} {name}' >{name}.pub"),
        format!("strongroom hypervisor-rights --key {name}.pub --own-domain {name} {vms} >rights.sh"),
        "# In ~/.ssh/authorized_keys on the repositories' host:".to_owned(),
        format!(
            "restrict,command=\"borg serve --append-only --restrict-to-path {}\" {key} {name}",
            path_of(&args.repo)
        ),
        "# In allowed_signers wherever restore points are verified or restored:".to_owned(),
        format!("strongroom@{name} namespaces=\"strongroom-*\" {signing}"),
    ] {
        Ui::out(&line);
    }
    Ok(Exit::Done)
}

/// What the machine's own configuration says.
fn configuration(args: &CreateBackupVm) -> Result<Config, Failure> {
    let mut config = Config::new(&args.repo);
    config.hypervisor.clone_from(&args.hypervisor);
    config.own_domain = Some(args.create.name.clone());
    let file = |path: &str| Some(Path::new("/").join(path));
    config.signing = Some(Signing {
        key: file(SIGNING_KEY),
        allowed_signers: file(ALLOWED_SIGNERS),
        ..Signing::default()
    });
    for name in &args.vms {
        config.vm.insert(name.clone(), Vm::default());
    }
    config.check().map_err(|reason| {
        Failure::usage(format!("configure {}: {reason}", args.create.name))
            .hint("for example --repo 'ssh://backup@nas/./{vm}'")
    })?;
    if args.create.recovery_to.is_none() {
        return Err(Failure::usage(
            "make the repositories' passphrase: --recovery-to names the age or SSH key that gets it, encrypted",
        ));
    }
    Ok(config)
}

/// Whether a template has what such a machine needs.
fn fits(template: &Description) -> Result<(), Failure> {
    let has = |wanted: &str| {
        let mut names = template.packages.iter().filter_map(|line| line.split(' ').next());
        // Debian 13's libraries have longer names.
        names.any(|name| name == wanted || name.strip_prefix(wanted) == Some("t64"))
    };
    match PACKAGES.into_iter().find(|package| !has(package)) {
        None => Ok(()),
        Some(package) => Err(Failure::usage(format!(
            "make a machine for backups of template {}: it has no {package}",
            template.name
        ))
        .hint("`strongroom backup-vm template` builds one that has everything")),
    }
}

/// The directory on the repositories' host that they lie in.
fn path_of(repo: &str) -> String {
    let path = match repo.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => repo.rsplit_once(':').map_or(repo, |(_, path)| path),
    };
    let path = path.strip_prefix("/./").unwrap_or(path);
    let before = path.split("{vm}").next().unwrap_or_default();
    let directory = if before == path {
        path
    } else {
        before.rsplit_once('/').map_or("", |(directory, _)| directory)
    };
    match directory {
        "" if path.starts_with('/') => "/".into(),
        "" => ".".into(),
        directory => directory.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repositories_key_is_for_their_directory() {
        for (repo, path) in [
            ("ssh://backup@nas/srv/borg/{vm}", "/srv/borg"),
            ("ssh://backup@nas:22/./{vm}", "."),
            ("ssh://backup@nas/./borg/x-{vm}", "borg"),
            ("backup@nas:borg/{vm}", "borg"),
            ("backup@nas:/{vm}", "/"),
            ("ssh://nas/srv/only", "/srv/only"),
        ] {
            assert_eq!(path_of(repo), path, "{repo}");
        }
    }
}
