//! The JSON area of a LUKS2 header (LUKS2 On-Disk Format Specification 1.1, section 3).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Kdf, KeySlot, Luks, MOST, Pin, Segment, Token, cut};

/// The part that is looked at. Numbers are the names of slots, tokens and segments.
#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    keyslots: BTreeMap<String, Value>,
    #[serde(default)]
    tokens: BTreeMap<String, Value>,
    #[serde(default)]
    segments: BTreeMap<String, Value>,
    #[serde(default)]
    digests: BTreeMap<String, Value>,
    #[serde(default)]
    config: Value,
}

impl Luks {
    /// Adds what the area says as JSON; what is not understood is left out.
    pub(super) fn with_json(self, json: &Value) -> Self {
        let Ok(json) = Json::deserialize(json) else {
            return self;
        };
        Self {
            digests: json
                .digests
                .values()
                .take(MOST)
                .map(|digest| word(digest, "digest"))
                .collect(),
            slots: numbered(&json.keyslots)
                .filter_map(|(number, slot)| key_slot(number, slot))
                .collect(),
            tokens: numbered(&json.tokens)
                .map(|(_, token)| self::token(token))
                .collect(),
            segments: numbered(&json.segments)
                .filter_map(|(_, segment)| self::segment(segment))
                .collect(),
            flags: words(&json.config, "/flags"),
            requirements: words(&json.config, "/requirements/mandatory"),
            ..self
        }
    }
}

/// Entries in the order of their numbers. What is not numbered comes last, as number [`u32::MAX`].
fn numbered(entries: &BTreeMap<String, Value>) -> impl Iterator<Item = (u32, &Value)> {
    let mut sorted: Vec<_> = entries
        .iter()
        .take(MOST)
        .map(|(name, entry)| (name.parse().unwrap_or(u32::MAX), entry))
        .collect();
    sorted.sort_by_key(|(number, _)| *number);
    sorted.into_iter()
}

fn key_slot(number: u32, slot: &Value) -> Option<KeySlot> {
    // The slots of a re-encryption under way hold no key.
    if word(slot, "type") != "luks2" {
        return None;
    }
    let kdf = slot.get("kdf")?;
    let count = |name| kdf.get(name).and_then(Value::as_u64).unwrap_or(0);
    let kdf = match word(kdf, "type").as_str() {
        "pbkdf2" => Kdf::Pbkdf2 {
            hash: word(kdf, "hash"),
            iterations: count("iterations"),
        },
        variant @ ("argon2i" | "argon2id") => Kdf::Argon2 {
            variant: variant.to_owned(),
            time: count("time"),
            memory: count("memory"),
            cpus: count("cpus"),
        },
        other => Kdf::Other(other.to_owned()),
    };
    let bytes = slot.get("key_size").and_then(Value::as_u64).unwrap_or(0);
    Some(KeySlot {
        number,
        key_bits: u32::try_from(bytes).unwrap_or(0).saturating_mul(8),
        kdf,
    })
}

fn token(token: &Value) -> Token {
    let kind = word(token, "type");
    let slots = token.get("keyslots").and_then(Value::as_array);
    Token {
        slots: slots
            .into_iter()
            .flatten()
            .take(MOST)
            .filter_map(|slot| slot.as_str()?.parse().ok())
            .collect(),
        pin: token
            .get("jwe")
            .filter(|_| kind == "clevis")
            .and_then(Pin::of_jwe),
        kind,
    }
}

fn segment(segment: &Value) -> Option<Segment> {
    let number = |name| segment.get(name).and_then(Value::as_str)?.parse().ok();
    let cipher = (word(segment, "type") == "crypt").then(|| word(segment, "encryption"));
    Some(Segment {
        offset: number("offset")?,
        length: number("size"),
        cipher,
    })
}

fn words(value: &Value, pointer: &str) -> Vec<String> {
    let found = value.pointer(pointer).and_then(Value::as_array);
    let texts = found.into_iter().flatten().filter_map(Value::as_str);
    texts.take(MOST).map(cut).collect()
}

fn word(value: &Value, name: &str) -> String {
    cut(value.get(name).and_then(Value::as_str).unwrap_or_default())
}
