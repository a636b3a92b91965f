//! What an image rests on, by its own header and those of the images below it.
//!
//! The format of the top image is the one in its definition; that of one below is what the header above says. Nothing is
//! probed: an image whose format is not stated is counted, but not looked into, as its first bytes may be a guest's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use strongroom_hypervisor::{Store, Use};
use strongroom_nbd::Header;

/// Images that are followed below one.
const DEEPEST: usize = 256;

/// Something that an image rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// Where it lies.
    pub store: Store,
    /// Its format, as the header above says.
    pub format: Option<String>,
    /// Writes to the image go to it: its external data file.
    pub writable: bool,
}

/// Everything that an image of this machine rests on. What cannot be read ends the chain: an image that is not there uses
/// nothing.
pub fn below(image: &Use) -> Vec<Below> {
    let mut found: Vec<Below> = Vec::new();
    let mut next = image
        .store
        .path()
        .map(|path| (path.to_owned(), image.format.clone()));
    let mut top = true;
    while let Some((path, format)) = next.take() {
        if format.as_deref() != Some("qcow2") || found.len() >= DEEPEST {
            break;
        }
        let Ok(Some(header)) = Header::read(&path) else {
            break;
        };
        if let Some(data) = &header.data_file {
            found.push(Below {
                store: named(&path, data).0,
                format: Some("raw".into()),
                writable: top,
            });
        }
        let Some(backing) = &header.backing_file else {
            break;
        };
        let (store, inside) = named(&path, backing);
        let format = header.backing_format.or(inside);
        if let Store::Path(path) = &store
            && found.iter().all(|known| known.store != store)
        {
            next = Some((path.clone(), format.clone()));
        }
        found.push(Below {
            store,
            format,
            writable: false,
        });
        top = false;
    }
    found
}

/// What a header names, as QEMU reads it, and the format if the name itself says one.
pub fn named(image: &Path, name: &OsStr) -> (Store, Option<String>) {
    let Some(text) = name.to_str() else {
        return (Store::Path(beside(image, name)), None);
    };
    if let Some(json) = text.strip_prefix("json:") {
        let parsed = serde_json::from_str::<Value>(json).ok();
        let file = parsed.as_ref().and_then(filename);
        let driver = parsed.as_ref().and_then(|value| value.get("driver")?.as_str());
        let format = driver.filter(|driver| *driver != "file").map(str::to_owned);
        return match file {
            Some(file) => (Store::Path(beside(image, OsStr::new(&file))), format),
            None => (Store::Elsewhere(text.to_owned()), format),
        };
    }
    if let Some(file) = text.strip_prefix("file:") {
        return (Store::Path(beside(image, OsStr::new(file))), None);
    }
    if is_protocol(text) {
        return (Store::Elsewhere(text.to_owned()), None);
    }
    (Store::Path(beside(image, name)), None)
}

/// `nbd://…`, `rbd:…`: QEMU looks for a colon before the first slash.
fn is_protocol(name: &str) -> bool {
    name.find(':')
        .is_some_and(|colon| name.find('/').is_none_or(|slash| colon < slash))
}

/// The file in QEMU's description of a block device, nested or with dots.
fn filename(value: &Value) -> Option<String> {
    let own = value.get("filename").or_else(|| value.get("file.filename"));
    own.and_then(Value::as_str)
        .map(str::to_owned)
        .or_else(|| filename(value.get("file")?))
}

/// From the root on, or from the directory in which the image is named.
fn beside(image: &Path, name: &OsStr) -> PathBuf {
    let name = Path::new(OsStr::from_bytes(name.as_bytes()));
    image.parent().unwrap_or(Path::new("/")).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_qemu_reads_them() {
        let image = Path::new("/images/top.qcow2");
        let path = |text: &str| Store::Path(text.into());
        for (name, store, format) in [
            ("base.qcow2", path("/images/base.qcow2"), None),
            ("./a:b", path("/images/./a:b"), None),
            ("/other/base", path("/other/base"), None),
            ("file:/other/base", path("/other/base"), None),
            ("nbd://host/x", Store::Elsewhere("nbd://host/x".into()), None),
            (
                r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/deep"}}"#,
                path("/deep"),
                Some("qcow2"),
            ),
            (r#"json:{"file.filename":"/dotted"}"#, path("/dotted"), None),
            (
                r#"json:{"driver":"nbd"}"#,
                Store::Elsewhere(r#"json:{"driver":"nbd"}"#.into()),
                Some("nbd"),
            ),
        ] {
            let found = named(image, OsStr::new(name));
            assert_eq!(found, (store, format.map(str::to_owned)), "{name}");
        }
    }
}
