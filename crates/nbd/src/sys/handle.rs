//! The safe owner of a connection and of all memory that its commands use.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    io,
    ops::Range,
    os::fd::{IntoRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    Buffer, CMD_FLAG_NO_HOLE, CompletionCallback, ExtentCallback, NbdHandle, TLS_DISABLE, TLS_REQUIRE,
    nbd_add_meta_context, nbd_aio_block_status, nbd_aio_command_completed, nbd_aio_connect_socket,
    nbd_aio_connect_tcp, nbd_aio_connect_unix, nbd_aio_connect_uri, nbd_aio_flush, nbd_aio_is_closed,
    nbd_aio_is_dead, nbd_aio_is_processing, nbd_aio_is_ready, nbd_aio_pread, nbd_aio_pwrite, nbd_aio_zero,
    nbd_can_flush, nbd_can_meta_context, nbd_can_multi_conn, nbd_can_zero, nbd_close, nbd_create,
    nbd_get_block_size, nbd_get_errno, nbd_get_error, nbd_get_size, nbd_is_read_only, nbd_poll,
    nbd_set_export_name, nbd_set_pread_initialize, nbd_set_tls, nbd_set_tls_certificates,
    nbd_set_tls_verify_peer,
};

/// The most chunks that one block status reply may bring; more than one per context is wrong anyway.
const MAX_STATUS_CHUNKS: usize = 64;

/// What libnbd says about a call that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// 0 if there is none.
    pub(crate) errno: i32,
    pub(crate) reason: String,
}

impl Failure {
    /// To be called right after the failed call, on the same thread.
    fn last() -> Self {
        // SAFETY: both only read state of this thread; the text stays valid until the next call on this thread.
        let (errno, text) = unsafe { (nbd_get_errno(), nbd_get_error()) };
        let reason = if text.is_null() {
            "unknown error of libnbd".to_owned()
        } else {
            // SAFETY: libnbd's error text ends with NUL.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Self { errno, reason }
    }

    fn is_interruption(&self) -> bool {
        io::Error::from_raw_os_error(self.errno).kind() == io::ErrorKind::Interrupted
    }

    pub(crate) fn new(reason: &str) -> Self {
        Self {
            errno: 0,
            reason: reason.to_owned(),
        }
    }
}

/// Names a command in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cookie(u64);

/// Whether and how to use TLS.
pub(crate) enum Tls {
    Off,
    On {
        certificates: CString,
        verify: bool,
    },
    /// As the URI says.
    ByUri,
}

/// Where the server is.
pub(crate) enum Place {
    Unix(CString),
    Tcp { host: CString, port: CString },
    Uri(CString),
    Socket(OwnedFd),
}

/// The extents of one context: pairs of length and flags.
#[derive(Debug)]
pub(crate) struct StatusChunk {
    pub(crate) context: String,
    pub(crate) offset: u64,
    pub(crate) entries: Vec<(u32, u32)>,
}

/// What a block status command has brought so far.
type StatusReply = Mutex<Vec<StatusChunk>>;

/// Owns a connection.
///
/// `held` keeps the memory of each command until libnbd says that the command is done, or until the connection is
/// gone: [`Drop`] closes it before the fields are dropped. So a caller may lose interest in a command at any time
/// (break off, fail, panic) without leaving libnbd a dangling pointer.
pub(crate) struct Handle {
    raw: NonNull<NbdHandle>,
    held: HashMap<Cookie, Option<Arc<Buffer>>>,
    /// Commands started so far.
    started: u64,
}

// SAFETY: libnbd's handles may be used from any thread, and are protected by a lock of their own.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and not used any more. This ends all commands; their memory, still in `held`,
        // is freed after it.
        unsafe { nbd_close(self.raw.as_ptr()) }
    }
}

impl Handle {
    pub(crate) fn new() -> Result<Self, Failure> {
        // SAFETY: may be called at any time.
        let raw = NonNull::new(unsafe { nbd_create() }).ok_or_else(Failure::last)?;
        let handle = Self {
            raw,
            held: HashMap::new(),
            started: 0,
        };
        // SAFETY: the handle is open. Buffers are zeroed by their owner, libnbd need not do it again.
        check(unsafe { nbd_set_pread_initialize(raw.as_ptr(), false) })?;
        Ok(handle)
    }

