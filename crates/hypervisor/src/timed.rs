//! How long calls of the hypervisor have been under way.
//!
//! A call may never return: a QEMU that hangs does not answer libvirt, which waits for it as long as it takes. Nothing can end
//! such a call from here. But the thread that waits for the work can find out that it hangs in one ([`Timed::longest`]), give it up, and
//! see to the other VMs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use strongroom_nbd::Target;
use uuid::Uuid;

use crate::{
    Agent, BackupJob, BadBitmap, Chain, Chains, Creation, Definitions, Disk, Domain, Files, FreezeStatus,
    GuestExit, Host, HotAdd, HotAddDisk, Hypervisor, HypervisorError, Lack, Listener, NewDomain, Overlay,
    Repair, Requests, Retarget, Retargeted, RunningJob, SnapshotDisk, StoredBitmap, Tracking, User, Uses,
};

/// A hypervisor with an eye on the clock. Calls that may take long by design (a script in the guest, a merge through QEMU's
/// monitor, a look at all domains, which waits for each that hangs as long as libvirt does) and those without an answer to
/// wait for do not count.
pub struct Timed<H> {
    inner: H,
    calls: Mutex<HashMap<u64, (&'static str, Instant)>>,
    count: AtomicU64,
}

impl<H> Timed<H> {
    /// Around this one.
    pub fn new(inner: H) -> Self {
        Self {
            inner,
            calls: Mutex::default(),
            count: AtomicU64::new(0),
        }
    }

    /// What is asked without an eye on the clock.
    pub fn inner(&self) -> &H {
        &self.inner
    }

    /// The call that has been under way for the longest time.
    pub fn longest(&self) -> Option<(&'static str, Duration)> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls
            .values()
            .map(|(name, begun)| (*name, begun.elapsed()))
            .max_by_key(|(_, time)| *time)
    }

    fn enter(&self, name: &'static str) -> Call<'_> {
        let id = self.count.fetch_add(1, Ordering::Relaxed);
        let calls = &self.calls;
        calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, (name, Instant::now()));
        Call { calls, id }
    }
}

/// A call under way.
struct Call<'a> {
    calls: &'a Mutex<HashMap<u64, (&'static str, Instant)>>,
    id: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.remove(&self.id);
    }
}

/// Passes calls on: those of the first list with the clock running, those of the second without.
macro_rules! pass {
    ($port:ident
        timed { $(fn $timed:ident(&self $(, $with:ident: $kind:ty)*) -> $gives:ty;)* }
        untimed { $(fn $untimed:ident(&self $(, $also:ident: $type:ty)*) -> $returns:ty;)* }
    ) => {
        impl<H: Hypervisor> $port for Timed<H> {
            $(fn $timed(&self $(, $with: $kind)*) -> $gives {
                let _call = self.enter(stringify!($timed));
                self.inner.$timed($($with),*)
            })*
            $(fn $untimed(&self $(, $also: $type)*) -> $returns {
                self.inner.$untimed($($also),*)
            })*
        }
    };
}

type Told<T> = Result<T, HypervisorError>;

pass! { Hypervisor
    timed {
        fn domain_names(&self) -> Told<Vec<String>>;
        fn domain(&self, name_or_uuid: &str) -> Told<Domain>;
        fn snapshot_names(&self, domain: Uuid) -> Told<Vec<String>>;
        fn checkpoints(&self, domain: Uuid) -> Told<Vec<String>>;
        fn check_checkpoint(&self, domain: Uuid, name: &str) -> Told<Vec<BadBitmap>>;
        fn create_checkpoint(&self, domain: Uuid, name: &str, targets: &[String]) -> Told<()>;
        fn delete_checkpoint(&self, domain: Uuid, name: &str) -> Told<()>;
        fn lacks_backup_jobs(&self, domain: Uuid) -> Told<Option<String>>;
        fn begin_backup(&self, domain: Uuid, job: &BackupJob) -> Told<Duration>;
        fn backup_job(&self, domain: Uuid) -> Told<Option<RunningJob>>;
        fn end_backup(&self, domain: Uuid) -> Told<()>;
        fn requests(&self, domain: Uuid, targets: &[&str]) -> Told<Vec<Requests>>;
        fn resume_after_io_error(&self, domain: Uuid) -> Told<bool>;
        fn listener(&self, domain: Uuid, name: &str) -> Told<Listener>;
        fn stopped_by_io_error(&self, domain: Uuid) -> Told<bool>;
        fn check_definable(&self, xml: &str, replace: bool) -> Told<()>;
        fn define(&self, xml: &str, replace: bool) -> Told<Uuid>;
    }
    untimed {
        fn uri(&self) -> &str;
        fn is_local(&self) -> bool;
        fn wanted(&self) -> Option<String>;
        fn export(&self, listener: &Listener, export: &str) -> Told<Target>;
        fn tpm_directory(&self, domain: Uuid) -> PathBuf;
        fn retarget(&self, xml: &str, change: &Retarget) -> Told<Retargeted>;
    }
}

