use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::{CaptureMethod, IfMissed, Level, LuksHeaders};

const UUID: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("test.toml")).unwrap()
}

fn resolve(text: &str, name: Option<&str>) -> Settings {
    let name_of = |_: Uuid, _: &str| name.map(str::to_owned);
    Settings::resolve(&parse(text), &Arguments::default(), name_of).unwrap()
}

#[test]
fn a_vm_that_is_not_configured_is_refused_with_advice() {
    let settings = resolve("repository = '/srv/{vm}'\n[vm.web01]\n", None);
    let error = settings
        .job_of("web02", "web02", Uuid::nil())
        .unwrap_err()
        .to_string();
    assert!(error.contains("strongroom init web02"), "{error}");
    let other = settings.job("web02");
    assert_eq!(
        (other.configured, other.repository.as_str()),
        (false, "/srv/web02")
    );
}

/// K7: settings are found by the domain, whatever the configuration and the command line call it.
#[test]
fn settings_are_those_of_the_domain() {
    let uuid: Uuid = UUID.parse().unwrap();
    let text =
        format!("repository = '/srv/{{vm}}'\n[vm.web01]\n[vm.{UUID}]\nplaintext = true\nswap = ['vdb']\n");
    for settings in [resolve(&text, None), resolve(&text, Some("db01"))] {
        for asked in [UUID, "db01", "renamed"] {
            let job = settings.job_of(asked, asked, uuid).unwrap();
            assert!(job.plaintext);
            assert_eq!(job.swap, ["vdb"]);
            assert_eq!(
                job.repository,
                format!("/srv/{UUID}"),
                "a new name is no new place"
            );
        }
        let other = settings.job_of("web01", "web01", Uuid::nil()).unwrap();
        assert_eq!(
            (other.plaintext, other.repository.as_str()),
            (false, "/srv/web01")
        );
        assert!(matches!(
            settings.job_of("web01", "web01", uuid),
            Err(ConfigError::Ambiguous(..))
        ));
        assert!(matches!(
            settings.job_of("web02", "web02", Uuid::nil()),
            Err(ConfigError::UnknownVm(_))
        ));
        assert_eq!(settings.job("web01").domain(), "web01");
    }
    let named = resolve(&text, Some("db01"));
    assert_eq!(
        named.job("db01").domain(),
        UUID,
        "the name may be another VM's by now"
    );
    assert_eq!(named.names().collect::<Vec<_>>(), ["db01", "web01"]);
    assert_eq!(named.inventory(uuid, "renamed"), ["renamed", "web01"]);
    // A name that is taken stays with the one that has it.
    let taken = resolve(&text, Some("web01"));
    assert!(taken.is_configured(UUID) && !taken.job("web01").plaintext);
}

