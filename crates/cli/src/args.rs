//! The command line, and nothing else: from here come the help texts, the man pages and the completions.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use strongroom_engine::provision::create::tang;
use strongroom_engine::verify::{Scope, Share};
use strongroom_hypervisor::NbdTls;
use strongroom_points::selector::PointName;

/// Back up running KVM/libvirt VMs into ordinary Borg repositories, and bring them back.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version, max_term_width = 110, after_long_help = AFTER)]
pub struct Cli {
    /// What goes for all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "\
Exit codes:
  0  done
  1  failed: nothing was changed, or what was begun has been undone
  2  the command line or the configuration is invalid
  3  done, with warnings
  130  ended at once by a second ctrl-C; the next backup undoes what it left

Repositories are Borg's: BORG_PASSPHRASE, BORG_PASSCOMMAND, BORG_PASSPHRASE_FD, BORG_RSH,
BORG_REMOTE_PATH, BORG_BASE_DIR, BORG_KEYS_DIR and BORG_SECURITY_DIR mean what they mean there.";

/// What goes for all commands.
#[derive(Debug, Args)]
pub struct Global {
    /// Configuration file [default: /etc/strongroom/strongroom.toml for root,
    /// ~/.config/strongroom/strongroom.toml otherwise].
    #[arg(long, global = true, env = "STRONGROOM_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Hypervisor, as a libvirt URI; overrides the configuration.
    #[arg(short, long, global = true, value_name = "URI")]
    pub connect: Option<String>,
    /// One JSON document on standard output instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// What standard error says: text, or each event as a line of JSON.
    #[arg(long, global = true, value_enum, value_name = "FORM", default_value_t = Progress::Text)]
    pub progress: Progress,
    /// Report more; twice: also what the repository's server says.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Report errors and warnings only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// How long to wait for a locked repository, in seconds.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10)]
    pub lock_wait: u64,
}

/// In which form standard error tells what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the configuration, add VMs to it, make their repositories.
    Init(Init),
    /// Add an existing VM to the configuration, and report what is unsafe about it.
    Adopt(Adopt),
    /// Back up VMs while they run (or are shut off).
    Backup(Backup),
    /// Make an encrypted VM from a template; its disk key never leaves a throwaway VM.
    Create(Create),
    /// Make the VM that backs up its neighbours, and the template for it.
    BackupVm(BackupVm),
    /// Make templates, and look after them.
    Template(Template),
    /// List restore points.
    List(List),
    /// Show everything about one restore point.
    Show(Show),
    /// Bring back a VM, or single disks of it.
    Restore(Restore),
    /// Report for each VM whether it is protected, and since when.
    Status(Status),
    /// Prove that a guest with encrypted memory (AMD SEV-SNP) is the one that you mean.
    Attest(Attest),
    /// Report what is unsafe about VMs, seen from outside and without a key.
    Audit(Audit),
    /// Prove that restore points are whole, unaltered, in their place, and that none is missing.
    Verify(Verify),
    /// Sign what the images of shut-off VMs hold.
    Seal(Seal),
    /// Prove that the images of shut-off VMs are as they were sealed.
    VerifyImage(VerifyImage),
    /// Look after repositories.
    Repo(Repo),
    /// Undo what an interrupted backup left, without making a new one.
    Recover(Recover),
    /// Release VMs: remove strongroom's checkpoints and dirty bitmaps, before a snapshot revert or `virsh undefine`.
    Release(LetGo),
    /// Print the rights that an account on a hypervisor needs for backups from another machine, and no more.
    HypervisorRights(HypervisorRights),
    /// Watch over a guest that is about to be frozen (started by `backup`).
    #[command(hide = true)]
    ThawWatchdog(ThawWatchdog),
    /// Write the man pages into a directory.
    #[command(hide = true)]
    Man {
        /// Where to.
        directory: PathBuf,
    },
    /// Print a completion script.
    #[command(hide = true)]
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// How VMs that are new to the configuration are protected.
#[derive(Debug, Clone, Args)]
pub struct Protect {
    /// Where the repositories are, as Borg writes it; `{vm}` stands for the VM's name.
    #[arg(long, env = "BORG_REPO", value_name = "REPOSITORY")]
    pub repository: Option<String>,
    /// Encryption of new repositories, as in `borg init --encryption`.
    #[arg(short, long, value_name = "MODE", default_value = "repokey-blake2")]
    pub encryption: String,
    /// Disk of these VMs that holds nothing but swap (a serial number that starts with `swap` says so too).
    #[arg(long, value_name = "TARGET")]
    pub swap: Vec<String>,
    /// Disk of these VMs to leave out.
    #[arg(long, value_name = "TARGET")]
    pub exclude: Vec<String>,
}

/// `strongroom init`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  strongroom init --repository '/srv/backup/{vm}' web01 --swap vdb
  strongroom init --signing-key /etc/strongroom/signing --unprotected-signing-key
  strongroom init --repository 'ssh://backup@nas/./{vm}' web01 db01")]
pub struct Init {
    /// VMs to protect, by their libvirt names. Can be called again to add more; what the configuration holds is kept.
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
    /// How they are protected.
    #[command(flatten)]
    pub protect: Protect,
    /// Sign restore points with this SSH key: a private key, or a public one whose private part is in an agent. It is
    /// made if it is not there, and trusted by a file `allowed_signers` beside the configuration.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub signing_key: Option<PathBuf>,
    /// Make that key without a passphrase, so that backups run without you.
    #[arg(long, requires = "signing_key")]
    pub unprotected_signing_key: bool,
}

/// `strongroom adopt`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
It is added to the configuration as by `init`, with a repository of its own; disks that hold nothing but swap are
found and named as such. Then it is looked at as by `audit`, with the same exit codes. The VM itself is not changed.")]
pub struct Adopt {
    /// The VM, by its libvirt name.
    #[arg(value_name = "VM")]
    pub vm: String,
    /// How it is protected.
    #[command(flatten)]
    pub protect: Protect,
    /// Report a last backup that is older than this many hours.
    #[arg(long, value_name = "HOURS", default_value_t = 48)]
    pub max_age: u32,
}

/// `strongroom attest`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples, with the files that the guest is started from:
  strongroom attest --firmware OVMF.amdsev.fd --kernel vmlinuz --initrd initrd --cmdline 'quiet' --vcpus 2
      prints which measurement the guest must have
  strongroom attest … --report report.bin --vcek vcek.der --report-data 00…
      verifies a report that the guest fetched from its processor (/dev/sev-guest, configfs-tsm)

The processor's certificate (VCEK) comes from AMD or the host; it is checked against AMD's own root keys. Without
--report-data, a number that was given to the guest to have signed along, the report may be an old one: exit code 3.
What is not proven is a failure: exit code 1.")]
pub struct Attest {
    /// Attestation report, 1184 bytes.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "vcek")]
    pub report: Option<PathBuf>,
    /// Certificate of the processor that signed it, DER or PEM.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "report")]
    pub vcek: Option<PathBuf>,
    /// What the guest was given to have signed along: 64 bytes in hexadecimal.
    #[arg(long, value_name = "HEX", requires = "report")]
    pub report_data: Option<String>,
    /// Measurement that is expected: 48 bytes in hexadecimal.
    #[arg(
        long,
        value_name = "HEX",
        required_unless_present = "firmware",
        conflicts_with = "firmware"
    )]
    pub measurement: Option<String>,
    /// Firmware that the guest is started with.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub firmware: Option<PathBuf>,
    /// Its kernel, with direct kernel boot.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires_all = ["firmware", "initrd"])]
    pub kernel: Option<PathBuf>,
    /// Its initramfs.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Its kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub cmdline: Option<String>,
    /// Its virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vcpus: u32,
    /// QEMU's name of their model.
    #[arg(long, value_name = "MODEL", default_value = "EPYC-v4")]
    pub cpu: String,
}

