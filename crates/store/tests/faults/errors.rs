//! A call fails: nothing is lost, and no answer is wrong.

use std::sync::Arc;

use strongroom_store::{Error, Id, Options, Repository, Result, Store as _};

use crate::common::Dice;
use crate::history::{Objects, everything, open, start};
use crate::memory::{Faults, Memory, Tree};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A transaction that begins new segments, replaces and deletes; and what there is afterwards.
fn transaction(memory: &Memory, before: &Objects) -> (Result<()>, Objects) {
    let mut ids: Vec<Id> = before.keys().copied().filter(|id| *id != Id::MANIFEST).collect();
    ids.sort();
    let mut after = before.clone();
    let mut dice = Dice::new(11);
    for _ in 0..3 {
        let id = dice.id();
        after.insert(id, dice.bytes(50_000));
    }
    after.remove(&ids[0]);
    after.insert(ids[1], b"replaced".to_vec());
    after.insert(Id::MANIFEST, b"the second".to_vec());
    let done = (|| {
        let repository = Repository::open_in(Arc::new(memory.clone()), &Options::write())?;
        repository.delete(&ids[0])?;
        let mut puts: Vec<&Id> = after
            .keys()
            .filter(|id| after.get(*id) != before.get(*id))
            .collect();
        // The manifest is the last one.
        puts.sort_by(|a, b| b.cmp(a));
        for id in puts {
            repository.put(id, &after[id])?;
        }
        repository.commit()
    })();
    (done, after)
}

fn calls(tree: &Tree, before: &Objects) -> usize {
    let memory = Memory::of(tree.clone());
    transaction(&memory, before).0.unwrap();
    memory.world().calls
}

#[test]
fn an_error_of_any_call_leaves_the_old_state_or_the_new() {
    let (tree, before) = start();
    let calls = calls(&tree, &before);
    assert!(calls > 100, "{calls}");
    let mut outcomes = [0; 3];
    for at in 0..calls {
        for (errno, times) in [(EIO, 1), (ENOSPC, 1), (EIO, usize::MAX), (ENOSPC, usize::MAX)] {
            let memory = Memory::of(tree.clone());
            let most = None;
            memory.world().faults = Faults {
                at: Some(at),
                times,
                errno,
                most,
            };
            let (done, after) = transaction(&memory, &before);
            memory.world().faults = Faults::default();
            let found = everything(&open(&memory, &Options::read()));
            let what = format!("call {at}, {errno}, {times} times: {done:?}");
            match done {
                Ok(()) | Err(Error::AfterCommit(_)) => {
                    assert!(found == after, "{what}");
                    outcomes[0] += 1;
                }
                Err(Error::CommitUnknown(_)) => {
                    assert!(found == after || found == before, "{what}");
                    outcomes[1] += 1;
                }
                Err(_) => {
                    assert!(found == before, "{what}");
                    outcomes[2] += 1;
                }
            }
            // Whatever happened, the next one goes on.
            let repository = open(&memory, &Options::write());
            repository.put(&Id([0xee; 32]), b"goes on").unwrap();
            repository.commit().unwrap();
            drop(repository);
            assert_eq!(
                everything(&open(&memory, &Options::read())).len(),
                found.len() + 1,
                "{what}"
            );
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

#[test]
fn short_reads_and_writes_are_gone_on_with() {
    let (tree, before) = start();
    for most in [1000, 4096, 50_001] {
        let memory = Memory::of(tree.clone());
        memory.world().faults.most = Some(most);
        let (done, after) = transaction(&memory, &before);
        done.unwrap();
        assert!(everything(&open(&memory, &Options::read())) == after);
    }
}

#[test]
fn a_transaction_is_over_after_a_failed_write() {
    let (tree, before) = start();
    let memory = Memory::of(tree);
    let repository = open(&memory, &Options::write());
    repository.put(&Id([1; 32]), b"good").unwrap();
    let at = memory.world().calls;
    memory.world().faults = Faults {
        at: Some(at),
        times: 1,
        errno: EIO,
        most: None,
    };
    assert!(matches!(
        repository.put(&Id([2; 32]), b"bad"),
        Err(Error::Io { .. })
    ));
    assert!(matches!(
        repository.put(&Id([3; 32]), b"late"),
        Err(Error::Doomed)
    ));
    assert!(matches!(repository.settle(), Err(Error::Doomed)));
    assert!(matches!(repository.commit(), Err(Error::Doomed)));
    // That was its end; the next transaction is a new one.
    assert!(everything(&repository) == before);
    repository.put(&Id([4; 32]), b"new").unwrap();
    repository.commit().unwrap();
    assert_eq!(everything(&repository).len(), before.len() + 1);
}

#[test]
fn a_full_disk_gets_its_space_back_at_once() {
    let (tree, _) = start();
    let memory = Memory::of(tree.clone());
    let repository = open(&memory, &Options::write());
    repository.put(&Id([1; 32]), &vec![0; 100_000]).unwrap();
    let segments = |tree: &Tree| tree.nodes.keys().filter(|name| name.starts_with("data/")).count();
    assert!(segments(&memory.world().tree) > segments(&tree));
    let at = memory.world().calls;
    memory.world().faults = Faults {
        at: Some(at),
        times: 1,
        errno: ENOSPC,
        most: None,
    };
    assert!(repository.put(&Id([2; 32]), b"").unwrap_err().is_full());
    repository.rollback().unwrap();
    assert_eq!(segments(&memory.world().tree), segments(&tree));
}

#[test]
fn nothing_is_committed_once_the_lock_is_broken() {
    let (tree, before) = start();
    let memory = Memory::of(tree);
    let repository = open(&memory, &Options::write());
    repository.put(&Id([1; 32]), b"late").unwrap();
    // As `borg break-lock` does it.
    memory
        .world()
        .tree
        .nodes
        .retain(|name, _| !name.starts_with("lock."));
    assert!(matches!(repository.commit(), Err(Error::LockLost)));
    assert!(matches!(repository.put(&Id([1; 32]), b""), Err(Error::LockLost)));
    assert!(matches!(repository.reserve_nonce(None, 5), Err(Error::LockLost)));
    drop(repository);
    assert!(everything(&open(&memory, &Options::read())) == before);
}

#[test]
fn a_failed_write_of_one_thread_keeps_all_from_committing() {
    let (tree, before) = start();
    for at in [15, 40, 90] {
        let memory = Memory::of(tree.clone());
        let repository = open(&memory, &Options::write());
        let (at, times, errno) = (Some(memory.world().calls + at), 1, EIO);
        memory.world().faults = Faults {
            at,
            times,
            errno,
            most: None,
        };
        let failed: usize = std::thread::scope(|scope| {
            let repository = &repository;
            let put = |thread: u8| {
                move || {
                    let ids = (0..20).map(|n| Id([thread * 20 + n + 1; 32]));
                    ids.filter(|id| repository.put(id, &vec![thread; 20_000]).is_err())
                        .count()
                }
            };
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(put(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(failed > 0);
        assert!(matches!(repository.commit(), Err(Error::Doomed)));
        assert!(everything(&repository) == before);
        drop(repository);
        assert!(everything(&open(&memory, &Options::read())) == before);
    }
}
