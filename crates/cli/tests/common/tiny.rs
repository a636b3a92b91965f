//! Shut-off VMs with small disks: enough to make restore points from, in no time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_engine::config::Signing;
use strongroom_testkit::{Format, Lab, create_disk, run, ssh_keygen, virsh};

use super::Bench;

/// A domain that is defined and never runs.
pub struct Tiny {
    pub name: String,
    directory: PathBuf,
}

impl Tiny {
    /// Defines a domain with disks `vda` of 12 MiB and `vdb` of 4 MiB, both empty.
    pub fn define(lab: &Lab, suffix: &str) -> Self {
        let tiny = Self {
            name: lab.name(suffix),
            directory: lab.dir().to_owned(),
        };
        let mut disks = String::new();
        for (target, mib) in [("vda", 12), ("vdb", 4)] {
            create_disk(&tiny.disk(target), Format::Qcow2, mib);
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

    /// Fills some MiB of a disk with a byte.
    pub fn fill(&self, target: &str, mib: std::ops::Range<u64>, byte: u8) {
        for at in mib {
            // No two MiB are the same, or they would share a chunk.
            let commands = [
                format!("write -q -P {byte} {at}M 1M"),
                format!("write -q -P {} {at}M 512", at % 251),
            ];
            let mut io = Command::new("qemu-io");
            io.args(["-f", "qcow2"]);
            for command in &commands {
                io.args(["-c", command]);
            }
            run(io.arg(self.disk(target)));
        }
    }
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