    pub(crate) fn set_export(&mut self, name: &CStr) -> Result<(), Failure> {
        // SAFETY: the handle is open, the string is copied.
        check(unsafe { nbd_set_export_name(self.raw.as_ptr(), name.as_ptr()) }).map(drop)
    }

    pub(crate) fn add_context(&mut self, name: &CStr) -> Result<(), Failure> {
        // SAFETY: the handle is open, the string is copied.
        check(unsafe { nbd_add_meta_context(self.raw.as_ptr(), name.as_ptr()) }).map(drop)
    }

    pub(crate) fn set_tls(&mut self, tls: &Tls) -> Result<(), Failure> {
        let h = self.raw.as_ptr();
        match tls {
            // SAFETY: the handle is open.
            Tls::Off => check(unsafe { nbd_set_tls(h, TLS_DISABLE) }).map(drop),
            Tls::On { certificates, verify } => {
                // SAFETY: the handle is open, the string is copied.
                check(unsafe { nbd_set_tls_certificates(h, certificates.as_ptr()) })?;
                // SAFETY: the handle is open.
                check(unsafe { nbd_set_tls_verify_peer(h, *verify) })?;
                // SAFETY: the handle is open.
                check(unsafe { nbd_set_tls(h, TLS_REQUIRE) }).map(drop)
            }
            Tls::ByUri => Ok(()),
        }
    }

    /// Starts to connect; [`poll`](Self::poll) until [`is_connected`](Self::is_connected).
    pub(crate) fn connect(&mut self, place: Place) -> Result<(), Failure> {
        let h = self.raw.as_ptr();
        let result = match place {
            // SAFETY: the handle is open, the string is copied.
            Place::Unix(path) => unsafe { nbd_aio_connect_unix(h, path.as_ptr()) },
            // SAFETY: the handle is open, the strings are copied.
            Place::Tcp { host, port } => unsafe { nbd_aio_connect_tcp(h, host.as_ptr(), port.as_ptr()) },
            // SAFETY: the handle is open, the string is copied.
            Place::Uri(uri) => unsafe { nbd_aio_connect_uri(h, uri.as_ptr()) },
            // SAFETY: the handle is open and becomes the owner of the socket.
            Place::Socket(socket) => unsafe { nbd_aio_connect_socket(h, socket.into_raw_fd()) },
        };
        check(result).map(drop)
    }

    /// True once commands can be sent.
    pub(crate) fn is_connected(&self) -> bool {
        let h = self.raw.as_ptr();
        // SAFETY: the handle is open.
        unsafe { nbd_aio_is_ready(h) > 0 || nbd_aio_is_processing(h) > 0 }
    }

    /// True if the connection has ended.
    pub(crate) fn is_gone(&self) -> bool {
        let h = self.raw.as_ptr();
        // SAFETY: the handle is open.
        unsafe { nbd_aio_is_dead(h) != 0 || nbd_aio_is_closed(h) != 0 }
    }

