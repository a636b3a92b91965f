//! Where a domain of some kind is made: its images with known content, its definition, its way of being written to.

use std::any::Any;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_testkit::{Borg, Lab, output_of, run, virsh};

use crate::common::running::Said;
use crate::common::tiny::{MIB, noise};

/// How much of a disk is full at first.
const FULL: usize = 2 * MIB;

/// A disk of the domain.
pub struct Disk {
    /// Target device name.
    pub target: &'static str,
    /// What the guest sees. Nothing where the disk is not to be in a restore point.
    pub content: Option<Vec<u8>>,
}

/// A lab with one domain, a configuration and a Borg.
pub struct Place {
    pub lab: Lab,
    pub borg: Borg,
    /// The domain's name.
    pub name: String,
    pub disks: Vec<Disk>,
    /// `pc` has IDE and floppies.
    pub machine: &'static str,
    /// Elements of `<devices>`.
    pub devices: String,
    /// It has no definition at rest.
    pub transient: bool,
    /// What is to be done when it has been started.
    pub started: Option<fn(&mut Self)>,
    /// Servers, devices, pools: taken away with the place, after the domain.
    pub guards: Vec<Box<dyn Any>>,
}

impl Place {
    pub fn new(name: &str) -> Self {
        let lab = Lab::new();
        let place = lab.dir().display();
        fs::create_dir(lab.path("images")).unwrap();
        let config = format!(
            "repository = '{place}/repositories/{{vm}}'\nstate = '{place}/state'\nimages = '{place}/images'\ncompression = 'lz4'\n"
        );
        fs::create_dir(lab.path("repositories")).unwrap();
        fs::write(lab.path("strongroom.toml"), config).unwrap();
        Self {
            name: lab.name(name),
            borg: Borg::packaged(),
            lab,
            disks: Vec::new(),
            machine: "q35",
            devices: String::new(),
            transient: false,
            started: None,
            guards: Vec::new(),
        }
    }

    /// A raw file of so many bytes with content of its own, and that content.
    pub fn raw(&self, file: &str, size: usize) -> (PathBuf, Vec<u8>) {
        let path = self.lab.path(file);
        let seed = file
            .bytes()
            .fold(7_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
        let mut content = noise(seed, FULL.min(size));
        content.resize(size, 0);
        // The last byte counts.
        content[size - 1] = 0xed;
        let sparse = File::create(&path).unwrap();
        sparse.set_len(size as u64).unwrap();
        sparse.write_all_at(&content[..FULL.min(size)], 0).unwrap();
        sparse.write_all_at(&[0xed], size as u64 - 1).unwrap();
        (path, content)
    }

    /// The same in a qcow2 file, made with these options.
    pub fn qcow2(&self, file: &str, options: &[&str]) -> (PathBuf, Vec<u8>) {
        let (raw, content) = self.raw(&format!("{file}.raw"), 8 * MIB);
        let path = self.lab.path(file);
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args(options)
            .args([&raw, &path]));
        fs::remove_file(raw).unwrap();
        (path, content)
    }

    /// Adds a disk: the attributes of its element, and the elements in it without `<target>`.
    pub fn disk(&mut self, target: &'static str, bus: &str, element: (&str, &str), content: Option<Vec<u8>>) {
        let (attributes, inside) = element;
        let _ = writeln!(
            self.devices,
            "<disk {attributes}>{inside}<target dev='{target}' bus='{bus}'/></disk>"
        );
        self.disks.push(Disk { target, content });
    }

    /// Adds a disk that is a file.
    pub fn file(
        &mut self,
        target: &'static str,
        bus: &str,
        format: &str,
        made: (PathBuf, Vec<u8>),
        more: &str,
    ) {
        let inside = format!(
            "<driver name='qemu' type='{format}'/><source file='{}'/>{more}",
            made.0.display()
        );
        self.disk(target, bus, ("type='file' device='disk'", &inside), Some(made.1));
    }

