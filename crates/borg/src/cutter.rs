//! Cutting the stream of items into pieces for storage.
//!
//! Borg accepts any cutting. Here a long chunk list is cut after every 512th entry, and the bytes before and after it go
//! elsewhere. So a file of which few chunks changed shares nearly all pieces with the archive before.

use crate::Item;
use crate::item::{Part, pack_chunks};

/// Entries of a chunk list in one piece, about 22 KiB.
pub(crate) const GROUP: usize = 512;

/// Everything else is cut at about this size.
const LOOSE: usize = 128 * 1024;

/// A piece never grows beyond what one packed value adds to this.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    loose: Vec<u8>,
}

impl Cutter {
    /// Adds an item and emits the pieces that are complete.
    pub fn add<E>(&mut self, item: &Item, mut emit: impl FnMut(Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let mut result = Ok(());
        item.pack(|part| {
            if result.is_ok() {
                result = self.part(part, &mut emit);
            }
        });
        result
    }

    fn part<E>(&mut self, part: Part<'_>, emit: &mut impl FnMut(Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        match part {
            Part::Bytes(bytes) => {
                self.loose.extend_from_slice(&bytes);
                if self.loose.len() >= LOOSE {
                    self.flush(emit)?;
                }
            }
            Part::Chunks(chunks) if chunks.len() < GROUP => self.loose.extend(pack_chunks(chunks)),
            Part::Chunks(chunks) => {
                self.flush(&mut *emit)?;
                for group in chunks.chunks(GROUP) {
                    emit(pack_chunks(group))?;
                }
            }
        }
        Ok(())
    }

    /// Emits what is left.
    pub fn flush<E>(&mut self, mut emit: impl FnMut(Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        if self.loose.is_empty() {
            Ok(())
        } else {
            emit(std::mem::take(&mut self.loose))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item_stream::ItemParser;
    use crate::msgpack::Value;
    use crate::{ChunkId, ChunkRef, Name};
    use proptest::prelude::*;

    fn pieces(items: &[Item]) -> Vec<Vec<u8>> {
        let (mut cutter, mut pieces) = (Cutter::default(), Vec::new());
        let mut emit = |piece| {
            pieces.push(piece);
            Ok::<_, ()>(())
        };
        for item in items {
            cutter.add(item, &mut emit).unwrap();
        }
        cutter.flush(&mut emit).unwrap();
        pieces
    }

    fn parse(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<Item> {
        let mut parser = ItemParser::default();
        pieces
            .into_iter()
            .for_each(|piece| parser.feed(piece.as_ref()).unwrap());
        parser.finish().unwrap();
        std::iter::from_fn(|| parser.next_item()).collect()
    }

    fn name() -> impl Strategy<Value = Name> {
        prop::collection::vec(any::<u8>(), 0..60).prop_map(Name::from)
    }

    fn chunks(most: usize) -> impl Strategy<Value = Vec<ChunkRef>> {
        let chunk = (any::<[u8; 32]>(), any::<u32>(), any::<u32>());
        prop::collection::vec(chunk, 0..most).prop_map(|list| {
            list.into_iter()
                .map(|(id, size, csize)| ChunkRef {
                    id: ChunkId(id),
                    size,
                    csize,
                })
                .collect()
        })
    }

    prop_compose! {
        fn item()(
            path in name(), mode in any::<u32>(), numbers in any::<[Option<i64>; 5]>(), names in (prop::option::of(name()), prop::option::of(name()), prop::option::of(name())),
            mtime in any::<i64>(), size in any::<Option<u64>>(), chunks in prop::option::of(chunks(1300)), healthy in prop::option::of(chunks(4)),
            hardlink_master in any::<Option<bool>>(), extra in any::<Option<u64>>(),
        ) -> Item {
            let [uid, gid, atime, ctime, part] = numbers;
            Item {
                path, mode, uid, gid, user: names.0, group: names.1, mtime, atime, ctime, size, chunks, chunks_healthy: healthy,
                source: names.2, part, hardlink_master, extra: extra.map(|n| (Name::from("rdev"), Value::from(n))).into_iter().collect(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn items_round_trip_however_the_stream_is_cut(items in prop::collection::vec(item(), 0..4), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
            let pieces = pieces(&items);
            prop_assert_eq!(&parse(&pieces), &items);
            let stream = pieces.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).chain([0, stream.len()]).collect();
            cuts.sort_unstable();
            prop_assert_eq!(&parse(cuts.windows(2).map(|range| &stream[range[0]..range[1]])), &items);
            prop_assert_eq!(&parse(stream.chunks(7)), &items);
        }

        #[test]
        fn arbitrary_streams_never_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..10)) {
            let mut parser = ItemParser::default();
            let _ = pieces.iter().try_for_each(|piece| parser.feed(piece)).and_then(|()| parser.finish());
        }
    }

    #[test]
    fn one_changed_chunk_changes_one_piece() {
        let chunk = |n: u32| ChunkRef {
            id: ChunkId([n as u8; 32]),
            size: n,
            csize: n,
        };
        let mut item = Item {
            path: "disk".into(),
            chunks: Some((0..5000).map(chunk).collect()),
            ..Item::default()
        };
        let before = pieces(std::slice::from_ref(&item));
        item.chunks.as_mut().unwrap()[2000] = chunk(77);
        let after = pieces(std::slice::from_ref(&item));
        assert_eq!(before.len(), 12);
        assert_eq!(before.iter().zip(&after).filter(|(a, b)| a != b).count(), 1);
    }

    #[test]
    fn an_unfinished_stream_is_an_error() {
        let stream = pieces(&[Item {
            path: "x".into(),
            ..Item::default()
        }])
        .concat();
        for len in 1..stream.len() {
            let mut parser = ItemParser::default();
            assert!(
                parser
                    .feed(&stream[..len])
                    .and_then(|()| parser.finish())
                    .is_err(),
                "{len}"
            );
        }
    }
}
