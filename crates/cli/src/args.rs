//! The command line, and nothing else: from here come the help texts, the man pages and the completions.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use strongroom_engine::verify::{Part, Scope};
use strongroom_engine::when::PointName;

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
  2  the command line or the configuration makes no sense
  3  done, with warnings
  130  ended at once by a second ctrl-C; the next backup tidies up

Repositories are Borg's: BORG_PASSPHRASE, BORG_PASSCOMMAND, BORG_PASSPHRASE_FD, BORG_RSH,
BORG_REMOTE_PATH, BORG_BASE_DIR, BORG_KEYS_DIR and BORG_SECURITY_DIR mean what they mean there.";

/// What goes for all commands.
#[derive(Debug, Args)]
pub struct Global {
    /// Configuration file [default: /etc/strongroom/strongroom.toml for root,
    /// ~/.config/strongroom/strongroom.toml otherwise].
    #[arg(long, global = true, env = "STRONGROOM_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Hypervisor, as a libvirt URI; goes before the configuration.
    #[arg(short, long, global = true, value_name = "URI")]
    pub connect: Option<String>,
    /// One JSON document on standard output instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more; twice: also what the repository's server says.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but errors and warnings.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// How long to wait for a repository that somebody else has locked, in seconds.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10)]
    pub lock_wait: u64,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the configuration, add VMs to it, make their repositories.
    Init(Init),
    /// Back up VMs while they run (or are shut off).
    Backup(Backup),
    /// List restore points.
    List(List),
    /// Show everything about one restore point.
    Show(Show),
    /// Bring back a VM, or single disks of it.
    Restore(Restore),
    /// Say for each VM whether it is protected, and since when.
    Status(Status),
    /// Prove that restore points are whole, unaltered, in their place, and that none is missing.
    Verify(Verify),
    /// Look after repositories.
    Repo(Repo),
    /// Undo what an interrupted backup left, without making a new one.
    Recover(Recover),
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
    /// Sign restore points with this SSH key: a private key, or a public one whose private part is in an agent. It is
    /// made if it is not there, and trusted by a file `allowed_signers` beside the configuration.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub signing_key: Option<PathBuf>,
    /// Make that key without a passphrase, so that backups need nobody to type it.
    #[arg(long, requires = "signing_key")]
    pub unprotected_signing_key: bool,
}

/// `strongroom backup`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The first backup reads what is allocated, the next ones only what changed. A disk for which that cannot be
told is read in full, and the reason is shown and kept in the restore point.")]
pub struct Backup {
    /// VMs to back up.
    #[arg(value_name = "VM", required_unless_present = "all")]
    pub vms: Vec<String>,
    /// All VMs of the configuration.
    #[arg(long, conflicts_with = "vms")]
    pub all: bool,
    /// Only say what would be read, and why.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
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

Nothing that exists is replaced unless --overwrite is given; then only files of the same name and the
definition of the same, shut-off domain. A swap disk comes back empty, laid out as the guest knows it.")]
#[allow(clippy::struct_excessive_bools, reason = "they are switches of a command")]
pub struct Restore {
    /// Restore point: VM, VM@latest, VM@2026-11-23, VM@2026-11-23T11:30, VM@ARCHIVE.
    #[arg(value_name = "VM[@WHEN]")]
    pub point: PointName,
    /// Give the restored VM this name, a new UUID and new MAC addresses.
    #[arg(long = "as", value_name = "NAME")]
    pub rename: Option<String>,
    /// Restore only this disk, and define no domain. Can be given several times.
    #[arg(long = "disk", value_name = "TARGET")]
    pub disks: Vec<String>,
    /// Directory for the disks; with a single --disk, the file [default: `images` of the configuration].
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub to: Option<PathBuf>,
    /// Image format.
    #[arg(long, value_enum, default_value_t = Format::Qcow2)]
    pub format: Format,
    /// Replace image files, and the definition of a shut-off domain, that exist.
    #[arg(long)]
    pub overwrite: bool,
    /// Restore the other disks when one is damaged. The domain is not defined then.
    #[arg(long)]
    pub keep_going: bool,
    /// Restore it although nobody who is trusted has signed it.
    #[arg(long)]
    pub unsigned: bool,
    /// Only say what would be written.
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

Exit codes: 0 nothing to do; 3 something was found (and, without --dry-run, put right); 1 something remains,
and what to do about it has been said.")]
pub struct Recover {
    /// VMs to look at; all VMs of the configuration if none is named.
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
    /// Only say what was found, and what would be done first.
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
  strongroom verify --all                      signatures, chain, inventory, all chunks present
  strongroom verify --all --data --part 7/30   and a thirtieth of all bytes read; the 30 parts are everything
  strongroom verify web01@2026-11-20 --data    one restore point, every byte

What is not signed by somebody in [signing] allowed_signers, cannot be read, or is not there is a failure: exit
code 1. Without a record of the newest restore point, here or at a witness, it cannot be told whether the newest
ones are missing: exit code 3. No hypervisor is needed.")]
pub struct Verify {
    /// VM, for all its restore points; or one restore point, as in `restore`.
    #[arg(value_name = "VM[@WHEN]", required_unless_present = "all")]
    pub what: Vec<Scope>,
    /// All VMs of the configuration, and all that the newest restore point's inventory lists.
    #[arg(long, conflicts_with = "what")]
    pub all: bool,
    /// Read, decrypt and hash every byte.
    #[arg(long)]
    pub data: bool,
    /// Read only this share of the bytes, the same each time.
    #[arg(long, value_name = "K/N", requires = "data")]
    pub part: Option<Part>,
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
    fn a_restore_point_without_a_vm_is_a_usage_error() {
        assert!(Cli::try_parse_from(["strongroom", "show", "@latest"]).is_err());
    }
}