/// `strongroom audit`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Headers and samples of the disks are read, without a lock and without a key; nothing is written, and running VMs keep
running. Volumes are compared with those of all VMs of the hypervisor. docs/guide/audit.md explains each finding.

Exit codes: 0 nothing unsafe; 3 something is, or works against you; 1 something could not be read.")]
pub struct Audit {
    /// VMs to look at; all VMs of the configuration if none is named.
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
    /// All VMs of the hypervisor, whether they are in the configuration or not.
    #[arg(long, conflicts_with = "vms")]
    pub all: bool,
    /// Report a last backup that is older than this many hours.
    #[arg(long, value_name = "HOURS", default_value_t = 48)]
    pub max_age: u32,
}

/// `strongroom backup`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The first backup reads what is allocated, the next ones only what changed. If what changed is not
certain, a disk is read in full; the reason is shown and kept in the restore point.")]
#[allow(clippy::struct_excessive_bools, reason = "they are switches of a command")]
pub struct Backup {
    /// VMs to back up.
    #[arg(value_name = "VM", required_unless_present = "all")]
    pub vms: Vec<String>,
    /// All VMs of the configuration.
    #[arg(long, conflicts_with = "vms")]
    pub all: bool,
    /// How many VMs to back up at the same time [default: `jobs` of the configuration, or 1].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub jobs: Option<u8>,
    /// Abort and undo a VM's backup after this many seconds, 0 for no limit [default: `limits.run_s` of the
    /// configuration].
    #[arg(long, value_name = "SECONDS")]
    pub time_limit: Option<u64>,
    /// The VM was made anew under its old name, with another UUID: its restore points follow those of the VM before it.
    #[arg(long, conflicts_with = "all")]
    pub made_anew: bool,
    /// The disks that `swap` and `exclude` name are meant as they are now, though they are other disks than at the last
    /// backup.
    #[arg(long, requires = "vms")]
    pub confirm_disks: bool,
    /// Only report what would be read, and why.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// `strongroom create`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  strongroom create web01 --template base --size 20G --swap 2G --memory 1G \\
      --unlock tang:http://tang1:7500 --recovery-to ~/.ssh/id_ed25519.pub --ssh-key ~/.ssh/id_ed25519.pub --start
  strongroom create db01 --template base --size 20G --unlock passphrase

The disk is made in a throwaway VM without a network. The passphrase is typed there, the recovery secret leaves it
encrypted, and the key of the disk does not leave it at all. docs/guide/encrypted-vms.md says what that protects
against, and what not.")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one switch, independent of the others"
)]
pub struct Create {
    /// The new VM's name.
    pub name: String,
    /// The template to make it from.
    #[arg(long, value_name = "NAME")]
    pub template: String,
    /// Size of the system disk (20G, 4096M); it takes only what is used.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: u64,
    /// Size of the swap disk, which has a new key with each boot and is never backed up; without it there is none.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub swap: Option<u64>,
    /// Memory.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1G")]
    pub memory: u64,
    /// Virtual processors.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub vcpus: u32,
    /// What opens the disk at boot: a passphrase, or Tang servers (tang:URL[,tang:URL…]).
    #[arg(long, value_name = "HOW")]
    pub unlock: Unlock,
    /// How many of the Tang servers are needed.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub tang_threshold: u8,
    /// Thumbprint of a key of each Tang server, in their order, as `tang-show-keys` prints it. Without it, it is shown
    /// and asked for.
    #[arg(
        long,
        value_name = "THUMBPRINT",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub tang_thumbprint: Vec<String>,
    /// Files with what the Tang servers advertise (`curl URL/adv`), in their order: where only the VM's network reaches
    /// them, and this host does not.
    #[arg(long, value_name = "FILE", value_delimiter = ',', value_hint = ValueHint::FilePath)]
    pub tang_advertisement: Vec<PathBuf>,
    /// Encrypt the recovery secret to this age recipient (age1…) or SSH public key (a file). Needed with Tang.
    #[arg(long, value_name = "KEY", value_hint = ValueHint::FilePath)]
    pub recovery_to: Option<String>,
    /// Read the passphrase from this descriptor instead of the terminal: one line. QEMU reads it, not this program.
    #[arg(long, value_name = "FD")]
    pub passphrase_fd: Option<u32>,
    /// SSH public keys that may log in as root.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ssh_key: Option<PathBuf>,
    /// The machine's own name [default: made from NAME].
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Directory for the disks [default: `images` of the configuration].
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub to: Option<PathBuf>,
    /// Who runs its instructions, as with virt-install: kvm, or qemu for QEMU's emulation [default: kvm where the host
    /// has it].
    #[arg(long, value_enum, value_name = "TYPE")]
    pub virt_type: Option<VirtType>,
    /// What it starts with [default: bios; uefi with --sev and --sev-snp].
    #[arg(long, value_enum, value_name = "FIRMWARE")]
    pub firmware: Option<Firmware>,
    /// Encrypt its memory by AMD's SEV-ES, or refuse where the host has none.
    #[arg(long, conflicts_with = "sev_snp")]
    pub sev: bool,
    /// Encrypt its memory by AMD's SEV-SNP, or refuse where the host has none.
    #[arg(long)]
    pub sev_snp: bool,
    /// Give it devices that a server does not need, each a way in or out.
    #[arg(long, value_enum, value_name = "DEVICE", value_delimiter = ',')]
    pub with: Vec<Extra>,
    /// Give it an emulated TPM 2.0.
    #[arg(long)]
    pub tpm: bool,
    /// Its network: a network of libvirt's by name, bridge:NAME, user (QEMU's own) or none.
    #[arg(long, value_name = "NETWORK", default_value = "default")]
    pub network: String,
    /// Do not let discards through: the images do not shrink, and do not show which blocks are free.
    #[arg(long)]
    pub no_discard: bool,
    /// Memory for deriving a key from a passphrase [default: a quarter of --memory, at most 512M].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub argon2_memory: Option<u64>,
    /// Passes over that memory.
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    pub argon2_iterations: u32,
    /// Another virtio channel, by its name in the guest.
    #[arg(long, value_name = "NAME")]
    pub channel: Vec<String>,
    /// Start it when it is made.
    #[arg(long)]
    pub start: bool,
}

