//! A real virtual machine, small enough to boot in seconds without hardware virtualisation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::disk::{self, Format};
use crate::lab::{Lab, guest_files, remove_domain};
use crate::patience::patience;
use crate::probe;
use crate::run::{output_of, run, virsh};
use crate::xml::{self, Disk, Domain};

const BOOT_LIMIT: Duration = Duration::from_mins(2);
const COMMAND_LIMIT: Duration = Duration::from_mins(5);
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// Describes a guest: `vda` with an ext4 file system (2 GiB), `vdb` for swap (256 MiB), both
/// sparse qcow2; 256 MiB of memory, one virtual CPU, guest agent.
#[must_use = "nothing exists before `define` or `boot`"]
pub struct GuestBuilder<'a> {
    lab: &'a Lab,
    suffix: String,
    root_mib: u64,
    root_format: Format,
    swap_mib: u64,
    memory_mib: u64,
    agent: bool,
    extra: Vec<(Format, u64)>,
    files: Option<PathBuf>,
    network: bool,
}

impl<'a> GuestBuilder<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        Self {
            lab,
            suffix: "guest".to_owned(),
            root_mib: 2048,
            root_format: Format::Qcow2,
            swap_mib: 256,
            memory_mib: 256,
            agent: true,
            extra: Vec::new(),
            files: None,
            network: false,
        }
    }

    /// The last part of the domain's name, `guest` unless told.
    pub fn named(mut self, suffix: &str) -> Self {
        suffix.clone_into(&mut self.suffix);
        self
    }

    /// The size of `vda` in MiB.
    pub fn root_mib(mut self, mib: u64) -> Self {
        self.root_mib = mib;
        self
    }

    /// The format of `vda`.
    pub fn root_format(mut self, format: Format) -> Self {
        self.root_format = format;
        self
    }

    /// The size of `vdb`, the swap disk, in MiB; 0 leaves it out.
    pub fn swap_mib(mut self, mib: u64) -> Self {
        self.swap_mib = mib;
        self
    }

    /// The guest's memory in MiB.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// A guest without the guest agent's channel.
    pub fn without_agent(mut self) -> Self {
        self.agent = false;
        self
    }

    /// One more, empty disk: `vdc`, `vdd`, and so on.
    pub fn disk(mut self, format: Format, mib: u64) -> Self {
        self.extra.push((format, mib));
        self
    }

    /// A file system as one more disk, with the serial number `files`, raw.
    pub fn files(mut self, image: &Path) -> Self {
        self.files = Some(image.to_owned());
        self
    }

    /// QEMU's own network, in which the host's loopback is 10.0.2.2, and room for disks that are attached while it runs.
    pub fn networked(mut self) -> Self {
        self.network = true;
        self
    }

    /// Makes the disks and defines the domain, without starting it.
    pub fn define(self) -> TestGuest {
        let dir = self.lab.dir();
        for file in ["vmlinuz", "initrd"] {
            // A copy of its own: libvirt changes the owner, and the cache may be out of QEMU's reach.
            if !dir.join(file).exists() {
                fs::copy(guest_files().join(file), dir.join(file)).expect("copy the guest's kernel");
            }
        }
        let name = self.lab.name(&self.suffix);
        let mut disks = Vec::new();
        let mut add = |target: &str, format: Format, serial: &str| {
            let file = dir.join(format!("{name}-{target}.{}", format.driver()));
            disks.push(Disk {
                target: target.to_owned(),
                file: file.display().to_string(),
                format,
                serial: serial.to_owned(),
            });
            file
        };
        disk::create_ext4(
            &add("vda", self.root_format, "root"),
            self.root_format,
            self.root_mib,
        );
        if self.swap_mib > 0 {
            disk::create_disk(&add("vdb", Format::Qcow2, "swap"), Format::Qcow2, self.swap_mib);
        }
        for (letter, (format, mib)) in ('c'..='z').zip(&self.extra) {
            let target = format!("vd{letter}");
            disk::create_disk(&add(&target, *format, &target), *format, *mib);
        }
        if let Some(image) = &self.files {
            disks.push(Disk {
                target: "vdz".to_owned(),
                file: image.display().to_string(),
                format: Format::Raw,
                serial: "files".to_owned(),
            });
        }
        let xml = Domain {
            name: &name,
            dir,
            memory_mib: self.memory_mib,
            disks: &disks,
            cache: if disk::has_direct_io(dir) {
                "none"
            } else {
                "writeback"
            },
            agent: self.agent,
            network: self.network,
        }
        .xml();
        let guest = TestGuest {
            name,
            dir: dir.to_owned(),
        };
        guest.define(&xml);
        guest
    }

    /// Makes, starts and awaits the guest: when this returns its probe obeys.
    pub fn boot(self) -> TestGuest {
        let guest = self.define();
        guest.boot();
        guest
    }
}

/// A libvirt domain whose guest runs the probe. It lives as long as its [`Lab`].
pub struct TestGuest {
    name: String,
    dir: PathBuf,
}

/// The way to the probe of a guest, until the guest is stopped.
pub struct ProbePort(PathBuf);

impl ProbePort {
    /// Gives the probe a command that has to succeed.
    #[track_caller]
    pub fn ask(&self, command: &str) -> Value {
        probe::ask(&self.0, command, COMMAND_LIMIT).unwrap_or_else(|text| panic!("{text}"))
    }
}

