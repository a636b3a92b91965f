//! What libvirt tells by itself: a count of the events of each domain that was asked about.
//!
//! Only the number is kept. What has happened is read from the hypervisor afterwards: events can be lost, and a lost
//! connection counts as an event for every domain.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// Numbers of events. Counting never panics and never waits: it is called by libvirt's own thread.
#[derive(Debug, Default)]
pub struct Events {
    counts: Mutex<HashMap<Uuid, u64>>,
    changed: Condvar,
}

impl Events {
    /// Whether any domain has been asked about.
    pub fn wanted(&self) -> bool {
        !self.counts().is_empty()
    }

    /// The number of this domain, which is counted from now on.
    pub fn of(&self, domain: Uuid) -> u64 {
        *self.counts().entry(domain).or_default()
    }

    /// Counts an event of a domain, if it has been asked about.
    pub fn count(&self, domain: Uuid) {
        if let Some(count) = self.counts().get_mut(&domain) {
            *count = count.wrapping_add(1);
        }
        self.changed.notify_all();
    }

    /// Counts an event of every domain that has been asked about: there may have been some that were not heard.
    pub fn count_all(&self) {
        for count in self.counts().values_mut() {
            *count = count.wrapping_add(1);
        }
        self.changed.notify_all();
    }

    /// Waits until the number of the domain is not `seen`; returns the number.
    pub fn wait(&self, domain: Uuid, seen: u64, at_most: Duration) -> u64 {
        let start = Instant::now();
        let mut counts = self.counts();
        loop {
            let count = *counts.entry(domain).or_default();
            let left = at_most.saturating_sub(start.elapsed());
            if count != seen || left.is_zero() {
                return count;
            }
            counts = self
                .changed
                .wait_timeout(counts, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Uuid, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use uuid::Uuid;

    use super::Events;

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn each_domain_has_its_number() {
        let events = Events::default();
        let [one, two] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        assert!(!events.wanted());
        events.count(one);
        assert_eq!(events.of(one), 0, "it had not been asked about");
        assert!(events.wanted());
        events.count(one);
        events.count(two);
        assert_eq!((events.of(one), events.of(two)), (1, 0));
        events.count_all();
        assert_eq!((events.of(one), events.of(two)), (2, 1));
    }

    #[test]
    fn waiting_ends_with_an_event_of_the_domain_or_with_the_time() {
        let events = Events::default();
        let [one, two] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let seen = events.of(one);
        events.of(two);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| events.wait(one, seen, LONG));
            events.count(two);
            events.count(one);
            assert_eq!(waiting.join().unwrap(), 1);
        });
        assert_eq!(events.wait(one, seen, LONG), 1, "what was missed does not wait");
        let start = Instant::now();
        assert_eq!(events.wait(one, 1, Duration::from_millis(30)), 1);
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(events.wait(one, 1, Duration::ZERO), 1);
    }
}
