use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use strongroom_borg::{Passphrase, PassphraseSource};
use strongroom_sim::{Fault, Lab, SimHost};

use super::*;
use crate::config::Config;
use crate::run::event::{Event, Kind};
use crate::run::settings::Arguments;

/// Keeps the steps that it hears of.
#[derive(Default)]
struct Ears(Mutex<usize>);

impl Observer for Ears {
    fn event(&self, event: &Event<'_>) {
        if matches!(event.kind, Kind::Step { .. }) {
            *self.0.lock().unwrap() += 1;
        }
    }
}

impl OfVm for Ears {
    fn repository(&self, _: &strongroom_points::store::Event) {}
}

fn work(lab: &Lab, connect: Arc<Connect<SimHost>>) -> Work<SimHost> {
    let text = format!(
        "repository = '{0}/repo-{{vm}}'\nstate = '{0}/state'\n[limits]\nanswer_s = 1\n\
         [vm.fails]\n[vm.hangs]\n[vm.is-not-there]\n[vm.panics]\n",
        lab.directory().display()
    );
    let file = Config::parse(&text, Path::new("test.toml")).unwrap();
    let settings = Settings::resolve(&file, &Arguments::default(), |_, _| None).unwrap();
    let cancel = Cancel::new();
    Work {
        settings: Arc::new(settings),
        repositories: Repositories {
            settings: strongroom_borg::Settings::from_env(),
            passphrase: PassphraseSource::fixed(Passphrase::new(String::new())),
            cancel: cancel.clone(),
        },
        connect,
        watchdog: Arc::new(|_| Box::new(|_, _| Command::new("false"))),
        cancel,
        request: backup::Request::default(),
    }
}

fn unreachable(job: &VmJob) -> Result<SimHost, HypervisorError> {
    Err(HypervisorError::Connect {
        uri: job.hypervisor.uri.clone(),
        message: "it is off".into(),
    })
}

/// What came of each, by its turn.
fn outcomes(work: &Work<SimHost>, vms: &[String], at_once: usize) -> Vec<(String, FleetError)> {
    let mut done = Vec::new();
    run(
        work,
        vms,
        at_once,
        |_| Arc::new(Ears::default()),
        |one| done.push(one),
    );
    done.sort_by_key(|one| one.turn);
    done.into_iter()
        .map(|one| (one.vm, one.result.unwrap_err()))
        .collect()
}

#[test]
fn one_that_fails_panics_or_hangs_holds_no_other() {
    let lab = Lab::new();
    let host = lab.host();
    let hung = Arc::new(host.clone());
    hung.faults().on("domain", 0, Fault::Hang);
    let (hanging, directory) = (Arc::clone(&hung), lab.directory().to_owned());
    let connect = move |job: &VmJob| match job.name.as_str() {
        "fails" => unreachable(job),
        "hangs" => Ok((*hanging).clone()),
        "is-not-there" => Ok(SimHost::open(&directory)),
        _ => panic!("as the test says"),
    };
    let work = work(&lab, Arc::new(connect));
    let vms: Vec<String> = work.settings.names().cloned().collect();
    for at_once in [1, 4] {
        let found = outcomes(&work, &vms, at_once);
        let names: Vec<&String> = found.iter().map(|(vm, _)| vm).collect();
        assert_eq!(names, ["fails", "hangs", "is-not-there", "panics"]);
        assert!(matches!(
            found[0].1,
            FleetError::Connect(HypervisorError::Connect { .. })
        ));
        assert!(
            matches!(found[1].1, FleetError::NoAnswer { call: "domain", .. }),
            "{:?}",
            found[1].1
        );
        let missing = HypervisorError::NoSuchDomain(String::new(), String::new());
        assert!(
            matches!(&found[2].1, FleetError::Backup(BackupError::Hypervisor(error))
                if std::mem::discriminant(error) == std::mem::discriminant(&missing)),
            "{:?}",
            found[2].1
        );
        assert!(matches!(found[3].1, FleetError::Defect));
        hung.faults().on("domain", 0, Fault::Hang);
    }
    hung.faults().release();
}

#[test]
fn what_is_cancelled_before_its_turn_does_not_begin() {
    let lab = Lab::new();
    let work = work(&lab, Arc::new(unreachable));
    work.cancel.cancel();
    let vms = ["fails".to_owned(), "hangs".to_owned()];
    let found = outcomes(&work, &vms, 1);
    assert_eq!(found.len(), 2);
    assert!(
        found
            .iter()
            .all(|(_, why)| matches!(why, FleetError::NotBegun(_)))
    );
}
