//! The functions of libnbd that are used, declared by hand from libnbd.h (version 1.14), and their safe owner.
//!
//! All functions may be called from any thread; a handle takes its own lock. Errors are kept per thread, to be read
//! right after the call that failed. libnbd starts no threads: buffers and callbacks of a command are touched only
//! inside of calls which take the same handle.
#![allow(unsafe_code)]

mod buffer;
mod handle;

use std::ffi::{c_char, c_int, c_void};

pub(crate) use buffer::Buffer;
pub(crate) use handle::{Cookie, Failure, Handle, Place, StatusChunk, Tls};

/// An open or opening connection.
#[repr(C)]
struct NbdHandle {
    _opaque: [u8; 0],
}

/// Called when a command is done; never used, always null.
#[repr(C)]
struct CompletionCallback {
    callback: Option<unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int>,
    user_data: *mut c_void,
    free: Option<unsafe extern "C" fn(*mut c_void)>,
}

impl CompletionCallback {
    const NONE: Self = Self {
        callback: None,
        user_data: std::ptr::null_mut(),
        free: None,
    };
}

/// Called for each chunk of a block status reply.
#[repr(C)]
struct ExtentCallback {
    callback: unsafe extern "C" fn(*mut c_void, *const c_char, u64, *mut u32, usize, *mut c_int) -> c_int,
    user_data: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

const TLS_DISABLE: c_int = 0;
const TLS_REQUIRE: c_int = 2;
const CMD_FLAG_NO_HOLE: u32 = 0x02;

// SAFETY: the signatures are those of libnbd.h.
#[link(name = "nbd")]
unsafe extern "C" {
    fn nbd_create() -> *mut NbdHandle;
    fn nbd_close(h: *mut NbdHandle);
    fn nbd_get_error() -> *const c_char;
    fn nbd_get_errno() -> c_int;

    fn nbd_set_export_name(h: *mut NbdHandle, name: *const c_char) -> c_int;
    fn nbd_add_meta_context(h: *mut NbdHandle, name: *const c_char) -> c_int;
    fn nbd_set_tls(h: *mut NbdHandle, tls: c_int) -> c_int;
    fn nbd_set_tls_certificates(h: *mut NbdHandle, dir: *const c_char) -> c_int;
    fn nbd_set_tls_verify_peer(h: *mut NbdHandle, verify: bool) -> c_int;
    fn nbd_set_pread_initialize(h: *mut NbdHandle, initialize: bool) -> c_int;

    fn nbd_aio_connect_unix(h: *mut NbdHandle, path: *const c_char) -> c_int;
    fn nbd_aio_connect_tcp(h: *mut NbdHandle, host: *const c_char, port: *const c_char) -> c_int;
    fn nbd_aio_connect_uri(h: *mut NbdHandle, uri: *const c_char) -> c_int;
    fn nbd_aio_connect_socket(h: *mut NbdHandle, sock: c_int) -> c_int;
    fn nbd_aio_is_ready(h: *mut NbdHandle) -> c_int;
    fn nbd_aio_is_processing(h: *mut NbdHandle) -> c_int;
    fn nbd_aio_is_dead(h: *mut NbdHandle) -> c_int;
    fn nbd_aio_is_closed(h: *mut NbdHandle) -> c_int;
    fn nbd_poll(h: *mut NbdHandle, timeout_ms: c_int) -> c_int;

    fn nbd_get_size(h: *mut NbdHandle) -> i64;
    fn nbd_get_block_size(h: *mut NbdHandle, which: c_int) -> i64;
    fn nbd_is_read_only(h: *mut NbdHandle) -> c_int;
    fn nbd_can_multi_conn(h: *mut NbdHandle) -> c_int;
    fn nbd_can_flush(h: *mut NbdHandle) -> c_int;
    fn nbd_can_zero(h: *mut NbdHandle) -> c_int;
    fn nbd_can_meta_context(h: *mut NbdHandle, name: *const c_char) -> c_int;

    fn nbd_aio_pread(
        h: *mut NbdHandle,
        buf: *mut c_void,
        count: usize,
        offset: u64,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    fn nbd_aio_pwrite(
        h: *mut NbdHandle,
        buf: *const c_void,
        count: usize,
        offset: u64,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    fn nbd_aio_zero(
        h: *mut NbdHandle,
        count: u64,
        offset: u64,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    fn nbd_aio_flush(h: *mut NbdHandle, completion: CompletionCallback, flags: u32) -> i64;
    fn nbd_aio_block_status(
        h: *mut NbdHandle,
        count: u64,
        offset: u64,
        extent: ExtentCallback,
        completion: CompletionCallback,
        flags: u32,
    ) -> i64;
    fn nbd_aio_command_completed(h: *mut NbdHandle, cookie: u64) -> c_int;
}
