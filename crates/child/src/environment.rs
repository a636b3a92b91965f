//! What children get to see: lists of names, not everything but some.

use std::ffi::{OsStr, OsString};
use std::process::Command;

/// What a child needs of this program's environment, beside the way to programs, files and the user's language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing more.
    Nothing,
    /// Which proxies to ask: for programs that download.
    Network,
    /// What leads to the user's keys: for `ssh`, `ssh-keygen`, and commands of the user's that may call them.
    Keys,
    /// That, and the settings of libvirt's client: for this program itself, called anew.
    Hypervisor,
    /// That of [`Keys`](Self::Keys), and Borg's own settings, without a passphrase: for `borg`, and the ssh to one elsewhere.
    Borg,
    /// All but passphrases, as Borg gives it to programs that the user has named to Borg: a remote shell, a command that
    /// tells the passphrase.
    BorgHelper,
}

/// For every child.
const ALWAYS: [&str; 16] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "COLORTERM",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
];

/// Where agents, tickets and tokens are, and how a passphrase is asked for.
const KEYS: [&str; 14] = [
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "SSH_ASKPASS",
    "SSH_ASKPASS_REQUIRE",
    "SSH_SK_PROVIDER",
    "SSH_SK_HELPER",
    "SSH_PKCS11_HELPER",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "KRB5CCNAME",
    "KRB5_CONFIG",
    "GNUPGHOME",
    "GPG_TTY",
];

/// Proxies, in lower case; they are written in upper case, too.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];

/// For no child.
const PASSPHRASES: [&str; 4] = [
    "BORG_PASSPHRASE",
    "BORG_NEW_PASSPHRASE",
    "BORG_PASSPHRASE_FD",
    "BORG_PASSCOMMAND",
];

impl Needs {
    fn has(self, name: &str) -> bool {
        let starts = |prefix: &str| name.starts_with(prefix);
        let always = || ALWAYS.contains(&name) || starts("LC_");
        let keys = || KEYS.contains(&name);
        !PASSPHRASES.contains(&name)
            && match self {
                Self::Nothing => always(),
                Self::Network => always() || PROXIES.contains(&&*name.to_ascii_lowercase()),
                Self::Keys => always() || keys(),
                Self::Hypervisor => always() || keys() || starts("LIBVIRT_") || name == "STRONGROOM_SSH",
                Self::Borg => always() || keys() || starts("BORG_") || starts("MALLOC_"),
                Self::BorgHelper => true,
            }
    }
}

/// A command with an environment made for it.
#[allow(clippy::disallowed_methods, reason = "this is the place")]
pub fn command(program: impl AsRef<OsStr>, needs: Needs) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(chosen(needs, std::env::vars_os()));
    command
}

fn chosen(
    needs: Needs,
    all: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    // A name that is not text is on none of the lists.
    all.filter(move |(name, _)| {
        name.to_str()
            .map_or(needs == Needs::BorgHelper, |name| needs.has(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(needs: Needs, all: &[&str]) -> Vec<String> {
        let all = all
            .iter()
            .map(|name| (OsString::from(name), OsString::from("value")));
        chosen(needs, all)
            .map(|(name, _)| name.into_string().unwrap())
            .collect()
    }

    /// R5.
    #[test]
    fn secrets_are_for_nobody_and_settings_for_those_who_need_them() {
        let all = [
            "PATH",
            "LC_TIME",
            "SSH_AUTH_SOCK",
            "LIBVIRT_DEFAULT_URI",
            "BORG_RSH",
            "BORG_PASSPHRASE",
            "BORG_PASSCOMMAND",
            "BORG_NEW_PASSPHRASE",
            "BORG_PASSPHRASE_FD",
            "AWS_SECRET_ACCESS_KEY",
            "CREDENTIALS_DIRECTORY",
            "LD_PRELOAD",
        ];
        assert_eq!(names(Needs::Nothing, &all), ["PATH", "LC_TIME"]);
        assert_eq!(names(Needs::Keys, &all), ["PATH", "LC_TIME", "SSH_AUTH_SOCK"]);
        let hypervisor = ["PATH", "LC_TIME", "SSH_AUTH_SOCK", "LIBVIRT_DEFAULT_URI"];
        assert_eq!(names(Needs::Hypervisor, &all), hypervisor);
        assert_eq!(
            names(Needs::Borg, &all),
            ["PATH", "LC_TIME", "SSH_AUTH_SOCK", "BORG_RSH"]
        );
        let helper = names(Needs::BorgHelper, &all);
        assert!(!helper.iter().any(|name| name.contains("PASS")), "{helper:?}");
        assert!(
            helper.iter().any(|name| name == "CREDENTIALS_DIRECTORY"),
            "{helper:?}"
        );
    }
}
