//! Reading and writing with a bounded number of requests in flight.
//!
//! Depth is what a guest feels most while its disk is read: one request in flight is nearly invisible, sixteen
//! multiply its write latency. So the default is gentle, and the caller decides.
//!
//! What is read or written as a whole, a [`Sparse`], may have parts that no request is made for. One buffer serves all of
//! it, so that nothing is copied.

use std::{
    collections::VecDeque,
    num::NonZeroU64,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use strongroom_disk::Extent;

use crate::{
    client::{Client, TICK, reclaim},
    error::{Error, Subject},
    rate::Bucket,
    sys::{Buffer, Cookie, Failure},
};

/// The size of single requests unless told otherwise: large enough to be fast, small enough to be fair.
pub const DEFAULT_REQUEST_SIZE: u64 = 1 << 20;

/// How to read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions<'a> {
    /// The most requests in flight; 0 counts as 1.
    pub depth: usize,
    /// A lower limit than `depth` that may change meanwhile: it is looked at before each request. 0 counts as 1.
    pub window: Option<&'a AtomicUsize>,
    /// Larger reads are split into requests of this size; the server's limits come first.
    pub request_size: u64,
    /// A limit on the average speed.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Give up if no request completes for this long.
    pub stall: Option<Duration>,
    /// Stop, within 100 ms and the time of the callback, once this is true.
    pub cancel: Option<&'a AtomicBool>,
}

impl Default for ReadOptions<'_> {
    /// One request of 1 MiB at a time, no limit of speed, 60 seconds without an answer.
    fn default() -> Self {
        Self {
            depth: 1,
            window: None,
            request_size: DEFAULT_REQUEST_SIZE,
            bytes_per_second: None,
            stall: Some(Duration::from_mins(1)),
            cancel: None,
        }
    }
}

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions<'a> {
    /// The most requests in flight; 0 counts as 1.
    pub depth: usize,
    /// Give up if no request completes for this long.
    pub stall: Option<Duration>,
    /// Stop, within 100 ms, once this is true.
    pub cancel: Option<&'a AtomicBool>,
}

impl Default for WriteOptions<'_> {
    /// Four requests at a time, 60 seconds without an answer.
    fn default() -> Self {
        Self {
            depth: 4,
            stall: Some(Duration::from_mins(1)),
            cancel: None,
        }
    }
}

/// A range of the disk, of which only parts are transferred.
#[derive(Clone, Debug)]
pub struct Sparse {
    /// All of it.
    pub extent: Extent,
    /// The parts that are transferred: inside `extent`, in order, without overlaps.
    pub parts: Vec<Extent>,
}

