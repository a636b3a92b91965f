//! An image file served by a `qemu-nbd` of our own.
//!
//! The server must not outlive us: left behind it would hold a lock on the image, and a guest could not start. So
//! we make the socket ourselves, connect to it before the server exists, and hand it over the way systemd does
//! (`LISTEN_FDS`, see `sd_listen_fds(3)`). A `qemu-nbd` that is not persistent ends when its last client has gone, and
//! this first connection, our lifeline, ends with our process however that ends.
//!
//! The image is described in JSON with format and protocol spelled out: nothing is probed, and no file name can be
//! mistaken for an option or a protocol.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::Duration,
};

use serde_json::json;
use strongroom_child::{Needs, command};

use crate::{
    client::Client,
    error::Error,
    image::{Format, ImageError, absolute, complaint, image_info},
    overlay,
    sys::{Place, Tls},
    target::{MAX_SOCKET_PATH, Options, Parts, Target, c_string},
};

/// Gives the server its socket (our descriptor 0) as descriptor 3, as `LISTEN_FDS` demands.
const LAUNCH: &str =
    r#"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LC_ALL=C; exec qemu-nbd "$@""#;
/// How long a server may take to write back what it holds and end.
const END: Duration = Duration::from_secs(10);
/// How long a server that was told to end, or whose start failed, may take.
const SOON: Duration = Duration::from_secs(2);

/// The host's cache of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Go around the page cache (`O_DIRECT`): the host's memory stays with its guests. Not every file system can.
    None,
    /// Use it.
    Writeback,
}

/// What to do about files that the header of a qcow2 image names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Fail if there are any: the right thing for images that should stand alone.
    Refuse,
    /// Open them. Only for chains whose headers only this program could write.
    Follow,
    /// Serve the top layer alone; what is not in it reads as zeroes. A separate data file is refused still.
    Ignore,
}

/// How to serve an image.
#[derive(Clone, Debug)]
pub struct Serve {
    /// Its format, never guessed.
    pub format: Format,
    /// Take writes.
    pub writable: bool,
    /// The name of the export.
    pub export: String,
    /// Stored dirty bitmaps to serve along; a start fails if one is missing or inconsistent.
    pub bitmaps: Vec<String>,
    /// The host's cache.
    pub cache: Cache,
    /// Read although a running guest writes to it. What is read may be inconsistent.
    pub force_share: bool,
    /// Other files named by the image.
    pub backing: Backing,
    /// The image is an overlay on this one, whatever its header says. It is only read, and stands alone.
    pub below: Option<(PathBuf, Format)>,
    /// The path by which the image is opened, if that is not its name: see [`through`](crate::through).
    pub opened: Option<PathBuf>,
    /// How long the start may take.
    pub timeout: Duration,
}

impl Serve {
    /// For an image without a writer.
    pub fn read_only(format: Format) -> Self {
        Self {
            format,
            writable: false,
            export: "disk".to_owned(),
            bitmaps: Vec::new(),
            cache: Cache::Writeback,
            force_share: false,
            backing: Backing::Refuse,
            below: None,
            opened: None,
            timeout: Duration::from_secs(30),
        }
    }

    /// For an image that is to be filled.
    pub fn writable(format: Format) -> Self {
        Self {
            writable: true,
            ..Self::read_only(format)
        }
    }

    /// For a look at an image that a running guest writes to.
    pub fn peek(format: Format) -> Self {
        Self {
            force_share: true,
            ..Self::read_only(format)
        }
    }
}

/// A server that could not be started or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The image could not be looked at.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image needs another file.
    #[error("serve {path}: its header names another file, {other:?}")]
    Backing {
        /// The image.
        path: PathBuf,
        /// The file.
        other: String,
    },
    /// The name of the image is not in UTF-8.
    #[error("serve {0}: the name is not in UTF-8")]
    Name(PathBuf),
    /// A socket's path may have 107 bytes.
    #[error("serve: the path of the socket, {0}, is longer than {MAX_SOCKET_PATH} bytes")]
    SocketPath(PathBuf),
    /// Something of the system.
    #[error("serve {path}: {what}: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The server did not start.
    #[error("serve {path}: {reason}")]
    Start {
        /// The image.
        path: PathBuf,
        /// What the server says, or what happened when it was asked.
        reason: String,
    },
    /// The server ended with an error, or not in time: what was written may not be on disk.
    #[error("end the server of {path}: {reason}")]
    End {
        /// The image.
        path: PathBuf,
        /// What the server says.
        reason: String,
    },
}

/// A running `qemu-nbd`. It serves any number of connections, and ends when this is dropped.
#[derive(Debug)]
pub struct QemuNbd {
    image: PathBuf,
    export: String,
    socket: PathBuf,
    child: Child,
    stderr: fs::File,
    /// Ends with us; the server ends with it.
    lifeline: Option<Client>,
    /// Private; removed with the socket at the end.
    _dir: tempfile::TempDir,
}

impl QemuNbd {
    /// Starts a server and waits until it serves the image. Its socket is in a private directory under the
    /// system's directory for temporary files.
    pub fn start(image: &Path, serve: &Serve) -> Result<Self, ServeError> {
        Self::start_in(&std::env::temp_dir(), image, serve)
    }

