//! Archives: what the manifest and the archive's own object say about them.

use jiff::Timestamp;

use crate::crypto::{Context, Keys};
use crate::msgpack::Value;
use crate::{ChunkId, Error, Name, Result, time};

/// An archive as the manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveInfo {
    /// Its name, unique in the repository.
    pub name: Name,
    /// Id of its object. `borg check --repair` and `borg recreate` change it.
    pub id: ChunkId,
    /// When it was begun.
    pub time: Timestamp,
}

/// How an archive's files were cut into chunks.
#[derive(Clone, Debug, PartialEq)]
pub enum ChunkerParams {
    /// Blocks of one size, maybe after a header of another size.
    Fixed {
        /// Bytes of a block.
        block_size: u64,
        /// Bytes before the first block.
        header_size: u64,
    },
    /// Any other chunker, as Borg describes it.
    Other(Value),
}

impl ChunkerParams {
    fn parse(value: &Value) -> Self {
        let parts = value.as_array().unwrap_or_default();
        let number = |at: usize| parts.get(at).and_then(Value::as_u64);
        match (parts.first().and_then(Value::as_str), number(1)) {
            (Some("fixed"), Some(block_size)) => Self::Fixed {
                block_size,
                header_size: number(2).unwrap_or(0),
            },
            _ => Self::Other(value.clone()),
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Fixed {
                block_size,
                header_size,
            } => Value::Array(vec!["fixed".into(), (*block_size).into(), (*header_size).into()]),
            Self::Other(value) => value.clone(),
        }
    }
}

/// Borg's statistics of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of all files' contents.
    pub size: u64,
    /// Bytes of all files' chunks as stored, each reference counted.
    pub csize: u64,
    /// Number of regular files.
    pub files: u64,
}

/// A verified archive object.
#[derive(Clone, Debug, PartialEq)]
pub struct Archive {
    /// Its entry in the manifest.
    pub info: ArchiveInfo,
    /// The comment.
    pub comment: Name,
    /// Where it was made.
    pub hostname: Name,
    /// Who made it.
    pub username: Name,
    /// The command that made it.
    pub command_line: Vec<Name>,
    /// When it was begun.
    pub time: Timestamp,
    /// When it was finished.
    pub time_end: Option<Timestamp>,
    /// How files were cut.
    pub chunker_params: Option<ChunkerParams>,
    /// Statistics; archives from before Borg 1.2 have none.
    pub stats: Option<Stats>,
    /// Whether the archive's own authentication code verifies.
    pub authenticated: bool,
    /// Ids of the pieces that hold the items.
    pub item_ids: Vec<ChunkId>,
}

impl Archive {
    /// Reads an archive object's plain content.
    ///
    /// Its own authentication may be missing (Borg before 1.0.9) or outdated (`borg rename` before 1.2.5). That is told by
    /// [`Archive::authenticated`] and is no error: the id that the content was verified against comes from the manifest,
    /// whose authentication was verified.
    pub fn parse(keys: &Keys, info: &ArchiveInfo, data: &[u8]) -> Result<Self> {
        let error = |reason: &str| Error::damaged(format!("archive {}", info.name), reason);
        let (value, authenticated) = match keys.verify(data, Context::Archive, true) {
            Ok(value) => (value, true),
            Err(_) => (
                Value::unpack(data).map_err(|_| error("it is not valid msgpack"))?,
                false,
            ),
        };
        if value.get("version").and_then(Value::as_u64) != Some(1) {
            return Err(Error::Unsupported("an archive of another version".to_owned()));
        }
        let raw = |key: &str| value.get(key).and_then(Value::as_raw);
        let name = |key: &str| Name::from(raw(key).unwrap_or_default());
        let moment = |key: &str| value.get(key).and_then(Value::as_str).and_then(time::parse);
        let number = |key: &str| value.get(key).and_then(Value::as_u64);
        let list = |key: &str| value.get(key).and_then(Value::as_array);
        if raw("name") != Some(info.name.as_bytes()) {
            return Err(error("it bears another name than in the manifest"));
        }
        let ids = list("items").ok_or_else(|| error("it lists no items"))?.iter();
        let item_ids: Option<Vec<_>> = ids.map(|id| id.as_raw().and_then(ChunkId::from_slice)).collect();
        let stats = match (number("size"), number("csize"), number("nfiles")) {
            (Some(size), Some(csize), Some(files)) => Some(Stats { size, csize, files }),
            _ => None,
        };
        Ok(Self {
            info: info.clone(),
            comment: name("comment"),
            hostname: name("hostname"),
            username: name("username"),
            command_line: list("cmdline")
                .unwrap_or_default()
                .iter()
                .filter_map(Value::as_raw)
                .map(Name::from)
                .collect(),
            time: moment("time").ok_or_else(|| error("it has no time"))?,
            time_end: moment("time_end"),
            chunker_params: value.get("chunker_params").map(ChunkerParams::parse),
            stats,
            authenticated,
            item_ids: item_ids.ok_or_else(|| error("an item's id is not of 32 bytes"))?,
        })
    }

    /// Packs and authenticates the archive object; `info.id` is not part of it.
    pub(crate) fn pack(&self, keys: &Keys, salt: &[u8; 64]) -> Result<Vec<u8>> {
        let stats = self.stats.unwrap_or_default();
        let text = |name: &Name| Value::from(name.as_bytes());
        let mut value = Value::map([
            ("version", 1u64.into()),
            ("name", text(&self.info.name)),
            ("comment", text(&self.comment)),
            ("hostname", text(&self.hostname)),
            ("username", text(&self.username)),
            (
                "cmdline",
                Value::Array(self.command_line.iter().map(text).collect()),
            ),
            ("time", time::format(self.time).as_str().into()),
            (
                "time_end",
                time::format(self.time_end.unwrap_or(self.time)).as_str().into(),
            ),
            (
                "items",
                Value::Array(self.item_ids.iter().map(|id| id.0.as_slice().into()).collect()),
            ),
            ("size", stats.size.into()),
            ("csize", stats.csize.into()),
            ("nfiles", stats.files.into()),
            ("size_parts", 0u64.into()),
            ("csize_parts", 0u64.into()),
            ("nfiles_parts", 0u64.into()),
        ]);
        if let Some(params) = &self.chunker_params {
            value.set("chunker_params", params.to_value());
        }
        keys.authenticate(value, Context::Archive, salt)
    }
}
