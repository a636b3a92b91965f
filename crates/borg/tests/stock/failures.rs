//! What goes wrong in practice: each with a clear error, nothing lost, nothing left behind.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{BLOCK, PASSPHRASE, World, disk, noise, options, passphrase, read, wait_for_end, write};
use strongroom_borg::{
    Access, ChunkRef, Compression, Encryption, Error, Item, Passphrase, PassphraseSource, Repository,
    Transport,
};

fn with_archive(encryption: Encryption) -> World {
    let world = World::with_repository(encryption);
    write(world.open(Access::Write), "a1", &disk(), None, Compression::None)
        .0
        .close()
        .unwrap();
    world
}

fn error(world: &World, access: Access) -> Error {
    world.try_open(access).expect_err("this must not open")
}

fn copy(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn passphrases() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let open =
        |source: &PassphraseSource| Repository::open(&world.location, Access::Read, &world.settings, source);
    let wrong = PassphraseSource::fixed(Passphrase::new("wrong".into()));
    assert!(matches!(open(&wrong), Err(Error::WrongPassphrase)));
    assert!(matches!(
        open(&PassphraseSource::default()),
        Err(Error::NoPassphrase)
    ));
    let asked = PassphraseSource::default().with_prompt(|request| {
        Some(Passphrase::new(
            if request.attempt == 2 { PASSPHRASE } else { "no" }.into(),
        ))
    });
    open(&asked).unwrap();
    // It worked, so it is not asked for again.
    open(&asked.with_prompt(|_| None)).unwrap();
    let stubborn = PassphraseSource::default().with_prompt(|_| Some(Passphrase::new("no".into())));
    assert!(matches!(open(&stubborn), Err(Error::WrongPassphrase)));
}

#[test]
fn an_empty_passphrase_needs_no_question() {
    let world = World::new();
    let empty = PassphraseSource::fixed(Passphrase::new(String::new()));
    Repository::create(&world.location, Encryption::Repokey, &world.settings, &empty).unwrap();
    let none = PassphraseSource::default();
    Repository::open(&world.location, Access::Read, &world.settings, &none).unwrap();
}

#[test]
fn a_lost_key_file() {
    let world = World::with_repository(Encryption::KeyfileBlake2);
    world.open(Access::Read);
    std::fs::remove_dir_all(&world.settings.keys_dir).unwrap();
    assert!(matches!(error(&world, Access::Read), Error::NoKeyFile { .. }));
}

#[test]
fn no_repository_no_borg_no_permission() {
    let mut world = World::new();
    assert!(matches!(error(&world, Access::Read), Error::NotFound { .. }));
    std::fs::create_dir(world.repo_path()).unwrap();
    std::fs::write(world.repo_path().join("config"), "[repository]\nversion = 2\n").unwrap();
    let other = error(&world, Access::Read);
    assert!(matches!(other, Error::NotARepository { .. }), "{other}");
    world.settings.serve_args = vec!["--restrict-to-path".into(), "/nowhere".into()];
    assert!(matches!(
        error(&world, Access::Read),
        Error::PathNotAllowed { .. }
    ));
    world.settings.local_borg = "/nonexistent/borg".into();
    let gone = error(&world, Access::Read);
    assert!(
        matches!(&gone, Error::ServerGone { message, .. } if message.contains("/nonexistent/borg")),
        "{gone}"
    );
    let failed = Repository::create(&world.location, Encryption::None, &world.settings, &passphrase());
    assert!(matches!(failed, Err(Error::Init { .. })));
}

#[test]
fn creating_twice_is_refused() {
    let world = with_archive(Encryption::Repokey);
    let result = Repository::create(
        &world.location,
        Encryption::Repokey,
        &world.settings,
        &passphrase(),
    );
    assert!(
        matches!(&result, Err(Error::Init { message }) if message.contains("already exists")),
        "{result:?}"
    );
    assert_eq!(world.open(Access::Read).archives().count(), 1);
}

#[test]
fn locks() {
    let mut world = with_archive(Encryption::Repokey);
    world.settings.lock_wait = Duration::ZERO;
    let (reader, other) = (world.open(Access::Read), world.open(Access::Read));
    assert!(matches!(error(&world, Access::Write), Error::LockTimeout { .. }));
    drop((reader, other));
    let writer = world.open(Access::Write);
    assert!(matches!(error(&world, Access::Read), Error::LockTimeout { .. }));
    let stock = world.command(&["list", "--lock-wait", "0"]).output().unwrap();
    assert!(!stock.status.success());
    writer.close().unwrap();
    assert!(!world.repo_path().join("lock.exclusive").exists());
    world.stock(&["list"]);
}

