//! The table against a plain map, and against bytes that are no table.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// An id whose place in a table is `start`, told apart from others by `rest`.
fn id(start: u32, rest: u8) -> Id {
    let mut id = [rest; 32];
    id[..4].copy_from_slice(&start.to_le_bytes());
    Id(id)
}

fn place(number: u32) -> Place {
    Place {
        segment: number / 100,
        offset: 8 + number,
    }
}

#[test]
fn a_new_index_is_borgs_smallest_table() {
    let mut index = Index::new();
    assert_eq!(index.as_bytes().len(), 18 + 1031 * 40);
    assert_eq!(&index.as_bytes()[..18], b"BORG_IDX\0\0\0\0\x07\x04\0\0\x20\x08");
    assert_eq!(index.get(&Id::MANIFEST), None);
}

#[test]
fn ids_that_begin_alike_are_told_apart() {
    let mut index = Index::new();
    for rest in 0..200 {
        index.insert(&id(1030, rest), place(rest.into())).unwrap();
    }
    for rest in 0..200 {
        assert_eq!(index.get(&id(1030, rest)), Some(place(rest.into())));
    }
    assert_eq!(index.get(&id(1030, 200)), None);
}

#[test]
fn a_table_grows_and_shrinks_where_borgs_does() {
    let mut index = Index::new();
    for n in 0..774 {
        index.insert(&id(n * 7, 1), place(n)).unwrap();
    }
    assert_eq!(index.file_len(), 18 + 1031 * 40);
    index.insert(&id(774 * 7, 1), place(774)).unwrap();
    assert_eq!(index.file_len(), 18 + 2053 * 40);
    for n in 0..262 {
        index.remove(&id(n * 7, 1)).unwrap();
    }
    assert_eq!((index.len(), index.file_len()), (513, 18 + 2053 * 40));
    index.remove(&id(262 * 7, 1)).unwrap();
    assert_eq!((index.len(), index.file_len()), (512, 18 + 1031 * 40));
}

#[test]
fn a_table_never_runs_out_of_empty_buckets() {
    let mut index = Index::new();
    for n in 0..20_000 {
        index.insert(&id(n * 31, 9), place(n)).unwrap();
        index.remove(&id(n * 31, 9)).unwrap();
    }
    let empty = index.bytes[HEADER..]
        .chunks(BUCKET)
        .filter(|bucket| word(bucket, 32) == EMPTY);
    assert!(empty.count() > 72);
    assert_eq!(index.file_len(), 18 + 1031 * 40);
}

#[test]
fn a_search_ends_in_a_table_without_empty_buckets() {
    let mut bytes = Index::new().as_bytes().to_vec();
    for bucket in bytes[HEADER..].chunks_mut(BUCKET) {
        bucket[32..36].copy_from_slice(&DELETED.to_le_bytes());
    }
    let mut index = Index::from_bytes(bytes).unwrap();
    assert_eq!(index.get(&id(5, 5)), None);
    index.insert(&id(5, 5), place(5)).unwrap();
    assert_eq!(index.get(&id(5, 5)), Some(place(5)));
}

#[test]
fn what_is_no_table_is_refused() {
    let good = Index::new().as_bytes().to_vec();
    let change = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Index::from_bytes(bytes).err()
    };
    assert_eq!(change(0, b'b'), Some("it is no index"));
    assert_eq!(change(16, 33), Some("its keys or values have another size"));
    assert_eq!(change(8, 1), Some("its header has another number of entries"));
    assert_eq!(change(12, 8), Some("its length does not fit its header"));
    assert_eq!(change(15, 0x80), Some("its length does not fit its header"));
    assert_eq!(change(18 + 32, 0xfd), Some("it names a segment that cannot be"));
    assert!(Index::from_bytes(good[..good.len() - 1].to_vec()).is_err());
    assert!(Index::from_bytes(Vec::new()).is_err());
}

#[test]
fn the_list_goes_on_behind_any_object() {
    let mut index = Index::new();
    for n in 0..50 {
        index.insert(&id(n * 97, 3), place(n)).unwrap();
    }
    let all: Vec<_> = index.iter().collect();
    for (n, (id, _)) in all.iter().enumerate() {
        assert_eq!(index.iter_after(id).unwrap().collect::<Vec<_>>(), all[n + 1..]);
    }
    assert!(index.iter_after(&id(1, 4)).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_table_holds_what_a_map_holds(steps in prop::collection::vec((0..3000_u32, any::<bool>()), 0..3000)) {
        let (mut index, mut model) = (Index::new(), HashMap::new());
        for (n, (key, put)) in steps.into_iter().enumerate() {
            let key = id(key / 3 * 5, (key % 3) as u8);
            if put {
                index.insert(&key, place(n as u32)).unwrap();
                model.insert(key, place(n as u32));
            } else {
                prop_assert_eq!(index.remove(&key), model.remove(&key));
            }
        }
        prop_assert_eq!(index.len(), model.len());
        let read = Index::from_bytes(index.as_bytes().to_vec()).unwrap();
        prop_assert_eq!(read.empty, index.empty);
        prop_assert_eq!(read.iter().collect::<HashMap<_, _>>(), model);
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..400), buckets in 0..9_u32) {
        if bytes.len() >= HEADER {
            bytes[..8].copy_from_slice(MAGIC);
            bytes[12..16].copy_from_slice(&buckets.to_le_bytes());
            bytes[16..18].copy_from_slice(&[32, 8]);
            bytes.truncate(HEADER + buckets as usize * BUCKET);
        }
        if let Ok(mut index) = Index::from_bytes(bytes) {
            let _ = index.get(&Id::MANIFEST);
            index.insert(&Id::MANIFEST, place(1)).unwrap();
            prop_assert_eq!(index.get(&Id::MANIFEST), Some(place(1)));
        }
    }
}