/// `strongroom backup-vm`.
#[derive(Debug, Args)]
pub struct BackupVm {
    /// What to do.
    #[command(subcommand)]
    pub command: BackupVmCommand,
}

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum BackupVmCommand {
    /// Build a template with this program, what it calls, and a timer that backs up every night.
    Template {
        /// The release.
        #[arg(value_enum, value_name = "RELEASE", default_value = "debian-12")]
        release: Release,
        /// The template's name.
        #[arg(long, value_name = "NAME", default_value = "backup")]
        name: String,
    },
    /// Make an encrypted VM that backs up VMs of its hypervisor, like `strongroom create`. Its keys are made in it.
    Create(Box<CreateBackupVm>),
}

/// `strongroom backup-vm create`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  strongroom backup-vm template
  strongroom backup-vm create backup1 --template backup --size 8G --unlock tang:http://tang1:7500 \\
      --recovery-to ~/.ssh/id_ed25519.pub --hypervisor qemu+ssh://strongroom@hv1/system \\
      --repo 'ssh://borg@nas/./{vm}' --known-hosts ~/.ssh/known_hosts --vm web01 --vm db01 --start")]
pub struct CreateBackupVm {
    /// The machine.
    #[command(flatten)]
    pub create: Create,
    /// Where the repositories are, as Borg writes it; `{vm}` stands for the VM's name.
    #[arg(long, value_name = "REPOSITORY")]
    pub repo: String,
    /// libvirt URI by which the new VM reaches its hypervisor.
    #[arg(long, value_name = "URI")]
    pub hypervisor: String,
    /// A VM to back up.
    #[arg(long = "vm", value_name = "VM", required = true)]
    pub vms: Vec<String>,
    /// SSH host keys of hypervisor and repositories; without them it trusts no host until some are put into it.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub known_hosts: Option<PathBuf>,
}

