//! A virtual machine that does not exist yet: what it shall be, and what its host can give it.
//!
//! [`NewDomain`] says what is wanted, with defaults that give a guest no more than it needs: no graphics, no clipboard,
//! no USB, no balloon, no network. [`Creation::compose`] writes it as the hypervisor's own definition.

use std::path::PathBuf;

use uuid::Uuid;

use crate::HypervisorError;

/// Who runs the guest's instructions (`type` of libvirt's `<domain>`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The processor itself, through KVM.
    Kvm,
    /// QEMU's emulation: slow, and everywhere.
    Tcg,
}

/// What the machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// `SeaBIOS`.
    Bios,
    /// UEFI without Secure Boot.
    Uefi,
    /// UEFI with Secure Boot. Without a variable store of one's own, it is enrolled with the firmware vendor's keys.
    SecureBoot,
}

/// Where the operating system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// The firmware finds it on the first disk.
    Disk,
    /// QEMU is given it (direct kernel boot). Files on the hypervisor.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// One disk, on virtio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// Target device name, `vda` to `vdz`.
    pub target: String,
    /// The image, which exists.
    pub file: PathBuf,
    /// Its format: `qcow2` or `raw`. Never probed.
    pub format: ImageFormat,
    /// What the guest sees as its serial number: 1 to 20 letters, digits and `_.+-`.
    pub serial: Option<String>,
    /// What the guest discards becomes a hole in the image (`discard=unmap`).
    pub discard: bool,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// Format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// qcow2.
    Qcow2,
    /// No format: the bytes themselves.
    Raw,
}

/// The one network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// None.
    None,
    /// A network of libvirt's, by name.
    Libvirt(String),
    /// A bridge of the host's, by name.
    Bridge(String),
    /// QEMU's user-mode network. The guest reaches everything that the host reaches, the host's own loopback
    /// services included.
    User,
}

/// Where the first serial port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Console {
    /// There is none.
    None,
    /// A terminal for `virsh console`.
    Terminal,
    /// Into a file: what the guest says can be read, nothing can be said to it.
    File(PathBuf),
    /// A Unix socket on which QEMU listens.
    Socket(PathBuf),
}

/// A virtio channel between the guest and a Unix socket on which QEMU listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name in the guest (`/dev/virtio-ports/NAME`).
    pub name: String,
    /// The socket; `None` lets libvirt choose one.
    pub socket: Option<PathBuf>,
}

impl Channel {
    /// The guest agent's.
    pub fn guest_agent() -> Self {
        Self {
            name: "org.qemu.guest_agent.0".into(),
            socket: None,
        }
    }
}

/// Devices that a server does not need, each a way in or out. All off unless asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one switch, independent of the others"
)]
pub struct Extras {
    /// A screen (VNC on the host's loopback) with keyboard and pointer.
    pub graphics: bool,
    /// The clipboard shared through that screen.
    pub clipboard: bool,
    /// A USB controller.
    pub usb: bool,
    /// The balloon, by which the host takes memory back and learns what is free.
    pub balloon: bool,
}

/// Memory that the hypervisor cannot read (`<launchSecurity>`), on AMD processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchSecurity {
    /// SEV with encrypted register state (SEV-ES).
    Sev,
    /// SEV-SNP.
    SevSnp,
}

impl LaunchSecurity {
    /// The guest's policy, which the processor enforces and a report states.
    ///
    /// SEV: no debugging, no keys shared with other guests, encrypted state (AMD publication 55766, table 2: bits 0,
    /// 1 and 2). SEV-SNP: no debugging, no migration agent; hyper-threading allowed; bit 17 is always set (AMD
    /// publication 56860, table 9).
    pub fn policy(self) -> u64 {
        match self {
            Self::Sev => 0x7,
            Self::SevSnp => 0x3_0000,
        }
    }

    /// libvirt's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sev => "sev",
            Self::SevSnp => "sev-snp",
        }
    }
}

/// What a new virtual machine shall be. x86-64 with one network interface at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDomain {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Says in its definition who made it: only a domain with this mark is started, stopped or removed through
    /// [`Creation`].
    pub mark: String,
    /// Who runs its instructions.
    pub accelerator: Accelerator,
    /// Machine type (`q35`).
    pub machine: String,
    /// Memory in bytes, at least 1 MiB; rounded down to whole KiB.
    pub memory: u64,
    /// Virtual processors, 1 to 1024.
    pub vcpus: u32,
    /// What it starts with.
    pub firmware: Firmware,
    /// An UEFI variable store of one's own, which exists; `None` lets the hypervisor make one from the firmware's
    /// template.
    pub variables: Option<PathBuf>,
    /// Where the operating system comes from.
    pub boot: Boot,
    /// Its disks.
    pub disks: Vec<NewDisk>,
    /// An emulated TPM 2.0. Its state is the host's: it ties a disk to a host, it hides nothing from it.
    pub tpm: bool,
    /// Its network interface.
    pub network: Network,
    /// Its virtio channels.
    pub channels: Vec<Channel>,
    /// Its first serial port.
    pub console: Console,
    /// A watchdog that turns it off when its guest, having begun to feed it, stops.
    pub watchdog: bool,
    /// It is off, for good, when its guest restarts.
    pub no_reboot: bool,
    /// What it has beyond the needful.
    pub extras: Extras,
    /// PCI Express ports for what is attached while it runs.
    pub spare_ports: u8,
    /// Whether its memory is encrypted.
    pub launch_security: Option<LaunchSecurity>,
}

