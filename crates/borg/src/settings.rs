//! How to reach a repository and where Borg keeps its local files.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Something the caller may want to show or record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A log record of the server, or a line that ssh or a login script wrote.
    Log {
        /// How grave it is.
        level: Level,
        /// The text; control characters are escaped.
        message: String,
    },
    /// The server's progress on a long operation of its own.
    Progress {
        /// The text; control characters are escaped.
        message: String,
    },
}

/// Gravity of a server's log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For developers.
    Debug,
    /// Good to know.
    Info,
    /// Possibly harmful.
    Warning,
    /// Something failed.
    Error,
}

/// Receives events, possibly from another thread.
pub type EventCallback = Arc<dyn Fn(Event) + Send + Sync>;

/// A server that makes its index anew, or compacts, says nothing for long.
const PATIENCE: Duration = Duration::from_hours(1);

/// Settings that Borg takes from its environment and options.
#[derive(Clone)]
pub struct Settings {
    /// The remote shell and its options (`BORG_RSH`, default `ssh`).
    pub rsh: String,
    /// Borg on the server (`BORG_REMOTE_PATH`, default `borg`).
    pub remote_borg: String,
    /// Borg on this machine, for local repositories and for creating repositories.
    pub local_borg: PathBuf,
    /// How long the server waits for the repository's lock.
    pub lock_wait: Duration,
    /// Borg's configuration directory.
    pub config_dir: PathBuf,
    /// Directory of the key files.
    pub keys_dir: PathBuf,
    /// Directory of what Borg remembers about repositories, one directory each.
    pub security_dir: PathBuf,
    /// The key file, if it is not searched in `keys_dir` (`BORG_KEY_FILE`).
    pub key_file: Option<PathBuf>,
    /// More arguments for `borg serve`.
    pub serve_args: Vec<String>,
    /// More environment variables for child processes.
    pub child_env: Vec<(OsString, OsString)>,
    /// Accept that a known repository is found at another place.
    pub accept_relocated: bool,
    /// Accept a repository without encryption that was never seen before.
    pub accept_unencrypted: bool,
    /// Read a repository in an older state than was seen before, see [`crate::Repository::replayed`]. It is never written to.
    pub accept_replay: bool,
    /// How long a server may give no sign of life to a call that waits for it; nothing for ever.
    pub patience: Option<Duration>,
    /// Where events go.
    pub events: Option<EventCallback>,
}

impl Settings {
    /// Settings as stock Borg would derive them from the environment.
    ///
    /// Honoured are `BORG_RSH`, `BORG_REMOTE_PATH`, `BORG_BASE_DIR`, `BORG_CONFIG_DIR`, `BORG_KEYS_DIR`,
    /// `BORG_KEY_FILE`, `BORG_SECURITY_DIR`, `BORG_RELOCATED_REPO_ACCESS_IS_OK`,
    /// `BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK`, `XDG_CONFIG_HOME` and `HOME`.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| lookup(name).map(|value| value.to_string_lossy().into_owned());
        let path = |name: &str| lookup(name).map(PathBuf::from);
        let filled = |name: &str| path(name).filter(|path| !path.as_os_str().is_empty());
        let yes = |name: &str| {
            text(name).is_some_and(|value| {
                matches!(value.to_ascii_lowercase().as_str(), "yes" | "y" | "1" | "true")
            })
        };
        let base = filled("BORG_BASE_DIR");
        let xdg = if base.is_none() {
            path("XDG_CONFIG_HOME")
        } else {
            None
        };
        let home = || {
            filled("HOME")
                .or_else(std::env::home_dir)
                .unwrap_or_else(|| PathBuf::from("/"))
        };
        let config_home = xdg.unwrap_or_else(|| base.unwrap_or_else(home).join(".config"));
        let config_dir = path("BORG_CONFIG_DIR").unwrap_or_else(|| config_home.join("borg"));
        Self {
            rsh: text("BORG_RSH").unwrap_or_else(|| "ssh".to_owned()),
            remote_borg: text("BORG_REMOTE_PATH").unwrap_or_else(|| "borg".to_owned()),
            local_borg: PathBuf::from("borg"),
            lock_wait: Duration::from_secs(1),
            keys_dir: path("BORG_KEYS_DIR").unwrap_or_else(|| config_dir.join("keys")),
            security_dir: path("BORG_SECURITY_DIR").unwrap_or_else(|| config_dir.join("security")),
            config_dir,
            key_file: filled("BORG_KEY_FILE"),
            serve_args: Vec::new(),
            child_env: Vec::new(),
            accept_relocated: yes("BORG_RELOCATED_REPO_ACCESS_IS_OK"),
            accept_unencrypted: yes("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"),
            accept_replay: false,
            patience: Some(PATIENCE),
            events: None,
        }
    }

    /// Puts all of Borg's local files below `base`, for this client and its child processes.
    #[must_use]
    pub fn with_base_dir(mut self, base: &Path) -> Self {
        self.config_dir = base.join(".config/borg");
        self.keys_dir = self.config_dir.join("keys");
        self.security_dir = self.config_dir.join("security");
        self.child_env.push(("BORG_BASE_DIR".into(), base.into()));
        self
    }

    /// Where events go.
    #[must_use]
    pub fn with_events(mut self, callback: impl Fn(Event) + Send + Sync + 'static) -> Self {
        self.events = Some(Arc::new(callback));
        self
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("rsh", &self.rsh)
            .field("remote_borg", &self.remote_borg)
            .field("local_borg", &self.local_borg)
            .field("config_dir", &self.config_dir)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        Settings::from_lookup(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.into())
        })
    }

    #[test]
    fn directories_follow_borg() {
        assert_eq!(
            settings(&[("HOME", "/h")]).keys_dir,
            Path::new("/h/.config/borg/keys")
        );
        assert_eq!(
            settings(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")]).config_dir,
            Path::new("/x/borg")
        );
        let base = settings(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x"), ("BORG_BASE_DIR", "/b")]);
        assert_eq!(base.security_dir, Path::new("/b/.config/borg/security"));
        let own = settings(&[
            ("BORG_CONFIG_DIR", "/c"),
            ("BORG_KEYS_DIR", "/k"),
            ("BORG_SECURITY_DIR", "/s"),
        ]);
        assert_eq!(
            (own.keys_dir.as_path(), own.security_dir.as_path()),
            (Path::new("/k"), Path::new("/s"))
        );
        assert!(settings(&[("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes")]).accept_relocated);
    }
}