impl From<Extent> for Sparse {
    fn from(extent: Extent) -> Self {
        let parts = vec![extent];
        Self { extent, parts }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

impl Direction {
    fn what(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// What both directions have in common.
struct Flow<'a> {
    direction: Direction,
    depth: usize,
    window: Option<&'a AtomicUsize>,
    request_size: u64,
    bucket: Option<Bucket>,
    stall: Option<Duration>,
    cancel: Option<&'a AtomicBool>,
}

/// A whole read or write of the caller.
struct Job {
    number: u64,
    extent: Extent,
    buffer: Arc<Buffer>,
    /// Where in the buffer the first byte of `extent` is.
    start: usize,
    /// What no request was sent for yet: of the part at hand, and the parts after it.
    unsent: Option<Extent>,
    parts: std::vec::IntoIter<Extent>,
    in_flight: usize,
}

impl Job {
    fn new(whole: Sparse, buffer: Arc<Buffer>, start: usize) -> Self {
        Self {
            number: 0,
            extent: whole.extent,
            buffer,
            start,
            unsent: None,
            parts: whole.parts.into_iter(),
            in_flight: 0,
        }
    }

    /// Takes the next request.
    fn piece(&mut self, size: u64) -> Option<Extent> {
        let part = self.unsent.take().or_else(|| self.parts.next())?;
        let piece = part.pieces(size).next()?;
        let rest = Extent::between(piece.end(), part.end()).ok();
        self.unsent = rest.filter(|rest| !rest.is_empty());
        Some(piece)
    }

    /// True if there is a request for each byte of its parts.
    fn is_sent(&self) -> bool {
        self.unsent.is_none() && self.parts.as_slice().is_empty()
    }
}

/// A request that the server has.
struct Request {
    cookie: Cookie,
    job: u64,
    subject: Subject,
}

impl Client {
    /// Reads many ranges, made of whole blocks of the server, and hands each over as a whole when it is complete:
    /// in the order of completion, which need not be the order of `requests`. Empty ranges are passed over.
    ///
    /// `requests` is asked for the next range only when a request can be sent, so at most `depth` ranges are in
    /// memory. Returns `Break` if `each` did. The client stays usable after a break, a cancel, and an error of a
    /// single command: what was in flight is received and dropped later.
    pub fn read_pipelined(
        &mut self,
        requests: impl IntoIterator<Item = Extent>,
        options: &ReadOptions<'_>,
        each: impl FnMut(u64, Vec<u8>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let requests = requests.into_iter().map(Sparse::from);
        self.read_sparse(requests, options, |length| vec![0; length], 0, each)
    }

    /// The same for ranges of which only parts are read; the rest of their bytes is zero. Ranges without parts are passed
    /// over.
    ///
    /// Buffers come from `take`, which is told their length in bytes, and each begins with `headroom` bytes of any value before those of the range.
    pub fn read_sparse(
        &mut self,
        requests: impl IntoIterator<Item = Sparse>,
        options: &ReadOptions<'_>,
        take: impl Fn(usize) -> Vec<u8>,
        headroom: usize,
        mut each: impl FnMut(u64, Vec<u8>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let flow = Flow {
            direction: Direction::Read,
            depth: options.depth,
            window: options.window,
            request_size: options.request_size,
            bucket: options
                .bytes_per_second
                .map(|rate| Bucket::new(rate, Instant::now())),
            stall: options.stall,
            cancel: options.cancel,
        };
        let (size, block) = (self.size(), self.block_sizes().minimum);
        let jobs = requests.into_iter().filter(Sparse::has_parts).map(|whole| {
            // Looked at before memory is taken.
            whole.check(Direction::Read, size, block)?;
            let mut buffer = take(headroom + whole.extent.length() as usize);
            whole.zero_rest(buffer.get_mut(headroom..).unwrap_or_default());
            Ok(Job::new(whole, Buffer::new(buffer), headroom))
        });
        self.run(flow, jobs, |subject, buffer| {
            Ok(each(subject.offset, reclaim(buffer, subject)?))
        })
    }

    /// Writes many blocks. They are safe on disk only after [`flush`](Self::flush); the order among them is not
    /// defined, so they must not overlap.
    pub fn write_pipelined(
        &mut self,
        writes: impl IntoIterator<Item = (u64, Vec<u8>)>,
        options: &WriteOptions<'_>,
    ) -> Result<(), Error> {
        let writes = writes.into_iter().map(|(offset, data)| {
            let subject = Subject {
                what: Direction::Write.what(),
                offset,
                length: data.len() as u64,
            };
            let extent = Extent::new(offset, subject.length).map_err(|error| subject.range(error))?;
            Ok((extent.into(), data, 0))
        });
        self.write_all(writes, options, drop)
    }

    /// The same for parts of ranges: each with a buffer, and where in it the bytes of the range begin. What is written is
    /// not copied, and its buffer goes to `give`, also if there is nothing to write of it.
    pub fn write_sparse(
        &mut self,
        writes: impl IntoIterator<Item = (Sparse, Vec<u8>, usize)>,
        options: &WriteOptions<'_>,
        give: impl Fn(Vec<u8>),
    ) -> Result<(), Error> {
        self.write_all(writes.into_iter().map(Ok), options, give)
    }

    fn write_all(
        &mut self,
        writes: impl Iterator<Item = Result<(Sparse, Vec<u8>, usize), Error>>,
        options: &WriteOptions<'_>,
        give: impl Fn(Vec<u8>),
    ) -> Result<(), Error> {
        let flow = Flow {
            direction: Direction::Write,
            depth: options.depth,
            window: None,
            request_size: DEFAULT_REQUEST_SIZE,
            bucket: None,
            stall: options.stall,
            cancel: options.cancel,
        };
        let (size, block) = (self.size(), self.block_sizes().minimum);
        let jobs = writes.filter_map(|write| match write {
            Ok((whole, data, _)) if !whole.has_parts() => {
                give(data);
                None
            }
            Ok((whole, data, start)) => {
                let checked = whole.check(Direction::Write, size, block);
                Some(checked.map(|()| Job::new(whole, Buffer::new(data), start)))
            }
            Err(error) => Some(Err(error)),
        });
        let done = |subject, buffer| {
            give(reclaim(buffer, subject)?);
            Ok(ControlFlow::Continue(()))
        };
        self.run(flow, jobs, done).map(drop)
    }

    fn run(
        &mut self,
        mut flow: Flow<'_>,
        mut source: impl Iterator<Item = Result<Job, Error>>,
        mut done: impl FnMut(Subject, Arc<Buffer>) -> Result<ControlFlow<()>, Error>,
    ) -> Result<ControlFlow<()>, Error> {
        self.handle.sweep();
        let blocks = self.block_sizes();
        let wanted = flow.request_size.min(blocks.maximum);
        let request_size = (wanted - wanted % blocks.minimum).max(blocks.minimum);
        let mut jobs: VecDeque<Job> = VecDeque::new();
        let mut requests: Vec<Request> = Vec::new();
        let mut progress = Instant::now();
        let mut numbers = 0..;
        loop {
            let mut wait = TICK;
            while requests.len() < flow.depth() {
                if flow.cancelled() {
                    return Err(Error::Cancelled);
                }
                // Only the newest job can have a part that is not sent yet.
                if jobs.back().is_none_or(Job::is_sent) {
                    let (Some(next), Some(number)) = (source.next(), numbers.next()) else {
                        break;
                    };
                    jobs.push_back(Job { number, ..next? });
                }
                let now = Instant::now();
                let delay = flow
                    .bucket
                    .as_mut()
                    .map_or(Duration::ZERO, |bucket| bucket.delay(now));
                if !delay.is_zero() {
                    wait = wait.min(delay);
                    break;
                }
                if requests.is_empty() {
                    progress = now;
                }
                let Some(job) = jobs.back_mut() else { break };
                let Some(piece) = job.piece(request_size) else {
                    break;
                };
                requests.push(self.send(flow.direction, job, piece)?);
                if let Some(bucket) = &mut flow.bucket {
                    bucket.take(piece.length());
                }
            }
            let mut completed = false;
            let mut index = 0;
            while let Some(request) = requests.get(index) {
                let subject = request.subject;
                match self.handle.finished(request.cookie) {
                    None => index += 1,
                    Some(Err(failure)) => return Err(self.blame(subject, failure)),
                    Some(Ok(())) => {
                        completed = true;
                        let number = requests.swap_remove(index).job;
                        if let Some(job) = settle(&mut jobs, number)
                            && done(self::subject(flow.direction, job.extent), job.buffer)?.is_break()
                        {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                }
            }
            if completed {
                // Counted from after the callbacks: their time is not the server's.
                progress = Instant::now();
                continue;
            }
            if flow.cancelled() {
                return Err(Error::Cancelled);
            }
            let Some(subject) = requests.first().map(|request| request.subject) else {
                let Some(job) = jobs.back() else {
                    return Ok(ControlFlow::Continue(()));
                };
                // Nothing in flight: waiting for the bucket.
                let subject = self::subject(flow.direction, job.extent);
                self.handle.poll(wait).map_err(|failure| subject.lost(failure))?;
                continue;
            };
            if let Some(stall) = flow.stall.filter(|stall| progress.elapsed() >= *stall) {
                return Err(subject.timeout(stall));
            }
            self.handle.poll(wait).map_err(|failure| subject.lost(failure))?;
        }
    }

    fn send(&mut self, direction: Direction, job: &mut Job, piece: Extent) -> Result<Request, Error> {
        let subject = subject(direction, piece);
        let start = job.start + (piece.offset() - job.extent.offset()) as usize;
        let part = start..start + piece.length() as usize;
        let cookie = match direction {
            Direction::Read => self.handle.start_read(&job.buffer, &part, piece.offset()),
            Direction::Write => self.handle.start_write(&job.buffer, &part, piece.offset()),
        };
        let cookie = cookie.map_err(|failure: Failure| self.blame(subject, failure))?;
        job.in_flight += 1;
        Ok(Request {
            cookie,
            job: job.number,
            subject,
        })
    }
}

impl Sparse {
    fn has_parts(&self) -> bool {
        !self.extent.is_empty() && !self.parts.is_empty()
    }

    /// Each part is on the disk, made of whole blocks, inside the range and behind the part before.
    fn check(&self, direction: Direction, size: u64, block: u64) -> Result<(), Error> {
        let mut at = self.extent.offset();
        for part in &self.parts {
            let subject = subject(direction, *part);
            Client::check(subject, size, block)?;
            if part.is_empty() || part.offset() < at || part.end() > self.extent.end() {
                return Err(subject.out_of_bounds(size));
            }
            at = part.end();
        }
        Ok(())
    }

    /// Makes zeroes of what is in no part.
    fn zero_rest(&self, bytes: &mut [u8]) {
        let mut at = self.extent.offset();
        let ends = self.parts.iter().map(|part| (part.offset(), part.end()));
        for (start, end) in ends.chain([(self.extent.end(), self.extent.end())]) {
            let gap = (at - self.extent.offset()) as usize..(start - self.extent.offset()) as usize;
            bytes.get_mut(gap).unwrap_or_default().fill(0);
            at = end;
        }
    }
}

impl Flow<'_> {
    /// How many requests may be in flight now.
    fn depth(&self) -> usize {
        let window = self.window.map(|window| window.load(Ordering::Relaxed));
        self.depth.min(window.unwrap_or(usize::MAX)).max(1)
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

fn subject(direction: Direction, extent: Extent) -> Subject {
    Subject {
        what: direction.what(),
        offset: extent.offset(),
        length: extent.length(),
    }
}

/// Takes note that a request of a job is done; returns the job if it was the last.
fn settle(jobs: &mut VecDeque<Job>, number: u64) -> Option<Job> {
    let place = jobs.iter().position(|job| job.number == number)?;
    let job = jobs.get_mut(place)?;
    job.in_flight -= 1;
    if job.in_flight == 0 && job.is_sent() {
        jobs.remove(place)
    } else {
        None
    }
}
