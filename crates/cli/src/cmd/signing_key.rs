//! The signing key that `strongroom init --signing-key` sets up: made by `ssh-keygen` if it is not there, and trusted by
//! a line in `allowed_signers` beside the configuration.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use strongroom_base::cancel::Cancel;
use strongroom_child::Needs;

use strongroom_engine::config::Signing;

use crate::failure::Failure;
use crate::replace::replace;
use crate::settings::Settings;

/// How long a person may take to type a passphrase twice.
const PATIENCE: Duration = Duration::from_mins(10);
/// Between two looks at whether the work is stopped.
const LOOK: Duration = Duration::from_millis(100);

/// What our signatures are made for, as a pattern in `allowed_signers`.
const NAMESPACES: &str = "strongroom-*";

/// Makes the key unless it is there, and has it trusted.
pub fn make(settings: &Settings, signing: &Signing, unprotected: bool) -> Result<(), Failure> {
    let (Some(key), Some(identity), Some(signers)) =
        (&signing.key, &signing.identity, &signing.allowed_signers)
    else {
        return Ok(());
    };
    if key.exists() {
        settings
            .ui
            .info(format!("signing key {} is there", key.display()));
    } else {
        generate(settings, key, identity, unprotected)?;
        settings.ui.info(format!("made signing key {}", key.display()));
    }
    let public = public_key(key)?;
    let line = format!("{identity} namespaces=\"{NAMESPACES}\" {}", public.trim());
    let old = match std::fs::read_to_string(signers) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Failure::failed(format!("read {}: {error}", signers.display()))),
    };
    if old.lines().any(|known| known == line) {
        return Ok(());
    }
    let gap = if old.is_empty() || old.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    replace(signers, &format!("{old}{gap}{line}\n"))
        .map_err(|error| Failure::failed(format!("write {}: {error}", signers.display())))?;
    settings.ui.info(format!(
        "{}: trusts {identity}; keep a copy of it where restore points are to be verified",
        signers.display()
    ));
    Ok(())
}

fn generate(settings: &Settings, key: &Path, identity: &str, unprotected: bool) -> Result<(), Failure> {
    let failed = |why: String| Failure::failed(format!("make the signing key {}: {why}", key.display()));
    if let Some(directory) = key.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|error| failed(error.to_string()))?;
    }
    let mut command = strongroom_child::command("ssh-keygen", Needs::Keys);
    command
        .args(["-q", "-t", "ed25519", "-C", identity, "-f"])
        .arg(key);
    if unprotected {
        command.args(["-N", ""]);
    } else {
        // It asks for the passphrase itself.
        settings
            .ui
            .info("choose a passphrase for the signing key; an agent can hold the key for backups at night");
    }
    let status = settings
        .ui
        .suspended(|| attended(&mut command, settings.signals.cancel()))
        .map_err(failed)?;
    if status.success() && key.exists() {
        Ok(())
    } else {
        Err(failed(format!("ssh-keygen: {status}")).hint(
            "a passphrase is typed on a terminal; --unprotected-signing-key makes a key that needs none",
        ))
    }
}

/// Runs ssh-keygen at the terminal, until it has ended, or the work is stopped.
fn attended(command: &mut Command, cancel: &Cancel) -> Result<ExitStatus, String> {
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let begin = Instant::now();
    let why = loop {
        match strongroom_child::wait(&mut child, LOOK) {
            Ok(Some(status)) => return Ok(status),
            Err(error) => break error.to_string(),
            Ok(None) if cancel.is_cancelled() => break cancel.why().to_string(),
            Ok(None) if begin.elapsed() > PATIENCE => {
                break format!("ssh-keygen has not ended after {} s", PATIENCE.as_secs());
            }
            Ok(None) => {}
        }
    };
    let _ = strongroom_child::kill(&mut child, "ssh-keygen");
    Err(why)
}

/// The public part: in a file of its own, or the file itself.
fn public_key(key: &Path) -> Result<String, Failure> {
    let mut beside = key.as_os_str().to_owned();
    beside.push(".pub");
    let candidates = [PathBuf::from(beside), key.to_owned()];
    for file in candidates {
        if let Ok(text) = std::fs::read_to_string(&file)
            && let Some(line) = text.lines().find(|line| {
                ["ssh-", "ecdsa-", "sk-"]
                    .iter()
                    .any(|kind| line.starts_with(kind))
            })
        {
            return Ok(line.to_owned());
        }
    }
    Err(Failure::failed(format!(
        "find the public part of the signing key: {}.pub is not there",
        key.display()
    ))
    .hint("`ssh-keygen -y -f KEY > KEY.pub` makes it"))
}
