//! A connection to one export, and what is done with it one step at a time.

pub mod pipeline;

use std::{
    ffi::CString,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use strongroom_disk::{BlockSource, Extent, ReadError};

use self::pipeline::WriteOptions;
use crate::{
    error::{Error, Subject},
    sys::{Buffer, Cookie, Failure, Handle},
    target::{Options, Parts, Target, c_string},
    tunnel::Tunnel,
};

/// The longest wait after which flags and deadlines are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// What QEMU and nbdkit accept in one read or write when they do not say so; also the most we want.
const MAX_REQUEST: u64 = 32 << 20;
/// Zeroes carry no data, their length is a number of 32 bits.
const MAX_ZERO: u64 = 1 << 30;
pub(crate) const ALLOCATION: &str = "base:allocation";

/// The server's block sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Requests are made of whole blocks of this size.
    pub minimum: u64,
    /// Smaller requests may be slow.
    pub preferred: u64,
    /// No request for data may be larger.
    pub maximum: u64,
}

/// What zeroing may do to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Holes are welcome.
    MayTrim,
    /// The space stays allocated.
    Allocate,
}

/// A connection to an export of an NBD server.
///
/// It may move between threads, and is used by one at a time. After [`Error::Lost`] it is of no use any more.
pub struct Client {
    pub(crate) handle: Handle,
    pub(crate) timeout: Duration,
    /// All of the disk.
    extent: Extent,
    blocks: BlockSizes,
    read_only: bool,
    multi_conn: bool,
    /// The contexts which were asked for and granted.
    contexts: Vec<String>,
    /// After the handle, so that it ends when the connection is closed.
    _tunnel: Option<Tunnel>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            extent,
            blocks,
            read_only,
            contexts,
            ..
        } = self;
        let mut debug = f.debug_struct("Client");
        debug
            .field("size", &extent.length())
            .field("blocks", blocks)
            .field("read_only", read_only);
        debug.field("contexts", contexts).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects and negotiates, all within the timeout of `options`.
    ///
    /// A context which the server does not grant is no error here: see [`has_bitmap`](Self::has_bitmap).
    pub fn connect(target: &Target, options: &Options) -> Result<Self, Error> {
        Self::negotiate(target.parts()?, &target.to_string(), options)
    }

    pub(crate) fn negotiate(mut parts: Parts, name: &str, options: &Options) -> Result<Self, Error> {
        let mut tunnel = parts.tunnel.take();
        match Self::shake_hands(parts, name, options) {
            Ok(client) => Ok(Self {
                _tunnel: tunnel,
                ..client
            }),
            // A command that failed has said why; all that is left of it here is a closed connection.
            Err(Error::Connect { target, reason }) => {
                let said = tunnel.as_mut().and_then(Tunnel::words);
                let reason = said.map_or(reason.clone(), |said| format!("{reason}: {said}"));
                Err(Error::Connect { target, reason })
            }
            Err(error) => Err(error),
        }
    }

    fn shake_hands(parts: Parts, name: &str, options: &Options) -> Result<Self, Error> {
        let failed = |reason: String| Error::Connect {
            target: name.to_owned(),
            reason,
        };
        let wanted = wanted_contexts(options)?;
        let start = || -> Result<Handle, Failure> {
            let mut handle = Handle::new()?;
            if let Some(export) = &parts.export {
                handle.set_export(export)?;
            }
            handle.set_tls(&parts.tls)?;
            for (_, context) in &wanted {
                handle.add_context(context)?;
            }
            handle.connect(parts.place)?;
            Ok(handle)
        };
        let mut handle = start().map_err(|failure| failed(failure.reason))?;
        let begun = Instant::now();
        while !handle.is_connected() {
            if handle.is_gone() {
                return Err(failed("the server closed the connection".into()));
            }
            if begun.elapsed() >= options.timeout {
                return Err(failed(format!("no answer within {:?}", options.timeout)));
            }
            handle
                .poll(TICK.min(options.timeout))
                .map_err(|failure| failed(failure.reason))?;
        }
        Self::describe(handle, wanted, options.timeout).map_err(|failure| failed(failure.reason))
    }

    fn describe(handle: Handle, wanted: Vec<(String, CString)>, timeout: Duration) -> Result<Self, Failure> {
        let minimum = handle.block_size(0)?.unwrap_or(1);
        let maximum = handle.block_size(2)?.unwrap_or(MAX_REQUEST).min(MAX_REQUEST);
        let blocks = BlockSizes {
            minimum,
            preferred: handle.block_size(1)?.unwrap_or(4096).max(minimum),
            maximum: (maximum - maximum % minimum).max(minimum),
        };
        let mut contexts = Vec::new();
        for (name, c_name) in wanted {
            if handle.has_context(&c_name)? {
                contexts.push(name);
            }
        }
        Ok(Self {
            extent: Extent::new(0, handle.size()?).map_err(|error| Failure::new(&error.to_string()))?,
            blocks,
            read_only: handle.is_read_only()?,
            multi_conn: handle.can_multi_conn()?,
            contexts,
            timeout,
            handle,
            _tunnel: None,
        })
    }

    /// The size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.extent.length()
    }

    /// All of the disk as a range.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Requests sent so far, of all kinds but those of the negotiation.
    pub fn requests(&self) -> u64 {
        self.handle.started()
    }

    /// True if the server takes no writes.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// True if several connections see each other's flushed writes.
    pub fn can_multi_conn(&self) -> bool {
        self.multi_conn
    }

    /// The block sizes the server asks for, or the protocol's defaults.
    pub fn block_sizes(&self) -> BlockSizes {
        self.blocks
    }

    /// True if the server granted `base:allocation`.
    pub fn has_allocation(&self) -> bool {
        self.has_context(ALLOCATION)
    }

    /// True if the dirty bitmap was asked for and the server granted it. If not, nothing is known about changes:
    /// the disk has to be read as a whole.
    pub fn has_bitmap(&self, name: &str) -> bool {
        self.has_context(&bitmap_context(name))
    }

    pub(crate) fn has_context(&self, context: &str) -> bool {
        self.contexts.iter().any(|granted| granted == context)
    }

    /// Writes `data` at `offset`. It is safe on disk only after [`flush`](Self::flush).
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let options = WriteOptions {
            depth: 1,
            stall: Some(self.timeout),
            cancel: None,
        };
        self.write_pipelined([(offset, data.to_vec())], &options)
    }

    /// Makes a range read as zeroes.
    pub fn zero(&mut self, extent: Extent, zeroing: Zeroing) -> Result<(), Error> {
        let subject = Subject {
            what: "zero",
            offset: extent.offset(),
            length: extent.length(),
        };
        self.check_range(subject)?;
        if !self
            .handle
            .can_zero()
            .map_err(|failure| subject.command(failure))?
        {
            let reason = "the server cannot write zeroes".into();
            let Subject { what, offset, length } = subject;
            return Err(Error::Command {
                what,
                offset,
                length,
                errno: 0,
                reason,
            });
        }
        for piece in extent.pieces(MAX_ZERO) {
            let subject = Subject {
                what: "zero",
                offset: piece.offset(),
                length: piece.length(),
            };
            let allocate = zeroing == Zeroing::Allocate;
            let cookie = self.handle.start_zero(piece.offset(), piece.length(), allocate);
            self.wait(cookie.map_err(|failure| subject.command(failure))?, subject)?;
        }
        Ok(())
    }

    /// Has the server put all finished writes on stable storage. Does nothing if the server says it need not.
    pub fn flush(&mut self) -> Result<(), Error> {
        let subject = Subject {
            what: "flush",
            offset: 0,
            length: self.size(),
        };
        if !self
            .handle
            .can_flush()
            .map_err(|failure| subject.command(failure))?
        {
            return Ok(());
        }
        let cookie = self
            .handle
            .start_flush()
            .map_err(|failure| subject.command(failure))?;
        self.wait(cookie, subject)
    }

    /// Waits for one command, up to the timeout.
    pub(crate) fn wait(&mut self, cookie: Cookie, subject: Subject) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            if let Some(result) = self.handle.finished(cookie) {
                return result.map_err(|failure| self.blame(subject, failure));
            }
            let rest = self.timeout.saturating_sub(begun.elapsed());
            if rest.is_zero() {
                return Err(subject.timeout(self.timeout));
            }
            self.handle
                .poll(TICK.min(rest))
                .map_err(|failure| subject.lost(failure))?;
        }
    }

    /// A failed command: did only it fail, or the connection?
    pub(crate) fn blame(&self, subject: Subject, failure: Failure) -> Error {
        if self.handle.is_gone() {
            subject.lost(failure)
        } else {
            subject.command(failure)
        }
    }

    pub(crate) fn check_range(&self, subject: Subject) -> Result<(), Error> {
        Self::check(subject, self.size(), self.blocks.minimum)
    }

    /// Checks that a range is on a disk of `size` bytes and made of whole blocks.
    pub(crate) fn check(subject: Subject, size: u64, block: u64) -> Result<(), Error> {
        let Subject { offset, length, .. } = subject;
        if Extent::new(offset, length).map_or(true, |extent| extent.end() > size) {
            return Err(subject.out_of_bounds(size));
        }
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(subject.unaligned(block));
        }
        Ok(())
    }
}