    /// Sends and receives what is possible; waits up to `timeout` (rounded up to milliseconds) for the server.
    pub(crate) fn poll(&mut self, timeout: Duration) -> Result<(), Failure> {
        let millis = c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX);
        // SAFETY: the handle is open. Memory of commands, touched in here, is in `held`.
        match check(unsafe { nbd_poll(self.raw.as_ptr(), millis) }) {
            // A signal came while waiting; the library passes this on.
            Err(failure) if failure.is_interruption() => Ok(()),
            result => result.map(drop),
        }
    }

    pub(crate) fn size(&self) -> Result<u64, Failure> {
        // SAFETY: the handle is open.
        let size = unsafe { nbd_get_size(self.raw.as_ptr()) };
        u64::try_from(size).map_err(|_| Failure::last())
    }

    /// The constraint of the server: 0 minimum, 1 preferred, 2 maximum. `None` if it said nothing.
    pub(crate) fn block_size(&self, which: c_int) -> Result<Option<u64>, Failure> {
        // SAFETY: the handle is open, and unknown values give an error.
        let size = unsafe { nbd_get_block_size(self.raw.as_ptr(), which) };
        let size = u64::try_from(size).map_err(|_| Failure::last())?;
        Ok((size != 0).then_some(size))
    }

    pub(crate) fn is_read_only(&self) -> Result<bool, Failure> {
        // SAFETY: the handle is open.
        check(unsafe { nbd_is_read_only(self.raw.as_ptr()) })
    }

    pub(crate) fn can_multi_conn(&self) -> Result<bool, Failure> {
        // SAFETY: the handle is open.
        check(unsafe { nbd_can_multi_conn(self.raw.as_ptr()) })
    }

    pub(crate) fn can_flush(&self) -> Result<bool, Failure> {
        // SAFETY: the handle is open.
        check(unsafe { nbd_can_flush(self.raw.as_ptr()) })
    }

    pub(crate) fn can_zero(&self) -> Result<bool, Failure> {
        // SAFETY: the handle is open.
        check(unsafe { nbd_can_zero(self.raw.as_ptr()) })
    }

    pub(crate) fn has_context(&self, name: &CStr) -> Result<bool, Failure> {
        // SAFETY: the handle is open, the string is only read.
        check(unsafe { nbd_can_meta_context(self.raw.as_ptr(), name.as_ptr()) })
    }

    /// Starts to read into part of a buffer.
    pub(crate) fn start_read(
        &mut self,
        buffer: &Arc<Buffer>,
        part: &Range<usize>,
        offset: u64,
    ) -> Result<Cookie, Failure> {
        let address = buffer
            .address(part)
            .ok_or_else(|| Failure::new("read outside of the buffer"))?;
        let h = self.raw.as_ptr();
        // SAFETY: the handle is open; `part.len()` bytes at `address` belong to the buffer, which no other code can
        // look into as long as it is shared, and `hold` shares it until the command is done.
        let cookie = unsafe {
            nbd_aio_pread(
                h,
                address.as_ptr().cast(),
                part.len(),
                offset,
                CompletionCallback::NONE,
                0,
            )
        };
        self.hold(cookie, Some(buffer))
    }

    /// Starts to write part of a buffer.
    pub(crate) fn start_write(
        &mut self,
        buffer: &Arc<Buffer>,
        part: &Range<usize>,
        offset: u64,
    ) -> Result<Cookie, Failure> {
        let address = buffer
            .address(part)
            .ok_or_else(|| Failure::new("write outside of the buffer"))?;
        let h = self.raw.as_ptr();
        // SAFETY: as in `start_read`; libnbd only reads the bytes.
        let cookie = unsafe {
            nbd_aio_pwrite(
                h,
                address.as_ptr().cast(),
                part.len(),
                offset,
                CompletionCallback::NONE,
                0,
            )
        };
        self.hold(cookie, Some(buffer))
    }

    /// Starts to write zeroes; the server may punch a hole unless `allocate`.
    pub(crate) fn start_zero(&mut self, offset: u64, length: u64, allocate: bool) -> Result<Cookie, Failure> {
        let flags = if allocate { CMD_FLAG_NO_HOLE } else { 0 };
        // SAFETY: the handle is open.
        let cookie =
            unsafe { nbd_aio_zero(self.raw.as_ptr(), length, offset, CompletionCallback::NONE, flags) };
        self.hold(cookie, None)
    }

    pub(crate) fn start_flush(&mut self) -> Result<Cookie, Failure> {
        // SAFETY: the handle is open.
        let cookie = unsafe { nbd_aio_flush(self.raw.as_ptr(), CompletionCallback::NONE, 0) };
        self.hold(cookie, None)
    }

    /// Starts to ask for extents; the reply is complete when the command is done.
    pub(crate) fn start_status(
        &mut self,
        offset: u64,
        length: u64,
    ) -> Result<(Cookie, Arc<StatusReply>), Failure> {
        let reply: Arc<StatusReply> = Arc::default();
        // This reference belongs to libnbd, which gives it back by `release_reply` exactly once, on failure too.
        let user_data = Arc::into_raw(Arc::clone(&reply)).cast_mut().cast();
        let extent = ExtentCallback {
            callback: collect_extents,
            user_data,
            free: release_reply,
        };
        let h = self.raw.as_ptr();
        // SAFETY: the handle is open, and `user_data` lives until libnbd frees it.
        let cookie = unsafe { nbd_aio_block_status(h, length, offset, extent, CompletionCallback::NONE, 0) };
        Ok((self.hold(cookie, None)?, reply))
    }

    /// Takes note of a command that was started; a negative cookie means that it was not, and that libnbd did not
    /// keep the pointer.
    fn hold(&mut self, cookie: i64, buffer: Option<&Arc<Buffer>>) -> Result<Cookie, Failure> {
        let cookie = Cookie(u64::try_from(cookie).map_err(|_| Failure::last())?);
        self.held.insert(cookie, buffer.cloned());
        self.started += 1;
        Ok(cookie)
    }

    /// Commands started so far.
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    /// Whether a command is done, and how; asking again after that is an error.
    pub(crate) fn finished(&mut self, cookie: Cookie) -> Option<Result<(), Failure>> {
        if !self.held.contains_key(&cookie) {
            return Some(Err(Failure::new("no such command")));
        }
        // SAFETY: the handle is open.
        let result = check(unsafe { nbd_aio_command_completed(self.raw.as_ptr(), cookie.0) });
        if matches!(result, Ok(false)) {
            return None;
        }
        // Done, with success or not: libnbd has dropped the command and with it the pointer to the buffer.
        self.held.remove(&cookie);
        Some(result.map(drop))
    }

    /// Drops commands whose result is not wanted any more, as far as they are done.
    pub(crate) fn sweep(&mut self) {
        let cookies: Vec<Cookie> = self.held.keys().copied().collect();
        for cookie in cookies {
            let _ = self.finished(cookie);
        }
    }
}