/// What opens a disk at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unlock {
    /// A passphrase.
    Passphrase,
    /// Tang servers, by their addresses.
    Tang(Vec<String>),
}

impl std::str::FromStr for Unlock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "passphrase" {
            return Ok(Self::Passphrase);
        }
        let servers = text.split(',').map(|part| {
            let address = part
                .strip_prefix("tang:")
                .ok_or("passphrase, or tang:URL[,tang:URL…]")?;
            tang::url(address).map_err(|error| error.to_string())
        });
        servers.collect::<Result<_, String>>().map(Self::Tang)
    }
}

/// Who runs a machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VirtType {
    /// The processor.
    Kvm,
    /// QEMU.
    Qemu,
}

/// What a template can be imported from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImportFormat {
    /// A tar file of the root directory.
    Tar,
    /// A disk in QEMU's format.
    Qcow2,
    /// A disk without a format.
    Raw,
}

/// What a machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// A BIOS.
    Bios,
    /// UEFI without Secure Boot.
    Uefi,
    /// UEFI with Secure Boot.
    SecureBoot,
}

/// Devices that are left out unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Extra {
    /// A screen (VNC on the host's loopback) with keyboard and pointer.
    Graphics,
    /// The clipboard shared through that screen.
    Clipboard,
    /// A USB controller.
    Usb,
    /// The balloon, by which the host takes memory back.
    Balloon,
}

