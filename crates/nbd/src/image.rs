//! Image files: made and described by `qemu-img`, always with an explicit format.
//!
//! A format is never guessed: a guest can write a qcow2 header into its raw disk, and a program that then probes
//! would follow whatever file that header names.

use std::{
    ffi::OsStr,
    fs,
    io::{self, ErrorKind},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use strongroom_child::{Limits, Needs, Output, Why, command};

/// The most of a tool's complaint that is kept, in bytes.
pub(crate) const MAX_COMPLAINT: usize = 4096;
/// The most that a tool may say, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// How long a tool may take that looks at an image, or makes one; and one that copies its content.
pub(crate) const LOOK: Duration = Duration::from_mins(2);
pub(crate) const COPY: Duration = Duration::from_hours(24);

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk as they are; a file or a block device.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Format {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What an image says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The size of the disk in bytes.
    pub virtual_size: u64,
    /// The bytes in a cluster, for formats which have them.
    pub cluster_size: Option<u64>,
    /// The version of qcow2, `0.10` or `1.1`. Only 1.1 can hold bitmaps.
    pub compat: Option<String>,
    /// The dirty bitmaps stored in the image. While QEMU runs, its newest are in its memory only.
    pub bitmaps: Vec<BitmapInfo>,
    /// The snapshots stored in the image.
    pub snapshots: Vec<SnapshotInfo>,
    /// The file under this one, as the header names it.
    pub backing_file: Option<String>,
    /// The format of the file under this one, as the header says.
    pub backing_format: Option<String>,
    /// The file which holds the data instead of this one, as the header names it.
    pub data_file: Option<String>,
}

/// A snapshot stored in an image (`SnapshotInfo` of QEMU's QAPI).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// Bytes of the guest's memory in it; 0 for disks alone.
    pub vm_state_size: u64,
}

/// A dirty bitmap stored in an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// The bytes for which it has one bit.
    pub granularity: u64,
    /// `in-use`: not closed properly, its content is worth nothing. `auto`: QEMU goes on recording in it.
    #[serde(default)]
    pub flags: Vec<String>,
}

impl BitmapInfo {
    /// True if the bitmap was written out properly when the image was closed last.
    pub fn is_consistent(&self) -> bool {
        !self.flags.iter().any(|flag| flag == "in-use")
    }
}

