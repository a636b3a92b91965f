//! Archives that we write, judged by stock Borg.

use std::process::Command;

use crate::common::{BLOCK, World, disk, noise, options, read, write};
use crate::sshd::Sshd;
use strongroom_borg::{Access, Compression, Encryption, Error, Item};

fn changed(disk: &[u8]) -> Vec<u8> {
    let mut changed = disk.to_vec();
    changed[BLOCK * 3..BLOCK * 3 + 100].copy_from_slice(&noise(9, 100));
    changed[BLOCK * 9..BLOCK * 10].copy_from_slice(&noise(10, BLOCK));
    changed
}

/// Full, incremental, stock's whole treatment, and ours again on top.
fn whole_life(encryption: Encryption, compression: Compression) {
    let world = World::with_repository(encryption);
    let first = disk();
    let (repository, full) = write(world.open(Access::Write), "a1", &first, None, compression);
    assert_eq!(full.stats.size, first.len() as u64);
    repository.close().unwrap();

    let second = changed(&first);
    let (mut repository, small) = write(
        world.open(Access::Write),
        "a2",
        &second,
        Some(("a1", &first)),
        compression,
    );
    assert_eq!(small.data_chunks, 2);
    assert!(read(&mut repository, "a2", "disk") == second);
    repository.close().unwrap();
    world.stock_accepts("a2", &second);
    world.stock_extracts("a1", &first);
    assert!(world.stock(&["diff", "::a1", "a2"]).contains("disk"));

    // Stock Borg adds an archive of the same file: it must know the chunks as its own.
    std::fs::write(world.path("disk"), &second).unwrap();
    world.stock(&[
        "create",
        &format!("--chunker-params=fixed,{BLOCK}"),
        "::stock",
        "disk",
    ]);
    let difference = world.stock(&["diff", "::a2", "stock"]);
    assert!(!difference.contains('+'), "the content is the same: {difference}");

    let mut third = second.clone();
    third[..BLOCK].fill(0);
    let (repository, summary) = write(
        world.open(Access::Write),
        "a3",
        &third,
        Some(("stock", &second)),
        compression,
    );
    assert_eq!(summary.data_chunks, 0, "the zero chunk is there already");
    repository.close().unwrap();
    world.stock(&["prune", "--keep-last", "2"]);
    world.stock(&["compact"]);
    world.stock(&["rename", "::a3", "renamed"]);
    world.stock_accepts("renamed", &third);
    let mut repository = world.open(Access::Read);
    assert_eq!(repository.archives().count(), 2);
    assert!(read(&mut repository, "renamed", "disk") == third);
    repository.close().unwrap();
}

#[test]
fn repokey_blake2() {
    whole_life(Encryption::RepokeyBlake2, Compression::None);
}

#[test]
fn keyfile_blake2() {
    whole_life(Encryption::KeyfileBlake2, Compression::Lz4);
}

#[test]
fn repokey() {
    whole_life(Encryption::Repokey, Compression::Zstd(3));
}

#[test]
fn keyfile() {
    whole_life(Encryption::Keyfile, Compression::None);
}

#[test]
fn authenticated() {
    whole_life(Encryption::Authenticated, Compression::Lz4);
}

#[test]
fn authenticated_blake2() {
    whole_life(Encryption::AuthenticatedBlake2, Compression::Zstd(9));
}

#[test]
fn none() {
    whole_life(Encryption::None, Compression::None);
}

#[test]
fn every_mode_over_ssh() {
    let dir = tempfile::tempdir().unwrap();
    for encryption in Encryption::ALL {
        let mut world = World::new();
        let sshd = Sshd::start(&dir.path().join(encryption.to_string()), &mut world.settings);
        world.location = format!(
            "ssh://{}@127.0.0.1:{}{}",
            sshd.user,
            sshd.port,
            world.repo_path().display()
        )
        .parse()
        .unwrap();
        world.create(encryption);
        let first = disk();
        let (repository, _) = write(world.open(Access::Write), "a1", &first, None, Compression::None);
        repository.close().unwrap();
        let second = changed(&first);
        let (mut repository, _) = write(
            world.open(Access::Write),
            "a2",
            &second,
            Some(("a1", &first)),
            Compression::Lz4,
        );
        assert!(read(&mut repository, "a1", "disk") == first);
        repository.close().unwrap();
        world.stock(&["check", "--verify-data"]);
        world.stock_extracts("a2", &second);
    }
}