/// A size in bytes: a number with K, M, G or T behind it, powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "a number with K, M, G or T behind it".to_owned();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim_end_matches("iB") {
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(1 << shift)
        .filter(|size| *size > 0 && *size <= 1 << 50)
        .ok_or_else(|| "more than nothing, and at most 1024T".to_owned())
}

/// `strongroom template`.
#[derive(Debug, Args)]
pub struct Template {
    /// What to do.
    #[command(subcommand)]
    pub command: TemplateCommand,
}

/// What `strongroom template` can do.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Build one from Debian's packages, and sign it. Needs root and mmdebstrap.
    Build {
        /// Which Debian.
        #[arg(value_enum, value_name = "RELEASE")]
        release: Release,
        /// The template's name [default: the release's].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// More packages.
        #[arg(long = "package", value_name = "PACKAGE", value_delimiter = ',')]
        packages: Vec<String>,
        /// Program or shell command that changes the new system, whose directory it gets as argument; as with
        /// mmdebstrap.
        #[arg(long, value_name = "COMMAND")]
        customize_hook: Option<String>,
    },
    /// Make one from a Debian 12 or 13 of another origin: a vendor's cloud image, or a tar file of a root
    /// directory. What it lacks is installed from Debian's packages. Needs root and bubblewrap.
    Import {
        /// The image or tar file.
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// The template's name.
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What the file is [default: by its name: .qcow2, .raw, .tar and compressed .tar].
        #[arg(long, value_enum, value_name = "FORMAT")]
        format: Option<ImportFormat>,
        /// More packages.
        #[arg(long = "package", value_name = "PACKAGE", value_delimiter = ',')]
        packages: Vec<String>,
        /// Program or shell command that changes the system, whose directory it gets as argument. It runs on this host.
        #[arg(long, value_name = "COMMAND")]
        customize_hook: Option<String>,
    },
    /// List them.
    List,
    /// Compare every byte with what was signed.
    Verify {
        /// Which ones; all of them if none is named.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove them. Machines made from them do not need them any more.
    Rm {
        /// Which ones.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Release {
    /// Bookworm.
    #[value(name = "debian-12")]
    Debian12,
    /// Trixie.
    #[value(name = "debian-13")]
    Debian13,
}

/// `strongroom release`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  strongroom release web01 && virsh snapshot-revert web01 before-upgrade
  strongroom release web01 && virsh undefine web01

What an interrupted backup left is undone first, as by `strongroom recover`. Then all checkpoints of strongroom's are
removed, and all dirty bitmaps named strongroom-* in the images, also where libvirt has forgotten their checkpoints.
Restore points stay. The next backup reads everything once, and tracks changes again: leave the VM out until the
snapshot is reverted to. Images of a VM that is shut off are opened for writing for a moment, under QEMU's lock.

Exit codes: 0 nothing of strongroom's is left; 1 something remains; the output says why.")]
pub struct LetGo {
    /// VMs to release. They need not be in the configuration.
    #[arg(value_name = "VM", required = true)]
    pub vms: Vec<String>,
    /// Only report what would be removed.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// `strongroom hypervisor-rights`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example, on the machine that makes the backups:
  strongroom hypervisor-rights --key ~/.ssh/id_ed25519.pub web01 db01 > rights.sh
Read it, and run it as root on the hypervisor. Then, with hypervisor = \"qemu+ssh://strongroom@HOST/system\":
  strongroom backup web01

It makes two accounts, a polkit rule that libvirt asks about each call, and a short shell script for either account.
The key can run nothing there but these scripts. Run a new one to replace the rights of an older version.
See docs/guide/backup-vm.md for each right and what it is for.")]
pub struct HypervisorRights {
    /// VMs that may be backed up; all VMs of the configuration if none is named.
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
    /// The public key that is let in.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: PathBuf,
    /// The account that the key is for. Backup jobs are begun in a second one, NAME-jobs.
    #[arg(long, value_name = "NAME", default_value = "strongroom")]
    pub account: String,
    /// The group of QEMU's sockets there (`qemu` on Fedora and its like).
    #[arg(long, value_name = "GROUP", default_value = "libvirt-qemu")]
    pub group: String,
    /// A storage pool whose files may be read: one for the directory with the UEFI variables.
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// The VM on that hypervisor which makes the backups: disks of the others may be attached to it, read-only.
    #[arg(long, value_name = "VM")]
    pub own_domain: Option<String>,
    /// Where scratch files go of disks that are no files there: the directory that `images` in the configuration names.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/libvirt/images")]
    pub images: PathBuf,
    /// Exports may be served over TLS, on this address of the hypervisor and these ports: `listen` and `ports` of `[nbd_tls]`.
    #[arg(long, value_name = "ADDRESS:FIRST-LAST", value_parser = listening)]
    pub nbd_tls: Option<(IpAddr, RangeInclusive<u16>)>,
}

/// An address and a range of ports.
fn listening(text: &str) -> Result<(IpAddr, RangeInclusive<u16>), String> {
    let (address, ports) = text.rsplit_once(':').ok_or("as in 0.0.0.0:10809-10824")?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let settings = NbdTls {
        ports: ports.to_owned(),
        ..NbdTls::default()
    };
    Ok((
        address
            .parse()
            .map_err(|_| format!("{address:?} is no address"))?,
        settings
            .ports()
            .ok_or_else(|| format!("{ports:?} is no range of ports"))?,
    ))
}

/// `strongroom thaw-watchdog`.
#[derive(Debug, Args)]
pub struct ThawWatchdog {
    /// The domain.
    pub domain: uuid::Uuid,
    /// How long it may be frozen, in milliseconds.
    #[arg(long)]
    pub budget_ms: u64,
}

/// `strongroom list`.
#[derive(Debug, Args)]
pub struct List {
    /// VMs whose restore points to list; all VMs of the configuration if none is named.
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
}

/// `strongroom show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Restore point: VM, VM@latest, VM@2026-11-23, VM@2026-11-23T11:30, VM@ARCHIVE.
    #[arg(value_name = "VM[@WHEN]")]
    pub point: PointName,
}

/// `strongroom restore`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  strongroom restore web01                             the newest restore point, as it was
  strongroom restore web01@2026-11-20 --as web01-old   beside the original: new UUID, new MAC addresses
  strongroom restore web01 --disk vda --to /tmp/vda.qcow2
  strongroom restore web01 --disk vda --onto /var/lib/libvirt/images/web01.qcow2

Nothing that exists is replaced unless --overwrite is given; then only files of the same name and the
definition of the same, shut-off domain. A swap disk comes back empty, laid out as the guest knows it.")]
#[allow(clippy::struct_excessive_bools, reason = "they are switches of a command")]
pub struct Restore {
    /// Restore point: VM, VM@latest, VM@2026-11-23, VM@2026-11-23T11:30, VM@ARCHIVE.
    #[arg(value_name = "VM[@WHEN]")]
    pub point: PointName,
    /// Give the restored VM this name and a new UUID; what only one VM can have (addresses, ports, sockets, devices) is chosen
    /// anew or left out, and named.
    #[arg(long = "as", value_name = "NAME")]
    pub rename: Option<String>,
    /// Restore only this disk, and define no domain. Can be given several times.
    #[arg(long = "disk", value_name = "TARGET")]
    pub disks: Vec<String>,
    /// Directory for the disks; with a single --disk, the file [default: `images` of the configuration].
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub to: Option<PathBuf>,
    /// Bring this image of a VM that is shut off to the state of the disk (a single --disk): only what differs is fetched
    /// and written. All of it is collected beside the image before the image is touched.
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath, requires = "disks",
          conflicts_with_all = ["to", "rename", "overwrite", "keep_going"])]
    pub onto: Option<PathBuf>,
    /// Image format.
    #[arg(long, value_enum, default_value_t = Format::Qcow2)]
    pub format: Format,
    /// Replace image files, and the definition of a shut-off domain, that exist.
    #[arg(long)]
    pub overwrite: bool,
    /// Restore the other disks when one is damaged. The domain is not defined then.
    #[arg(long)]
    pub keep_going: bool,
    /// Restore it although no trusted key has signed it.
    #[arg(long)]
    pub unsigned: bool,
    /// Restore the newest restore point that is there, though what is on record is newer: the repository was rolled back, or
    /// lacks what was the newest, and you accept that.
    #[arg(long)]
    pub allow_rollback: bool,
    /// Take the LUKS headers of the same instant, so that the passphrases of that time open the disks; without it the
    /// newest headers that fit, with the passphrases of today.
    #[arg(long)]
    pub own_headers: bool,
    /// Take the LUKS headers of this archive, even if they are older than the restore point: a passphrase that was revoked
    /// since may open the disks.
    #[arg(long, value_name = "ARCHIVE", conflicts_with = "own_headers")]
    pub headers: Option<String>,
    /// Take the definition as it is, although no trusted key has signed it and parts of it act on the host: devices,
    /// directories, scripts, arguments of QEMU. --dry-run lists them.
    #[arg(long)]
    pub trust_definition: bool,
    /// Begin although all of it may not fit. The restore still gives way before the storage is full (`free_mib`).
    #[arg(long)]
    pub tight: bool,
    /// Only report what would be written.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// Image format of a restored disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Sparse qcow2.
    Qcow2,
    /// Sparse raw file.
    Raw,
}

