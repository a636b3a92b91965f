//! Creating repositories with the stock `borg init`.

use std::ffi::OsString;
use std::io::Write;
use std::process::Stdio;

use crate::crypto::Encryption;
use crate::{Error, Location, PassphraseRequest, PassphraseSource, Result, Settings, rpc};

/// Runs `borg init`. The passphrase goes through a pipe; it is in no argument and in no environment variable.
pub(crate) fn create(
    location: &Location,
    encryption: Encryption,
    settings: &Settings,
    source: &PassphraseSource,
) -> Result<()> {
    let passphrase = if encryption == Encryption::None {
        None
    } else {
        let request = PassphraseRequest {
            key: location.to_string(),
            attempt: 1,
            new: true,
        };
        let given = source.given()?;
        let asked = given.is_none();
        let passphrase = given
            .or_else(|| source.ask(&request))
            .ok_or(Error::NoPassphrase)?;
        if passphrase.as_bytes().contains(&b'\n') {
            return Err(Error::Setting {
                name: "passphrase",
                reason: "it contains a line break".to_owned(),
            });
        }
        if asked {
            source.keep(passphrase.clone());
        }
        Some(passphrase)
    };

    // Borg closes the descriptor it reads the passphrase from; it must not be the standard input.
    let script = "trap '' INT; exec 3<&0 </dev/null; exec \"$@\"";
    let mut command = rpc::borg_command(location, settings);
    command
        .args(["-c", script, "sh"])
        .args(arguments(location, encryption, settings));
    command
        .env("BORG_CONFIG_DIR", &settings.config_dir)
        .env("BORG_KEYS_DIR", &settings.keys_dir)
        .env("BORG_SECURITY_DIR", &settings.security_dir)
        .env("BORG_PASSPHRASE_FD", "3")
        .env("BORG_DISPLAY_PASSPHRASE", "no")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(path) = &settings.key_file {
        command.env("BORG_KEY_FILE", path);
    }
    let error = |source| Error::Spawn {
        program: settings.local_borg.display().to_string(),
        source,
    };
    let mut child = command.spawn().map_err(error)?;
    if let (Some(mut stdin), Some(passphrase)) = (child.stdin.take(), &passphrase) {
        // If Borg ended early, its message tells why.
        let _ = stdin.write_all(passphrase.as_bytes());
    }
    let output = child.wait_with_output().map_err(error)?;
    if output.status.success() {
        return Ok(());
    }
    let lines: Vec<&[u8]> = output
        .stderr
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    let tail = lines.get(lines.len().saturating_sub(4)..).unwrap_or_default();
    let message: Vec<String> = tail.iter().map(|line| rpc::wire::printable(line)).collect();
    Err(Error::Init {
        message: format!("{} ({})", message.join("; "), output.status),
    })
}

fn arguments(location: &Location, encryption: Encryption, settings: &Settings) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![settings.local_borg.clone().into(), "init".into()];
    arguments.extend(["--encryption".into(), encryption.to_string().into()]);
    if !location.is_local() {
        arguments.extend(["--rsh".into(), settings.rsh.clone().into()]);
        arguments.extend(["--remote-path".into(), settings.remote_borg.clone().into()]);
    }
    arguments.extend(["--".into(), location.canonical().into()]);
    arguments
}
