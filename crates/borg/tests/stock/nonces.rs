//! Encryption counters are never used twice, whatever happens.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::common::{BLOCK, World, disk, noise, options, read, write};
use strongroom_borg::{Access, ChunkId, ChunkRef, Compression, Encryption, Repository};

/// The counters that each object in the repository uses, sorted.
fn used(repository: &mut Repository) -> Vec<(u64, u64, ChunkId)> {
    let ids: Vec<ChunkRef> = repository
        .list_ids()
        .map(|id| ChunkRef {
            id: id.unwrap(),
            size: 0,
            csize: 0,
        })
        .collect();
    let range = |(chunk, object): (ChunkRef, strongroom_borg::Result<strongroom_borg::Object>)| {
        let object = object.unwrap();
        let start = u64::from_be_bytes(object[33..41].try_into().unwrap());
        (start, start + (object.len() as u64 - 41).div_ceil(16), chunk.id)
    };
    let mut used: Vec<_> = repository.fetch(ids).map(range).collect();
    used.sort_unstable();
    used
}

fn assert_disjoint(used: &[(u64, u64, ChunkId)]) {
    for pair in used.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{pair:?}");
    }
}

fn reserved(world: &World) -> u64 {
    u64::from_str_radix(
        std::fs::read_to_string(world.repo_path().join("nonce"))
            .unwrap()
            .trim(),
        16,
    )
    .unwrap()
}

#[test]
fn ours_and_stocks_objects_share_no_counter() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let content = disk();
    std::fs::write(world.path("disk"), &content).unwrap();
    for n in 0..2 {
        write(
            world.open(Access::Write),
            &format!("o{n}"),
            &noise(n, BLOCK * 3),
            None,
            Compression::Lz4,
        );
        world.stock(&["create", &format!("::s{n}"), "disk"]);
    }
    let mut repository = world.open(Access::Read);
    let used = used(&mut repository);
    assert!(used.len() > 10);
    assert_disjoint(&used);
}

#[test]
fn after_lost_state_the_other_side_remembers() {
    let world = World::with_repository(Encryption::Repokey);
    write(
        world.open(Access::Write),
        "a",
        &noise(1, BLOCK),
        None,
        Compression::None,
    );
    let end = reserved(&world);
    let id = world.open(Access::Read).id();
    let local = world.settings.security_dir.join(id.to_string()).join("nonce");
    assert_eq!(std::fs::read_to_string(&local).unwrap(), format!("{end:016x}"));

    std::fs::remove_file(&local).unwrap();
    write(
        world.open(Access::Write),
        "b",
        &noise(2, BLOCK),
        None,
        Compression::None,
    );
    let end_b = reserved(&world);
    std::fs::remove_file(world.repo_path().join("nonce")).unwrap();
    write(
        world.open(Access::Write),
        "c",
        &noise(3, BLOCK),
        None,
        Compression::None,
    );

    let mut repository = world.open(Access::Read);
    let used = used(&mut repository);
    assert_disjoint(&used);
    assert!(used.iter().any(|(start, ..)| (end..end_b).contains(start)));
    assert!(used.iter().any(|(start, ..)| *start >= end_b));
}

#[test]
fn a_broken_local_state_is_no_licence() {
    let world = World::with_repository(Encryption::Repokey);
    let id = world.open(Access::Read).id();
    std::fs::write(
        world.settings.security_dir.join(id.to_string()).join("nonce"),
        "0",
    )
    .unwrap();
    let mut writer = world
        .open(Access::Write)
        .begin(options("a", Compression::None))
        .unwrap();
    assert!(matches!(
        writer.put_data(b"x"),
        Err(strongroom_borg::Error::NonceState(_))
    ));
}

/// The process that [`a_killed_client_never_gives_counters_back`] kills.
#[test]
#[ignore = "helper process of another test"]
fn killed_client() {
    let dir = std::env::var_os("STRONGROOM_TEST_DIR").expect("the other test sets this");
    let world = World::at(std::path::PathBuf::from(dir));
    let mut writer = world
        .open(Access::Write)
        .begin(options("lost", Compression::None))
        .unwrap();
    for n in 100..110 {
        writer.put_data(&noise(n, BLOCK)).unwrap();
    }
    writer.poll().unwrap();
    println!("\nwritten");
    std::thread::sleep(std::time::Duration::from_mins(1));
    panic!("this process was not killed");
}

#[test]
fn a_killed_client_never_gives_counters_back() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    write(world.open(Access::Write), "a", &disk(), None, Compression::None);
    let before = reserved(&world);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nonces::killed_client", "--ignored", "--nocapture"])
        .env("STRONGROOM_TEST_DIR", world.dir())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "written"));
    child.kill().unwrap();
    child.wait().unwrap();
    let lost = reserved(&world);
    assert!(lost > before);

    let content = noise(100, BLOCK);
    let (mut repository, _) = write(world.open(Access::Write), "b", &content, None, Compression::None);
    assert!(read(&mut repository, "b", "disk") == content);
    let used = used(&mut repository);
    assert_disjoint(&used);
    assert!(
        used.iter()
            .all(|(start, end, _)| *end <= before || *start >= lost)
    );
    assert!(used.iter().any(|(start, ..)| *start >= lost));
    drop(repository);
    world.stock_accepts("b", &content);
}
