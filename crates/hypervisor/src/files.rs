//! The part of the port that reaches files of another machine, by way of its hypervisor.

use std::path::Path;

use crate::HypervisorError;

/// Files on another machine's storage.
pub trait Files {
    /// The content of a small file, at most `limit` bytes.
    fn fetch(&self, path: &Path, limit: u64) -> Result<Vec<u8>, HypervisorError>;

    /// Whether something has this name. Fails where the hypervisor cannot tell, which is where nothing can be put either.
    fn is_there(&self, path: &Path) -> Result<bool, HypervisorError>;

    /// Puts a copy of a file of this machine there, readable by its owner alone; fails if something has the name already. After a
    /// failure there is nothing. `moved` is told of bytes as they go; if it gives false, that is a failure.
    fn store(
        &self,
        file: &Path,
        to: &Path,
        moved: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), HypervisorError>;

    /// Removes what [`Files::store`] has put there. Succeeds if it is gone already.
    fn discard(&self, path: &Path) -> Result<(), HypervisorError>;
}