impl TestGuest {
    pub(crate) fn open(lab: &Lab, name: &str) -> Self {
        let guest = Self {
            name: name.to_owned(),
            dir: lab.dir().to_owned(),
        };
        let xml = guest.xml();
        let own = xml::serial_path(&guest.dir, name);
        if let Some(used) = xml::between(&xml, "<serial type='file'>", "</serial>")
            .and_then(|serial| xml::between(serial, "<source path='", "'"))
            .filter(|used| *used != own)
        {
            guest.define(&xml.replace(used, &own));
        }
        guest
    }

    /// The name of the domain.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The UUID of the domain.
    pub fn uuid(&self) -> String {
        run(&mut virsh(["domuuid", &self.name]))
    }

    /// The persistent XML of the domain, with everything secret in it.
    pub fn xml(&self) -> String {
        run(&mut virsh([
            "dumpxml",
            "--inactive",
            "--security-info",
            &self.name,
        ]))
    }

    /// Replaces the persistent XML of the domain.
    pub fn define(&self, xml: &str) {
        let file = self.dir.join(format!("{}.xml", self.name));
        fs::write(&file, xml).expect("write the domain XML");
        run(virsh(["define", "--validate"]).arg(&file));
    }

    /// The image file behind a disk, for instance of `vda`, as the persistent XML names it.
    pub fn disk(&self, target: &str) -> PathBuf {
        let list = run(&mut virsh(["domblklist", "--inactive", &self.name]));
        list.lines()
            .find_map(|line| {
                line.trim()
                    .strip_prefix(target)
                    .map(|rest| PathBuf::from(rest.trim()))
            })
            .unwrap_or_else(|| panic!("{} has no disk {target}:\n{list}", self.name))
    }

    /// What libvirt says of the domain: `running`, `shut off`, `paused`.
    pub fn state(&self) -> String {
        run(&mut virsh(["domstate", &self.name]))
    }

    /// Starts the domain and waits until the probe obeys.
    pub fn boot(&self) {
        run(&mut virsh(["start", &self.name]));
        self.wait_ready();
    }

    /// Waits until the probe of a started domain obeys.
    pub fn wait_ready(&self) {
        if let Err(text) = self.ask("ping", patience(BOOT_LIMIT)) {
            panic!("{} did not boot: {text}", self.name);
        }
    }

    /// Gives the probe a command that has to succeed; see the probe's own documentation.
    #[track_caller]
    pub fn probe(&self, command: &str) -> Value {
        match self.try_probe(command) {
            Ok(answer) => answer,
            Err(text) => panic!("{}: {text}", self.name),
        }
    }

    /// Gives the probe a command; an error is the probe's own or a guest that does not answer.
    pub fn try_probe(&self, command: &str) -> Result<Value, String> {
        self.ask(command, patience(COMMAND_LIMIT))
    }

    fn ask(&self, command: &str, limit: Duration) -> Result<Value, String> {
        probe::ask(&self.probe_socket()?, command, limit)
    }

    fn probe_socket(&self) -> Result<PathBuf, String> {
        let live = output_of(&mut virsh(["dumpxml", &self.name]))?;
        let socket = xml::probe_socket(&live).ok_or("the domain is not running")?;
        Ok(socket.into())
    }

    /// The probe of the guest as it runs now, for questions whose answers libvirt's work must not delay.
    #[track_caller]
    pub fn probe_port(&self) -> ProbePort {
        ProbePort(
            self.probe_socket()
                .unwrap_or_else(|text| panic!("{}: {text}", self.name)),
        )
    }

    /// Runs a shell command in the guest, which has to succeed, and returns what it printed.
    #[track_caller]
    pub fn sh(&self, command: &str) -> String {
        let answer = self.probe(&format!("sh {command}"));
        let output = answer["output"].as_str().unwrap_or_default().to_owned();
        assert!(
            answer["status"] == 0,
            "{}: '{command}' ended with {}: {output}",
            self.name,
            answer["status"]
        );
        output
    }

    /// What the guest has printed on its serial port since its last start.
    pub fn serial(&self) -> String {
        let path = xml::serial_path(&self.dir, &self.name);
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// Pulls the plug.
    pub fn destroy(&self) {
        run(&mut virsh(["destroy", &self.name]));
    }

    /// Asks the guest to shut down and waits until it has.
    pub fn shutdown(&self) {
        run(&mut virsh(["shutdown", "--mode=agent,acpi", &self.name]));
        self.wait_off();
    }

    /// Kills the QEMU process with SIGKILL and waits until libvirt has noticed.
    pub fn kill(&self) {
        let pid = self
            .qemu_pid()
            .unwrap_or_else(|| panic!("{} is not running", self.name));
        run(Command::new("kill").args(["-KILL", &pid.to_string()]));
        self.wait_off();
    }

    /// The process that runs the guest.
    pub fn qemu_pid(&self) -> Option<u32> {
        let path = format!("/run/libvirt/qemu/{}.pid", self.name);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// Destroys and undefines the domain, with its checkpoints' metadata; its disks stay.
    pub fn undefine(&self) {
        remove_domain(&self.name);
    }

    fn wait_off(&self) {
        let deadline = Instant::now() + patience(STOP_LIMIT);
        while self.state() != "shut off" {
            assert!(
                Instant::now() < deadline,
                "{} is still {}",
                self.name,
                self.state()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
}
