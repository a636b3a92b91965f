//! The client's side of Borg's remote procedure calls.
//!
//! Three streams are serviced at once: the caller's thread writes requests, one thread reads replies, one reads the
//! server's log. So neither side ever waits for the other's full pipe. The server answers strictly in order.

mod inbox;
mod log;
mod transport;
pub(crate) mod wire;

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use transport::LOOK;
pub use transport::{Canceller, Transport};
pub(crate) use transport::{ServerProcess, borg_command};
use wire::Exception;
pub use wire::Object;

use crate::msgpack::Value;
use crate::settings::EventCallback;
use crate::{ChunkId, Error, Result, Spare};

/// Requests below this size are joined with their head into one write.
const SMALL: usize = 64 * 1024;

/// A connection to a server.
pub(crate) struct Rpc {
    input: Option<Box<dyn Write + Send>>,
    inbox: Arc<inbox::Inbox>,
    log: log::ErrorLog,
    process: Arc<ServerProcess>,
    location: String,
    next_id: u64,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
}

/// A request that is not answered yet.
struct Pending {
    id: u64,
    what: Request,
    bytes: usize,
}

/// What a request is about, for error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Call(&'static str),
    Get(ChunkId),
    Put(ChunkId),
}

impl Request {
    fn describe(self) -> String {
        match self {
            Self::Call(method) => method.replace('_', " "),
            Self::Get(id) => format!("reading object {id}"),
            Self::Put(id) => format!("writing object {id}"),
        }
    }
}

