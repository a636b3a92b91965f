//! One entry for each parser of data that comes from a repository or its server, for fuzzers.

use crate::archive::{Archive, ArchiveInfo};
use crate::crypto::Keys;
use crate::item_stream::ItemParser;
use crate::manifest::Manifest;
use crate::msgpack::Value;
use crate::rpc::wire;
use crate::{ChunkId, compress, crypto};

/// The envelope of an object, with decompression.
pub fn object(bytes: &[u8]) {
    let _ = Keys::plaintext().open(&ChunkId::MANIFEST, bytes, 0);
    let _ = compress::decompress(bytes, 0);
}

/// Any msgpack value; what is readable survives a round trip.
pub fn msgpack(bytes: &[u8]) {
    if let Ok(value) = Value::unpack(bytes) {
        let again = Value::unpack(&value.pack());
        assert!(again.is_ok_and(|again| format!("{again:?}") == format!("{value:?}")));
    }
}

/// The manifest.
pub fn manifest(bytes: &[u8]) {
    let _ = Manifest::parse(&Keys::plaintext(), bytes, false);
}

/// An archive's object.
pub fn archive(bytes: &[u8]) {
    let info = ArchiveInfo {
        name: "a".into(),
        id: ChunkId::MANIFEST,
        time: jiff::Timestamp::UNIX_EPOCH,
    };
    let _ = Archive::parse(&Keys::plaintext(), &info, bytes);
}

/// A stream of items, in pieces whose length is the first byte.
pub fn items(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let mut parser = ItemParser::default();
    for piece in rest.chunks(usize::from(*first).max(1)) {
        if parser.feed(piece).is_err() {
            return;
        }
    }
    let _ = parser.finish();
    while parser.next_item().is_some() {}
}

/// A key blob.
pub fn key_blob(bytes: &[u8]) {
    let _ = crypto::parse_blob(bytes);
}

/// A reply of the server.
pub fn reply(bytes: &[u8]) {
    if let Ok(len) = wire::message_len(bytes) {
        let _ = wire::parse_reply(bytes.get(..len).unwrap_or_default());
    }
}
