//! Items: the files, directories and links of an archive.

use jiff::Timestamp;

use crate::msgpack::{Value, Writer};
use crate::{ChunkRef, Name};

/// All item keys of Borg 1.x.
pub(crate) const ITEM_KEYS: [&str; 23] = [
    "acl_access",
    "acl_default",
    "acl_extended",
    "acl_nfs4",
    "atime",
    "birthtime",
    "bsdflags",
    "chunks",
    "chunks_healthy",
    "ctime",
    "gid",
    "group",
    "hardlink_master",
    "mode",
    "mtime",
    "part",
    "path",
    "rdev",
    "size",
    "source",
    "uid",
    "user",
    "xattrs",
];

/// Type bits of a mode.
const TYPE_MASK: u32 = 0o170_000;
/// Type bits of a regular file.
const REGULAR: u32 = 0o100_000;

/// A file, directory, link or device in an archive.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// Path inside the archive. Never to be used as a path of the file system without thought.
    pub path: Name,
    /// Type and permissions, as `st_mode` has them.
    pub mode: u32,
    /// Owner's number.
    pub uid: Option<i64>,
    /// Group's number.
    pub gid: Option<i64>,
    /// Owner's name.
    pub user: Option<Name>,
    /// Group's name.
    pub group: Option<Name>,
    /// Time of the last change of content, in nanoseconds since 1970.
    pub mtime: i64,
    /// Time of the last access, in nanoseconds since 1970.
    pub atime: Option<i64>,
    /// Time of the last change of metadata, in nanoseconds since 1970.
    pub ctime: Option<i64>,
    /// Bytes of content.
    pub size: Option<u64>,
    /// The content. A hard link to an earlier item has none.
    pub chunks: Option<Vec<ChunkRef>>,
    /// The content as it was before `borg check --repair` put zeros in place of lost chunks.
    pub chunks_healthy: Option<Vec<ChunkRef>>,
    /// Target of a symbolic link, or path of the item that a hard link shares its content with.
    pub source: Option<Name>,
    /// Number of this part, if the item is a checkpoint's fragment of a file.
    pub part: Option<i64>,
    /// True if later items may be hard links to this one.
    pub hardlink_master: Option<bool>,
    /// Everything else, as it was read: extended attributes, ACLs, flags, device numbers.
    pub extra: Vec<(Name, Value)>,
}

impl Item {
    /// A regular file of root, changed now, readable and writable by its owner only.
    pub fn regular(path: &str, chunks: Vec<ChunkRef>) -> Self {
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        Self {
            path: path.into(),
            mode: REGULAR | 0o600,
            uid: Some(0),
            gid: Some(0),
            user: Some("root".into()),
            group: Some("root".into()),
            mtime: now,
            ctime: Some(now),
            size: Some(chunks.iter().map(|chunk| u64::from(chunk.size)).sum()),
            chunks: Some(chunks),
            hardlink_master: Some(false),
            ..Self::default()
        }
    }

    /// True for a regular file, hard links included.
    pub fn is_file(&self) -> bool {
        self.mode & TYPE_MASK == REGULAR
    }

    /// True for a fragment of a file that a checkpoint left behind; the whole file follows.
    pub fn is_part(&self) -> bool {
        self.part.is_some()
    }

    /// True for a regular file whose chunks are its true and whole content.
    pub fn is_intact(&self) -> bool {
        let size: Option<u64> = self
            .chunks
            .as_ref()
            .map(|chunks| chunks.iter().map(|c| u64::from(c.size)).sum());
        self.is_file()
            && !self.is_part()
            && self.chunks_healthy.is_none()
            && size.is_some()
            && self.size.is_none_or(|stated| Some(stated) == size)
    }

    /// Packs the item: everything up to the chunks, the chunks' entries, everything behind. Keys are sorted as stock
    /// Borg sorts them.
    pub(crate) fn pack(&self, mut out: impl FnMut(Part<'_>)) {
        let mut fields: Vec<(&[u8], Field<'_>)> = vec![
            (b"path", Field::Raw(&self.path)),
            (b"mode", Field::Int(self.mode.into())),
            (b"mtime", Field::Int(self.mtime.into())),
        ];
        let ints = [
            ("uid", self.uid),
            ("gid", self.gid),
            ("atime", self.atime),
            ("ctime", self.ctime),
            ("part", self.part),
        ];
        fields.extend(
            ints.iter()
                .filter_map(|(key, n)| Some((key.as_bytes(), Field::Int((*n)?.into())))),
        );
        // Borg writes nil for owners without a name.
        fields.extend(
            [("user", &self.user), ("group", &self.group)]
                .map(|(key, name)| (key.as_bytes(), name.as_ref().map_or(Field::Nil, Field::Raw))),
        );
        fields.extend(
            self.source
                .as_ref()
                .map(|source| (b"source".as_slice(), Field::Raw(source))),
        );
        fields.extend(
            self.size
                .map(|size| (b"size".as_slice(), Field::Int(size.into()))),
        );
        fields.extend(
            self.hardlink_master
                .map(|yes| (b"hardlink_master".as_slice(), Field::Bool(yes))),
        );
        fields.extend(
            self.chunks
                .as_ref()
                .map(|chunks| (b"chunks".as_slice(), Field::Chunks(chunks))),
        );
        fields.extend(
            self.chunks_healthy
                .as_ref()
                .map(|chunks| (b"chunks_healthy".as_slice(), Field::Chunks(chunks))),
        );
        fields.extend(
            self.extra
                .iter()
                .map(|(key, value)| (key.as_bytes(), Field::Value(value))),
        );
        fields.sort_by_key(|(key, _)| *key);

        let mut writer = Writer::default();
        writer.map_len(fields.len());
        for (key, field) in fields {
            writer.raw(key);
            match field {
                Field::Nil => writer.nil(),
                Field::Bool(yes) => writer.bool(yes),
                Field::Int(number) => writer.int(number),
                Field::Raw(bytes) => writer.raw(bytes.as_bytes()),
                Field::Value(value) => writer.value(value),
                Field::Chunks(chunks) => {
                    writer.array_len(chunks.len());
                    out(Part::Bytes(writer.take()));
                    out(Part::Chunks(chunks));
                }
            }
        }
        out(Part::Bytes(writer.into_bytes()));
    }
}

/// A part of a packed item.
pub(crate) enum Part<'a> {
    /// Packed bytes.
    Bytes(Vec<u8>),
    /// The entries of a chunk list, to be packed with [`pack_chunks`].
    Chunks(&'a [ChunkRef]),
}

enum Field<'a> {
    Nil,
    Bool(bool),
    Int(i128),
    Raw(&'a Name),
    Value(&'a Value),
    Chunks(&'a [ChunkRef]),
}

/// Packs entries of a chunk list, without the list's head.
pub(crate) fn pack_chunks(chunks: &[ChunkRef]) -> Vec<u8> {
    let mut writer = Writer::default();
    for chunk in chunks {
        writer.array_len(3);
        writer.raw(&chunk.id.0);
        writer.int(chunk.size.into());
        writer.int(chunk.csize.into());
    }
    writer.into_bytes()
}
