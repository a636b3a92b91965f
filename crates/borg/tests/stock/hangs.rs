//! A server that hangs (R10): a call that waits for it is woken when the work is stopped, or when patience is over.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use strongroom_borg::{
    Access, Canceller, Compression, Encryption, Error, Event, Level, Repository, Transport,
};

use crate::common::{BLOCK, World, noise, options, passphrase, wait_for_end};

/// Far more than anything here takes, and far less than for ever.
const SOON: Duration = Duration::from_secs(40);

/// Stops every server that it opens from here on, at once and again and again, for as long as it is there: asking one to go
/// on and end does not help.
struct Stopped(Arc<Mutex<bool>>);

impl Stopped {
    fn now(pid: &str) -> Self {
        let over = Arc::new(Mutex::new(false));
        let (seen, pid) = (Arc::clone(&over), pid.trim().to_owned());
        let stop = move || Command::new("kill").args(["-STOP", &pid]).output().unwrap();
        stop();
        std::thread::spawn(move || {
            while !*seen.lock().unwrap() {
                stop();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self(over)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = true;
    }
}

fn world() -> World {
    let mut world = World::with_repository(Encryption::Repokey);
    let note = format!("echo $$ > '{}'; exec", world.path("pid").display());
    world.settings.local_borg = world.wrapped_borg("borg", &note);
    world.settings.lock_wait = Duration::from_secs(5);
    world
}

fn pid(world: &World) -> String {
    std::fs::read_to_string(world.path("pid")).unwrap()
}

fn cancel_soon(canceller: Canceller) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        canceller.cancel();
    })
}

#[test]
fn one_that_does_not_even_greet() {
    let mut world = world();
    world.settings.local_borg =
        world.wrapped_borg("hangs", "trap '' TERM; sleep 600 & wait; sleep 600; exec");
    let transport = Transport::spawn(&world.location, &world.settings).unwrap();
    let cancelled = cancel_soon(transport.canceller());
    let clock = Instant::now();
    let opened = Repository::open_over(
        transport,
        &world.location,
        Access::Write,
        &world.settings,
        &passphrase(),
    );
    assert!(matches!(opened, Err(Error::Cancelled { .. })), "{opened:?}");
    assert!(clock.elapsed() < SOON, "{:?}", clock.elapsed());
    cancelled.join().unwrap();
}

#[test]
fn one_that_takes_no_more_and_cannot_be_asked_to_end() {
    let world = world();
    let mut writer = world
        .open(Access::Write)
        .begin(options("a1", Compression::None))
        .unwrap();
    let canceller = writer.canceller();
    let stopped = Stopped::now(&pid(&world));
    let cancelled = cancel_soon(canceller.clone());
    let clock = Instant::now();
    // Far more than pipes hold: this blocks.
    let error = (0..4000)
        .find_map(|seed| writer.put_data(&noise(seed, BLOCK)).err())
        .expect("it takes everything");
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    assert!(clock.elapsed() < Duration::from_secs(10), "{:?}", clock.elapsed());
    cancelled.join().unwrap();
    drop(writer);
    drop(stopped);
    assert!(clock.elapsed() < SOON, "{:?}", clock.elapsed());
    wait_for_end(&canceller);
    // The dead one's lock is in no other's way.
    assert_eq!(world.open(Access::Write).archives().count(), 0);
}

#[test]
fn one_that_is_silent_for_too_long_is_given_up_unasked() {
    let mut world = world();
    // Long enough for a server to start on a machine that is busy.
    world.settings.patience = Some(Duration::from_secs(5));
    let mut repository = world.open(Access::Write);
    // No call waits for it: that is no silence.
    std::thread::sleep(Duration::from_millis(5200));
    repository.archives().for_each(drop);
    let stopped = Stopped::now(&pid(&world));
    let clock = Instant::now();
    let error = repository.list_ids().find_map(Result::err);
    drop(stopped);
    let error = error.expect("it is silent");
    assert!(
        matches!(&error, Error::Silent { time, .. } if time.as_secs() == 5),
        "{error}"
    );
    assert!(error.is_connection_lost() && error.hint().is_some_and(|hint| hint.contains("repository_s")));
    assert!(clock.elapsed() < SOON, "{:?}", clock.elapsed());
}

/// A10.
#[test]
fn a_banner_is_no_warning_and_explains_an_end() {
    let mut world = world();
    world.settings.local_borg = world.wrapped_borg(
        "greets",
        "printf '%s\\n' '*** AUTHORISED USE ONLY ***' '' '{not a record' >&2; exec",
    );
    let heard = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&heard);
    world.settings = world
        .settings
        .clone()
        .with_events(move |event| events.lock().unwrap().push(event));
    world.open(Access::Write).close().unwrap();
    let heard: Vec<Event> = heard.lock().unwrap().drain(..).collect();
    assert_eq!(heard.len(), 2, "{heard:?}");
    let detail = |event: &Event| {
        matches!(
            event,
            Event::Log {
                level: Level::Info,
                ..
            }
        )
    };
    assert!(heard.iter().all(detail), "{heard:?}");
    // Of one that is not there the same lines tell why.
    world.settings.local_borg = world.wrapped_borg("refuses", "echo 'account expired' >&2; exit 1;");
    let error = world.try_open(Access::Read).unwrap_err();
    assert!(error.to_string().contains("account expired"), "{error}");
}

/// A17.
#[test]
fn a_borg_that_is_not_there_is_to_be_installed() {
    let mut world = world();
    world.settings.local_borg = "/nonexistent/borg".into();
    let error = world.try_open(Access::Read).unwrap_err();
    assert!(
        error.hint().is_some_and(|hint| hint.starts_with("install borg")),
        "{error}"
    );
}