#[test]
fn an_interrupt_on_the_terminal_does_not_end_ssh() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let sshd = Sshd::start(&dir.path().join("ssh"), &mut world.settings);
    let path = world.repo_path();
    world.location = format!("ssh://{}@127.0.0.1:{}{}", sshd.user, sshd.port, path.display())
        .parse()
        .unwrap();
    world.create(Encryption::Repokey);
    let pid_file = world.path("pid");
    let script = format!(
        "echo $$ > \"{}\"; exec {} \"$@\"",
        pid_file.display(),
        world.settings.rsh.replace('\'', "")
    );
    world.settings.rsh = format!("sh -c '{script}' sh");
    let mut writer = world
        .open(Access::Write)
        .begin(options("a", Compression::None))
        .unwrap();
    let first = writer.put_data(&noise(1, BLOCK)).unwrap();
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert!(
        Command::new("kill")
            .args(["-INT", pid.trim()])
            .status()
            .unwrap()
            .success()
    );
    let chunk = writer.put_data(&noise(2, BLOCK)).unwrap();
    writer
        .add_item(&Item::regular("disk", vec![first, chunk]))
        .unwrap();
    writer.commit().unwrap().0.close().unwrap();
    world.stock_accepts("a", &[noise(1, BLOCK), noise(2, BLOCK)].concat());
}

#[test]
fn an_append_only_server_is_enough() {
    let mut world = World::with_repository(Encryption::RepokeyBlake2);
    world.settings.serve_args.push("--append-only".into());
    let first = disk();
    write(world.open(Access::Write), "a1", &first, None, Compression::None)
        .0
        .close()
        .unwrap();
    world.stock_accepts("a1", &first);
}

#[test]
fn several_archives_in_one_session() {
    let world = World::with_repository(Encryption::Repokey);
    let mut content = noise(4, BLOCK * 2);
    let mut repository = world.open(Access::Write);
    for name in ["one", "two", "three"] {
        content[0] ^= 1;
        repository = write(repository, name, &content, None, Compression::None).0;
    }
    let names: Vec<_> = repository.archives().map(|info| info.name.to_string()).collect();
    assert_eq!(names, ["one", "two", "three"]);
    repository.close().unwrap();
    world.stock_accepts("two", &{
        content[0] ^= 1;
        content
    });
}

#[test]
fn many_chunks_and_many_small_items() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let mut writer = world
        .open(Access::Write)
        .begin(options("big", Compression::Lz4))
        .unwrap();
    let chunks: Vec<_> = (0..3000u64)
        .map(|n| writer.put_data(&noise(n, 700)).unwrap())
        .collect();
    for n in 0..200 {
        writer
            .add_item(&Item::regular(&format!("etc/{n}"), chunks[n..n + 2].to_vec()))
            .unwrap();
    }
    writer.add_item(&Item::regular("disk", chunks.clone())).unwrap();
    let (mut repository, summary) = writer.commit().unwrap();
    assert_eq!((summary.stats.files, summary.data_chunks), (201, 3000));
    let archive = repository.archive(&"big".into()).unwrap();
    assert_eq!(repository.items(&archive).map(Result::unwrap).count(), 201);
    assert_eq!(
        repository.list_ids().map(Result::unwrap).count(),
        archive.item_ids.len() + 3002
    );

    // The same once more: nothing but the loose ends of metadata is written.
    let mut writer = repository.begin(options("again", Compression::Lz4)).unwrap();
    writer.adopt(chunks.iter().copied());
    writer.adopt_metadata(&archive);
    writer.add_item(&Item::regular("disk", chunks.clone())).unwrap();
    let (repository, summary) = writer.commit().unwrap();
    assert_eq!((summary.data_chunks, summary.metadata_pieces), (0, 2));
    repository.close().unwrap();
    world.stock_accepts(
        "again",
        &(0..3000u64).flat_map(|n| noise(n, 700)).collect::<Vec<_>>(),
    );
}

