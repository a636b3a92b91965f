//! Asking what is where: allocation and dirty bitmaps.
//!
//! Flags as in the NBD protocol ("Metadata querying") and QEMU's docs/interop/nbd.txt. A server may answer for less
//! than was asked, and for more as long as it stays on the disk; anything else is refused.

use std::sync::PoisonError;

use strongroom_disk::{Extent, ExtentMap, Kind, RangeSet};

use crate::{
    client::{ALLOCATION, Client, bitmap_context},
    error::{Error, Subject},
    sys::StatusChunk,
};

/// What is asked for at once: lengths are numbers of 32 bits, and a multiple of any block.
const QUERY: u64 = 1 << 30;
/// `base:allocation`: reads as zeroes. (A hole alone, bit 0, may read as anything.)
const STATE_ZERO: u32 = 2;
/// What the answers are called in errors.
const WHAT: &str = "block status";

/// A run of one context.
struct Run {
    length: u64,
    flags: u32,
}

impl Client {
    /// Where the disk holds data and where it reads as zeroes.
    pub fn allocation(&mut self) -> Result<ExtentMap, Error> {
        self.allocation_of(self.extent())
    }

    /// The same for part of the disk, made of whole blocks. The map counts from the start of `part`.
    pub fn allocation_of(&mut self, part: Extent) -> Result<ExtentMap, Error> {
        let mut map = ExtentMap::new();
        self.walk(part, &[ALLOCATION], |_, run| push_allocation(&mut map, &run))?;
        Ok(map)
    }

    /// The bytes which a dirty bitmap says have changed, in its own granularity.
    pub fn dirty(&mut self, bitmap: &str) -> Result<RangeSet, Error> {
        let mut dirty = DirtyRuns::default();
        self.walk(self.extent(), &[&bitmap_context(bitmap)], |_, run| {
            dirty.push(&run)
        })?;
        Ok(dirty.set)
    }

    /// Allocation and a dirty bitmap in one pass.
    pub fn block_status_all(&mut self, bitmap: &str) -> Result<(ExtentMap, RangeSet), Error> {
        let mut map = ExtentMap::new();
        let mut dirty = DirtyRuns::default();
        self.walk(
            self.extent(),
            &[ALLOCATION, &bitmap_context(bitmap)],
            |context, run| match context {
                0 => push_allocation(&mut map, &run),
                _ => dirty.push(&run),
            },
        )?;
        Ok((map, dirty.set))
    }

    /// Asks until `part` is covered by all contexts, and hands on its runs in order: index of the context, run.
    fn walk(
        &mut self,
        part: Extent,
        contexts: &[&str],
        mut each: impl FnMut(usize, Run) -> Result<(), &'static str>,
    ) -> Result<(), Error> {
        if let Some(missing) = contexts.iter().find(|context| !self.has_context(context)) {
            return Err(Error::NoContext {
                context: (*missing).to_owned(),
            });
        }
        self.check_range(Subject {
            what: WHAT,
            offset: part.offset(),
            length: part.length(),
        })?;
        self.handle.sweep();
        let mut at = part.offset();
        while at < part.end() {
            let subject = Subject {
                what: WHAT,
                offset: at,
                length: QUERY.min(part.end() - at),
            };
            let hostile = |reason| subject.hostile(reason);
            let chunks = self.query(subject)?;
            let room = self.extent().end() - at;
            let answers = contexts
                .iter()
                .map(|context| answer(&chunks, context, subject, room));
            let answers = answers.collect::<Result<Vec<_>, _>>().map_err(hostile)?;
            // Contexts may be answered to different lengths: what all of them cover is known.
            let covered = answers
                .iter()
                .map(|(_, total)| *total)
                .min()
                .unwrap_or(0)
                .min(subject.length);
            for (index, (runs, _)) in answers.into_iter().enumerate() {
                let mut rest = covered;
                for run in runs {
                    let length = run.length.min(rest);
                    rest -= length;
                    each(index, Run { length, ..run }).map_err(hostile)?;
                }
            }
            at += covered;
        }
        Ok(())
    }

