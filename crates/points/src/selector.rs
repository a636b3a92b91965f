//! `VM@WHEN`: how a restore point is named on the command line.

use std::fmt;
use std::str::FromStr;

use crate::store::ArchiveInfo;

/// A VM and one of its restore points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointName {
    /// The VM's name.
    pub vm: String,
    /// Which of its restore points.
    pub when: Selector,
}

/// Which restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The newest.
    Latest,
    /// The newest whose archive name, or whose time in UTC (`2026-11-23`, `2026-11-23T11:30`), starts so.
    Text(String),
}

/// Why no restore point can be told from a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// No VM before the `@`, or nothing after it.
    #[error("understand {0:?}: expected VM or VM@WHEN, where WHEN is `latest`, a date, or an archive's name")]
    Syntax(String),
}

impl FromStr for PointName {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let (vm, when) = text.rsplit_once('@').unwrap_or((text, "latest"));
        if vm.is_empty() || when.is_empty() {
            return Err(SelectorError::Syntax(text.to_owned()));
        }
        let when = if when == "latest" {
            Selector::Latest
        } else {
            Selector::Text(when.to_owned())
        };
        Ok(Self {
            vm: vm.to_owned(),
            when,
        })
    }
}

impl fmt::Display for PointName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.when {
            Selector::Latest => write!(out, "{}@latest", self.vm),
            Selector::Text(text) => write!(out, "{}@{text}", self.vm),
        }
    }
}

impl PointName {
    /// Whether an archive has exactly the name that was given.
    pub fn names(&self, info: &ArchiveInfo) -> bool {
        matches!(&self.when, Selector::Text(text) if info.name.as_str() == Some(text))
    }

    /// Whether an archive can be meant, by its name or its time.
    pub fn fits(&self, info: &ArchiveInfo) -> bool {
        match &self.when {
            Selector::Latest => true,
            Selector::Text(text) => self.names(info) || starts_with(info, text),
        }
    }
}

fn starts_with(info: &ArchiveInfo, text: &str) -> bool {
    let time = info.time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    time.starts_with(&text.replace(' ', "T"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ChunkId;

    fn archive(name: &str, time: &str) -> ArchiveInfo {
        ArchiveInfo {
            name: name.into(),
            id: ChunkId([0; 32]),
            time: time.parse().unwrap(),
        }
    }

    fn choose(when: &str) -> Option<String> {
        let archives = [
            archive("web-b", "2026-11-02T08:00:00Z"),
            archive("web-a", "2026-11-01T08:00:00Z"),
            archive("2026-11-02", "2026-10-01T08:00:00Z"),
        ];
        let name: PointName = when.parse().unwrap();
        let fitting = archives.iter().filter(|info| name.fits(info));
        let best = fitting.max_by_key(|info| (name.names(info), info.time));
        best.map(|info| info.name.to_string())
    }

    #[test]
    fn a_restore_point_is_found_by_name_by_time_or_as_the_latest() {
        assert_eq!(choose("web").as_deref(), Some("web-b"));
        assert_eq!(choose("web@latest").as_deref(), Some("web-b"));
        assert_eq!(choose("web@web-a").as_deref(), Some("web-a"));
        assert_eq!(choose("web@2026-11-01").as_deref(), Some("web-a"));
        assert_eq!(choose("web@2026-11-01 08:00").as_deref(), Some("web-a"));
        assert_eq!(choose("web@2026-11").as_deref(), Some("web-b"));
        assert_eq!(
            choose("web@2026-11-02").as_deref(),
            Some("2026-11-02"),
            "a name goes before a time"
        );
        assert_eq!(choose("web@2027"), None);
    }

    #[test]
    fn half_a_name_is_refused() {
        for text in ["", "@latest", "web@"] {
            assert!(text.parse::<PointName>().is_err(), "{text:?}");
        }
        assert_eq!("a@b@latest".parse::<PointName>().unwrap().vm, "a@b");
    }
}
