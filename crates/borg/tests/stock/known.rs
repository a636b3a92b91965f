//! What is remembered of a repository, when the server offers something else under its id.

use std::collections::HashSet;

use crate::common::{BLOCK, World, noise, options, write};
use strongroom_borg::{Access, ChunkId, Compression, Encryption, Error, PassphraseSource, Repository};

/// Opens with nothing but a question, which is never asked or never answered.
fn open_unasked(world: &World) -> strongroom_borg::Result<Repository> {
    let nobody = PassphraseSource::default().with_prompt(|_| None);
    Repository::open(&world.location, Access::Read, &world.settings, &nobody)
}

/// Takes the passphrase off the key, as its owner can; and as a server does that puts its own key there.
fn without_passphrase(world: &World) {
    let mut change = world.command(&["key", "change-passphrase"]);
    change.env("BORG_NEW_PASSPHRASE", "");
    assert!(change.output().unwrap().status.success());
}

/// K3, empty passphrase: what took a secret once never opens without one, asked for or given.
#[test]
fn a_key_without_a_passphrase_is_not_the_one_that_took_one() {
    for encryption in [Encryption::RepokeyBlake2, Encryption::Authenticated] {
        let world = World::with_repository(encryption);
        world.open(Access::Write);
        without_passphrase(&world);
        let error = open_unasked(&world).expect_err("it took a passphrase");
        assert!(matches!(error, Error::SecretGone), "{error}");
        assert!(error.hint().unwrap().contains("strongroom-secret"));
        let given = PassphraseSource::fixed(strongroom_borg::Passphrase::new(String::new()));
        let opened = Repository::open(&world.location, Access::Write, &world.settings, &given);
        assert!(matches!(opened, Err(Error::SecretGone)));
        // With the right passphrase at hand, it is a wrong one.
        let opened = world.try_open(Access::Read);
        assert!(matches!(opened, Err(Error::WrongPassphrase)));
    }
}

#[test]
fn one_that_never_took_a_passphrase_opens_as_before() {
    let world = World::with_repository(Encryption::Repokey);
    without_passphrase(&world);
    open_unasked(&world).unwrap();
}

/// Where a machine knows nothing of it, a key without a secret counts as no encryption.
#[test]
fn the_first_contact_wants_a_secret_or_a_word() {
    let mut world = World::with_repository(Encryption::Repokey);
    without_passphrase(&world);
    std::fs::remove_dir_all(&world.settings.security_dir).unwrap();
    let opened = open_unasked(&world);
    assert!(matches!(opened, Err(Error::UnknownUnencrypted)));
    world.settings.accept_unencrypted = true;
    open_unasked(&world).unwrap();
}

/// Siblings: another kind of encryption under the same id.
#[test]
fn encryption_that_has_changed_is_refused() {
    let world = World::with_repository(Encryption::Repokey);
    let id = world.open(Access::Read).id().to_string();
    for other in [Encryption::None, Encryption::Authenticated] {
        let swapped = World::with_repository(other);
        swapped.open(Access::Read);
        let there = swapped
            .settings
            .security_dir
            .join(swapped.open(Access::Read).id().to_string());
        let known = std::fs::read_to_string(world.settings.security_dir.join(&id).join("key-type")).unwrap();
        std::fs::write(there.join("key-type"), known).unwrap();
        let opened = swapped.try_open(Access::Read);
        assert!(matches!(opened, Err(Error::EncryptionChanged { .. })));
    }
}

/// R9, R2: an old copy is read only on request, never written to, and accepted only explicitly.
#[test]
fn an_older_state_is_read_on_request_and_never_written_to() {
    let mut world = World::with_repository(Encryption::RepokeyBlake2);
    let add = |world: &World, name: &str| {
        let repository = world.open(Access::Write);
        write(repository, name, &noise(1, BLOCK), None, Compression::None);
    };
    add(&world, "a");
    let copy = |from: &str, to: &str| {
        let _ = std::fs::remove_dir_all(world.path(to));
        let mut command = std::process::Command::new("cp");
        command.arg("-a").arg(world.path(from)).arg(world.path(to));
        assert!(command.status().unwrap().success());
    };
    copy("repo", "old");
    add(&world, "b");
    copy("old", "repo");
    for access in [Access::Read, Access::Write] {
        assert!(matches!(world.try_open(access), Err(Error::Replay { .. })));
    }
    world.settings.accept_replay = true;
    assert!(matches!(world.try_open(Access::Write), Err(Error::Replay { .. })));
    let mut repository = world.open(Access::Read);
    assert!(repository.replayed().is_some());
    drop(repository);
    repository = world.open(Access::Read);
    assert!(repository.replayed().is_some(), "a look does not settle it");
    repository.accept_state().unwrap();
    drop(repository);
    assert!(world.open(Access::Write).replayed().is_none());
}

/// R9: whatever the server says, counters start above what this client was told.
#[test]
fn counters_start_above_what_is_on_record_elsewhere() {
    let world = World::with_repository(Encryption::Repokey);
    let repository = world.open(Access::Write);
    assert_eq!(repository.free_counter(), None);
    repository.start_above(1 << 50);
    let (repository, _) = write(repository, "a", &noise(1, BLOCK), None, Compression::None);
    assert!(repository.free_counter() > Some(1 << 50));
}

/// R4: what the index does not have is told from what it has.
#[test]
fn objects_that_are_gone_are_named() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let repository = world.open(Access::Write);
    let (mut repository, _) = write(repository, "a", &noise(1, BLOCK * 3), None, Compression::None);
    let all: HashSet<ChunkId> = repository.list_ids().collect::<Result<_, _>>().unwrap();
    assert_eq!(repository.object_count().unwrap(), all.len() as u64);
    assert_eq!(repository.lacking(all.clone()).unwrap(), HashSet::new());
    let (gone, absent) = (
        *all.iter().find(|id| **id != ChunkId::MANIFEST).unwrap(),
        ChunkId([9; 32]),
    );
    drop(repository);
    let mut delete = world.command(&["debug", "delete-obj", "::", &gone.to_string()]);
    assert!(delete.output().unwrap().status.success());
    let mut repository = world.open(Access::Write);
    assert_eq!(repository.object_count().unwrap(), all.len() as u64 - 1);
    let wanted = all.iter().copied().chain([absent]).collect();
    assert_eq!(repository.lacking(wanted).unwrap(), [gone, absent].into());
}

/// R4: what was adopted and is not there is written when it comes again, and cannot be referred to before.
#[test]
fn what_is_not_there_is_written_anew() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let mut writer = world
        .open(Access::Write)
        .begin(options("a", Compression::None))
        .unwrap();
    let data = noise(1, BLOCK);
    let chunk = strongroom_borg::ChunkRef {
        id: writer.sealer().id(&data),
        size: BLOCK as u32,
        csize: 1,
    };
    writer.adopt([chunk]);
    writer.lacks(&[chunk.id].into());
    assert_eq!(writer.data_stored(), 0);
    writer.put_data(&data).unwrap();
    assert!(writer.data_stored() > BLOCK as u64);
}
