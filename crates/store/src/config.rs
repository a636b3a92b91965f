//! `config`: what a repository says about itself.
//!
//! The format is that of Python's `ConfigParser` without interpolation. Section `[repository]` has `version` (1),
//! `id` (64 hex digits), `segments_per_dir`, `max_segment_size`, and perhaps `append_only`, `storage_quota`,
//! `additional_free_space` and `key` (base64 in several lines). `borg check` and key changes rewrite the file,
//! so it is read at each opening.

use crate::{Error, Id, Result};

/// No `config` is longer; a key takes less than a kilobyte.
pub(crate) const MAX_LEN: u64 = 1 << 20;
/// Segments grow one entry beyond their limit, and offsets have 32 bits (Borg issue 3592).
const MAX_SEGMENT_SIZE: u64 = (1 << 32) - (20 << 20);

/// What a repository says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The repository's id.
    pub id: Id,
    /// How many segments share a directory.
    pub segments_per_dir: u32,
    /// A segment that is longer is closed before the next entry.
    pub max_segment_size: u64,
    /// True if nothing may ever be freed.
    pub append_only: bool,
    /// How many bytes may be stored; 0 for no limit.
    pub storage_quota: u64,
    /// How many bytes are to be left free beyond what a commit needs.
    pub additional_free_space: u64,
    /// The key blob, if it is kept in the repository.
    pub key: String,
}

impl Config {
    /// Reads the text of a `config`.
    pub fn parse(text: &str) -> Result<Self> {
        let values = Values::parse(text)?;
        let version = values.required("version")?;
        if version != "1" {
            return Err(Error::Unsupported(format!("repository version {version:?}")));
        }
        let segments_per_dir = values.required("segments_per_dir")?.parse().unwrap_or(0);
        if segments_per_dir == 0 {
            return Err(invalid("segments_per_dir"));
        }
        let max_segment_size = size("max_segment_size", values.required("max_segment_size")?)?;
        if max_segment_size >= MAX_SEGMENT_SIZE {
            return Err(invalid("max_segment_size"));
        }
        let optional_size = |name| values.get(name).map_or(Ok(0), |text| size(name, text));
        Ok(Self {
            id: id(values.required("id")?).ok_or_else(|| invalid("id"))?,
            segments_per_dir,
            max_segment_size,
            append_only: values.get("append_only").map_or(Ok(false), truth)?,
            storage_quota: optional_size("storage_quota")?,
            additional_free_space: optional_size("additional_free_space")?,
            key: values.get("key").unwrap_or_default().trim().to_owned(),
        })
    }
}

/// The options of section `[repository]`.
struct Values(Vec<(String, String)>);

impl Values {
    fn parse(text: &str) -> Result<Self> {
        let mut values: Vec<(String, String)> = Vec::new();
        let (mut inside, mut seen) = (false, false);
        for line in text.lines() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = values.last_mut()
                    && inside
                {
                    value.push('\n');
                    value.push_str(trimmed);
                }
            } else if let Some(section) = trimmed.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                inside = section.0 == "repository";
                seen |= inside;
            } else if inside {
                let (name, value) = trimmed
                    .split_once(['=', ':'])
                    .ok_or_else(|| Error::Config(format!("a line is no option: {trimmed:?}")))?;
                values.push((name.trim().to_lowercase(), value.trim().to_owned()));
            }
        }
        if seen {
            Ok(Self(values))
        } else {
            Err(Error::Config("it has no section [repository]".to_owned()))
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rfind(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn required(&self, name: &'static str) -> Result<&str> {
        self.get(name).ok_or_else(|| invalid(name))
    }
}

fn invalid(name: &'static str) -> Error {
    Error::Config(format!("{name} is missing or not valid"))
}

fn id(text: &str) -> Option<Id> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut id = [0; 32];
    for (byte, at) in id.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(Id(id))
}

/// A size in bytes, perhaps with a decimal suffix: `500000000`, `1.5G`.
fn size(name: &'static str, text: &str) -> Result<u64> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'M') => (&text[..text.len() - 1], 1e6),
        Some(b'G') => (&text[..text.len() - 1], 1e9),
        Some(b'T') => (&text[..text.len() - 1], 1e12),
        Some(b'P') => (&text[..text.len() - 1], 1e15),
        _ => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok((number * factor) as u64),
        _ => Err(invalid(name)),
    }
}

fn truth(text: &str) -> Result<bool> {
    match text.to_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Ok(true),
        "0" | "no" | "false" | "off" => Ok(false),
        _ => Err(invalid("append_only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = "[repository]\nversion = 1\nsegments_per_dir = 1000\nmax_segment_size = 524288000\n\
        append_only = 0\nstorage_quota = 0\nadditional_free_space = 0\n\
        id = 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n\
        key = hqlhbGdvcml0aG2mc2hhMjU2\n\tpGRhdGHaAZ6a==\n\n";

    #[test]
    fn a_config_of_stock_borg_is_read() {
        let config = Config::parse(STOCK).unwrap();
        assert_eq!(config.id.0[..4], [0x00, 0x11, 0x22, 0x33]);
        assert_eq!(
            (config.segments_per_dir, config.max_segment_size),
            (1000, 524_288_000)
        );
        assert_eq!((config.append_only, config.storage_quota), (false, 0));
        assert_eq!(config.key, "hqlhbGdvcml0aG2mc2hhMjU2\npGRhdGHaAZ6a==");
    }

    #[test]
    fn sizes_may_have_suffixes() {
        let config = Config::parse(&STOCK.replace("storage_quota = 0", "storage_quota = 1.5G")).unwrap();
        assert_eq!(config.storage_quota, 1_500_000_000);
        for text in ["", "x", "1k", "-1", "nan", "inf"] {
            assert!(size("storage_quota", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn options_that_may_be_missing_have_borgs_defaults() {
        let text: Vec<&str> = STOCK
            .lines()
            .filter(|line| {
                !["append", "storage", "additional"]
                    .iter()
                    .any(|name| line.starts_with(name))
            })
            .collect();
        let config = Config::parse(&text.join("\n")).unwrap();
        assert_eq!(config, Config::parse(STOCK).unwrap());
    }

    #[test]
    fn a_config_that_is_not_understood_is_refused() {
        for (from, to) in [
            ("[repository]", "[cache]"),
            ("id = 00", "id = 0"),
            ("id = 00", "id = é"),
            ("segments_per_dir = 1000", "segments_per_dir = 0"),
            ("max_segment_size = 524288000", "max_segment_size = 4294967295"),
            ("append_only = 0", "append_only = perhaps"),
            ("version = 1\n", ""),
        ] {
            let changed = STOCK.replace(from, to);
            assert_ne!(changed, STOCK);
            assert!(matches!(Config::parse(&changed), Err(Error::Config(_))), "{to:?}");
        }
        let newer = STOCK.replace("version = 1", "version = 2");
        assert!(matches!(Config::parse(&newer), Err(Error::Unsupported(_))));
    }
}