impl BlockSource for Client {
    fn size(&self) -> u64 {
        self.extent.length()
    }

    /// Reads any range, whatever the server's smallest block is.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let wanted = ReadError::check_bounds(offset, buffer.len() as u64, self.size())?;
        let block = self.blocks.minimum;
        let start = wanted.offset() - wanted.offset() % block;
        let end = wanted.end().next_multiple_of(block).min(self.size());
        let whole = Subject {
            what: "read",
            offset: start,
            length: end.saturating_sub(start),
        };
        let aligned =
            Extent::new(start, whole.length).map_err(|error| whole.read_error(whole.range(error)))?;
        for piece in aligned.pieces(self.blocks.maximum) {
            let subject = Subject {
                what: "read",
                offset: piece.offset(),
                length: piece.length(),
            };
            let bytes = self
                .read_blocks(subject)
                .map_err(|error| subject.read_error(error))?;
            let Some(part) = piece.intersection(wanted) else {
                continue;
            };
            let within = |start: u64| (part.offset() - start) as usize..(part.end() - start) as usize;
            if let (Some(from), Some(to)) = (
                bytes.get(within(piece.offset())),
                buffer.get_mut(within(wanted.offset())),
            ) {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }
}

impl Client {
    /// Reads whole blocks in one request.
    fn read_blocks(&mut self, subject: Subject) -> Result<Vec<u8>, Error> {
        self.handle.sweep();
        let length = subject.length as usize;
        let buffer = Buffer::new(vec![0; length]);
        let cookie = self.handle.start_read(&buffer, &(0..length), subject.offset);
        self.wait(cookie.map_err(|failure| self.blame(subject, failure))?, subject)?;
        reclaim(buffer, subject)
    }
}

/// The bytes of a buffer all of whose commands are done.
pub(crate) fn reclaim(buffer: Arc<Buffer>, subject: Subject) -> Result<Vec<u8>, Error> {
    buffer
        .into_vec()
        .ok_or_else(|| subject.command(Failure::new("the buffer is still in use")))
}

fn wanted_contexts(options: &Options) -> Result<Vec<(String, CString)>, Error> {
    let allocation = options.allocation.then(|| ALLOCATION.to_owned());
    let bitmaps = options.dirty_bitmaps.iter().map(|name| bitmap_context(name));
    let with_c = |name: String| Ok((name.clone(), c_string("context", &name)?));
    allocation.into_iter().chain(bitmaps).map(with_c).collect()
}

pub(crate) fn bitmap_context(name: &str) -> String {
    format!("qemu:dirty-bitmap:{name}")
}
