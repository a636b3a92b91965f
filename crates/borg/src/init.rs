//! Creating repositories with the stock `borg init`.

use std::ffi::OsString;
use std::time::Duration;

use strongroom_child::{Failure, Limits, Why};

use crate::crypto::Encryption;
use crate::{Error, Location, Passphrase, PassphraseRequest, PassphraseSource, Result, Settings, rpc};

/// How long it may take, with a person at it who tells ssh a password; and what it may say.
const LIMITS: Limits = Limits {
    time: Duration::from_mins(10),
    bytes: 1 << 20,
};

/// Runs `borg init`. The passphrase goes through a file in memory; it is in no argument and in no environment variable.
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
        .env("BORG_DISPLAY_PASSPHRASE", "no");
    if let Some(path) = &settings.key_file {
        command.env("BORG_KEY_FILE", path);
    }
    let input = passphrase.as_ref().map_or(&[][..], Passphrase::as_bytes);
    let output = strongroom_child::run(&mut command, input, LIMITS, &|| source.is_stopped());
    let message = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => format!("{} ({})", end_of(&output.err), output.status),
        Err(Failure {
            why: Why::Spawn(source) | Why::Io(source),
            ..
        }) => {
            return Err(Error::Spawn {
                program: settings.local_borg.display().to_string(),
                source,
            });
        }
        Err(Failure { why, err }) => {
            let why = match why {
                Why::Stopped => "interrupted".to_owned(),
                Why::Limit => format!("it says more than {} bytes", LIMITS.bytes),
                _ => format!("it has not ended after {} s", LIMITS.time.as_secs()),
            };
            let said = end_of(&err);
            let gap = if said.is_empty() { "" } else { "; " };
            format!("{why}{gap}{said}; what there is of it by now stays at {location}")
        }
    };
    Err(Error::Init { message })
}

/// The last lines that were said, on one.
fn end_of(said: &[u8]) -> String {
    let lines: Vec<&[u8]> = said
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    let tail = lines.get(lines.len().saturating_sub(4)..).unwrap_or_default();
    let tail: Vec<String> = tail.iter().map(|line| rpc::wire::printable(line)).collect();
    tail.join("; ")
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