    fn query(&mut self, subject: Subject) -> Result<Vec<StatusChunk>, Error> {
        let started = self.handle.start_status(subject.offset, subject.length);
        let (cookie, reply) = started.map_err(|failure| self.blame(subject, failure))?;
        self.wait(cookie, subject)?;
        let mut chunks = reply.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *chunks))
    }
}

/// The runs of one context and how many bytes they cover: more than none, and not beyond the end of the disk.
fn answer(
    chunks: &[StatusChunk],
    context: &str,
    subject: Subject,
    room: u64,
) -> Result<(Vec<Run>, u64), &'static str> {
    let mut ours = chunks.iter().filter(|chunk| chunk.context == context);
    let chunk = ours.next().ok_or("a context is missing")?;
    if ours.next().is_some() {
        return Err("a context is answered twice");
    }
    if chunk.offset != subject.offset {
        return Err("it is about another place");
    }
    let mut total = 0;
    let mut runs = Vec::with_capacity(chunk.entries.len());
    for &(length, flags) in &chunk.entries {
        let length = u64::from(length);
        if length == 0 {
            return Err("an extent is empty");
        }
        // Fewer than 2^32 entries of fewer than 2^32 bytes cannot overflow; the check against `room` keeps it so.
        total += length;
        if total > room {
            return Err("it goes beyond the end of the disk");
        }
        runs.push(Run { length, flags });
    }
    if runs.is_empty() {
        Err("it holds no extents")
    } else {
        Ok((runs, total))
    }
}

fn push_allocation(map: &mut ExtentMap, run: &Run) -> Result<(), &'static str> {
    let kind = if run.flags & STATE_ZERO == 0 {
        Kind::Data
    } else {
        Kind::Zero
    };
    map.push(run.length, kind).map_err(|_| "lengths overflow")
}

/// Collects the runs of a dirty bitmap. Any flag makes a run dirty: only none at all means that it is clean.
#[derive(Default)]
struct DirtyRuns {
    set: RangeSet,
    at: u64,
}

impl DirtyRuns {
    fn push(&mut self, run: &Run) -> Result<(), &'static str> {
        let extent = Extent::new(self.at, run.length).map_err(|_| "lengths overflow")?;
        self.at = extent.end();
        if run.flags != 0 {
            self.set.insert(extent);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(entries: Vec<(u32, u32)>) -> StatusChunk {
        StatusChunk {
            context: ALLOCATION.to_owned(),
            offset: 0,
            entries,
        }
    }

    const SUBJECT: Subject = Subject {
        what: WHAT,
        offset: 0,
        length: 100,
    };

    fn refusal(chunks: &[StatusChunk]) -> &'static str {
        answer(chunks, ALLOCATION, SUBJECT, 200).err().unwrap()
    }

    #[test]
    fn refuses_hostile_answers() {
        assert_eq!(refusal(&[]), "a context is missing");
        assert_eq!(
            refusal(&[chunk(vec![(1, 0)]), chunk(vec![(1, 0)])]),
            "a context is answered twice"
        );
        assert_eq!(refusal(&[chunk(vec![])]), "it holds no extents");
        assert_eq!(refusal(&[chunk(vec![(5, 0), (0, 0)])]), "an extent is empty");
        assert_eq!(
            refusal(&[chunk(vec![(100, 0), (101, 0)])]),
            "it goes beyond the end of the disk"
        );
        assert_eq!(
            refusal(&[chunk(vec![(u32::MAX, 0)])]),
            "it goes beyond the end of the disk"
        );
        assert_eq!(
            refusal(&[StatusChunk {
                offset: 1,
                ..chunk(vec![(5, 0)])
            }]),
            "it is about another place"
        );
    }

    proptest! {
        #[test]
        fn accepts_exactly_what_fits(entries in proptest::collection::vec((0u32..60, any::<u32>()), 0..6)) {
            let total: u64 = entries.iter().map(|(length, _)| u64::from(*length)).sum();
            let fits = !entries.is_empty() && entries.iter().all(|(length, _)| *length > 0) && total <= 200;
            let result = answer(&[chunk(entries)], ALLOCATION, SUBJECT, 200);
            prop_assert_eq!(result.map(|(_, total)| total).ok(), fits.then_some(total));
        }
    }
}
