//! What was read of a repository's restore points before, so that only new ones have to be read: what is signed of each, by the id
//! of its archive's object, which is a digest with the repository's key over all that is in it. One file a repository in the
//! state directory; without it everything is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strongroom_base::record;

use super::Entry;
use crate::archive::Listed;
use crate::manifest::Manifest;
use crate::store::{ArchiveInfo, Repository};

/// The version of the file.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    archives: BTreeMap<String, Signed>,
}

/// What is signed of one restore point.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Signed {
    /// The time in the archive's own object.
    time: Timestamp,
    manifest: String,
    signature: Option<String>,
}

/// What is known of one repository.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    known: BTreeMap<String, Signed>,
    kept: BTreeMap<String, Signed>,
}

impl Cache {
    /// Reads what is there. A file that cannot be read, or is too large, is none.
    pub fn open(state: &Path, repository: &Repository) -> Self {
        let path = state.join("catalog").join(format!("{}.json", repository.id()));
        let content: Option<Content> = record::read_json(&path).ok().flatten();
        Self {
            path,
            known: content
                .filter(|content| content.version == VERSION)
                .map_or_else(BTreeMap::new, |content| content.archives),
            kept: BTreeMap::new(),
        }
    }

    /// What was read of an archive.
    pub fn get(&mut self, info: &ArchiveInfo) -> Option<Entry> {
        let id = info.id.to_string();
        let signed = self.known.get(&id)?.clone();
        let manifest = Manifest::parse(signed.manifest.as_bytes()).ok()?;
        let listed = Listed {
            name: info.name.clone(),
            times: [info.time, signed.time],
        };
        let (bytes, signature) = (signed.manifest.clone().into_bytes(), signed.signature.clone());
        self.kept.insert(id, signed);
        Some(Entry {
            info: info.clone(),
            link: Manifest::link(&bytes),
            manifest,
            bytes,
            signature: signature.map(String::into_bytes),
            listed,
        })
    }

    /// Takes note of what was read. What is not text is read again each time.
    pub fn add(&mut self, entry: &Entry) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let Some(manifest) = text(&entry.bytes) else {
            return;
        };
        let signature = match entry.signature.as_deref().map(text) {
            Some(None) => return,
            signature => signature.flatten(),
        };
        let signed = Signed {
            time: entry.listed.times[1],
            manifest,
            signature,
        };
        self.kept.insert(entry.info.id.to_string(), signed);
    }

    /// Keeps what there is, if that has changed. Where it cannot be kept, the next command reads more.
    pub fn keep(self) {
        if self.known.keys().eq(self.kept.keys()) {
            return;
        }
        let content = Content {
            version: VERSION,
            archives: self.kept,
        };
        if let Some(directory) = self.path.parent() {
            let _ = std::fs::create_dir(directory);
        }
        let _ = record::replace_json(&self.path, &content);
    }
}
