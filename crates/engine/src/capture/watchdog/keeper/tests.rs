use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use strongroom_hypervisor::{FreezeStatus, GuestExit, HypervisorError};

use super::*;

/// An agent that hangs, and freezes late, on demand.
#[derive(Default)]
struct Scripted(Mutex<State>);

#[derive(Default)]
struct State {
    /// It does not answer for so many calls more.
    silent: usize,
    frozen: u32,
    /// How often it has answered a thaw.
    thaws: usize,
    /// Before this answer it carries out a freeze that had waited.
    late: Option<usize>,
}

impl Scripted {
    fn new(state: State) -> Self {
        Self(Mutex::new(state))
    }

    fn thaws(&self) -> usize {
        self.0.lock().unwrap().thaws
    }

    fn answer<T>(&self, answer: impl FnOnce(&mut State) -> T) -> Result<T, HypervisorError> {
        let mut state = self.0.lock().unwrap();
        if state.silent > 0 {
            state.silent -= 1;
            return Err(HypervisorError::Failed {
                what: "ask".into(),
                message: "the agent is not connected".into(),
            });
        }
        Ok(answer(&mut state))
    }
}

impl Agent for Scripted {
    fn agent_connected(&self, _: Uuid) -> Result<bool, HypervisorError> {
        Ok(true)
    }

    fn agent_ping(&self, _: Uuid, _: Duration) -> Result<(), HypervisorError> {
        self.answer(|_| ())
    }

    fn freeze(&self, _: Uuid, _: Duration) -> Result<u32, HypervisorError> {
        unreachable!("a watchdog does not freeze")
    }

    fn thaw(&self, _: Uuid, _: Duration) -> Result<u32, HypervisorError> {
        self.answer(|state| {
            if state.late == Some(state.thaws) {
                state.frozen = 1;
            }
            state.thaws += 1;
            std::mem::take(&mut state.frozen)
        })
    }

    fn freeze_status(&self, _: Uuid, _: Duration) -> Result<FreezeStatus, HypervisorError> {
        unreachable!("a thaw says as much")
    }

    fn run_in_guest(&self, _: Uuid, _: &str, _: Duration) -> Result<GuestExit, HypervisorError> {
        unreachable!("a watchdog runs nothing")
    }
}

const BUDGET: Duration = Duration::from_millis(100);

/// Watches with this agent while the run says what it says; returns what the watchdog said, without its times.
fn stand(
    agent: &Scripted,
    off: bool,
    run: impl FnOnce(&dyn Fn(Message), &dyn Fn() -> Reply) + Send,
) -> Vec<String> {
    let is_off = || off;
    let keeper = Keeper {
        settle: Duration::from_millis(500),
        patience: Duration::from_secs(2),
        ..Keeper::new(agent, Uuid::nil(), &is_off, BUDGET)
    };
    let (messages, heard): (Sender<Message>, _) = channel();
    let (sender, said) = channel();
    let mut all = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            run(&|message| messages.send(message).unwrap(), &|| {
                said.recv().unwrap()
            });
        });
        keeper.stand(&heard, &mut |said| {
            let text = said.to_string();
            let words: Vec<&str> = text.split(' ').take(2).collect();
            all.push(words.join(" "));
            let _ = sender.send(said.clone());
        });
    });
    all
}

#[test]
fn without_an_agent_there_is_no_watchdog() {
    let agent = Scripted::new(State {
        silent: 1,
        ..State::default()
    });
    assert_eq!(stand(&agent, false, |_, _| {}), ["failed ask:"]);
}

#[test]
fn a_run_that_freezes_nothing_is_left_alone() {
    let agent = Scripted::default();
    assert_eq!(stand(&agent, false, |_, _| {}), ["ready"]);
    assert_eq!(agent.thaws(), 0);
}

#[test]
fn a_run_that_thaws_in_time_is_left_alone() {
    let agent = Scripted::default();
    let said = stand(&agent, false, |say, hear| {
        assert_eq!(hear(), Reply::Ready);
        for word in [Message::Freeze, Message::Frozen, Message::Thawed] {
            say(word);
        }
    });
    assert_eq!(said, ["ready", "armed", "done"]);
    assert_eq!(agent.thaws(), 0);
}

#[test]
fn over_the_budget_it_thaws_and_tells_when() {
    let agent = Scripted::new(State {
        frozen: 2,
        ..State::default()
    });
    let said = stand(&agent, false, |say, hear| {
        say(Message::Freeze);
        say(Message::Frozen);
        assert_eq!((hear(), hear()), (Reply::Ready, Reply::Armed));
        let Reply::Thawed(thaw) = hear() else {
            panic!("no thaw")
        };
        assert!(
            thaw.count == 2 && thaw.began >= BUDGET && thaw.answered >= thaw.began,
            "{thaw:?}"
        );
        say(Message::Thawed);
    });
    assert_eq!(said, ["ready", "armed", "thawed 2", "done"]);
    assert_eq!(
        agent.thaws(),
        1,
        "the freeze had been answered: one thaw is enough"
    );
}

#[test]
fn a_run_that_dies_frozen_is_thawed_for_at_once_however_often_that_fails() {
    let agent = Scripted::new(State {
        frozen: 1,
        ..State::default()
    });
    let clock = Instant::now();
    let said = stand(&agent, false, |say, hear| {
        say(Message::Freeze);
        say(Message::Frozen);
        assert_eq!((hear(), hear()), (Reply::Ready, Reply::Armed));
        agent.0.lock().unwrap().silent = 3;
    });
    assert_eq!(said, ["ready", "armed", "thawed 1"]);
    assert!(clock.elapsed() < Duration::from_secs(2), "{:?}", clock.elapsed());
}

#[test]
fn a_freeze_that_was_not_answered_is_thawed_when_it_comes_at_last() {
    let agent = Scripted::new(State {
        late: Some(1),
        ..State::default()
    });
    let clock = Instant::now();
    let said = stand(&agent, false, |say, _| {
        say(Message::Freeze);
        say(Message::Unknown);
    });
    assert_eq!(said, ["ready", "armed", "thawed 0", "thawed 1"]);
    assert!(
        clock.elapsed() >= Duration::from_millis(500),
        "until none can be on its way"
    );
}

#[test]
fn a_domain_that_is_off_is_not_waited_for_and_a_silent_agent_not_for_ever() {
    for off in [true, false] {
        let agent = Scripted::default();
        let clock = Instant::now();
        let said = stand(&agent, off, |say, hear| {
            say(Message::Freeze);
            assert_eq!(hear(), Reply::Ready);
            agent.0.lock().unwrap().silent = usize::MAX;
        });
        assert_eq!(said, ["ready", "armed"]);
        assert_eq!(
            clock.elapsed() < Duration::from_secs(1),
            off,
            "{:?}",
            clock.elapsed()
        );
    }
}
