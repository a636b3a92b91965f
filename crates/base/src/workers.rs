//! Threads that work on chunks, a batch at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam_channel::Receiver;

/// How many chunks a worker takes at once: BLAKE2b hashes four at the cost of two.
const BATCH: usize = 4;

/// How many threads hash and encrypt. More than the repository's one process can take is of no use.
pub fn workers_wanted() -> usize {
    thread::available_parallelism().map_or(2, usize::from).min(4)
}

/// Takes what comes in batches: as many as hash faster together, fewer only at the end.
///
/// Clones share the channel, and take turns: two that fill their batches at once would both get half of one where chunks come
/// slowly. Once all clones are gone, the sender's end is closed too.
#[derive(Debug)]
pub struct Batches<T> {
    turn: Arc<Mutex<()>>,
    from: Receiver<T>,
}

impl<T> Batches<T> {
    /// Takes what comes from a channel.
    pub fn of(from: Receiver<T>) -> Self {
        let turn = Arc::default();
        Self { turn, from }
    }
}

impl<T> Clone for Batches<T> {
    fn clone(&self) -> Self {
        let (turn, from) = (Arc::clone(&self.turn), self.from.clone());
        Self { turn, from }
    }
}

impl<T> Iterator for Batches<T> {
    type Item = Vec<T>;

    fn next(&mut self) -> Option<Vec<T>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let batch: Vec<T> = self.from.iter().take(BATCH).collect();
        (!batch.is_empty()).then_some(batch)
    }
}

/// The thread's result; a panic goes on in this thread.
pub fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_whole_but_for_the_last() {
        let (to, from) = crossbeam_channel::bounded(1);
        let from = Batches::of(from);
        let batches: Vec<Vec<u32>> = thread::scope(|scope| {
            scope.spawn(move || (0..10).for_each(|number| to.send(number).unwrap()));
            let workers: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| from.clone().collect::<Vec<_>>()))
                .collect();
            workers.into_iter().flat_map(join).collect()
        });
        let mut lengths: Vec<usize> = batches.iter().map(Vec::len).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [2, 4, 4]);
        let mut numbers = batches.concat();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    }
}
