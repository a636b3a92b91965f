//! Locks among ourselves, and what other processes left behind.

use std::path::Path;

use super::*;
use crate::files::Disk;

const HOST: &str = "vm.example@42";

fn take(dir: &Path, exclusive: bool, wait: u64) -> Result<Lock> {
    let patience = Patience {
        wait: Duration::from_millis(wait),
        cancel: None,
    };
    Lock::take(Arc::new(Disk::open(dir).unwrap()), HOST, exclusive, &patience)
}

/// The number of a process that has ended.
fn gone() -> u32 {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

fn names(dir: &Path) -> Vec<String> {
    Disk::open(dir).unwrap().names("").unwrap()
}

#[test]
fn a_lock_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    for exclusive in [true, false] {
        let lock = take(dir.path(), exclusive, 0).unwrap();
        assert_eq!(lock.is_exclusive(), exclusive);
        assert_eq!(dir.path().join(DIR).exists(), exclusive);
        let roster = std::fs::read(dir.path().join("lock.roster")).unwrap();
        let roster = Roster::parse(&roster).unwrap();
        assert_eq!(
            (roster.exclusive.len(), roster.shared.len()),
            (exclusive.into(), (!exclusive).into())
        );
        drop(lock);
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn a_second_handle_of_one_process_has_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let first = take(dir.path(), false, 0).unwrap();
    assert!(matches!(take(dir.path(), true, 50), Err(Error::Locked { .. })));
    drop(first);
    take(dir.path(), true, 0).unwrap();
}

#[test]
fn a_lock_of_a_process_that_lives_is_respected() {
    for other in [
        format!("{HOST}.1-0"),
        "other@7.999999-0".to_owned(),
        "no name of Borg's".to_owned(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(DIR)).unwrap();
        std::fs::write(dir.path().join(DIR).join(&other), "").unwrap();
        for exclusive in [true, false] {
            let Err(Error::Locked { holders }) = take(dir.path(), exclusive, 30) else {
                panic!("{other} was not respected");
            };
            assert_eq!(holders, [other.as_str()]);
        }
        assert_eq!(names(dir.path()), [DIR], "what was begun is removed");
    }
}

#[test]
fn a_lock_of_a_process_that_is_gone_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(DIR)).unwrap();
    std::fs::write(dir.path().join(DIR).join(format!("{HOST}.{}-0", gone())), "").unwrap();
    let roster = format!("{{\"shared\": [[\"{HOST}\", {}, 0]], \"exclusive\": []}}", gone());
    std::fs::write(dir.path().join("lock.roster"), roster).unwrap();
    take(dir.path(), true, 0).unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_lock_with_our_own_name_is_left_from_an_earlier_process() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(DIR)).unwrap();
    std::fs::write(
        dir.path().join(DIR).join(Holder::this_process(HOST).to_string()),
        "",
    )
    .unwrap();
    take(dir.path(), true, 0).unwrap();
}

#[test]
fn a_writer_waits_for_readers_and_a_reader_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let reader = format!("{{\"shared\": [[\"{HOST}\", 1, 0]]}}");
    std::fs::write(dir.path().join("lock.roster"), &reader).unwrap();
    assert!(
        matches!(take(dir.path(), true, 30), Err(Error::Locked { holders }) if holders == ["vm.example@42.1-0"])
    );
    assert_eq!(names(dir.path()), ["lock.roster"]);
    drop(take(dir.path(), false, 0).unwrap());
    let left = Roster::parse(&std::fs::read(dir.path().join("lock.roster")).unwrap()).unwrap();
    assert_eq!(left, Roster::parse(reader.as_bytes()).unwrap());
}

#[test]
fn a_wait_ends_when_it_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let _first = take(dir.path(), true, 0).unwrap();
    let patience = Patience {
        wait: Duration::from_hours(1),
        cancel: Some(Arc::new(AtomicBool::new(true))),
    };
    let second = Lock::take(Arc::new(Disk::open(dir.path()).unwrap()), HOST, true, &patience);
    assert!(matches!(second, Err(Error::Cancelled)));
}

#[test]
fn a_lock_that_was_broken_is_no_longer_held() {
    let dir = tempfile::tempdir().unwrap();
    let lock = take(dir.path(), true, 0).unwrap();
    std::fs::remove_dir_all(dir.path().join(DIR)).unwrap();
    assert!(!lock.is_exclusive());
}

#[test]
fn a_roster_that_cannot_be_read_counts_as_empty() {
    for text in [
        "",
        "{",
        "[]",
        "{\"shared\": 1}",
        "{\"shared\": [[1, 2, 3]]}",
        "{\"shared\": [[\"h\", 1]]}",
    ] {
        let parsed = Roster::parse(text.as_bytes()).unwrap_or_default();
        assert_eq!(parsed, Roster::default(), "{text:?}");
    }
    let good = Roster::parse(b"{\"shared\": [[\"h-1.x@5\", 17, 0]], \"exclusive\": []}").unwrap();
    assert_eq!(good.shared[0].to_string(), "h-1.x@5.17-0");
    assert_eq!(Holder::parse("h-1.x@5.17-0").as_ref(), Some(&good.shared[0]));
}
