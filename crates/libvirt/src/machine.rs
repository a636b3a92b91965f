//! Which files a VM consists of, read from its definition alone: libvirt's hook must not call libvirt. Where it may be asked,
//! volumes of storage pools are found, too.

use std::path::PathBuf;

use strongroom_hypervisor::MachineFiles;

use crate::connection::Libvirt;
use crate::definition;
use crate::xml::{child, parse, text};

/// Reads a definition (`formatdomain`), of a running or of a shut-off domain. The error says what is wrong with it.
pub fn machine(xml: &str) -> Result<MachineFiles, String> {
    let definition = definition::read(xml)?;
    let document = parse(xml, "domain")?;
    let os = child(document.root_element(), "os");
    let mut files = Vec::new();
    let mut add = |name: &'static str, path: Option<PathBuf>| files.extend(path.map(|path| (name, path)));
    add("nvram", definition.nvram);
    for name in ["kernel", "initrd"] {
        let path = os.and_then(|os| child(os, name)).map(text);
        let path = path
            .map(|path| path.trim().to_owned())
            .filter(|path| !path.is_empty());
        add(name, path.map(PathBuf::from));
    }
    Ok(MachineFiles {
        name: definition.name,
        uuid: definition.uuid,
        disks: definition.disks,
        files,
    })
}

impl Libvirt {
    /// The same, with each volume of a storage pool as the file or device that it is.
    pub fn machine(&self, xml: &str) -> Result<MachineFiles, String> {
        let mut machine = machine(xml)?;
        self.resolve(&mut machine.disks)
            .map_err(|error| error.to_string())?;
        Ok(machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_told() {
        let xml = "<domain><name>web</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
            <os><kernel>/boot/vmlinuz</kernel><initrd/><nvram>/vars/web.fd</nvram></os>
            <devices><disk type='file'><source file='/a.qcow2'/><target dev='vda'/></disk></devices></domain>";
        let machine = machine(xml).unwrap();
        assert_eq!((machine.name.as_str(), machine.disks.len()), ("web", 1));
        let files: Vec<_> = machine
            .files
            .iter()
            .map(|(name, path)| (*name, path.to_str().unwrap()))
            .collect();
        assert_eq!(files, [("nvram", "/vars/web.fd"), ("kernel", "/boot/vmlinuz")]);
        super::machine("<domain/>").unwrap_err();
    }
}
