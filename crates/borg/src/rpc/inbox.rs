//! Replies on their way from the reading thread to the caller.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::wire::{self, MAX_MESSAGE, Reply};
use crate::Spare;
use crate::msgpack::DecodeError;

/// Bytes of replies that may wait for the caller. The reading thread pauses beyond.
const MAX_WAITING: usize = 64 << 20;

/// Why no more replies will come.
#[derive(Clone, Debug)]
pub(super) enum Closed {
    Ended,
    Invalid(String),
}

/// A reply with the message that holds it.
pub(super) struct Message {
    pub reply: Reply,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    waiting: usize,
    closed: Option<Closed>,
    /// The caller is gone: replies are read and dropped.
    abandoned: bool,
}

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
    /// Long replies come in memory that was used before.
    pub spare: Spare,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next reply; `None` if none comes within this time, or at once.
    pub fn next(&self, wait: Option<Duration>) -> Option<Result<Message, Closed>> {
        let mut state = self.state();
        let begin = Instant::now();
        loop {
            if let Some(message) = state.queue.pop_front() {
                state.waiting = state.waiting.saturating_sub(message.bytes.len());
                self.changed.notify_all();
                return Some(Ok(message));
            }
            if let Some(closed) = &state.closed {
                return Some(Err(closed.clone()));
            }
            let left = wait?.checked_sub(begin.elapsed())?;
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits a moment for the stream's end, after which a dead server's last replies are all here.
    pub fn settle(&self) {
        let state = self.state();
        drop(
            self.changed
                .wait_timeout_while(state, Duration::from_secs(2), |state| state.closed.is_none()),
        );
    }

    pub fn abandon(&self) {
        let mut state = self.state();
        state.abandoned = true;
        state.queue.clear();
        self.changed.notify_all();
    }

    pub fn close(&self, reason: Closed) {
        self.state().closed.get_or_insert(reason);
        self.changed.notify_all();
    }

    fn push(&self, message: Message) {
        let mut state = self.state();
        while state.waiting > MAX_WAITING && !state.abandoned {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.abandoned {
            state.waiting += message.bytes.len();
            state.queue.push_back(message);
            self.changed.notify_all();
        }
    }

    /// Reads replies until the stream ends. Runs in a thread of its own.
    pub fn read_all(&self, stream: impl Read) {
        let reason = self.read(stream).map_or_else(Closed::Invalid, |()| Closed::Ended);
        self.close(reason);
    }

    fn read(&self, mut stream: impl Read) -> Result<(), String> {
        let (mut buffer, mut start) = (Vec::new(), 0);
        loop {
            let unread: &[u8] = buffer.get(start..).unwrap_or_default();
            match wire::message_len(unread) {
                Ok(len) if start == 0 && len == buffer.len() => {
                    self.parse_and_push(std::mem::take(&mut buffer))?;
                }
                Ok(len) => {
                    self.parse_and_push(unread.get(..len).unwrap_or_default().to_vec())?;
                    start += len;
                }
                Err(DecodeError::Incomplete(missing)) => {
                    if unread.len().saturating_add(missing) > MAX_MESSAGE {
                        return Err(format!("a message of more than {MAX_MESSAGE} bytes"));
                    }
                    buffer.drain(..start);
                    start = 0;
                    if !fill(&mut stream, &mut buffer, missing, &self.spare) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(describe(&error, unread)),
            }
        }
    }

    fn parse_and_push(&self, bytes: Vec<u8>) -> Result<(), String> {
        let reply = wire::parse_reply(&bytes).map_err(|error| describe(&error, &bytes))?;
        self.push(Message { reply, bytes });
        Ok(())
    }
}

/// Reads what is missing; a little more if that is little. False at the end of the stream.
fn fill(stream: &mut impl Read, buffer: &mut Vec<u8>, missing: usize, spare: &Spare) -> bool {
    const READ_AHEAD: usize = 16 * 1024;
    let before = buffer.len();
    if missing > READ_AHEAD {
        let mut whole = spare.take(before + missing);
        let (there, rest) = whole.split_at_mut(before);
        there.copy_from_slice(buffer);
        let read = stream.read_exact(rest).is_ok();
        spare.give(std::mem::replace(buffer, whole));
        return read;
    }
    buffer.resize(before + READ_AHEAD, 0);
    let read = loop {
        match stream.read(buffer.get_mut(before..).unwrap_or_default()) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => break result.unwrap_or(0),
        }
    };
    buffer.truncate(before + read);
    read > 0
}

fn describe(error: &DecodeError, bytes: &[u8]) -> String {
    let start = wire::printable(bytes.get(..80.min(bytes.len())).unwrap_or_default());
    format!("{error}; the message begins with {start:?}")
}
