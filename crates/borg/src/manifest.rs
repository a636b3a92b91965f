//! The manifest: the repository's root object, which lists the archives.

use jiff::{SignedDuration, Timestamp};

use crate::archive::ArchiveInfo;
use crate::crypto::{Context, Keys};
use crate::item::ITEM_KEYS;
use crate::msgpack::Value;
use crate::{ChunkId, Error, Name, Result, time};

/// Borg refuses manifests with more archives.
const MAX_ARCHIVES: usize = 400_000;

/// A verified manifest. Keys that this client does not know are kept and written back.
#[derive(Clone, Debug)]
pub struct Manifest {
    fields: Value,
    archives: Vec<ArchiveInfo>,
    timestamp: String,
}

impl Manifest {
    /// Reads a manifest's plain content and verifies its authentication, whose absence is an error if it is `required`.
    pub fn parse(keys: &Keys, data: &[u8], required: bool) -> Result<Self> {
        let error = |reason: &str| Error::damaged("manifest", reason);
        let fields = keys.verify(data, Context::Manifest, required)?;
        if !matches!(fields.get("version").and_then(Value::as_u64), Some(1)) {
            return Err(Error::Unsupported("a manifest of another version".to_owned()));
        }
        let timestamp = fields
            .get("timestamp")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let pairs = fields
            .get("archives")
            .and_then(Value::as_map)
            .ok_or_else(|| error("it lists no archives"))?;
        if pairs.len() > MAX_ARCHIVES {
            return Err(error("it lists too many archives"));
        }
        let mut archives = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            let name = name.as_raw().map(Name::from);
            let id = value
                .get("id")
                .and_then(Value::as_raw)
                .and_then(ChunkId::from_slice);
            let time = value.get("time").and_then(Value::as_str).and_then(time::parse);
            match (name, id, time) {
                (Some(name), Some(id), Some(time)) => archives.push(ArchiveInfo { name, id, time }),
                _ => return Err(error("an archive's entry is incomplete")),
            }
        }
        archives.sort_by(|a, b| (a.time, &a.name).cmp(&(b.time, &b.name)));
        Ok(Self {
            fields,
            archives,
            timestamp,
        })
    }

    /// The archives in the order of time.
    pub fn archives(&self) -> &[ArchiveInfo] {
        &self.archives
    }

    /// When it was written, as written.
    pub fn timestamp(&self) -> &str {
        &self.timestamp
    }

    /// Whether it says that manifests of this repository must be authenticated.
    pub fn tam_required(&self) -> bool {
        self.config()
            .and_then(|config| config.get("tam_required"))
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }

    fn config(&self) -> Option<&Value> {
        self.fields.get("config")
    }

    /// Refuses repositories that say they need an ability that this client does not have.
    pub fn check_features(&self, operations: &[&str]) -> Result<()> {
        let flags = self.config().and_then(|config| config.get("feature_flags"));
        for operation in operations {
            let mandatory = flags
                .and_then(|flags| flags.get(operation))
                .and_then(|flags| flags.get("mandatory"));
            if let Some(Value::Array(features)) = mandatory
                && let Some(feature) = features.first()
            {
                let name = Name::from(feature.as_raw().unwrap_or_default());
                return Err(Error::Unsupported(format!("feature {name} to {operation}")));
            }
        }
        Ok(())
    }

    /// The manifest with these archives as well, at a later time than before. Returns the packed form too.
    pub(crate) fn with_archives(
        &self,
        keys: &Keys,
        infos: &[ArchiveInfo],
        tam_required: bool,
        now: Timestamp,
        salt: &[u8; 64],
    ) -> Result<(Self, Vec<u8>)> {
        let count = self.archives.len() + infos.len();
        if count > MAX_ARCHIVES {
            let (size, limit) = (count as u64, MAX_ARCHIVES as u64);
            return Err(Error::TooLarge {
                what: "a list of archives",
                size,
                limit,
            });
        }
        let mut manifest = self.clone();
        let after_previous = time::parse(&self.timestamp)
            .and_then(|previous| previous.checked_add(SignedDuration::from_micros(1)).ok());
        manifest.timestamp = time::format(after_previous.map_or(now, |earliest| earliest.max(now)));
        manifest
            .fields
            .set("timestamp", manifest.timestamp.as_str().into());
        if let Value::Map(fields) = &mut manifest.fields
            && let Some((_, Value::Map(archives))) = fields
                .iter_mut()
                .find(|(key, _)| key.as_raw() == Some(b"archives"))
        {
            archives.extend(infos.iter().map(|info| {
                let entry = Value::map([
                    ("id", info.id.0.as_slice().into()),
                    ("time", time::format(info.time).as_str().into()),
                ]);
                (Value::from(info.name.as_bytes()), entry)
            }));
        }
        let mut config = self.config().cloned().unwrap_or_else(|| Value::Map(Vec::new()));
        if tam_required {
            config.set("tam_required", true.into());
        }
        manifest.fields.set("config", config);
        manifest.fields.set("item_keys", self.item_keys());
        manifest.archives.extend_from_slice(infos);
        let data = keys.authenticate(manifest.fields.clone(), Context::Manifest, salt)?;
        Ok((manifest, data))
    }

    /// The item keys that Borg's check shall accept: those listed before, and all of Borg 1.x.
    fn item_keys(&self) -> Value {
        let listed = self
            .fields
            .get("item_keys")
            .and_then(Value::as_array)
            .unwrap_or_default();
        let mut keys: Vec<&[u8]> = listed
            .iter()
            .filter_map(Value::as_raw)
            .chain(ITEM_KEYS.map(str::as_bytes))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        Value::Array(keys.into_iter().map(Value::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(keys: &Keys, config: Value) -> Manifest {
        let fields = Value::map([
            ("version", 1u64.into()),
            ("archives", Value::Map(Vec::new())),
            ("timestamp", "2030-01-01T00:00:00.000000".into()),
            ("config", config),
            ("future", 5u64.into()),
        ]);
        Manifest::parse(
            keys,
            &keys.authenticate(fields, Context::Manifest, &[1; 64]).unwrap(),
            true,
        )
        .unwrap()
    }

    #[test]
    fn time_moves_forward_even_if_the_clock_does_not() {
        let keys = Keys::plaintext();
        let before = manifest(&keys, Value::Map(Vec::new()));
        let now = time::parse("2026-01-01T00:00:00").unwrap();
        let info = ArchiveInfo {
            name: "a".into(),
            id: ChunkId([1; 32]),
            time: now,
        };
        let (after, data) = before
            .with_archives(&keys, std::slice::from_ref(&info), true, now, &[2; 64])
            .unwrap();
        assert_eq!(after.timestamp(), "2030-01-01T00:00:00.000001");
        let read = Manifest::parse(&keys, &data, true).unwrap();
        assert_eq!(read.archives(), [info]);
        assert!(read.tam_required());
        assert_eq!(read.fields.get("future"), Some(&Value::from(5u64)));
    }

    #[test]
    fn unknown_features_are_refused_for_what_needs_them() {
        let flags = Value::map([(
            "write",
            Value::map([("mandatory", Value::Array(vec!["magic".into()]))]),
        )]);
        let manifest = manifest(&Keys::plaintext(), Value::map([("feature_flags", flags)]));
        assert!(manifest.check_features(&["read"]).is_ok());
        assert!(matches!(
            manifest.check_features(&["read", "write"]),
            Err(Error::Unsupported(_))
        ));
    }
}
