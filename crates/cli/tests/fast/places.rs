//! Files that take their places, and a death between any two steps of that: no domain, no repository.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use strongroom_base::cancel::Cancel;
use strongroom_borg::{PassphraseSource, Settings};
use strongroom_engine::config::Config;
use strongroom_engine::files::journal::Journal;
use strongroom_engine::files::unfinished::recover;
use strongroom_engine::run::context::Context;
use strongroom_engine::run::settings::{self as resolved, Arguments};
use strongroom_engine::run::state::StateDirectory;
use strongroom_libvirt::Libvirt;
use strongroom_points::store::Repositories;

use crate::common::names;

/// Where the process that dies works, and at which step it dies.
const ORDER: &str = "STRONGROOM_TEST_PLACES";

/// A restore's dealings with its files: one replaces another, one is new, in a directory that is.
fn take_places(directory: &Path, state: &StateDirectory) {
    let journal = Journal::begin(state, "web").unwrap();
    let staged = |name: &str| {
        let staged = journal.stage(&directory.join(name)).unwrap();
        staged.with(b"new").unwrap()
    };
    let staged_files = vec![staged("images/vda"), staged("images/made/vars")];
    journal.taking(&staged_files, true).unwrap();
    let mut installed = Vec::new();
    for staged in staged_files {
        journal.step();
        installed.push(staged.install(true).unwrap());
    }
    journal.taken(None).unwrap();
    for file in installed {
        journal.step();
        file.keep().unwrap();
    }
    journal.step();
}

#[test]
fn victim() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let (directory, stop) = order.rsplit_once(' ').unwrap();
    let stop: usize = stop.parse().unwrap();
    let steps = AtomicUsize::new(0);
    let directory = Path::new(directory);
    let state = StateDirectory::open(directory.join("state"))
        .unwrap()
        .watched(Arc::new(move |_| {
            if steps.fetch_add(1, Ordering::SeqCst) == stop {
                std::process::abort();
            }
        }));
    take_places(directory, &state);
}

/// Rows "death between rename and link" and R6: whatever step it dies at, `recover` leaves all old files or all new ones,
/// each at its place, and nothing beside them.
#[test]
fn a_death_at_any_step_leaves_the_old_files_or_the_new_ones() {
    let hypervisor = Libvirt::connect("test:///default").unwrap();
    let repositories = Repositories {
        settings: Settings::from_env(),
        passphrase: PassphraseSource::fixed(strongroom_borg::Passphrase::new(String::new())),
        cancel: Cancel::new(),
    };
    let config = Config::new("/nowhere/{vm}");
    let resolved = resolved::Settings::resolve(&config, &Arguments::default(), |_, _| None).unwrap();
    let resolved = Arc::new(resolved);
    let cancel = Cancel::new();
    let (mut back, mut forward) = (0, 0);
    for stop in 0.. {
        let place = tempfile::tempdir().unwrap();
        let images = place.path().join("images");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("vda"), "old").unwrap();
        let order = format!("{} {stop}", place.path().display());
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["places::victim", "--exact"])
            .env(ORDER, order)
            .output()
            .unwrap();
        let died = !output.status.success();
        let state = StateDirectory::open(place.path().join("state")).unwrap();
        let context = Context {
            vm: None,
            hypervisor: &hypervisor,
            own_domain: None,
            settings: Arc::clone(&resolved),
            state: &state,
            repositories: &repositories,
            observer: &(),
            cancel: &cancel,
            watchdog: &|_, _| Command::new("false"),
        };
        // What is there is where it belongs, at every moment.
        assert!(images.join("vda").exists(), "step {stop}");
        let looked = recover(&context, None, true).unwrap();
        assert_eq!(recover(&context, Some("other"), false).unwrap(), []);
        let found = recover(&context, Some("web"), false).unwrap();
        assert_eq!(looked, found, "step {stop}");
        let vda = fs::read_to_string(images.join("vda")).unwrap();
        match vda.as_str() {
            "old" => assert_eq!(names(&images), ["vda"], "step {stop}"),
            "new" => {
                assert_eq!(names(&images), ["made", "vda"], "step {stop}");
                assert_eq!(names(&images.join("made")), ["vars"], "step {stop}");
            }
            other => panic!("step {stop}: {other:?}"),
        }
        assert!(
            names(&place.path().join("state/restores"))
                .iter()
                .all(|name| Path::new(name).extension().is_none_or(|end| end != "json")),
            "step {stop}"
        );
        assert_eq!(
            recover(&context, None, false).unwrap(),
            [],
            "nothing is done twice"
        );
        if !died {
            assert_eq!(vda, "new");
            break;
        }
        if vda == "old" {
            back += 1;
        } else {
            forward += 1;
        }
    }
    assert!(back > 6 && forward >= 4, "{back} {forward}");
}
