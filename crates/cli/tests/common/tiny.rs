//! VMs without a guest and with little on their disks: enough to make restore points from, in no time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_engine::config::Signing;
use strongroom_testkit::{Format, Lab, create_disk, run, ssh_keygen, virsh};

use super::Bench;

/// A domain that is defined. If it is started, nothing runs in it.
pub struct Tiny {
    pub name: String,
    directory: PathBuf,
    /// Its disks, and their sizes in MiB.
    disks: Vec<(&'static str, u64)>,
}

impl Tiny {
    /// Defines a domain with disks `vda` of 12 MiB and `vdb` of 4 MiB, both empty.
    pub fn define(lab: &Lab, suffix: &str) -> Self {
        Self::with_disks(lab, suffix, &DISKS)
    }

    /// Defines a domain with these disks, of so many MiB, all empty.
    pub fn with_disks(lab: &Lab, suffix: &str, disks: &[(&'static str, u64)]) -> Self {
        let tiny = Self {
            name: lab.name(suffix),
            directory: lab.dir().to_owned(),
            disks: disks.to_vec(),
        };
        let mut disks = String::new();
        for (target, mib) in &tiny.disks {
            create_disk(&tiny.disk(target), Format::Qcow2, *mib);
            let _ = write!(
                disks,
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>
                 <target dev='{target}' bus='virtio'/></disk>",
                tiny.disk(target).display()
            );
        }
        let xml = format!(
            "<domain type='qemu'><name>{}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disks}</devices></domain>",
            tiny.name
        );
        let file = lab.path(&format!("{suffix}.xml"));
        std::fs::write(&file, xml).unwrap();
        run(virsh(["define"]).arg(&file));
        tiny
    }

    /// A disk's image.
    pub fn disk(&self, target: &str) -> PathBuf {
        self.directory.join(format!("{}-{target}.img", self.name))
    }

    /// Puts bytes at the beginning of a disk, and zeroes behind them.
    pub fn set(&self, target: &str, content: &[u8]) {
        let raw = self.directory.join("content.raw");
        let size = self.size(target);
        std::fs::write(&raw, content).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&raw)
            .and_then(|file| file.set_len(size))
            .unwrap();
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .arg(&raw)
            .arg(self.disk(target)));
        std::fs::remove_file(raw).unwrap();
    }

    /// Writes into a disk of a domain that is active, as its device would.
    pub fn write(&self, target: &str, pattern: u8, offset: usize, length: usize) {
        let number = self.disks.iter().position(|(name, _)| *name == target).unwrap();
        let device = format!("/machine/peripheral/virtio-disk{number}/virtio-backend");
        let command = format!("qemu-io -d {device} \"write -P {pattern} {offset} {length}\"");
        let said = run(virsh(["qemu-monitor-command", &self.name, "--hmp"]).arg(command));
        assert!(said.trim().is_empty(), "{said}");
    }

    fn size(&self, target: &str) -> u64 {
        let found = self.disks.iter().find(|(name, _)| *name == target);
        found.map(|(_, mib)| mib * MIB as u64).unwrap()
    }
}

/// The disks of most, and their sizes in MiB.
pub const DISKS: [(&str, u64); 2] = [("vda", 12), ("vdb", 4)];

/// Bytes in a MiB.
pub const MIB: usize = 1 << 20;

/// Bytes that do not compress, the same for each seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(length)
    .collect()
}

/// Makes a signing key in the lab and has it trusted.
pub fn with_signing(lab: &Lab, bench: &mut Bench) {
    let public = ssh_keygen(&lab.path("signing"), "lab");
    trust(&lab.path("allowed_signers"), "lab@test", &public);
    bench.config.signing = Some(Signing {
        key: Some(lab.path("signing")),
        identity: Some("lab@test".into()),
        allowed_signers: Some(lab.path("allowed_signers")),
        revoked_keys: None,
    });
}

/// Writes a file that trusts a key.
pub fn trust(file: &Path, identity: &str, public: &Path) {
    let key = std::fs::read_to_string(public).unwrap();
    std::fs::write(file, format!("{identity} namespaces=\"strongroom-*\" {key}")).unwrap();
}