/// Takes a C result apart: negative is failure, else true or false.
fn check(result: c_int) -> Result<bool, Failure> {
    if result < 0 {
        Err(Failure::last())
    } else {
        Ok(result > 0)
    }
}

/// Stores one chunk of a block status reply.
unsafe extern "C" fn collect_extents(
    user_data: *mut c_void,
    context: *const c_char,
    offset: u64,
    entries: *mut u32,
    count: usize,
    _error: *mut c_int,
) -> c_int {
    if context.is_null() || entries.is_null() {
        return -1;
    }
    // SAFETY: `start_status` made `user_data` of such an `Arc`, which lives until `release_reply`.
    let reply = unsafe { &*user_data.cast_const().cast::<StatusReply>() };
    // SAFETY: a string that ends with NUL, valid during this call.
    let context = unsafe { CStr::from_ptr(context) };
    // SAFETY: `count` numbers, valid during this call.
    let numbers = unsafe { std::slice::from_raw_parts(entries, count) };
    // A panic (out of memory at most) must not cross into C.
    let stored = catch_unwind(AssertUnwindSafe(|| {
        let mut chunks = reply.lock().unwrap_or_else(PoisonError::into_inner);
        if chunks.len() >= MAX_STATUS_CHUNKS {
            return false;
        }
        let entries = numbers
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[length, flags]| (*length, *flags))
            .collect();
        chunks.push(StatusChunk {
            context: context.to_string_lossy().into_owned(),
            offset,
            entries,
        });
        true
    }));
    if matches!(stored, Ok(true)) { 0 } else { -1 }
}

/// Gives back libnbd's reference to a block status reply.
unsafe extern "C" fn release_reply(user_data: *mut c_void) {
    // SAFETY: `start_status` made it with `Arc::into_raw`, and libnbd calls this once.
    drop(unsafe { Arc::from_raw(user_data.cast_const().cast::<StatusReply>()) });
}