/// `strongroom recover`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Each backup begins with the same. Disks that are on an overlay are brought back to their own images, jobs are
ended, scratch files and useless checkpoints removed, guests thawed. Only what the records name is touched.

Exit codes: 0 nothing to do; 3 something was found (and, without --dry-run, put right); 1 something remains;
the output says what to do.")]
pub struct Recover {
    /// VMs to look at; all VMs of the configuration if none is named.
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
    /// Where libvirt was killed while it ended a block job, and shows it still: stop libvirtd, correct its record of the
    /// VM, start it again. The guest keeps running. Only on the VM's host, as root.
    #[arg(long, requires = "vms")]
    pub repair_libvirt_status: bool,
    /// Only report what was found, and what would be done first.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// `strongroom status`.
#[derive(Debug, Args)]
pub struct Status {
    /// VMs to look at; all VMs of the configuration if none is named.
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
}

/// `strongroom verify`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  strongroom verify --all                         signatures, chain, inventory, all chunks present
  strongroom verify --all --data --part next/30   and a thirtieth of all bytes read, the next one each time
  strongroom verify web01@2026-11-20 --data       one restore point, every byte
  strongroom verify web01 --acknowledge           the newest ones are gone because you have deleted them

What is not signed by a key in [signing] allowed_signers, cannot be read, or is missing is a failure: exit code 1.
Without a record of the newest restore point, here or at a witness, a loss of the newest ones is not noticed: exit
code 3. No hypervisor is needed.")]
pub struct Verify {
    /// VM, for all its restore points; or one restore point, as in `restore`.
    #[arg(value_name = "VM[@WHEN]", required_unless_present = "all")]
    pub what: Vec<Scope>,
    /// All VMs of the configuration, and all that an inventory, the witness or an own record knows and that were not
    /// given up.
    #[arg(long, conflicts_with = "what")]
    pub all: bool,
    /// Read, decrypt and hash every byte.
    #[arg(long)]
    pub data: bool,
    /// Read only this share of the bytes, the same each time; with `next/N` the one that is due.
    #[arg(long, value_name = "K/N", requires = "data")]
    pub part: Option<Share>,
    /// What is missing of these VMs is meant to be: lost restore points, another repository, disks that are left out; or
    /// all of a VM that is not configured, if nothing else is. It is listed, and is no failure from then on.
    #[arg(long, conflicts_with = "all")]
    pub acknowledge: bool,
}

/// `strongroom seal`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A seal is a signed statement of what the images of a VM hold that is shut off: its disks with the images below
them, its UEFI variables, a kernel it boots from directly. It is kept in the state directory, not beside the
images, and holds until the next start. With dist/hooks/qemu as libvirt's hook a VM whose images were altered
does not start; with `require_seal` in its configuration it does not start without a seal either.")]
pub struct Seal {
    /// VMs whose images to seal. They must be shut off.
    #[arg(value_name = "VM", required = true)]
    pub vms: Vec<String>,
    /// Swap disks as well.
    #[arg(long)]
    pub with_swap: bool,
    /// Put the seals aside instead: the VMs have been started, and their images change from now on.
    #[arg(long, conflicts_with = "with_swap")]
    pub used: bool,
}

/// `strongroom verify-image`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit code 1 if there is no seal, no trusted key has signed it, or anything is not as it was sealed.")]
pub struct VerifyImage {
    /// VMs whose images to compare with their seals. They must be shut off.
    #[arg(value_name = "VM", required = true)]
    pub vms: Vec<String>,
    /// The VM's definition, `-` for standard input; libvirt is not asked then.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub definition: Option<PathBuf>,
    /// A VM without a seal is fine, unless the configuration says `require_seal`.
    #[arg(long)]
    pub if_required: bool,
}

/// `strongroom repo`.
#[derive(Debug, Args)]
pub struct Repo {
    /// What to do.
    #[command(subcommand)]
    pub command: RepoCommand,
}

/// What `strongroom repo` can do.
#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Prove that this client cannot destroy what is in a repository: exit code 0 if its server is append-only, 1 if not.
    /// Nothing in the repository is changed.
    TestAppendOnly {
        /// VMs whose repositories to test; all VMs of the configuration if none is named.
        #[arg(value_name = "VM")]
        vms: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_backup_needs_a_vm_or_all_of_them() {
        assert!(Cli::try_parse_from(["strongroom", "backup"]).is_err());
        assert!(Cli::try_parse_from(["strongroom", "backup", "--all", "web"]).is_err());
        assert!(Cli::try_parse_from(["strongroom", "backup", "--all", "-n"]).is_ok());
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size("20G"), Ok(20 << 30));
        assert_eq!(size("512MiB"), Ok(512 << 20));
        for bad in [
            "",
            "20",
            "G",
            "0G",
            "-1G",
            "1.5G",
            "20X",
            "99999999999999999999G",
            "2000T",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_opens_a_disk_is_a_passphrase_or_servers() {
        assert_eq!("passphrase".parse(), Ok(Unlock::Passphrase));
        let two = Unlock::Tang(vec!["http://a".into(), "http://b:7500".into()]);
        assert_eq!("tang:http://a,tang:http://b:7500/".parse(), Ok(two));
        for bad in ["", "tpm", "tang:", "tang:http://a,http://b", "tang:ftp://a"] {
            assert!(bad.parse::<Unlock>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_restore_point_without_a_vm_is_a_usage_error() {
        assert!(Cli::try_parse_from(["strongroom", "show", "@latest"]).is_err());
    }
}
