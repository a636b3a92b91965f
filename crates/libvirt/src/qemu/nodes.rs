//! What QEMU's monitor says about drives, block nodes and jobs (`qapi/block-core.json`, `qapi/job.json`).

use std::path::PathBuf;

use serde_json::Value;

/// Most entries of one list that are looked at: far more than a domain can have.
const MAX_ENTRIES: usize = 16_384;

/// Deepest `json:` description of a file that is followed.
const MAX_DEPTH: usize = 8;

/// A drive of the guest and the images behind it.
#[derive(Debug, PartialEq, Eq)]
pub struct Drive {
    /// The device's place in QEMU's object tree, or its id.
    pub device: String,
    /// Name of the node that the guest uses, filters of running jobs left out.
    pub node: String,
    /// The image that is written to and its backing files. Empty where it is not a file or block device.
    pub images: Vec<PathBuf>,
    /// The persistent dirty bitmaps of the image that is written to.
    pub bitmaps: Vec<Bitmap>,
}

/// A persistent dirty bitmap.
#[derive(Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// It is consistent and records.
    pub sound: bool,
}

impl Drive {
    /// Whether it is the device with this alias: the id itself, or a step on the way to it.
    pub fn is(&self, alias: &str) -> bool {
        !alias.is_empty() && self.device.split('/').any(|step| step == alias)
    }
}

/// Reads the answer to `query-block`. Drives without a medium are left out.
pub fn drives(answer: &Value) -> Result<Vec<Drive>, String> {
    let mut drives = Vec::new();
    for drive in list(answer)? {
        let Some(inserted) = drive.get("inserted") else {
            continue;
        };
        drives.push(Drive {
            device: text(drive, "qdev").unwrap_or_default().to_owned(),
            node: text(inserted, "node-name").unwrap_or_default().to_owned(),
            images: images(inserted.get("image")),
            bitmaps: bitmaps(inserted.get("dirty-bitmaps")),
        });
    }
    Ok(drives)
}

fn bitmaps(list: Option<&Value>) -> Vec<Bitmap> {
    let list = list.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let is = |bitmap: &Value, key| bitmap.get(key).and_then(Value::as_bool).unwrap_or_default();
    list.iter()
        .take(MAX_ENTRIES)
        .filter(|bitmap| is(bitmap, "persistent"))
        .filter_map(|bitmap| {
            Some(Bitmap {
                name: text(bitmap, "name")?.to_owned(),
                sound: is(bitmap, "recording") && !is(bitmap, "inconsistent"),
            })
        })
        .collect()
}

/// Filters (of jobs, of throttling) stand in the chain under the name of the file below them, so a name that comes
/// twice in a row is one image.
fn images(top: Option<&Value>) -> Vec<PathBuf> {
    let mut images: Vec<PathBuf> = Vec::new();
    let mut at = top;
    while let Some(image) = at {
        let Some(file) = text(image, "filename").and_then(file) else {
            break;
        };
        if images.last() != Some(&file) {
            images.push(file);
        }
        at = image.get("backing-image");
    }
    images
}

/// A block node.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its driver (`qcow2`, `file`, `mirror_top`).
    pub driver: String,
    /// The file or block device below it, if that is what is there.
    pub file: Option<PathBuf>,
}

impl Node {
    /// Whether it is the file itself, on which the node of a format stands.
    pub fn is_storage(&self) -> bool {
        matches!(self.driver.as_str(), "file" | "host_device")
    }
}

/// Reads the answer to `query-named-block-nodes`.
pub fn nodes(answer: &Value) -> Result<Vec<Node>, String> {
    let node = |node| Node {
        name: text(node, "node-name").unwrap_or_default().to_owned(),
        driver: text(node, "drv").unwrap_or_default().to_owned(),
        file: text(node, "file").and_then(file),
    };
    Ok(list(answer)?.iter().map(node).collect())
}

/// A job.
#[derive(Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name, which its starter has chosen.
    pub id: String,
    /// `running`, `ready`, `concluded` and the like.
    pub status: String,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Job {
    /// Whether it is on the disk with this target: libvirt names its jobs `KIND-TARGET-NODE`.
    pub fn is_on(&self, target: &str) -> bool {
        self.id
            .split_once('-')
            .and_then(|(_, rest)| rest.split_once('-'))
            .is_some_and(|(on, _)| on == target)
    }
}

/// Reads the answer to `query-jobs`.
pub fn jobs(answer: &Value) -> Result<Vec<Job>, String> {
    let job = |job| Job {
        id: text(job, "id").unwrap_or_default().to_owned(),
        status: text(job, "status").unwrap_or_default().to_owned(),
        error: text(job, "error").map(str::to_owned),
    };
    Ok(list(answer)?.iter().map(job).collect())
}

fn list(answer: &Value) -> Result<&[Value], String> {
    let list = answer.as_array().ok_or("QEMU did not answer with a list")?;
    if list.len() > MAX_ENTRIES {
        return Err(format!("QEMU answered with more than {MAX_ENTRIES} entries"));
    }
    Ok(list)
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// The path in QEMU's name for a file. Where a plain name cannot say everything the name is `json:` and a
/// description; a name with a colon has a prefix. Everything that is not an absolute path is no file.
fn file(name: &str) -> Option<PathBuf> {
    let path = match name.strip_prefix("json:") {
        Some(description) => described(&serde_json::from_str(description).ok()?)?,
        None => name.strip_prefix("file:").unwrap_or(name).to_owned(),
    };
    Some(PathBuf::from(path)).filter(|path| path.is_absolute())
}

fn described(description: &Value) -> Option<String> {
    let mut at = description;
    for _ in 0..MAX_DEPTH {
        if let Some(name) = text(at, "filename").or_else(|| text(at, "file.filename")) {
            return Some(name.to_owned());
        }
        at = at.get("file")?;
    }
    None
}

#[cfg(test)]
mod tests;
