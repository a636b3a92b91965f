//! A directory that libvirt takes and gives files in.

use std::path::Path;

use strongroom_testkit::{output_of, run, virsh};

/// A storage pool of a directory. Dropped, it is one no more; the files stay.
pub struct Pool(String);

impl Pool {
    /// Makes one of this name.
    #[track_caller]
    pub fn of(directory: &Path, name: &str) -> Self {
        run(virsh(["pool-create-as", name, "dir", "--target"]).arg(directory));
        Self(name.to_owned())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = output_of(&mut virsh(["pool-destroy", &self.0]));
    }
}
