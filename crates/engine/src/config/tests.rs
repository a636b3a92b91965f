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
    assert_eq!(config.repository_of("web01"), "/srv/web01");
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
            .spot_check
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