/// Something that did not work with an image file.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be made, or is there already.
    #[error("create image {path}: {source}")]
    Create {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A disk consists of whole sectors.
    #[error("create image {path}: {size} bytes is not a multiple of 512")]
    Size {
        /// The image.
        path: PathBuf,
        /// The size asked for.
        size: u64,
    },
    /// A tool could not be started.
    #[error("run {program}: {source}")]
    Run {
        /// The tool.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A tool did not do what it was told.
    #[error("{what} image {path}: {reason}")]
    Tool {
        /// What was to be done.
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// What the tool says.
        reason: String,
    },
    /// A tool's answer is not understood.
    #[error("describe image {path}: {source}")]
    Answer {
        /// The image.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The path cannot be made absolute.
    #[error("find image {path}: {source}")]
    Path {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes an empty qcow2 image (version 1.1) of `size` bytes, readable by its owner alone. Never overwrites a file.
pub fn create_qcow2(path: &Path, size: u64) -> Result<(), ImageError> {
    let file = absolute(path)?;
    let made = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&file)
        .map_err(|source| ImageError::Create {
            path: path.to_owned(),
            source,
        })?;
    let result = format_qcow2(&made, path, size);
    if result.is_err() {
        // It is the file which was made above.
        let _ = fs::remove_file(&file);
    }
    result
}

/// Makes a new file an empty qcow2 image (version 1.1) of `size` bytes. The file is reached through its descriptor: what has
/// become of its name does not matter. `name` is for errors.
pub fn format_qcow2(file: &fs::File, name: &Path, size: u64) -> Result<(), ImageError> {
    if !size.is_multiple_of(512) {
        return Err(ImageError::Size {
            path: name.to_owned(),
            size,
        });
    }
    let size = size.to_string();
    let args = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "compat=1.1,lazy_refcounts=off",
        "--",
    ]
    .map(OsStr::new);
    let path = through(file);
    qemu_img(
        "create",
        name,
        args.iter().copied().chain([path.as_os_str(), OsStr::new(&size)]),
        LOOK,
    )
    .map(drop)
}

/// A path of an open file, for programs that are started while it is open: whatever becomes of its name, they get this file.
pub fn through(file: &fs::File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// Describes an image, without opening files which its header names. `force_share` looks at one that is in use:
/// what it says may be half-written then.
pub fn image_info(path: &Path, format: Format, force_share: bool) -> Result<ImageInfo, ImageError> {
    let file = absolute(path)?;
    let share = force_share.then_some("--force-share");
    let args = ["info", "--output=json", "-f", format.name()]
        .into_iter()
        .chain(share)
        .chain(["--"]);
    let json = qemu_img(
        "describe",
        path,
        args.map(OsStr::new).chain([file.as_os_str()]),
        LOOK,
    )?;
    let answer: Answer = serde_json::from_slice(&json).map_err(|source| ImageError::Answer {
        path: path.to_owned(),
        source,
    })?;
    let Specific { data } = answer.format_specific.unwrap_or_default();
    Ok(ImageInfo {
        virtual_size: answer.virtual_size,
        cluster_size: answer.cluster_size,
        compat: data.compat,
        bitmaps: data.bitmaps,
        snapshots: answer.snapshots,
        backing_file: answer.backing_filename,
        backing_format: answer.backing_filename_format,
        data_file: data.data_file,
    })
}

/// A path that no tool takes for an option or for a protocol (`nbd:…`): it starts with a slash.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, ImageError> {
    std::path::absolute(path).map_err(|source| ImageError::Path {
        path: path.to_owned(),
        source,
    })
}

/// The end of what a tool printed about its failure.
pub(crate) fn complaint(stderr: &[u8]) -> String {
    let end = stderr
        .get(stderr.len().saturating_sub(MAX_COMPLAINT)..)
        .unwrap_or_default();
    String::from_utf8_lossy(end).trim().to_owned()
}

pub(crate) fn qemu_img<'a>(
    what: &'static str,
    path: &Path,
    args: impl IntoIterator<Item = &'a OsStr>,
    time: Duration,
) -> Result<Vec<u8>, ImageError> {
    let output = run_qemu_img(what, path, args, time)?;
    if output.status.success() {
        return Ok(output.out);
    }
    let reason = match complaint(&output.err) {
        silent if silent.is_empty() => format!("qemu-img: {}", output.status),
        reason => reason,
    };
    Err(ImageError::Tool {
        what,
        path: path.to_owned(),
        reason,
    })
}

/// Runs `qemu-img` to its end, however that is.
pub(crate) fn run_qemu_img<'a>(
    what: &'static str,
    path: &Path,
    args: impl IntoIterator<Item = &'a OsStr>,
    time: Duration,
) -> Result<Output, ImageError> {
    let mut command = command("qemu-img", Needs::Nothing);
    command.env("LC_ALL", "C").args(args);
    let limits = Limits {
        time,
        bytes: MAX_ANSWER,
    };
    let tool = |reason: String| ImageError::Tool {
        what,
        path: path.to_owned(),
        reason,
    };
    strongroom_child::run(&mut command, b"", limits, &|| false).map_err(|failure| match failure.why {
        Why::Spawn(source) | Why::Io(source) => ImageError::Run {
            program: "qemu-img",
            source,
        },
        Why::Time => tool(format!("qemu-img has not ended after {} s", time.as_secs())),
        Why::Limit => tool(format!("qemu-img says more than {MAX_ANSWER} bytes")),
        Why::Stopped => tool("qemu-img was stopped".to_owned()),
    })
}

impl ImageError {
    /// True if a file was in the way.
    pub fn is_already_there(&self) -> bool {
        matches!(self, Self::Create { source, .. } if source.kind() == ErrorKind::AlreadyExists)
    }
}

/// `ImageInfo` of QEMU's QAPI (qapi/block-core.json), as far as it is used.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Answer {
    virtual_size: u64,
    cluster_size: Option<u64>,
    backing_filename: Option<String>,
    #[serde(default)]
    snapshots: Vec<SnapshotInfo>,
    backing_filename_format: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Default, Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    compat: Option<String>,
    #[serde(default)]
    bitmaps: Vec<BitmapInfo>,
    data_file: Option<String>,
}
