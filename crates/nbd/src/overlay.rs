//! Overlays that no QEMU has open: whether they hold data, and their merge into the image below.
//!
//! The overlay and the image below it are both described in JSON with format and protocol spelled out. What the
//! overlay's header says of its backing file does not matter then.

use std::{ffi::OsStr, fs, os::unix::fs::FileTypeExt as _, path::Path};

use serde_json::{Value, json};
use strongroom_child::{Limits, Needs, Why, command};

use crate::image::{COPY, Format, ImageError, LOOK, absolute, complaint, image_info, qemu_img, run_qemu_img};

/// How much of what `qemu-img map` says is read; the map of a large overlay is long.
const MAP: u64 = 1 << 20;

/// Whether a qcow2 image itself, without what is below it, holds anything. An empty file holds nothing.
pub fn holds_data(overlay: &Path) -> Result<bool, ImageError> {
    let file = absolute(overlay)?;
    let metadata = fs::metadata(&file).map_err(|source| ImageError::Path {
        path: overlay.to_owned(),
        source,
    })?;
    if metadata.len() == 0 {
        return Ok(false);
    }
    let mut node = describe(overlay, Format::Qcow2)?;
    node["backing"] = Value::Null;
    let mut command = command("qemu-img", Needs::Nothing);
    command
        .env("LC_ALL", "C")
        .args(["map", "--output=json", "--", &format!("json:{node}")]);
    let tool = |reason: String| ImageError::Tool {
        what: "read the map of",
        path: overlay.to_owned(),
        reason,
    };
    let limits = Limits {
        time: LOOK,
        bytes: MAP,
    };
    match strongroom_child::run(&mut command, b"", limits, &|| false) {
        Ok(output) if output.status.success() => {
            let map = String::from_utf8_lossy(&output.out);
            // A cluster of zeroes that the guest wrote (or discarded) is data, too: it hides what is below.
            Ok(map.contains("\"present\": true") || map.contains("\"data\": true"))
        }
        Ok(output) => Err(tool(complaint(&output.err))),
        Err(failure) => match failure.why {
            // What holds nothing is one extent.
            Why::Limit => Ok(true),
            Why::Spawn(source) | Why::Io(source) => Err(ImageError::Run {
                program: "qemu-img",
                source,
            }),
            Why::Time | Why::Stopped => {
                Err(tool(format!("qemu-img has not ended after {} s", LOOK.as_secs())))
            }
        },
    }
}

/// Whether the disk reads the same from the base alone as from the overlay on top of it.
pub fn reads_the_same(overlay: &Path, base: &Path, format: Format) -> Result<bool, ImageError> {
    let (top, below) = (on_top(overlay, base, format)?, describe(base, format)?);
    let (top, below) = (format!("json:{top}"), format!("json:{below}"));
    let args = ["compare", "-q", "--", &top, &below].map(OsStr::new);
    let output = run_qemu_img("compare", overlay, args, COPY)?;
    match output.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(ImageError::Tool {
            what: "compare",
            path: overlay.to_owned(),
            reason: complaint(&output.err),
        }),
    }
}

/// Merges an overlay into its base, and empties it. Can be done again after it was interrupted. Locks both: a VM that
/// is started meanwhile is refused them.
pub fn commit_overlay(overlay: &Path, base: &Path, format: Format) -> Result<(), ImageError> {
    let node = format!("json:{}", on_top(overlay, base, format)?);
    let args = ["commit", "-q", "--", &node].map(OsStr::new);
    qemu_img("commit", overlay, args, COPY).map(drop)
}

/// The same, but the overlay keeps what it holds: until its base is on stable storage, say.
pub fn apply_overlay(overlay: &Path, base: &Path, format: Format) -> Result<(), ImageError> {
    let node = format!("json:{}", on_top(overlay, base, format)?);
    let args = ["commit", "-q", "-d", "--", &node].map(OsStr::new);
    qemu_img("commit", overlay, args, COPY).map(drop)
}

/// Removes a dirty bitmap from an image that no process has open: QEMU locks it, also against a start of its VM meanwhile.
/// Succeeds if there is none of that name.
pub fn remove_bitmap(image: &Path, name: &str) -> Result<(), ImageError> {
    let there = image_info(image, Format::Qcow2, false)?;
    if !there.bitmaps.iter().any(|bitmap| bitmap.name == name) {
        return Ok(());
    }
    let mut node = describe(image, Format::Qcow2)?;
    node["backing"] = Value::Null;
    let node = format!("json:{node}");
    let args = ["bitmap", "--remove", "--", &node, name].map(OsStr::new);
    qemu_img("remove a bitmap from", image, args, LOOK).map(drop)
}

fn on_top(overlay: &Path, base: &Path, format: Format) -> Result<Value, ImageError> {
    let mut node = describe(overlay, Format::Qcow2)?;
    node["backing"] = describe(base, format)?;
    Ok(node)
}

pub(crate) fn describe(image: &Path, format: Format) -> Result<Value, ImageError> {
    let path = absolute(image)?;
    let unusable = |source| ImageError::Path {
        path: image.to_owned(),
        source,
    };
    let metadata = fs::metadata(&path).map_err(unusable)?;
    let name = path
        .to_str()
        .ok_or_else(|| unusable(std::io::Error::other("its name is not in UTF-8")))?;
    let protocol = if metadata.file_type().is_block_device() {
        "host_device"
    } else {
        "file"
    };
    Ok(json!({ "driver": format.name(), "file": { "driver": protocol, "filename": name } }))
}