    /// The same with the private directory made in `runtime_dir`, whose path must be short.
    pub fn start_in(runtime_dir: &Path, image: &Path, serve: &Serve) -> Result<Self, ServeError> {
        let io_error = |what| {
            move |source| ServeError::Io {
                path: image.to_owned(),
                what,
                source,
            }
        };
        let node = describe(image, serve)?;
        let dir = tempfile::Builder::new()
            .prefix("strongroom-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(runtime_dir)
            .map_err(io_error("make a directory for the socket"))?;
        let socket = dir.path().join("nbd");
        if socket.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
            return Err(ServeError::SocketPath(socket));
        }
        let listener = UnixListener::bind(&socket).map_err(io_error("make a socket"))?;
        let lifeline = UnixStream::connect(&socket).map_err(io_error("connect to the socket"))?;
        let stderr = tempfile::tempfile().map_err(io_error("make a temporary file"))?;
        let child_stderr = stderr.try_clone().map_err(io_error("use a temporary file"))?;
        let child = command("/bin/sh", Needs::Nothing)
            .args(["-c", LAUNCH, "qemu-nbd"])
            .args(arguments(serve))
            .arg(node)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(child_stderr))
            // A Ctrl-C at the terminal is for us, who then end the server in good order.
            .process_group(0)
            .spawn()
            .map_err(io_error("run qemu-nbd"))?;
        let mut server = Self {
            image: image.to_owned(),
            export: serve.export.clone(),
            socket,
            child,
            stderr,
            lifeline: None,
            _dir: dir,
        };
        match server.greet(lifeline, serve.timeout) {
            Ok(client) => server.lifeline = Some(client),
            Err(error) => {
                // If the server died of something, that is the reason; if not, what the connection told.
                let _ = strongroom_child::wait(&mut server.child, SOON);
                let said = server.complaint();
                let reason = if said.is_empty() { error.to_string() } else { said };
                return Err(ServeError::Start {
                    path: image.to_owned(),
                    reason,
                });
            }
        }
        Ok(server)
    }

    fn greet(&self, stream: UnixStream, timeout: Duration) -> Result<Client, Error> {
        let export = c_string("export name", &self.export)?;
        let parts = Parts {
            place: Place::Socket(stream.into()),
            export: Some(export),
            tls: Tls::Off,
            tunnel: None,
        };
        let options = Options {
            allocation: false,
            timeout,
            ..Options::default()
        };
        Client::negotiate(parts, &self.target().to_string(), &options)
    }

    /// Where to connect to.
    pub fn target(&self) -> Target {
        Target::Unix {
            path: self.socket.clone(),
            export: self.export.clone(),
        }
    }

    /// The process, for reports.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the server in good order; clients which are still connected are cut off. An error means that what was
    /// written may not be on disk, whatever a flush said before.
    pub fn stop(mut self) -> Result<(), ServeError> {
        self.lifeline = None;
        let reason = match self.terminate(END) {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => format!("{status}: {}", self.complaint()),
            Ok(None) => "it did not end in time and was killed".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(ServeError::End {
            path: self.image.clone(),
            reason,
        })
    }

    /// Tells the server to end; `None` if it had to be killed.
    fn terminate(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        strongroom_child::terminate(&mut self.child);
        let status = strongroom_child::wait(&mut self.child, timeout)?;
        if status.is_none() {
            let _ = strongroom_child::kill(&mut self.child, "qemu-nbd");
        }
        Ok(status)
    }

    fn complaint(&mut self) -> String {
        let length = self.stderr.metadata().map_or(0, |metadata| metadata.len());
        let mut said = Vec::new();
        let tail = SeekFrom::Start(length.saturating_sub(crate::image::MAX_COMPLAINT as u64));
        if self.stderr.seek(tail).is_ok() {
            // What could be read is all there is to tell.
            let _ = self.stderr.read_to_end(&mut said);
        }
        complaint(&said)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        self.lifeline = None;
        // Nothing more can be done about a process that cannot be ended.
        let _ = self.terminate(SOON);
    }
}

fn arguments(serve: &Serve) -> Vec<String> {
    let cache = match serve.cache {
        Cache::None => "none",
        Cache::Writeback => "writeback",
    };
    let mut arguments = vec![
        "--shared=0".to_owned(),
        format!("--cache={cache}"),
        format!("--export-name={}", serve.export),
        (if serve.writable {
            "--discard=unmap"
        } else {
            "--read-only"
        })
        .to_owned(),
    ];
    arguments.extend(serve.bitmaps.iter().map(|bitmap| format!("--bitmap={bitmap}")));
    arguments.push("--".to_owned());
    arguments
}

/// The block node to serve, in QEMU's JSON form.
fn describe(image: &Path, serve: &Serve) -> Result<String, ServeError> {
    let path = absolute(serve.opened.as_deref().unwrap_or(image))?;
    let name = path.to_str().ok_or_else(|| ServeError::Name(image.to_owned()))?;
    let metadata = fs::metadata(&path).map_err(|source| ServeError::Io {
        path: image.to_owned(),
        what: "find",
        source,
    })?;
    let protocol = if metadata.file_type().is_block_device() {
        "host_device"
    } else {
        "file"
    };
    let mut node = json!({
        "driver": serve.format.name(),
        "read-only": !serve.writable,
        "force-share": serve.force_share,
        "file": { "driver": protocol, "filename": name },
    });
    if serve.format == Format::Qcow2 && serve.backing != Backing::Follow {
        let info = image_info(&path, serve.format, serve.force_share)?;
        let backing = info.backing_file.filter(|_| serve.backing == Backing::Refuse);
        if let Some(other) = backing.or(info.data_file) {
            return Err(ServeError::Backing {
                path: image.to_owned(),
                other,
            });
        }
        // Whatever the header says by now.
        node["backing"] = serde_json::Value::Null;
        if let Some((below, format)) = &serve.below {
            let mut base = overlay::describe(below, *format)?;
            if *format == Format::Qcow2 {
                base["backing"] = serde_json::Value::Null;
            }
            node["backing"] = base;
        }
    }
    Ok(format!("json:{node}"))
}
