//! Machines are made from a real template, in real throwaway VMs: their keys are their own and nowhere else, they open
//! their disks by Tang, passphrase or recovery secret, and what goes wrong leaves nothing.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod backups;
mod bench;
mod cipher;
mod import;
mod memory;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use self::bench::{Bench, Console, Tang};
use self::cipher::{raw_of, volume_key};
use crate::common::running::{Running, Said};
use crate::common::tmpfs::Tmpfs;
use strongroom_testkit::{output_of, run, virsh};

/// What the passphrase of the tests is: long enough not to be anywhere by chance.
const PASSPHRASE: &str = "a passphrase that is nowhere else by chance";

/// How long a machine may take to boot on a slow, loaded machine.
const PATIENCE: Duration = Duration::from_mins(8);

#[test]
fn two_machines_of_one_template_share_no_block_and_a_clone_does() {
    let bench = Bench::new();
    let (mut disks, mut memories) = (Vec::new(), Vec::new());
    for (name, more) in [("one", &[][..]), ("two", &["--no-discard"])] {
        let options = [&["--json", "--size", "2G", "--swap", "64M"], more].concat();
        let (mut program, _inherited) = bench.by_passphrase(name, PASSPHRASE, &options);
        let (document, memory) = memory::at_exit(&mut program);
        let uuid = document["created"]["luks"]["uuid"].as_str().unwrap();
        assert!(
            memory::contains(&memory, uuid.as_bytes()),
            "what is public is found"
        );
        memories.push(memory);
        disks.push(raw_of(
            &bench.image(name, "system"),
            &bench.lab.path(&format!("{name}.raw")),
        ));
    }
    let template = raw_of(
        &bench.templates.base().join("root.qcow2"),
        &bench.lab.path("template.raw"),
    );

    // The keys are their own, and with them both give the template's blocks at the same places.
    let keys: Vec<_> = disks
        .iter()
        .map(|disk| volume_key(disk, PASSPHRASE.as_bytes()))
        .collect();
    assert_ne!(keys[0], keys[1]);
    let mut secrets = vec![PASSPHRASE.as_bytes()];
    secrets.extend(keys.iter().flat_map(|key| [&key[..32], &key[32..]]));
    for (memory, secret) in memories
        .iter()
        .flat_map(|memory| secrets.iter().map(move |secret| (memory, secret)))
    {
        assert!(!memory::contains(memory, secret), "a secret is in our memory");
    }
    memory::search_files(bench.lab.dir(), &secrets);
    for place in [
        "/var/log/libvirt",
        "/var/lib/libvirt/qemu",
        "/etc/libvirt",
        "/run/libvirt",
    ] {
        memory::search_files(Path::new(place), &secrets);
    }
    for (disk, key) in disks.iter().zip(&keys) {
        let (same, all) = cipher::same_plaintext(disk, key, &template);
        assert!(
            same * 10 > all * 9 && all > 1000,
            "{same} of {all} blocks are the template's"
        );
    }
    // Deleted data leaves one of them, and the other keeps for itself what is free.
    for (name, disk, discards) in [("one", &disks[0], true), ("two", &disks[1], false)] {
        assert_eq!(
            cipher::header_facts(disk).contains("allow-discards"),
            discards,
            "{name}"
        );
        assert_eq!(bench.xml(name).contains("discard='unmap'"), discards, "{name}");
    }
    // The wrong key gives nothing.
    assert_eq!(cipher::same_plaintext(&disks[0], &keys[1], &template).0, 0);

    // No block of ciphertext is in both, at any place.
    let (one, two) = (cipher::blocks(&disks[0]), cipher::blocks(&disks[1]));
    assert!(
        one.len() > 10_000 && two.len() > 10_000,
        "{} {}",
        one.len(),
        two.len()
    );
    assert_eq!(one.intersection(&two).count(), 0);

    // A clone that got a passphrase and a UUID of its own, as people do it, shares them all: the comparison sees it.
    let clone = bench.lab.path("clone.raw");
    run(Command::new("cp")
        .arg("--sparse=always")
        .args([&disks[0], &clone]));
    cipher::rekey(&clone, PASSPHRASE, "another passphrase of the clone's own");
    let copied = cipher::blocks(&clone);
    assert_eq!(one.intersection(&copied).count(), one.len());

    // Swap: no plain text yet, and never backed up.
    assert!(bench.xml("one").contains("<serial>swap</serial>"));

    // It exists: nothing of it is touched.
    let before = fs::read(bench.image("one", "swap")).unwrap();
    bench
        .create_by_passphrase("one", PASSPHRASE, &["--size", "2G"])
        .expect(2, &["in the configuration already"]);
    bench.forget("one");
    bench
        .create_by_passphrase("one", PASSPHRASE, &["--size", "2G"])
        .expect(1, &["exists already"]);
    run(&mut virsh(["undefine", &bench.name("one")]));
    bench
        .create_by_passphrase("one", PASSPHRASE, &["--size", "2G"])
        .expect(1, &["File exists", "nothing that exists is replaced"]);
    assert_eq!(fs::read(bench.image("one", "swap")).unwrap(), before);
}