pass! { Agent
    timed {
        fn agent_connected(&self, domain: Uuid) -> Told<bool>;
        fn agent_ping(&self, domain: Uuid, at_most: Duration) -> Told<()>;
        fn freeze(&self, domain: Uuid, at_most: Duration) -> Told<u32>;
        fn thaw(&self, domain: Uuid, at_most: Duration) -> Told<u32>;
        fn freeze_status(&self, domain: Uuid, at_most: Duration) -> Told<FreezeStatus>;
    }
    untimed {
        fn run_in_guest(&self, domain: Uuid, command: &str, at_most: Duration) -> Told<GuestExit>;
    }
}

pass! { Chains
    timed {
        fn chains(&self, domain: Uuid) -> Told<Vec<Chain>>;
        fn take_snapshot(&self, domain: Uuid, disks: &[SnapshotDisk]) -> Told<Duration>;
        fn start_commit(
            &self, domain: Uuid, target: &str, overlay: &Path, base: &Path, bytes_per_second: u64
        ) -> Told<()>;
        fn pivot(&self, domain: Uuid, target: &str) -> Told<()>;
        fn set_inactive_image(&self, domain: Uuid, target: &str, image: &Path, format: &str) -> Told<()>;
    }
    untimed {
        fn events(&self, domain: Uuid) -> u64;
        fn await_event(&self, domain: Uuid, seen: u64, at_most: Duration) -> u64;
    }
}

pass! { Creation
    timed {
        fn host(&self) -> Told<Host>;
        fn run_throwaway(&self, xml: &str) -> Told<Uuid>;
        fn start(&self, domain: Uuid, mark: &str) -> Told<()>;
        fn destroy(&self, domain: Uuid, mark: &str) -> Told<()>;
        fn undefine(&self, domain: Uuid, mark: &str) -> Told<()>;
    }
    untimed {
        fn compose(&self, new: &NewDomain) -> Told<String>;
    }
}

pass! { Definitions
    timed {
        fn lacks(&self, xml: &str, placed: &[&str]) -> Told<Vec<Lack>>;
        fn conflicts(&self, xml: &str) -> Told<Vec<String>>;
        fn set_autostart(&self, domain: Uuid, autostart: bool) -> Told<()>;
    }
    untimed {
        fn powers(&self, xml: &str, placed: &[&str]) -> Told<Vec<String>>;
    }
}

pass! { Files
    timed {
        fn fetch(&self, path: &Path, limit: u64) -> Told<Vec<u8>>;
        fn is_there(&self, path: &Path) -> Told<bool>;
        fn discard(&self, path: &Path) -> Told<()>;
    }
    untimed {
        fn store(&self, file: &Path, to: &Path, moved: &mut dyn FnMut(u64) -> bool) -> Told<()>;
    }
}

pass! { HotAdd
    timed {
        fn attach_export(&self, to: &str, disk: &HotAddDisk<'_>) -> Told<()>;
        fn detach_exports(&self, from: &str, serials: &str) -> Told<usize>;
    }
    untimed {}
}

pass! { Repair
    timed {}
    untimed {
        fn commit_behind_libvirt(&self, domain: Uuid, target: &str, overlay: &Path, base: &Path) -> Told<()>;
        fn repair_status(&self, domain: Uuid, disks: &[Overlay]) -> Told<()>;
    }
}

pass! { Tracking
    timed {
        fn bitmaps(&self, domain: Uuid) -> Told<Vec<StoredBitmap>>;
        fn remove_bitmap(&self, domain: Uuid, target: &str, name: &str) -> Told<()>;
        fn forget_checkpoint(&self, domain: Uuid, name: &str) -> Told<()>;
        fn redefine_checkpoint(&self, domain: Uuid, name: &str, targets: &[String]) -> Told<()>;
    }
    untimed {}
}

pass! { Uses
    timed {
        fn disks_in(&self, xml: &str) -> Told<Vec<Disk>>;
    }
    untimed {
        fn users(&self) -> Told<Vec<User>>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_call_is_the_one_that_began_first() {
        let timed = Timed::new(());
        assert_eq!(timed.longest(), None);
        let first = timed.enter("first");
        std::thread::sleep(Duration::from_millis(2));
        let second = timed.enter("second");
        assert_eq!(timed.longest().map(|(name, _)| name), Some("first"));
        drop(first);
        assert_eq!(timed.longest().map(|(name, _)| name), Some("second"));
        drop(second);
        assert_eq!(timed.longest(), None);
    }
}
