//! Properties of the parsers of whatever a repository or a server may contain.

use proptest::prelude::*;
use strongroom_borg::msgpack::{DecodeError, MAX_DEPTH, Reader, Value};
use strongroom_borg::{ChunkId, Location, Name, fuzzing};

const ENTRIES: [fn(&[u8]); 7] = [
    fuzzing::object,
    fuzzing::msgpack,
    fuzzing::manifest,
    fuzzing::archive,
    fuzzing::items,
    fuzzing::key_blob,
    fuzzing::reply,
];

fn every_parser(bytes: &[u8]) {
    for entry in ENTRIES {
        entry(bytes);
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-70_000i64..70_000).prop_map(Value::from),
        any::<f64>()
            .prop_filter("equal to itself", |n| !n.is_nan())
            .prop_map(Value::Float),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::Raw),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
            prop::collection::vec((inner.clone(), inner), 0..20).prop_map(Value::Map),
        ]
    })
}

/// Bytes that look like the real thing: a map with Borg's keys and values of any kind.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let keys = [
        "version",
        "archives",
        "timestamp",
        "config",
        "item_keys",
        "tam",
        "type",
        "hmac",
        "salt",
        "name",
        "items",
        "time",
        "path",
        "mtime",
        "chunks",
        "chunks_healthy",
        "i",
        "r",
        "exception_class",
        "exception_args",
        "mode",
        "algorithm",
        "iterations",
        "hash",
        "data",
        "size",
        "chunker_params",
    ];
    let key = prop::sample::select(keys.to_vec()).prop_map(Value::from);
    prop::collection::vec((key, value()), 0..12).prop_map(|pairs| Value::Map(pairs).pack())
}

proptest! {
    #[test]
    fn values_round_trip(value in value()) {
        prop_assert_eq!(Value::unpack(&value.pack()).unwrap(), value);
    }

    #[test]
    fn old_specification_only(value in value()) {
        // The first byte tells the type; str8, bin and extension types are never written.
        let first = value.pack()[0];
        prop_assert!(!matches!(first, 0xc1 | 0xc4..=0xc9 | 0xd4..=0xd9));
    }

    #[test]
    fn a_cut_value_is_incomplete_and_says_at_most_what_is_missing(value in value(), cut in any::<prop::sample::Index>()) {
        let packed = value.pack();
        let len = cut.index(packed.len());
        match Reader::new(&packed[..len]).skip() {
            Err(DecodeError::Incomplete(missing)) => prop_assert!((1..=packed.len() - len).contains(&missing)),
            other => prop_assert!(false, "{:?}", other),
        }
        let mut reader = Reader::new(&packed);
        prop_assert!(reader.skip().is_ok() && reader.remaining().is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        every_parser(&bytes);
    }

    #[test]
    fn likely_bytes_never_panic(bytes in likely(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), flip in any::<u8>()) {
        let mut bytes = bytes;
        every_parser(&bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        every_parser(&bytes);
        every_parser(&bytes[..cut.index(bytes.len())]);
        // The stream of items has its cutting in front, an object its type and compression.
        fuzzing::items(&[&[7][..], &bytes].concat());
        fuzzing::object(&[&[2, 0, 0][..], &bytes].concat());
    }

    #[test]
    fn displayed_names_are_harmless_and_distinct(a in prop::collection::vec(any::<u8>(), 0..40), b in prop::collection::vec(any::<u8>(), 0..40)) {
        let (shown_a, shown_b) = (Name::from(a.clone()).to_string(), Name::from(b.clone()).to_string());
        prop_assert!(!shown_a.contains(char::is_control));
        prop_assert_eq!(a == b, shown_a == shown_b);
    }

    #[test]
    fn ids_round_trip(id in any::<[u8; 32]>()) {
        prop_assert_eq!(ChunkId(id).to_string().parse::<ChunkId>().unwrap(), ChunkId(id));
    }

    #[test]
    fn arbitrary_texts_are_no_panic_as_location_or_id(text in ".*") {
        let _ = text.parse::<ChunkId>();
        if let Ok(location) = text.parse::<Location>() {
            // What is displayed means the same.
            prop_assert_eq!(location.to_string().parse::<Location>().unwrap().canonical(), location.canonical());
        }
    }
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
    assert!(Value::unpack(&nested(MAX_DEPTH)).is_ok());
    for bytes in [nested(MAX_DEPTH + 1), vec![0x91; 1 << 20], vec![0x81; 1 << 20]] {
        assert!(matches!(Value::unpack(&bytes), Err(DecodeError::Invalid(_))));
        assert!(matches!(Reader::new(&bytes).skip(), Err(DecodeError::Invalid(_))));
    }
}

#[test]
fn announced_lengths_reserve_nothing() {
    for head in [
        [0xdd, 0xff, 0xff, 0xff, 0xff],
        [0xdf, 0xff, 0xff, 0xff, 0xff],
        [0xdb, 0xff, 0xff, 0xff, 0xff],
    ] {
        assert!(matches!(Value::unpack(&head), Err(DecodeError::Incomplete(_))));
    }
}