#[test]
fn a_machine_opens_its_disk_by_tang_and_without_it_by_the_recovery_secret() {
    let bench = Bench::new();
    let (one, mut two) = (
        Tang::start(&bench.lab.path("tang/one")),
        Tang::start(&bench.lab.path("tang/two")),
    );
    let operator = strongroom_testkit::ssh_keygen(&bench.lab.path("operator"), "operator");
    let advertisements = ["advertisement-1", "advertisement-2"].map(|name| bench.lab.path(name));
    for (tang, file) in [&one, &two].into_iter().zip(&advertisements) {
        fs::write(file, tang.advertisement()).unwrap();
    }
    let both = |each: &dyn Fn(&Tang) -> String| format!("{},{}", each(&one), each(&two));
    let mut program = bench.program(&[
        "--json",
        "create",
        &bench.name("web"),
        "--template",
        "base",
        "--size",
        "2G",
        "--swap",
        "64M",
        "--unlock",
        &both(&|tang| format!("tang:{}", tang.url_in_guest())),
        "--tang-threshold",
        "2",
        "--tang-advertisement",
        &advertisements
            .each_ref()
            .map(|file| file.to_str().unwrap())
            .join(","),
        &format!("--tang-thumbprint={}", both(&Tang::thumbprint)),
        "--recovery-to",
        operator.to_str().unwrap(),
        "--ssh-key",
        operator.to_str().unwrap(),
        "--network",
        "user",
        "--firmware",
        "secure-boot",
        "--virt-type",
        "qemu",
    ]);
    program.args(bench::SMALL);

    // The program, as it is about to end.
    let (document, memory) = memory::at_exit(&mut program);
    let made = &document["created"];
    let secret = run(Command::new("age")
        .args(["--decrypt", "-i"])
        .arg(operator.with_extension(""))
        .arg(made["recovery"].as_str().unwrap()));
    assert_eq!(
        secret.len(),
        71,
        "a recovery secret has eight groups of eight letters"
    );
    let disk = raw_of(&bench.image("web", "system"), &bench.lab.path("web.raw"));
    let key = volume_key(&disk, secret.as_bytes());
    let secrets = [secret.as_bytes(), &key, &key[..32], &key[32..]];
    let uuid = made["luks"]["uuid"].as_str().unwrap();
    assert!(
        memory::contains(&memory, uuid.as_bytes()),
        "what is public is found"
    );
    for wanted in secrets {
        assert!(!memory::contains(&memory, wanted), "a secret is in our memory");
    }
    memory::search_files(bench.lab.dir(), &secrets);
    fs::remove_file(disk).unwrap();

    // From outside: what opens it is known, the recovery secret's slot is not taken for a cheap passphrase.
    let audit = bench.run(&["--json", "audit", &bench.name("web")]).json();
    let findings = audit["audit"]["vms"][0]["findings"].as_array().unwrap();
    let codes: Vec<_> = findings
        .iter()
        .map(|finding| finding["code"].as_str().unwrap())
        .collect();
    assert!(
        codes.contains(&"unlock") && codes.contains(&"no-backup"),
        "{audit}"
    );
    assert!(
        !codes.contains(&"weak-kdf") && !codes.contains(&"no-discard"),
        "{audit}"
    );
    assert!(
        findings.iter().all(|finding| finding["level"] != "unsafe"),
        "{audit}"
    );

    // It boots while both Tang servers answer, and no person is there: by the signed boot loaders, under Secure Boot.
    let name = bench.name("web");
    run(&mut virsh(["start", &name]));
    bench.wait_for_agent("web", PATIENCE);
    let facts = bench.inside(
        "web",
        "cat /etc/machine-id /etc/hostname; swapon --noheadings; cat /root/.ssh/authorized_keys",
    );
    assert!(
        facts.contains("/dev/dm-") && facts.contains("ssh-ed25519"),
        "{facts}"
    );
    let secure_boot =
        "od -An -tu1 -j4 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    assert_eq!(bench.inside("web", secure_boot).trim(), "1");
    let key_line = bench.inside("web", "cat /etc/ssh/ssh_host_ed25519_key.pub");
    assert!(
        key_line.starts_with(made["ssh_host_key"].as_str().unwrap()),
        "{key_line}"
    );
    discards_make_images_and_backups_smaller(&bench);
    run(&mut virsh(["destroy", &name]));

    // With one of them it waits for a passphrase. By BIOS, for a change.
    two.stop();
    let xml = run(&mut virsh(["dumpxml", "--inactive", &name]));
    let (before, rest) = xml.split_once("<os ").unwrap();
    let (_, after) = rest.split_once("</os>").unwrap();
    let bios = bench.lab.path("bios.xml");
    fs::write(
        &bios,
        format!("{before}<os><type arch='x86_64' machine='q35'>hvm</type></os>{after}"),
    )
    .unwrap();
    run(virsh(["define"]).arg(&bios));
    run(&mut virsh(["start", "--paused", &name]));
    let mut console = Console::open(&name);
    run(&mut virsh(["resume", &name]));
    console.wait_for("unlock disk", PATIENCE);
    console.line("not the secret");
    console.wait_for("unlock disk", PATIENCE);
    assert!(output_of(&mut bench::agent(&name, r#"{"execute":"guest-ping"}"#)).is_err());
    console.line(&secret);
    bench.wait_for_agent("web", PATIENCE);
    run(&mut virsh(["destroy", &name]));
}

/// 100 MB that the guest writes, and removes again.
fn discards_make_images_and_backups_smaller(bench: &Bench) {
    let name = bench.name("web");
    let content = || -> u64 {
        bench.run(&["backup", &name]).expect(0, &[]);
        let disk = bench.lab.path("restored.qcow2");
        let to = disk.display().to_string();
        bench
            .run(&["restore", &name, "--disk", "vda", "--to", &to])
            .expect(0, &[]);
        let size = bench::allocated(&disk);
        fs::remove_file(disk).unwrap();
        size
    };
    let image = bench.image("web", "system");
    bench.inside(
        "web",
        "dd if=/dev/urandom of=/root/large bs=1M count=100 2>&1 && sync",
    );
    let (large, large_backup) = (bench::allocated(&image), content());
    bench.inside("web", "rm /root/large && sync && fstrim /");
    let (small, small_backup) = (bench::allocated(&image), content());
    let freed = 90 << 20;
    assert!(small + freed < large, "the image: {large}, then {small}");
    assert!(
        small_backup + freed < large_backup,
        "the backup: {large_backup}, then {small_backup}"
    );
}

#[test]
fn what_others_have_put_together_becomes_a_template() {
    let bench = Bench::new();
    let place = bench.lab.dir().display();
    let config = bench.lab.path("import.toml");
    let text = fs::read_to_string(bench.lab.path("strongroom.toml")).unwrap();
    let store = format!(
        "templates = '{}'",
        bench.templates.base().parent().unwrap().display()
    );
    assert!(text.contains(&store));
    fs::write(
        &config,
        text.replace(&store, &format!("templates = '{place}/templates'")),
    )
    .unwrap();
    let strongroom = |arguments: &[&str]| {
        let mut program = bench.program(arguments);
        program.env("STRONGROOM_CONFIG", &config);
        program.env("STRONGROOM_GUEST", bench.templates.program());
        Said::of(&mut program)
    };
    let (disk, tar) = import::vendors_images(&bench);

    // A vendor's disk that has everything, with a package more; a tar file that lacks one, by which machines are made.
    let disk_path = disk.to_str().unwrap();
    let said = strongroom(&[
        "template",
        "import",
        disk_path,
        "--name",
        "vendor",
        "--package",
        "jq",
    ]);
    said.expect(0, &["template vendor: vendor.qcow2"]);
    strongroom(&["template", "import", tar.to_str().unwrap(), "--name", "tree"])
        .expect(0, &["template tree: root.tar"]);
    let listed = strongroom(&["--json", "template", "verify"]).json();
    let has = |at: usize, name: &str| {
        let packages = listed["templates"][at]["packages"].as_array().unwrap();
        packages
            .iter()
            .any(|package| package.as_str().unwrap().starts_with(name))
    };
    assert!(has(0, "age ") && !has(0, "jq "), "the tar file lacked age");
    assert!(has(1, "age ") && has(1, "jq "), "jq was asked for");
    // The passphrase is typed, with one mistake. The terminal does not show it.
    let options = ["--unlock", "passphrase", "--size", "2G", "--template", "vendor"];
    let mut program = bench.by_terminal("web", &options);
    let (mut terminal, mut running) = Console::of(program.env("STRONGROOM_CONFIG", &config));
    let mut shown = String::new();
    for (asked, typed) in [
        ("New passphrase for the disk of", PASSPHRASE),
        ("The same again", "another"),
        ("They differ.", PASSPHRASE),
        ("The same again", PASSPHRASE),
    ] {
        shown += &terminal.wait_for(asked, PATIENCE);
        shown += &terminal.wait_for(": ", PATIENCE);
        terminal.line(typed);
    }
    shown += &terminal.wait_for("SSH host key SHA256:", PATIENCE);
    assert!(running.wait().unwrap().success(), "{shown}");
    assert!(!shown.contains(PASSPHRASE), "{shown}");
    let disk = raw_of(&bench.image("web", "system"), &bench.lab.path("web.raw"));
    volume_key(&disk, PASSPHRASE.as_bytes());

    // What is refused.
    strongroom(&["template", "import", disk_path, "--name", "vendor"]).expect(1, &["it exists"]);
    let odd = bench.lab.path("system.img");
    fs::write(&odd, "").unwrap();
    strongroom(&["template", "import", odd.to_str().unwrap(), "--name", "odd"])
        .expect(2, &["its name does not say what it is", "--format"]);
    strongroom(&[
        "template",
        "import",
        odd.to_str().unwrap(),
        "--format",
        "raw",
        "--name",
        "odd",
    ])
    .expect(1, &["no ext4 file system"]);
    let overlay = bench.lab.path("overlay.qcow2");
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk_path])
        .arg(&overlay));
    strongroom(&["template", "import", overlay.to_str().unwrap(), "--name", "odd"])
        .expect(1, &["refers to other files"]);
    let other = bench.lab.path("other.tar");
    run(Command::new("tar")
        .args(["-C", "/etc", "-cf"])
        .arg(&other)
        .arg("hostname"));
    strongroom(&["template", "import", other.to_str().unwrap(), "--name", "odd"])
        .expect(1, &["it is no Debian"]);
    assert_eq!(
        crate::common::names(&bench.lab.path("templates")),
        ["tree", "vendor"]
    );
}

