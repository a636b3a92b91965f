//! What this host has no use for: it is no other machine, has no neighbours that read its disks, and makes no machines.

use std::path::Path;

use strongroom_hypervisor::{Creation, Files, Host, HotAdd, HotAddDisk, NewDomain};
use uuid::Uuid;

use crate::{SimHost, Told, refused};

fn no<T>(what: &str) -> Told<T> {
    refused(what, "a simulated host does not")
}

impl Files for SimHost {
    fn fetch(&self, _: &Path, _: u64) -> Told<Vec<u8>> {
        no("fetch a file")
    }

    fn is_there(&self, _: &Path) -> Told<bool> {
        no("look for a file")
    }

    fn store(&self, _: &Path, _: &Path, _: &mut dyn FnMut(u64) -> bool) -> Told<()> {
        no("store a file")
    }

    fn discard(&self, _: &Path) -> Told<()> {
        no("remove a file")
    }
}

impl HotAdd for SimHost {
    fn attach_export(&self, _: &str, _: &HotAddDisk<'_>) -> Told<()> {
        no("attach an export")
    }

    fn detach_exports(&self, _: &str, _: &str) -> Told<usize> {
        no("detach an export")
    }
}

impl Creation for SimHost {
    fn host(&self) -> Told<Host> {
        no("describe itself")
    }

    fn compose(&self, _: &NewDomain) -> Told<String> {
        no("compose a definition")
    }

    fn run_throwaway(&self, _: &str) -> Told<Uuid> {
        no("run a throwaway domain")
    }

    fn start(&self, _: Uuid, _: &str) -> Told<()> {
        no("start a domain")
    }

    fn destroy(&self, _: Uuid, _: &str) -> Told<()> {
        no("destroy a domain")
    }

    fn undefine(&self, _: Uuid, _: &str) -> Told<()> {
        no("undefine a domain")
    }
}