#[test]
fn workers_seal_in_parallel() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let content = noise(5, BLOCK * 64);
    let mut writer = world
        .open(Access::Write)
        .begin(options("a", Compression::None))
        .unwrap();
    writer.reserve(content.len() as u64, 64).unwrap();
    let sealer = writer.sealer();
    let sealed: Vec<_> = std::thread::scope(|scope| {
        let seal = |part: Vec<&'_ [u8]>| {
            let ids = sealer.ids(&part);
            let pairs: Vec<_> = ids.into_iter().zip(part).collect();
            sealer.seal_all(&pairs).unwrap()
        };
        let threads: Vec<_> = content
            .chunks(BLOCK * 4)
            .map(|part| scope.spawn(move || seal(part.chunks(BLOCK).collect())))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let chunks: Vec<_> = sealed
        .into_iter()
        .map(|sealed| writer.put(&sealed).unwrap())
        .collect();
    assert!(chunks.iter().all(|chunk| sealer.is_known(&chunk.id)));
    writer.add_item(&Item::regular("disk", chunks)).unwrap();
    writer.commit().unwrap().0.close().unwrap();
    world.stock_accepts("a", &content);
}

#[test]
fn an_aborted_archive_leaves_nothing() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    write(world.open(Access::Write), "a1", &disk(), None, Compression::None)
        .0
        .close()
        .unwrap();
    let mut writer = world
        .open(Access::Write)
        .begin(options("a2", Compression::None))
        .unwrap();
    writer.put_data(&noise(77, BLOCK)).unwrap();
    writer.abort();
    let repository = world.open(Access::Write);
    assert_eq!(repository.archives().count(), 1);
    drop(repository);
    world.stock_accepts("a1", &disk());
}

#[test]
fn what_cannot_be_written_is_refused() {
    let world = World::with_repository(Encryption::Repokey);
    let repository = world.open(Access::Read);
    assert!(matches!(
        repository.begin(options("a", Compression::None)),
        Err(Error::NotWritable)
    ));
    for name in [
        "",
        " a",
        "a/b",
        "a::b",
        "a\n",
        "x.checkpoint",
        "x.checkpoint.3",
        "{now}",
    ] {
        let result = world.open(Access::Write).begin(options(name, Compression::None));
        assert!(matches!(result, Err(Error::ArchiveName { .. })), "{name:?}");
    }
    let (repository, _) = write(world.open(Access::Write), "a", b"x", None, Compression::None);
    let result = repository.begin(options("a", Compression::None));
    assert!(matches!(result, Err(Error::ArchiveExists(_))));

    let mut writer = world
        .open(Access::Write)
        .begin(options("b", Compression::None))
        .unwrap();
    let sealer = writer.sealer();
    let data = b"data";
    assert!(matches!(
        sealer.seal(sealer.id(data), data),
        Err(Error::NonceReservation)
    ));
    let mut unknown = writer.put_data(data).unwrap();
    unknown.id.0[0] ^= 1;
    let result = writer.add_item(&Item::regular("disk", vec![unknown]));
    assert!(matches!(result, Err(Error::UnknownChunk { .. })));
    assert!(matches!(writer.commit(), Err(Error::Doomed)));
}

/// Two archives in one transaction: both are there after the commit, and neither without one.
#[test]
fn two_archives_in_one_commit() {
    for commit in [false, true] {
        let world = World::with_repository(Encryption::RepokeyBlake2);
        let begin = |name: &str| options(name, Compression::Lz4);
        let mut writer = world.open(Access::Write).begin(begin("main")).unwrap();
        let (main, beside) = (noise(1, 5000), noise(2, 3000));
        let [first, second] = [&main, &beside].map(|data| writer.put_data(data).unwrap());
        writer
            .add_archive(begin("beside"), &[Item::regular("disk", vec![second])])
            .unwrap();
        writer.add_item(&Item::regular("disk", vec![first])).unwrap();
        if !commit {
            writer.abort();
            assert_eq!(world.open(Access::Read).archives().count(), 0);
            continue;
        }
        let (mut repository, summary) = writer.commit().unwrap();
        assert_eq!(summary.archive.name, "main");
        assert_eq!(summary.stats.size, 5000);
        assert!(read(&mut repository, "main", "disk") == main);
        assert!(read(&mut repository, "beside", "disk") == beside);
        repository.close().unwrap();
        world.stock_accepts("main", &main);
        world.stock_extracts("beside", &beside);
        // Each can be deleted without the other.
        world.stock(&["delete", "::beside"]);
        world.stock(&["compact", "--threshold", "0"]);
        world.stock_accepts("main", &main);

        let mut writer = world.open(Access::Write).begin(begin("next")).unwrap();
        for taken in ["next", "main"] {
            let refused = writer.add_archive(begin(taken), &[]);
            assert!(
                matches!(refused, Err(Error::ArchiveExists(_) | Error::Doomed)),
                "{refused:?}"
            );
        }
    }
}