/// All that can be said about a VM holds for it by whatever it is named and asked for.
#[test]
fn a_vm_named_by_uuid_gets_all_of_its_settings() {
    let general = "repository = '/srv/{vm}'\nciphertext_only = true\n\
        [limits]\nscratch_mib = 2\nfree_mib = 3\nrun_s = 4\nrepository_s = 5\nanswer_s = 6\n\
        [reader]\ndepth = 7\nlatency_ms = 0\nlimit_mib = 8\n[audit]\nchunks = 9\n";
    let own = "swap = ['vdb']\nexclude = ['vdc']\nhypervisor = 'qemu+ssh://kvm/system'\nplaintext = true\n\
        repository = '/elsewhere/{vm}'\nmethod = 'snapshot'\nluks_headers = 'inside'\n\
        track_beside_snapshots = true\nrequire_seal = true\n";
    let quiesce = "level = 'application'\nif_missed = 'fail'\nbudget_ms = 150\nssh = 'root@web'\npre = 'a'\npost = 'b'\n\
        timeout_s = 10\n";
    let under = |key: &str| format!("{general}[vm.{key}]\n{own}[vm.{key}.quiesce]\n{quiesce}");
    let uuid: Uuid = UUID.parse().unwrap();
    let (by_name, by_uuid) = (resolve(&under("web01"), None), under(UUID));
    let named = by_name.job_of("web01", "web01", uuid).unwrap();
    for (name, asked) in [
        (Some("web01"), "web01"),
        (Some("web01"), UUID),
        (None, UUID),
        (None, "web01"),
    ] {
        let settings = resolve(&by_uuid, name);
        let job = settings.job_of(asked, "web01", uuid).unwrap();
        assert_eq!(job, settings.job(name.unwrap_or(UUID)), "{name:?} {asked}");
        // Where it lies and how it is named tell them apart; nothing else does.
        let same = VmJob {
            name: named.name.clone(),
            uuid: None,
            repository: named.repository.clone(),
            ..(*job).clone()
        };
        assert_eq!(same, *named, "{name:?} {asked}");
        assert_eq!(job.repository, format!("/elsewhere/{UUID}"));
    }
    assert_eq!(
        (&named.swap[..], &named.exclude[..]),
        (&["vdb".to_owned()][..], &["vdc".to_owned()][..])
    );
    assert!(named.plaintext && named.ciphertext_only && named.track_beside_snapshots && named.require_seal);
    assert_eq!(
        (named.method, named.luks_headers),
        (CaptureMethod::Snapshot, LuksHeaders::Inside)
    );
    assert_eq!(named.hypervisor.uri, "qemu+ssh://kvm/system");
    assert_eq!(
        (named.quiesce.level, named.quiesce.if_missed),
        (Level::Application, IfMissed::Fail)
    );
    assert_eq!(named.quiesce.budget, Duration::from_millis(150));
    assert_eq!(named.quiesce.timeout, Duration::from_secs(10));
    let words = [&named.quiesce.ssh, &named.quiesce.pre, &named.quiesce.post];
    assert_eq!(words.map(|word| word.as_deref().unwrap()), ["root@web", "a", "b"]);
    let seconds = |count| Some(Duration::from_secs(count));
    let limits = Limits {
        scratch: Some(2 << 20),
        free: 3 << 20,
        run: seconds(4),
        repository: seconds(5),
        answer: seconds(6),
    };
    assert_eq!(named.limits, limits);
    assert_eq!((named.throttle.depth, named.throttle.latency), (7, None));
    assert_eq!(named.throttle.bytes_per_second.unwrap().get(), 8 << 20);
    assert_eq!(named.spot_check, 9);
}

#[test]
fn the_command_line_overrides_the_file() {
    let text = "repository = '/srv/{vm}'\nown_domain = 'me'\n[limits]\nrun_s = 4\n\
        [vm.a]\n[vm.b]\nhypervisor = 'qemu+ssh://kvm/system'\n";
    let file = resolve(text, None);
    assert_eq!(file.job("a").hypervisor.own_domain.as_deref(), Some("me"));
    assert_eq!(file.job("c").hypervisor, *file.default_hypervisor());
    assert_eq!(
        file.job("b").hypervisor.own_domain,
        None,
        "it is on the hypervisor of all"
    );
    let all = ["b", "a", "c"].map(str::to_owned);
    let groups = file.by_hypervisor(&all);
    let of = |at: usize| (groups[at].0.uri.as_str(), groups[at].1.join(" "));
    assert_eq!(groups.len(), 2);
    assert_eq!(of(0), ("qemu+ssh://kvm/system", "b".to_owned()));
    assert_eq!(of(1), ("qemu:///system", "a c".to_owned()));
    assert!(!file.job("a").disks_confirmed);

    let arguments = Arguments {
        connect: Some("test:///default".into()),
        time_limit: Some(0),
        disks_confirmed: true,
    };
    let said = Settings::resolve(&parse(text), &arguments, |_, _| None).unwrap();
    for name in ["a", "b", "c"] {
        let job = said.job(name);
        assert_eq!(job.hypervisor.uri, "test:///default");
        assert_eq!(job.limits.run, None, "0 is no limit");
        assert!(job.disks_confirmed);
    }
    assert_eq!(said.by_hypervisor(&all).len(), 1);
}