impl NewDomain {
    /// A machine with nothing but a processor and 1 GiB of memory.
    pub fn new(name: &str, mark: &str, accelerator: Accelerator) -> Self {
        Self {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            mark: mark.to_owned(),
            accelerator,
            machine: "q35".into(),
            memory: 1 << 30,
            vcpus: 1,
            firmware: Firmware::Bios,
            variables: None,
            boot: Boot::Disk,
            disks: Vec::new(),
            tpm: false,
            network: Network::None,
            channels: Vec::new(),
            console: Console::None,
            watchdog: false,
            no_reboot: false,
            extras: Extras::default(),
            spare_ports: 0,
            launch_security: None,
        }
    }

    /// What of it the host cannot give, one sentence each with the host's own reason. Empty where nothing is missing.
    pub fn missing(&self, host: &Host) -> Vec<String> {
        let mut missing = Vec::new();
        let mut want = |wanted: bool, what: &str, support: &Support| {
            if let (true, Support::No(why)) = (wanted, support) {
                missing.push(format!("the host cannot give {what}: {why}"));
            }
        };
        want(self.accelerator == Accelerator::Kvm, "KVM", &host.kvm);
        want(self.firmware == Firmware::Uefi, "UEFI firmware", &host.uefi);
        want(
            self.firmware == Firmware::SecureBoot,
            "Secure Boot",
            &host.secure_boot,
        );
        want(self.tpm, "an emulated TPM", &host.tpm);
        let security = self.launch_security;
        want(security == Some(LaunchSecurity::Sev), "SEV", &host.sev);
        want(security == Some(LaunchSecurity::SevSnp), "SEV-SNP", &host.sev_snp);
        missing
    }
}

/// Whether the host has something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// It has.
    Yes,
    /// It has not, with its own reason.
    No(String),
}

impl Support {
    /// Whether it has.
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Yes)
    }
}

/// What a host can give to a new q35 machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// KVM. Says that the host has it, not that it is fast.
    pub kvm: Support,
    /// UEFI firmware.
    pub uefi: Support,
    /// UEFI firmware with Secure Boot.
    pub secure_boot: Support,
    /// An emulated TPM 2.0 (swtpm).
    pub tpm: Support,
    /// SEV.
    pub sev: Support,
    /// SEV-SNP.
    pub sev_snp: Support,
}

/// The part of the port that makes domains, and takes away what it made.
///
/// Start, stop and removal want the mark of the one who made the domain ([`NewDomain::mark`]) and refuse any other
/// domain: a mistaken UUID harms no other.
pub trait Creation {
    /// Writes the definition. Pure: nothing is defined yet.
    fn compose(&self, new: &NewDomain) -> Result<String, HypervisorError>;

    /// What the host can give.
    fn host(&self) -> Result<Host, HypervisorError>;

    /// Starts a domain that is never defined: it is gone when it is off, and it is turned off when this process's
    /// connection ends, however that happens. For throwaway machines.
    fn run_throwaway(&self, xml: &str) -> Result<Uuid, HypervisorError>;

    /// Starts a domain. Succeeds if it runs.
    fn start(&self, domain: Uuid, mark: &str) -> Result<(), HypervisorError>;

    /// Turns a domain off without asking its guest. Succeeds if it is off or gone.
    fn destroy(&self, domain: Uuid, mark: &str) -> Result<(), HypervisorError>;

    /// Removes the definition of a domain that is off, with its UEFI variables and TPM state; its disks stay.
    /// Succeeds if there is none.
    fn undefine(&self, domain: Uuid, mark: &str) -> Result<(), HypervisorError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_says_what_it_lacks() {
        let no = |why: &str| Support::No(why.into());
        let host = Host {
            kvm: no("no /dev/kvm"),
            uefi: Support::Yes,
            secure_boot: no("no firmware"),
            tpm: Support::Yes,
            sev: no("QEMU does not support SEV guest"),
            sev_snp: no("no SNP"),
        };
        let mut new = NewDomain::new("a", "b", Accelerator::Tcg);
        assert_eq!(new.missing(&host), Vec::<String>::new());
        new.accelerator = Accelerator::Kvm;
        new.firmware = Firmware::SecureBoot;
        new.tpm = true;
        new.launch_security = Some(LaunchSecurity::SevSnp);
        assert_eq!(
            new.missing(&host),
            [
                "the host cannot give KVM: no /dev/kvm",
                "the host cannot give Secure Boot: no firmware",
                "the host cannot give SEV-SNP: no SNP",
            ]
        );
        new = NewDomain {
            firmware: Firmware::Uefi,
            launch_security: Some(LaunchSecurity::Sev),
            accelerator: Accelerator::Tcg,
            ..new
        };
        let missing = new.missing(&host);
        assert_eq!(
            missing,
            ["the host cannot give SEV: QEMU does not support SEV guest"]
        );
    }

    #[test]
    fn nothing_is_given_that_was_not_asked_for() {
        let new = NewDomain::new("a", "b", Accelerator::Kvm);
        assert_eq!(new.extras, Extras::default());
        assert!(!new.extras.graphics && !new.extras.clipboard && !new.extras.usb && !new.extras.balloon);
        assert_eq!((&new.network, &new.console), (&Network::None, &Console::None));
    }
}
