//! A script of what goes wrong, by the names of the port's calls.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::process::{Signal, getpid, kill_process};

use crate::{Told, refused};

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused; nothing is done.
    Fail,
    /// It is done, and the answer is lost.
    Lose,
    /// It is answered, and nothing is done.
    Forget,
    /// It is done twice, as if the request had been sent again; the first answer counts.
    Twice,
    /// It hangs until [`Faults::release`], and is done then.
    Hang,
    /// The calling process is killed before it is done.
    DieBefore,
    /// The calling process is killed once it is done.
    DieAfter,
}

/// The script, and what has been called.
#[derive(Default)]
pub struct Faults {
    script: Mutex<Script>,
    released: Condvar,
}

#[derive(Default)]
struct Script {
    /// By name and by how many calls of that name came before.
    by_name: BTreeMap<(&'static str, usize), Fault>,
    /// By how many calls that change something came before.
    by_number: BTreeMap<usize, Fault>,
    /// How often each was called.
    counts: BTreeMap<&'static str, usize>,
    /// The calls that change something, in their order.
    acts: Vec<&'static str>,
    hung: usize,
    released: bool,
}

impl Faults {
    /// The call of this name that comes after so many others of it goes wrong, counted from now.
    pub fn on(&self, name: &'static str, after: usize, fault: Fault) {
        let mut script = self.script();
        let before = script.counts.get(name).copied().unwrap_or(0);
        script.by_name.insert((name, before + after), fault);
    }

    /// The call that changes something and comes after so many others goes wrong, counted from now.
    pub fn at(&self, after: usize, fault: Fault) {
        let mut script = self.script();
        let before = script.acts.len();
        script.by_number.insert(before + after, fault);
    }

    /// The calls so far that change something.
    pub fn acts(&self) -> Vec<&'static str> {
        self.script().acts.clone()
    }

    /// Calls that hang go on.
    pub fn release(&self) {
        self.script().released = true;
        self.released.notify_all();
    }

    /// How many calls hang.
    pub fn hanging(&self) -> usize {
        self.script().hung
    }

    /// A call that only looks.
    pub(crate) fn look(&self, name: &'static str) -> Told<()> {
        match self.next(name, false) {
            None | Some(Fault::Twice | Fault::Forget) => {}
            Some(Fault::Fail | Fault::Lose) => return refused(name, "as the script says"),
            Some(Fault::Hang) => self.hang(),
            Some(Fault::DieBefore | Fault::DieAfter) => die(),
        }
        Ok(())
    }

    /// A call that changes something.
    pub(crate) fn act<T: Default>(&self, name: &'static str, change: impl Fn() -> Told<T>) -> Told<T> {
        match self.next(name, true) {
            None => change(),
            Some(Fault::Fail) => refused(name, "as the script says"),
            Some(Fault::Lose) => {
                change().and_then(|_| refused(name, "the answer is lost, as the script says"))
            }
            Some(Fault::Forget) => Ok(T::default()),
            Some(Fault::Twice) => {
                let first = change();
                let _ = change();
                first
            }
            Some(Fault::Hang) => {
                self.hang();
                change()
            }
            Some(Fault::DieBefore) => die(),
            Some(Fault::DieAfter) => {
                let _ = change();
                die()
            }
        }
    }

    fn next(&self, name: &'static str, changes: bool) -> Option<Fault> {
        let mut script = self.script();
        let count = script.counts.entry(name).or_default();
        let key = (name, *count);
        *count += 1;
        let mut fault = script.by_name.remove(&key);
        if changes {
            let number = script.acts.len();
            fault = fault.or_else(|| script.by_number.remove(&number));
            script.acts.push(name);
        }
        fault
    }

    fn hang(&self) {
        let mut script = self.script();
        script.hung += 1;
        while !script.released {
            script = self.released.wait(script).unwrap_or_else(PoisonError::into_inner);
        }
        script.hung -= 1;
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends this process as nothing can catch.
fn die() -> ! {
    kill_process(getpid(), Signal::KILL).expect("kill this process");
    unreachable!("a killed process goes on")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_script_says_what_is_done_and_what_is_answered() {
        for (fault, done, answered) in [
            (Fault::Fail, 0, false),
            (Fault::Lose, 1, false),
            (Fault::Forget, 0, true),
            (Fault::Twice, 2, true),
        ] {
            let faults = Faults::default();
            faults.on("pivot", 1, fault);
            let count = Cell::new(0);
            let call = |name| {
                faults.act(name, || {
                    count.set(count.get() + 1);
                    Ok(())
                })
            };
            call("pivot").unwrap();
            call("thaw").unwrap();
            count.set(0);
            assert_eq!(call("pivot").is_ok(), answered, "{fault:?}");
            assert_eq!(count.get(), done, "{fault:?}");
            call("pivot").unwrap();
        }
    }

    #[test]
    fn what_hangs_goes_on_when_it_is_released() {
        let faults = Faults::default();
        faults.at(0, Fault::Hang);
        std::thread::scope(|scope| {
            let call = scope.spawn(|| faults.act("freeze", || Ok(7)));
            while faults.hanging() == 0 {
                std::thread::yield_now();
            }
            faults.release();
            assert_eq!(call.join().unwrap().unwrap(), 7);
        });
        assert_eq!((faults.acts(), faults.hanging()), (vec!["freeze"], 0));
    }
}