    /// The domain's definition, in a file.
    pub fn definition(&self) -> PathBuf {
        let name = self.name.replace('&', "&amp;");
        let (machine, devices) = (self.machine, &self.devices);
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
             <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
             <devices>{devices}<controller type='usb' model='qemu-xhci'/></devices></domain>"
        );
        let file = self.lab.path("domain.xml");
        fs::write(&file, xml).unwrap();
        file
    }

    /// Starts it, paused.
    pub fn start(&mut self) {
        if self.transient {
            run(virsh(["create", "--paused"]).arg(self.lab.path("domain.xml")));
        } else {
            run(virsh(["start", "--paused", "--domain"]).arg(&self.name));
        }
        if let Some(started) = self.started {
            started(self);
        }
    }

    /// Writes into each disk that is backed up, as its device would, and into what it is known to hold.
    pub fn write(&mut self, pattern: u8, offset: usize) {
        let live = self.xml(&[]);
        for disk in &mut self.disks {
            let Some(content) = &mut disk.content else {
                continue;
            };
            let alias = alias(&live, disk.target);
            let mut said = String::new();
            let path = format!("/machine/peripheral/{alias}");
            // A disk, a virtio device that has one, a USB device that has a bus.
            let wrote = [
                path.clone(),
                format!("{path}/virtio-backend"),
                format!("{path}/{alias}.0/legacy[0]"),
            ]
            .iter()
            .any(|device| {
                let command = format!("qemu-io -d {device} \"write -P {pattern} {offset} 65536\"");
                said = run(virsh(["qemu-monitor-command", "--hmp", "--domain"])
                    .arg(&self.name)
                    .arg(command));
                said.trim().is_empty()
            });
            assert!(wrote, "{}: {said}", disk.target);
            content[offset..offset + 65536].fill(pattern);
        }
    }

    /// Its definition as libvirt tells it.
    pub fn xml(&self, more: &[&str]) -> String {
        run(virsh(["dumpxml", "--domain"]).arg(&self.name).args(more))
    }

    /// Runs the program.
    pub fn says(&self, arguments: &[&str]) -> Said {
        let mut program = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        program
            .args(arguments)
            .env("STRONGROOM_CONFIG", self.lab.path("strongroom.toml"))
            .envs(self.borg.environment())
            .env_remove("BORG_REPO");
        Said::of(&mut program)
    }

    /// Ends the domain's run, if it runs.
    pub fn destroy(&self) {
        let _ = output_of(virsh(["destroy", "--domain"]).arg(&self.name));
    }

    /// The domain is no more.
    pub fn undefine(&self) {
        self.destroy();
        let _ = output_of(
            virsh([
                "undefine",
                "--checkpoints-metadata",
                "--snapshots-metadata",
                "--domain",
            ])
            .arg(&self.name),
        );
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before what it uses is taken away.
        self.undefine();
    }
}

/// What the guest sees on an image that is a file of its own.
pub fn content_of(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("compared");
    let format = if is_qcow2(image) { "qcow2" } else { "raw" };
    run(Command::new("qemu-img")
        .args(["convert", "-f", format, "-O", "raw"])
        .args([image, &raw]));
    let content = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    content
}

fn is_qcow2(image: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(image).unwrap().read_exact_at(&mut magic, 0).unwrap();
    magic == *b"QFI\xfb"
}

/// The alias of a disk's device.
fn alias(live: &str, target: &str) -> String {
    let disk = element(live, target).unwrap_or_else(|| panic!("no disk {target} in {live}"));
    let (_, rest) = disk.split_once("<alias name='").unwrap();
    rest.split('\'').next().unwrap().to_owned()
}

/// A disk's element of a definition.
pub fn element<'a>(xml: &'a str, target: &str) -> Option<&'a str> {
    xml.split("<disk ")
        .skip(1)
        .map(|rest| rest.split("</disk>").next().unwrap())
        .find(|disk| disk.contains(&format!("<target dev='{target}'")))
}

/// The files that a definition's disks may write to.
pub fn writable(xml: &str) -> Vec<String> {
    xml.split("<disk ")
        .skip(1)
        .map(|rest| rest.split("</disk>").next().unwrap())
        .filter(|disk| !disk.contains("<readonly/>") && !disk.contains("<transient"))
        .filter_map(|disk| {
            let source = disk.split("<source ").nth(1)?;
            Some(source.split('>').next()?.trim_end_matches('/').to_owned())
        })
        .collect()
}
