//! From the client's words to those of the seam, and back.

use strongroom_borg as client;

use super::Compression;
use crate::store::{
    Archive, ArchiveInfo, ArchiveOptions, ChunkId, ChunkRef, Event, Item, Kind, Level, Name, StoreError,
};

/// An id.
pub fn id(id: client::ChunkId) -> ChunkId {
    ChunkId(id.0)
}

/// The same back.
pub fn id_back(id: ChunkId) -> client::ChunkId {
    client::ChunkId(id.0)
}

/// A chunk.
pub fn chunk(chunk: client::ChunkRef) -> ChunkRef {
    ChunkRef {
        id: id(chunk.id),
        size: chunk.size,
        stored: chunk.csize,
    }
}

/// The same back.
pub fn chunk_back(chunk: ChunkRef) -> client::ChunkRef {
    client::ChunkRef {
        id: id_back(chunk.id),
        size: chunk.size,
        csize: chunk.stored,
    }
}

fn name(name: &client::Name) -> Name {
    name.as_bytes().to_vec().into()
}

/// How an archive is listed.
pub fn info(info: &client::ArchiveInfo) -> ArchiveInfo {
    ArchiveInfo {
        name: name(&info.name),
        id: id(info.id),
        time: info.time,
    }
}

/// The same back.
pub fn info_back(info: &ArchiveInfo) -> client::ArchiveInfo {
    client::ArchiveInfo {
        name: info.name.as_bytes().into(),
        id: id_back(info.id),
        time: info.time,
    }
}

/// An archive.
pub fn archive(archive: &client::Archive) -> Archive {
    Archive {
        info: info(&archive.info),
        time: archive.time,
        authenticated: archive.authenticated,
        item_ids: archive.item_ids.iter().copied().map(id).collect(),
    }
}

/// As much of it as the client needs to find its items.
pub fn archive_back(archive: &Archive) -> client::Archive {
    client::Archive {
        info: info_back(&archive.info),
        comment: client::Name::default(),
        hostname: client::Name::default(),
        username: client::Name::default(),
        command_line: Vec::new(),
        time: archive.time,
        time_end: None,
        chunker_params: None,
        stats: None,
        authenticated: archive.authenticated,
        item_ids: archive.item_ids.iter().copied().map(id_back).collect(),
    }
}

/// A file in an archive.
pub fn item(item: client::Item) -> Item {
    Item {
        file: item.is_file(),
        part: item.is_part(),
        repaired: item.chunks_healthy.is_some(),
        intact: item.is_intact(),
        path: name(&item.path),
        chunks: item.chunks.map(|chunks| chunks.into_iter().map(chunk).collect()),
    }
}

/// A file that is to be written.
pub fn item_back(item: &Item) -> client::Item {
    let chunks = item.chunks.iter().flatten().copied().map(chunk_back).collect();
    client::Item::regular(item.path.as_str().unwrap_or_default(), chunks)
}

/// What a new archive says of itself.
pub fn options(options: &ArchiveOptions) -> client::ArchiveOptions {
    let Compression(compression) = options.compression;
    client::ArchiveOptions {
        started: options.started,
        compression,
        ..client::ArchiveOptions::new(&options.name)
    }
}

/// What is said; nothing for what this version does not know.
pub fn event(event: client::Event) -> Option<Event> {
    Some(match event {
        client::Event::Log { level, message } => Event::Log {
            level: match level {
                client::Level::Debug => Level::Debug,
                client::Level::Info => Level::Info,
                client::Level::Warning => Level::Warning,
                client::Level::Error => Level::Error,
            },
            message,
        },
        client::Event::Progress { message } => Event::Progress { message },
        _ => return None,
    })
}

impl From<client::Error> for StoreError {
    fn from(error: client::Error) -> Self {
        let kind = match &error {
            client::Error::NotFound { .. } => Kind::NotFound,
            client::Error::Replay { .. } => Kind::Replayed,
            client::Error::Doomed => Kind::Doomed,
            client::Error::Damaged { .. } => Kind::Damaged,
            client::Error::ObjectNotFound(_) => Kind::Missing,
            client::Error::TooLarge { .. } => Kind::TooLarge,
            client::Error::Unsupported(_) => Kind::Unsupported,
            error if error.is_connection_lost() => Kind::Lost,
            _ => Kind::Other,
        };
        Self::new(kind, error.to_string()).with_hint(error.hint())
    }
}