impl Rpc {
    pub fn new(transport: Transport, location: String, events: Option<EventCallback>) -> Result<Self> {
        let Transport {
            input,
            output,
            errors,
            process,
        } = transport;
        let (inbox, log) = (Arc::new(inbox::Inbox::default()), log::ErrorLog::default());
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .map(drop)
                .map_err(|source| Error::Spawn {
                    program: "a thread".to_owned(),
                    source,
                })
        };
        let thread_inbox = Arc::clone(&inbox);
        spawn("borg-replies", Box::new(move || thread_inbox.read_all(output)))?;
        match errors {
            Some(errors) => {
                let log = log.clone();
                spawn(
                    "borg-log",
                    Box::new(move || log.read_all(errors, events.as_ref())),
                )?;
            }
            None => log.close(),
        }
        Ok(Self {
            input: Some(input),
            inbox,
            log,
            process,
            location,
            next_id: 1,
            pending: VecDeque::new(),
            pending_bytes: 0,
        })
    }

    pub fn process(&self) -> &Arc<ServerProcess> {
        &self.process
    }

    /// Requests sent so far.
    pub fn requests(&self) -> u64 {
        self.next_id - 1
    }

    /// The memory of replies.
    pub fn spare(&self) -> Spare {
        self.inbox.spare.clone()
    }

    /// Requests that are not answered yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of requests that are not answered yet.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    fn send(&mut self, what: Request, head: Vec<u8>, body: &[u8]) -> Result<()> {
        let bytes = head.len() + body.len();
        self.pending.push_back(Pending {
            id: self.next_id,
            what,
            bytes,
        });
        self.pending_bytes += bytes;
        self.next_id += 1;
        let Some(input) = &mut self.input else {
            return Err(self.gone(what));
        };
        let mut head = head;
        let written = if body.len() <= SMALL {
            head.extend_from_slice(body);
            input.write_all(&head)
        } else {
            input.write_all(&head).and_then(|()| input.write_all(body))
        };
        if written.and_then(|()| input.flush()).is_ok() {
            return Ok(());
        }
        if self.process.is_cancelled() {
            return Err(self.gone(what));
        }
        // The server's last words, an error reply perhaps, tell more than the broken pipe.
        self.inbox.settle();
        while self.pending() > 0 {
            self.receive()?;
        }
        Err(self.gone(what))
    }

    /// Sends a request whose reply is to be received later.
    pub fn send_call(&mut self, method: &'static str, arguments: &[(&str, Value)]) -> Result<()> {
        let head = wire::request(self.next_id, method, arguments);
        self.send(Request::Call(method), head, &[])
    }

    pub fn send_get(&mut self, id: &ChunkId) -> Result<()> {
        let head = wire::request(self.next_id, "get", &[("id", id.0.as_slice().into())]);
        self.send(Request::Get(*id), head, &[])
    }

    pub fn send_put(&mut self, id: &ChunkId, object: &[u8]) -> Result<()> {
        let head = wire::put_request(self.next_id, &id.0, object.len());
        self.send(Request::Put(*id), head, object)
    }

    /// The next reply, in the order of the requests.
    pub fn receive(&mut self) -> Result<Object> {
        self.receive_if(true)?
            .ok_or_else(|| Error::Protocol("a reply without a request".to_owned()))
    }

    /// The next reply, if it is there already or the caller wants to wait.
    pub fn receive_if(&mut self, wait: bool) -> Result<Option<Object>> {
        let Some(pending) = self.pending.front() else {
            return Ok(None);
        };
        let (id, what, bytes) = (pending.id, pending.what, pending.bytes);
        let begin = Instant::now();
        let next = loop {
            match self.inbox.next(wait.then_some(LOOK)) {
                None if wait && self.process.is_over(begin) => return Err(self.gone(what)),
                None if wait => {}
                next => break next,
            }
        };
        let message = match next {
            None => return Ok(None),
            Some(Ok(message)) => message,
            Some(Err(inbox::Closed::Ended)) => return Err(self.gone(what)),
            Some(Err(inbox::Closed::Invalid(reason))) => {
                return Err(if self.process.is_cancelled() {
                    self.gone(what)
                } else {
                    Error::Protocol(reason)
                });
            }
        };
        self.pending.pop_front();
        self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
        if message.reply.id != id {
            let reason = format!("reply {} came while reply {id} was due", message.reply.id);
            self.inbox.close(inbox::Closed::Invalid(reason.clone()));
            return Err(Error::Protocol(reason));
        }
        match message.reply.result {
            Ok(range) => Ok(Some(Object::new(message.bytes, range))),
            Err(exception) => Err(self.remote_error(exception, what)),
        }
    }

    /// Receives all outstanding replies and drops them. Errors of single requests are dropped too.
    pub fn discard_pending(&mut self) {
        while self.pending() > 0 {
            if self.receive().is_err_and(|error| error.is_connection_lost()) {
                break;
            }
        }
    }

    /// Calls a method and waits for its result; there must be no other requests pending.
    pub fn call(&mut self, method: &'static str, arguments: &[(&str, Value)]) -> Result<Value> {
        self.send_call(method, arguments)?;
        let result = self.receive()?;
        Value::unpack(&result).map_err(|error| Error::Protocol(format!("in the reply to {method}: {error}")))
    }

    /// The next reply, which has to be that of a `get`: the object.
    pub fn receive_object(&mut self) -> Result<Object> {
        self.receive()?
            .into_raw()
            .map_err(|error| Error::Protocol(format!("in the reply to get: {error}")))
    }

    /// Reads one object; there must be no other requests pending.
    pub fn get(&mut self, id: &ChunkId) -> Result<Object> {
        self.send_get(id)?;
        self.receive_object()
    }

    /// Closes the connection: the server rolls back what is not committed and releases its lock.
    pub fn close(&mut self) -> Option<std::process::ExitStatus> {
        self.input = None;
        self.inbox.abandon();
        self.process.finish()
    }

    fn gone(&self, what: Request) -> Error {
        let doing = what.describe();
        if let Some(time) = self.process.silence() {
            return Error::Silent { doing, time };
        }
        if self.process.is_cancelled() {
            return Error::Cancelled { doing };
        }
        let status = self.process.wait(Duration::from_secs(1));
        Error::ServerGone {
            doing,
            status,
            message: self.log.tail(),
        }
    }

    fn remote_error(&self, exception: Exception, what: Request) -> Error {
        let Exception {
            class,
            errno,
            message,
        } = exception;
        let location = self.location.clone();
        let doing = what.describe();
        if self.process.is_cancelled() {
            // The server's last word is that it was told to end.
            return Error::Cancelled { doing };
        }
        match (class.as_str(), what) {
            ("ObjectNotFound", Request::Get(id)) => Error::ObjectNotFound(id),
            ("LockTimeout", _) => Error::LockTimeout { message },
            ("LockFailed" | "LockError" | "LockErrorT" | "NotLocked" | "NotMyLock", _) => {
                Error::LockFailed { message }
            }
            ("DoesNotExist" | "ParentPathDoesNotExist", _) => Error::NotFound { location },
            // Borg 2 has a directory where Borg 1.x has its file `config`; Borg 1.x does not expect that.
            ("InvalidRepository" | "AtticRepository" | "InvalidRepositoryConfig", _)
            | ("IsADirectoryError" | "NotADirectoryError", Request::Call("open")) => {
                Error::NotARepository { location, message }
            }
            ("PathNotAllowed", _) => Error::PathNotAllowed { location },
            ("StorageQuotaExceeded", _) => Error::QuotaExceeded { message },
            ("InsufficientFreeSpaceError", _) => Error::NoSpace { message },
            // ENOSPC, EDQUOT
            ("OSError", _) if matches!(errno, Some(28 | 122)) => Error::NoSpace { message },
            ("PermissionError" | "PathPermissionDenied", _) => Error::PermissionDenied { doing, message },
            // EROFS
            ("OSError", _) if errno == Some(30) => Error::PermissionDenied { doing, message },
            ("IntegrityError" | "FileIntegrityError" | "CheckNeeded", _) => {
                Error::RepositoryDamaged { message }
            }
            _ => Error::Remote {
                class,
                message,
                doing,
            },
        }
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.close();
    }
}