#[test]
fn what_fails_or_is_interrupted_leaves_nothing() {
    let bench = Bench::new();
    let nothing_left = || {
        let images: Vec<_> = fs::read_dir(bench.lab.path("images"))
            .map(|files| files.flatten().map(|file| file.file_name()).collect())
            .unwrap_or_default();
        assert!(images.is_empty(), "{images:?}");
        assert!(!bench.lab.path("state/recovery").exists());
        let names = run(&mut virsh(["list", "--all", "--name"]));
        assert!(!names.contains(&bench.name("")), "{names}");
        let config = fs::read_to_string(bench.lab.path("strongroom.toml")).unwrap();
        assert!(!config.contains("[vm."), "{config}");
    };

    // Smaller than the template.
    bench
        .create_by_passphrase("web", PASSPHRASE, &["--size", "600M"])
        .expect(2, &["the template needs at least"]);
    // Memory that this host cannot encrypt, in the host's own words; and what rules it out anywhere.
    for (option, what) in [("--sev", "SEV: "), ("--sev-snp", "SEV-SNP: ")] {
        let (mut program, _inherited) =
            bench.by_passphrase("web", PASSPHRASE, &["--size", "2G", option, "--virt-type", "kvm"]);
        Said::of(&mut program).expect(1, &["the host cannot give", what, "launch security"]);
        bench
            .create_by_passphrase(
                "web",
                PASSPHRASE,
                &["--size", "2G", option, "--virt-type", "qemu"],
            )
            .expect(2, &["only KVM can"]);
    }
    // Tang that does not answer, that is another one, and that was not vouched for.
    let tang = Tang::start(&bench.lab.path("tang"));
    let operator = strongroom_testkit::ssh_keygen(&bench.lab.path("operator"), "operator");
    let by_tang = |url: &str, more: &[&str]| {
        let (name, url) = (bench.name("web"), format!("tang:{url}"));
        let mut program = bench.program(&[
            "create",
            &name,
            "--template",
            "base",
            "--size",
            "2G",
            "--unlock",
            &url,
        ]);
        program
            .arg("--recovery-to")
            .arg(&operator)
            .args(bench::SMALL)
            .args(more);
        Said::of(&mut program)
    };
    by_tang("http://127.0.0.1:1", &[]).expect(
        1,
        &["reach Tang server http://127.0.0.1:1", "--tang-advertisement"],
    );
    let wrong = format!("--tang-thumbprint={}", "A".repeat(43));
    by_tang(&tang.url(), &[&wrong]).expect(
        1,
        &[
            "it has no key AAAA",
            &tang.thumbprint(),
            "not the server that you know",
        ],
    );
    by_tang(&tang.url(), &[]).expect(
        1,
        &[&tang.thumbprint(), "no terminal to confirm", "--tang-thumbprint"],
    );
    // The question is answered with no.
    let (unlock, recipient) = (format!("tang:{}", tang.url()), operator.to_str().unwrap());
    let options = [
        "--template",
        "base",
        "--size",
        "2G",
        "--recovery-to",
        recipient,
        "--unlock",
        &unlock,
    ];
    let (mut terminal, mut running) = Console::of(&bench.by_terminal("web", &options));
    let shown = terminal.wait_for("Is this so (yes/no)? ", PATIENCE);
    assert!(shown.contains(&tang.thumbprint()), "{shown}");
    terminal.line("y");
    terminal.wait_for("you said no", PATIENCE);
    assert_eq!(running.wait().unwrap().code(), Some(1));
    let right = format!("--tang-thumbprint={}", tang.thumbprint());
    by_tang(&tang.url(), &[&right, "--tang-threshold", "2"]).expect(2, &["need 2 of 1 Tang servers"]);
    nothing_left();

    // A template with another byte than what was signed.
    let copy = bench.lab.path("templates");
    run(Command::new("cp")
        .arg("-r")
        .args([bench.templates.base().parent().unwrap(), &copy]));
    let kernel = copy.join("base/vmlinuz");
    let mut bytes = fs::read(&kernel).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(&kernel, bytes).unwrap();
    let config = bench.lab.path("changed.toml");
    let own = bench.templates.base().parent().unwrap().display().to_string();
    let text = fs::read_to_string(bench.lab.path("strongroom.toml")).unwrap();
    fs::write(&config, text.replace(&own, copy.to_str().unwrap())).unwrap();
    let (mut program, _inherited) = bench.by_passphrase("web", PASSPHRASE, &["--size", "2G"]);
    Said::of(program.env("STRONGROOM_CONFIG", &config))
        .expect(1, &["vmlinuz is not the file that was signed"]);
    nothing_left();

    // No passphrase.
    bench
        .create_by_passphrase("web", "", &["--size", "2G"])
        .expect(1, &["it is empty"]);
    nothing_left();

    // Too little room: said before anything is made.
    let small = Tmpfs::new(bench.lab.path("small"), 200);
    let place = small.path().join("images").display().to_string();
    bench
        .create_by_passphrase("web", PASSPHRASE, &["--size", "2G", "--to", &place])
        .expect(1, &["are to be written", "have to stay free (free_mib)"]);
    assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0);
    nothing_left();

    // The storage fills half-way.
    let filling = Tmpfs::new(bench.lab.path("filling"), 4096);
    let place = filling.path().join("images").display().to_string();
    let options = ["--size", "2G", "--to", &place];
    let (mut program, _inherited) = bench.by_passphrase("web", PASSPHRASE, &options);
    let mut running = Running::start(&mut program);
    running.wait_for("copy the template");
    let ballast = filling.fill(100);
    running.end().expect(1, &["free_mib"]);
    fs::remove_file(ballast).unwrap();
    assert_eq!(fs::read_dir(filling.path()).unwrap().count(), 0);
    nothing_left();

    // Ctrl-C while the template is copied.
    let started = |signal: &str| {
        let (mut program, _inherited) = bench.by_passphrase("web", PASSPHRASE, &["--size", "2G"]);
        let mut running = Running::start(&mut program);
        running.wait_for("copy the template");
        let qemu = bench::children(running.id());
        assert!(!qemu.is_empty());
        running.signal(signal);
        let said = running.end();
        let patience = Instant::now() + Duration::from_secs(30);
        while qemu.iter().any(|pid| bench::runs(*pid)) {
            assert!(Instant::now() < patience, "QEMU outlives us");
            std::thread::sleep(Duration::from_millis(50));
        }
        said
    };
    started("INT").expect(1, &["interrupted"]);
    nothing_left();
    // Killed: what is left has hidden names, and the next run of that name removes it.
    let said: Said = started("KILL");
    assert_eq!(said.code, None);
    bench
        .create_by_passphrase("web", "", &["--size", "2G"])
        .expect(1, &["it is empty"]);
    nothing_left();
}
