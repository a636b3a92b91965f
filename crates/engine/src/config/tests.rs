use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::read(file.path())
}

#[test]
fn a_minimal_file_gets_the_defaults() {
    let config = parse("repository = '/srv/{vm}'\n[vm.web01]\n").unwrap();
    assert_eq!(config.hypervisor, "qemu:///system");
    assert_eq!(config.vm("web01").unwrap().1, "/srv/web01");
    assert_eq!(
        config.reader,
        Reader {
            depth: 4,
            latency_ms: 10,
            limit_mib: 200
        }
    );
}

#[test]
fn the_audit_reads_what_its_confidence_takes() {
    let count = |text: &str| {
        parse(&format!("repository = '/srv/{{vm}}'\n[audit]\n{text}"))
            .unwrap()
            .audit
            .count()
    };
    assert_eq!(count(""), 7, "ln 0.01 / ln 0.9 = 43.7, over 7 runs");
    assert_eq!(count("runs = 1"), 44);
    assert_eq!(count("confidence = 0.95\nshare = 0.01\nruns = 1"), 299);
    assert_eq!(count("confidence = 0.0"), 0);
    assert_eq!(count("chunks = 3"), 3);
    for bad in [
        "confidence = 1.0",
        "confidence = -0.1",
        "share = 0.0",
        "share = 1.0",
        "runs = 0",
        "confidence = nan",
    ] {
        let text = format!("repository = '/srv/{{vm}}'\n[audit]\n{bad}");
        assert!(parse(&text).is_err(), "{bad}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let mut config = Config::new("ssh://backup@host/./{vm}");
    config.vm.insert(
        "db".into(),
        Vm {
            swap: vec!["vdb".into()],
            ..Vm::default()
        },
    );
    let again = parse(&config.to_toml()).unwrap();
    assert_eq!(again.vm, config.vm);
    assert_eq!(again.repository, config.repository);
}

#[test]
fn mistakes_are_named() {
    for (text, word) in [
        ("repository = '/srv/{vm}'\nrepositry = 'x'\n", "repositry"),
        ("repository = '/srv/one'\n[vm.a]\n[vm.b]\n", "{vm}"),
        (
            "repository = '/srv/{vm}'\n[vm.a]\n[vm.b]\nrepository = 'file:///srv/./a/'\n",
            "a and b would share",
        ),
        ("repository = '/srv/{vm}'\ncompression = 'rar'\n", "compression"),
        ("repository = '/srv/{vm}'\n[vm.a]\nswap = ['../x']\n", "target"),
        ("repository = '/srv/{vm}'\n[vm.\"../a\"]\n", "slash"),
        ("repository = '/srv/{vm}'\n[reader]\ndepth = 0\n", "depth"),
        ("hypervisor = 'qemu:///system'\n", "repository"),
        (
            "repository = '/srv/{vm}'\n[vm.a.quiesce]\nbudget_ms = 49\n",
            "budget_ms",
        ),
        (
            "repository = '/srv/{vm}'\n[vm.a.quiesce]\ntimeout_s = 0\n",
            "timeout_s",
        ),
        (
            "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'perfect'\n",
            "perfect",
        ),
        (
            "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'application'\n",
            "needs a script",
        ),
        (
            "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'filesystem'\npost = 'true'\n",
            "belong to level application",
        ),
        (
            "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'application'\npre = ' '\n",
            "shell commands",
        ),
        (
            "repository = '/srv/{vm}'\n[vm.a.quiesce]\nlevel = 'application'\npre = 'x'\nssh = '-oProxyCommand=x'\n",
            "vm.a.quiesce: ssh",
        ),
        (
            "repository = '/srv/{vm}'\n[nbd_tls]\nports = '0-4'\n",
            "nbd_tls.ports",
        ),
        (
            "repository = '/srv/{vm}'\n[nbd_tls]\nlisten = 'hv1'\n",
            "listen = 'hv1'",
        ),
        (
            "repository = '/srv/{vm}'\n[nbd_tls]\ncertificates = 'pki'\n",
            "nbd_tls.certificates",
        ),
        (
            "repository = '/srv/{vm}'\nown_domain = 'b'\n[nbd_tls]\n",
            "own_domain",
        ),
        ("repository = '/srv/{VM}'\n", "repository: "),
        ("repository = '/srv/{{vm}}'\n[vm.a]\n", "placeholders"),
        ("repository = 'ssh://{user}@nas/{vm}'\n[vm.a]\n", "placeholders"),
        ("repository = '~backup/{vm}'\n[vm.a]\n", "from the root on"),
        ("repository = 'backups/{vm}'\n[vm.a]\n", "from the root on"),
        ("repository = './{vm}'\n[vm.a]\n", "from the root on"),
        ("repository = 'file://backups/{vm}'\n[vm.a]\n", "from the root on"),
        ("repository = ''\n[vm.a]\n", "it is empty"),
        ("repository = '/srv/{vm}::one'\n[vm.a]\n", "an archive"),
        (
            "repository = '/srv/{vm}'\n[vm.a]\nrepository = '~/a'\n",
            "vm.a.repository: ",
        ),
        (
            "repository = '/srv/{vm}'\n[vm.'web-{now}']\n",
            "vm.web-{now}: it needs a `repository` of its own",
        ),
        ("repository = '/srv/{vm}'\n[vm.\"a\\tb\"]\n", "control characters"),
        ("repository = '/srv/{vm}'\n[signing]\nkey = 'id'\n", "signing.key"),
        ("repository = '/srv/{vm}'\n[witness]\n", "a file or a command"),
        (
            "repository = '/srv/{vm}'\n[witness]\nfile = 'x'\n",
            "witness.file",
        ),
        (
            "repository = '/srv/{vm}'\n[witness]\ncommand = []\n",
            "the program first",
        ),
        (
            "repository = '/srv/{vm}'\n[signing]\nidentity = 'me'\n",
            "allowed_signers",
        ),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{error:?} does not name {word:?}");
    }
}

#[test]
fn tables_can_be_appended() {
    let text = "# mine\nrepository = '/srv/{vm}'\n[vm.a]\nswap = ['vdb']\n";
    let other = Vm {
        exclude: vec!["vdc".into()],
        ..Vm::default()
    };
    let new = BTreeMap::from([("b".to_owned(), other), ("c d".to_owned(), Vm::default())]);
    let both = format!("{text}\n{}", Config::vm_tables(&new));
    let mut expected = parse(text).unwrap().vm;
    expected.extend(new);
    assert_eq!(parse(&both).unwrap().vm, expected, "{both}");
}

#[test]
fn a_vm_that_is_not_configured_is_refused_with_advice() {
    let config = parse("repository = '/srv/{vm}'\n[vm.web01]\n").unwrap();
    let error = config.vm("web02").unwrap_err().to_string();
    assert!(error.contains("strongroom init web02"), "{error}");
}

const UUID: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

/// K7: settings are found by the domain, whatever the configuration and the command line call it.
#[test]
fn settings_are_those_of_the_domain() {
    let uuid: Uuid = UUID.parse().unwrap();
    let text =
        format!("repository = '/srv/{{vm}}'\n[vm.web01]\n[vm.{UUID}]\nplaintext = true\nswap = ['vdb']\n");
    let config = parse(&text).unwrap();
    for config in [
        config.clone(),
        config.clone().by_names(|_, _| Some("db01".into())),
    ] {
        for asked in [UUID, "db01", "renamed"] {
            let settings = config.settings(asked, asked, uuid).unwrap();
            assert!(settings.vm.plaintext);
            assert_eq!(settings.vm.swap, ["vdb"]);
            assert_eq!(
                settings.repository,
                format!("/srv/{UUID}"),
                "a new name is no new place"
            );
        }
        let other = config.settings("web01", "web01", Uuid::nil()).unwrap();
        assert_eq!(
            (other.vm.plaintext, other.repository.as_str()),
            (false, "/srv/web01")
        );
        assert!(matches!(
            config.settings("web01", "web01", uuid),
            Err(ConfigError::Ambiguous(..))
        ));
        assert!(matches!(
            config.settings("web02", "web02", Uuid::nil()),
            Err(ConfigError::UnknownVm(_))
        ));
        assert_eq!(config.domain_of("web01"), "web01");
    }
    let named = config.by_names(|_, _| Some("db01".into()));
    assert_eq!(
        named.domain_of("db01"),
        UUID,
        "the name may be another VM's by now"
    );
    assert_eq!(named.vm.keys().collect::<Vec<_>>(), ["db01", "web01"]);
    // A name that is taken stays with the one that has it.
    let taken = parse(&text).unwrap().by_names(|_, _| Some("web01".into()));
    assert!(taken.vm.contains_key(UUID) && !taken.vm["web01"].plaintext);
}