#[test]
fn a_used_up_quota() {
    let mut world = with_archive(Encryption::RepokeyBlake2);
    world.settings.serve_args = vec!["--storage-quota".into(), "10M".into()];
    let mut writer = world
        .open(Access::Write)
        .begin(options("a2", Compression::None))
        .unwrap();
    let failed = (0..200).try_for_each(|n| writer.put_data(&noise(n + 50, BLOCK)).map(drop));
    let failed = failed.and_then(|()| writer.commit().map(drop));
    assert!(matches!(failed, Err(Error::QuotaExceeded { .. })), "{failed:?}");
    world.settings.serve_args.clear();
    world.stock_accepts("a1", &disk());
    write(
        world.open(Access::Write),
        "a2",
        &noise(3, BLOCK),
        None,
        Compression::None,
    )
    .0
    .close()
    .unwrap();
}

#[test]
fn a_killed_server_and_the_next_try() {
    let mut world = with_archive(Encryption::RepokeyBlake2);
    let pid_file = world.path("pid");
    let real = world.settings.local_borg.clone();
    world.settings.local_borg =
        world.wrapped_borg("borg", &format!("echo $$ > '{}'; exec", pid_file.display()));
    let mut writer = world
        .open(Access::Write)
        .begin(options("a2", Compression::None))
        .unwrap();
    writer.put_data(&noise(1000, BLOCK)).unwrap();
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(
        Command::new("kill")
            .args(["-9", pid.trim()])
            .status()
            .unwrap()
            .success()
    );
    let failed = (0..500)
        .find_map(|n| writer.put_data(&noise(n + 2000, BLOCK)).err())
        .unwrap();
    assert!(
        matches!(&failed, Error::ServerGone { status: Some(_), .. }),
        "{failed}"
    );
    assert!(matches!(writer.poll(), Err(Error::Doomed)));
    assert!(matches!(writer.commit(), Err(Error::Doomed)));
    world.settings.local_borg = real;
    let content = noise(1000, BLOCK * 2);
    write(world.open(Access::Write), "a2", &content, None, Compression::None)
        .0
        .close()
        .unwrap();
    world.stock_accepts("a2", &content);
}

#[test]
fn cancelling_from_another_thread() {
    let mut world = with_archive(Encryption::Repokey);
    world.settings.lock_wait = Duration::from_secs(5);
    // A server that hangs instead of answering.
    let pid_file = world.path("pid");
    world.settings.local_borg =
        world.wrapped_borg("borg", &format!("echo $$ > '{}'; exec", pid_file.display()));
    let mut repository = world.open(Access::Write);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let signal = |name: &str| {
        let status = Command::new("kill").args([name, pid.trim()]).status().unwrap();
        assert!(status.success());
    };
    signal("-STOP");
    let canceller = repository.canceller();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        canceller.cancel();
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A stopped process takes the signal when it goes on.
            std::thread::sleep(Duration::from_millis(300));
            signal("-CONT");
        });
        let cancelled = repository.archive(&"a1".into());
        assert!(matches!(cancelled, Err(Error::Cancelled { .. })), "{cancelled:?}");
    });
    thread.join().unwrap();
    drop(repository);
    assert_eq!(world.open(Access::Write).archives().count(), 1);
}

#[test]
fn cancelling_while_waiting_for_the_lock() {
    let mut world = with_archive(Encryption::Repokey);
    world.settings.lock_wait = Duration::from_mins(5);
    let holder = world.open(Access::Write);
    let transport = Transport::spawn(&world.location, &world.settings).unwrap();
    let canceller = transport.canceller();
    assert!(!canceller.is_over());
    let thread = std::thread::spawn({
        let canceller = canceller.clone();
        move || {
            std::thread::sleep(Duration::from_millis(500));
            canceller.cancel();
        }
    });
    let clock = Instant::now();
    let opened = Repository::open_over(
        transport,
        &world.location,
        Access::Write,
        &world.settings,
        &passphrase(),
    );
    assert!(matches!(opened, Err(Error::Cancelled { .. })), "{opened:?}");
    assert!(clock.elapsed() < Duration::from_secs(20), "{:?}", clock.elapsed());
    thread.join().unwrap();
    wait_for_end(&canceller);
    // The holder of the lock still has it.
    holder.close().unwrap();
    assert_eq!(world.open(Access::Write).archives().count(), 1);
}

#[test]
fn storage_that_cannot_be_written_to() {
    let world = with_archive(Encryption::Repokey);
    let open_to_all = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(world.dir())
        .status()
        .unwrap();
    assert!(open_to_all.success());
    let mut restricted = World::at(world.dir().to_owned());
    let home = world.path("nobody");
    // The user `nobody` may read everything (Borg may be installed in a private place) and write nothing.
    let as_nobody = format!(
        "mkdir -m 777 -p '{home}'; export BORG_BASE_DIR='{home}'; exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search",
        home = home.display()
    );
    restricted.settings.local_borg = world.wrapped_borg("nobody-borg", &as_nobody);
    let failed = error(&restricted, Access::Write);
    assert!(
        matches!(failed, Error::LockFailed { .. } | Error::PermissionDenied { .. }),
        "{failed:?}"
    );
    let mut repository = restricted.open(Access::ReadWithoutLock);
    assert!(read(&mut repository, "a1", "disk") == disk());
}

