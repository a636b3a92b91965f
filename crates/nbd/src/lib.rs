//! NBD, the one way in which disk content moves.
//!
//! * [`Client`] talks to any NBD server: QEMU's backup export, `qemu-nbd`, `nbdkit`. It reads allocation and dirty
//!   bitmaps, reads with a bounded number of requests in flight, and writes for a restore. Underneath is libnbd,
//!   the C library by the authors of the protocol; all `unsafe` code is in the private module `sys`.
//! * A server on another machine is reached through a command, such as ssh ([`Target::Command`]).
//! * [`QemuNbd`] serves an image file through a child process that does not outlive its user.
//! * [`create_qcow2`] and [`image_info`] make and describe image files without ever guessing their format, [`Header`] reads
//!   what a qcow2 image needs without any tool;
//!   [`commit_overlay`] and its like do the same for overlays that no QEMU has open.
//!
//! Servers are not trusted: replies that contradict themselves are errors, every wait is bounded.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod client;
mod error;
mod header;
mod image;
mod overlay;
mod rate;
mod serve;
mod status;
mod sys;
mod target;
mod tunnel;

pub use client::pipeline::{DEFAULT_REQUEST_SIZE, ReadOptions, Sparse, WriteOptions};
pub use client::{BlockSizes, Client, Zeroing};
pub use error::Error;
pub use header::Header;
pub use image::{
    BitmapInfo, Format, ImageError, ImageInfo, SnapshotInfo, create_qcow2, format_qcow2, image_info, through,
};
pub use overlay::{apply_overlay, commit_overlay, holds_data, reads_the_same, remove_bitmap};
pub use serve::{Backing, Cache, QemuNbd, Serve, ServeError};
pub use target::{Options, Target, TlsSettings};