#[test]
fn an_old_state_put_back() {
    let mut world = with_archive(Encryption::RepokeyBlake2);
    copy(&world.repo_path(), &world.path("old"));
    write(world.open(Access::Write), "a2", b"x", None, Compression::None)
        .0
        .close()
        .unwrap();
    std::fs::remove_dir_all(world.repo_path()).unwrap();
    copy(&world.path("old"), &world.repo_path());
    assert!(matches!(error(&world, Access::Read), Error::Replay { .. }));

    world.location = world.path("old").display().to_string().parse().unwrap();
    assert!(matches!(error(&world, Access::Read), Error::Relocated { .. }));
    world.settings.accept_relocated = true;
    assert!(matches!(error(&world, Access::Read), Error::Replay { .. }));
}

#[test]
fn a_moved_repository() {
    let mut world = with_archive(Encryption::Repokey);
    std::fs::rename(world.repo_path(), world.path("moved")).unwrap();
    world.location = world.path("moved").display().to_string().parse().unwrap();
    assert!(matches!(error(&world, Access::Write), Error::Relocated { .. }));
    world.settings.accept_relocated = true;
    world.open(Access::Write);
    world.settings.accept_relocated = false;
    world.open(Access::Read);
}

#[test]
fn a_repository_replaced_by_an_unencrypted_one() {
    let world = with_archive(Encryption::Repokey);
    let id = world.open(Access::Read).id().to_string();
    std::fs::remove_dir_all(world.repo_path()).unwrap();
    let elsewhere = world.settings.clone().with_base_dir(&world.path("attacker"));
    Repository::create(&world.location, Encryption::None, &elsewhere, &passphrase()).unwrap();
    assert!(matches!(error(&world, Access::Read), Error::UnknownUnencrypted));
    // Even with the same id.
    let config = std::fs::read_to_string(world.repo_path().join("config")).unwrap();
    let config: Vec<String> = config
        .lines()
        .map(|line| {
            if line.starts_with("id = ") {
                format!("id = {id}")
            } else {
                line.to_owned()
            }
        })
        .collect();
    std::fs::write(world.repo_path().join("config"), config.join("\n") + "\n").unwrap();
    assert!(matches!(
        error(&world, Access::Read),
        Error::EncryptionChanged { .. }
    ));
}

#[test]
fn damage_costs_only_what_is_damaged() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let blocks: Vec<Vec<u8>> = (0..8).map(|n| noise(n, BLOCK)).collect();
    write(
        world.open(Access::Write),
        "a",
        &blocks.concat(),
        None,
        Compression::None,
    )
    .0
    .close()
    .unwrap();
    // Find the third block's object in the segments by its ciphertext, and change one byte.
    let mut repository = world.open(Access::Read);
    let archive = repository.archive(&"a".into()).unwrap();
    let item = repository.items(&archive).next().unwrap().unwrap();
    let mut chunks = item.chunks.unwrap();
    let object = repository.fetch([chunks[2]]).next().unwrap().1.unwrap();
    let needle = object[1000..1032].to_vec();
    repository.close().unwrap();
    let segments = std::fs::read_dir(world.repo_path().join("data/0")).unwrap();
    let mut hits = 0;
    for path in segments.map(|entry| entry.unwrap().path()) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(32).position(|window| window == needle) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            hits += 1;
        }
    }
    assert_eq!(hits, 1);

    chunks.push(ChunkRef {
        id: strongroom_borg::ChunkId([9; 32]),
        size: 5,
        csize: 5,
    });
    let mut repository = world.open(Access::Read);
    let opener = repository.opener();
    let results: Vec<_> = repository
        .fetch(chunks)
        .map(|(chunk, object)| object.and_then(|object| opener.open(&chunk, object)))
        .collect();
    for (n, result) in results.iter().enumerate() {
        match result {
            Ok(data) => assert!(**data == *blocks[n]),
            Err(Error::ObjectNotFound(_)) => assert_eq!(n, 8),
            Err(Error::RepositoryDamaged { .. } | Error::Damaged { .. }) => assert_eq!(n, 2),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 7);
}

#[test]
fn replies_may_be_left_unread() {
    let world = with_archive(Encryption::Repokey);
    let mut repository = world.open(Access::Read);
    let archive = repository.archive(&"a1".into()).unwrap();
    let item: Item = repository.items(&archive).next().unwrap().unwrap();
    let chunks = item.chunks.unwrap();
    let mut fetch = repository.fetch(chunks);
    fetch.next().unwrap().1.unwrap();
    drop(fetch);
    assert!(read(&mut repository, "a1", "disk") == disk());
}
