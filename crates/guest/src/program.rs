//! The program inside the throwaway VM, its first and only process: makes an encrypted system disk from the template and
//! says how that goes. All real work is done by the template's own tools.
//!
//! Read [`work`] from top to bottom. Secrets are in this process' memory and in pipes to those tools, never in arguments,
//! files or words to the host; the volume's master key never leaves the kernel and cryptsetup.

mod boot;
mod channel;
mod copy;
mod identity;
mod loader;
mod luks;
mod passphrase;
mod tool;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::protocol::{MAX_LINE, Message, Order, Report, Step, Unlock, VERSION, printable};
use channel::Channel;
use tool::run;

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Why the work ends early, in words.
type Failed = String;

/// Runs as process 1, and switches the VM off at the end.
pub fn main() {
    if std::process::id() != 1 {
        // Outside a throwaway VM this would be a very bad idea.
        std::process::exit(2);
    }
    match boot::boot().and_then(|()| Channel::open()) {
        Ok(channel) => {
            let last = serve(&channel).unwrap_or_else(|message| Message::Failed {
                step: channel.step(),
                message: printable(&message),
            });
            channel.say(&last);
        }
        // The host looks at the console in a silence.
        Err(reason) => boot::log(&reason),
    }
    boot::switch_off();
}

fn serve(channel: &Channel) -> Result<Message, Failed> {
    channel.say(&Message::Hello { version: VERSION });
    let order = order(channel)?;
    let (end, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(HEARTBEAT) {
                channel.say(&Message::Alive);
            }
        });
        let done = work(channel, &order);
        drop(end);
        done.map(Message::Done)
    })
}

fn order(channel: &Channel) -> Result<Order, Failed> {
    let mut line = Vec::new();
    BufReader::new(channel.reader())
        .take(MAX_LINE as u64)
        .read_until(b'\n', &mut line)
        .map_err(|error| format!("read the order: {error}"))?;
    let order: Order =
        serde_json::from_slice(&line).map_err(|error| format!("understand the order: {error}"))?;
    if order.version == VERSION {
        Ok(order)
    } else {
        Err(format!(
            "understand the order: it has version {}, the template's program {VERSION}",
            order.version
        ))
    }
}

/// The partitions of the new disks.
struct Disks {
    system: String,
    esp: String,
    boot: String,
    root: String,
    swap: Option<String>,
}

/// Where the new system is mounted.
const TARGET: &str = "/run/target";

/// The whole work.
fn work(channel: &Channel, order: &Order) -> Result<Report, Failed> {
    // Waits until the kernel's generator has been seeded (virtio-rng): no key is made before.
    let _ = luks::random()?;
    let passphrase = match order.unlock {
        Unlock::Passphrase { asked } => {
            channel.begin(Step::Passphrase);
            Some(passphrase::read(asked, &order.hostname)?)
        }
        Unlock::Tang { .. } => None,
    };

    channel.begin(Step::Partition);
    let disks = partition(order)?;

    channel.begin(Step::Encrypt);
    let recovery = order
        .recovery
        .as_ref()
        .map(|_| luks::recovery_secret())
        .transpose()?;
    let first = recovery.as_ref().or(passphrase.as_ref());
    let first = first.ok_or("make a key: neither a passphrase nor a recovery secret is wanted")?;
    luks::format(&disks.root, order, first)?;
    luks::open(&disks.root, order.discard, first)?;
    if let (Some(_), Some(second)) = (&recovery, &passphrase) {
        luks::add(&disks.root, order, first, second)?;
    }

    let mut ciphertext = None;
    if let (Some(secret), Some(recipient)) = (&recovery, &order.recovery) {
        channel.begin(Step::Recovery);
        luks::mark_recovery(&disks.root)?;
        ciphertext = Some(luks::encrypt_to(recipient, secret)?);
    }
    if let Unlock::Tang { threshold, servers } = &order.unlock {
        channel.begin(Step::Bind);
        luks::bind(&disks.root, *threshold, servers, first)?;
    }

    channel.begin(Step::Copy);
    copy::template(channel)?;
    mount(&disks)?;

    channel.begin(Step::Configure);
    let host_key = identity::write(Path::new(TARGET), order)?;
    let backups = identity::backups(Path::new(TARGET), order)?;

    channel.begin(Step::Loader);
    loader::install(&disks, Path::new(TARGET))?;

    channel.begin(Step::Finish);
    for place in ["/boot", ""] {
        // A disk that takes no discards has nothing to give back.
        if order.discard {
            run("fstrim", &[&format!("{TARGET}{place}")])?;
        }
    }
    for place in ["/boot/efi", "/boot", ""] {
        run("umount", &[&format!("{TARGET}{place}")])?;
    }
    run("cryptsetup", &["close", luks::NAME])?;
    luks::try_open(&disks.root, first)?;
    if let Some(passphrase) = &passphrase {
        luks::try_open(&disks.root, passphrase)?;
    }
    let luks_uuid = run("cryptsetup", &["luksUUID", &disks.root])?.trim().to_owned();
    rustix::fs::sync();
    Ok(Report {
        luks_uuid,
        recovery: ciphertext,
        ssh_host_key: host_key.public,
        ssh_fingerprint: host_key.fingerprint,
        backups,
    })
}

/// Divides the blank disks. Whole MiB: `--sector-size 4096` wants the ends aligned as well.
fn partition(order: &Order) -> Result<Disks, Failed> {
    const BOOT: &str = "\
start=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649, name=bios
start=2MiB, size=62MiB, type=U, name=esp
start=64MiB, size=448MiB, type=L, name=boot
";
    let system = boot::disk(crate::protocol::SYSTEM_DISK)?;
    let root = mebibytes(&system)?
        .checked_sub(513)
        .ok_or("divide the system disk: it is too small")?;
    let table = format!(
        "{BOOT}start=512MiB, size={root}MiB, type=CA7D7CCB-63ED-4C53-861C-1742536059CC, name=croot\n"
    );
    tool::run_with("sfdisk", &["-q", "-X", "gpt", &system], table.as_bytes())?;
    let swap = if order.swap {
        let disk = boot::disk(crate::protocol::SWAP_DISK)?;
        let size = mebibytes(&disk)?
            .checked_sub(2)
            .ok_or("divide the swap disk: it is too small")?;
        let table = format!("start=1MiB, size={size}MiB, type=S, name=cswap\n");
        tool::run_with("sfdisk", &["-q", "-X", "gpt", &disk], table.as_bytes())?;
        Some(format!("{disk}1"))
    } else {
        None
    };
    Ok(Disks {
        esp: format!("{system}2"),
        boot: format!("{system}3"),
        root: format!("{system}4"),
        system,
        swap,
    })
}

fn mebibytes(disk: &str) -> Result<u64, Failed> {
    use std::io::Seek as _;
    let size = File::open(disk)
        .and_then(|mut file| file.seek(std::io::SeekFrom::End(0)))
        .map_err(|error| format!("look at {disk}: {error}"))?;
    Ok(size >> 20)
}

/// Mounts the copy, lets it fill its disk, and gives it `/boot` and the ESP.
fn mount(disks: &Disks) -> Result<(), Failed> {
    let boot = format!("{TARGET}/boot");
    let esp = format!("{boot}/efi");
    let make = |directory: &str| {
        std::fs::create_dir_all(directory).map_err(|error| format!("make {directory}: {error}"))
    };
    make(TARGET)?;
    // Without noinit_itable, growing leaves new inode tables blank: with it the kernel writes them all, which fills the
    // sparse image and takes minutes (ext4's resize.c). Its thread that would do so later has no work at this mount.
    run("mount", &[luks::DEVICE, TARGET])?;
    run("resize2fs", &[luks::DEVICE])?;
    run("mkfs.ext4", &["-q", "-m", "0", "-L", "boot", &disks.boot])?;
    run("mkfs.vfat", &["-n", "ESP", &disks.esp])?;
    // Of the template's files, not of the copy's: those are removed.
    run("find", &[&boot, "-mindepth", "1", "-delete"])?;
    run("mount", &["-o", "noinit_itable", &disks.boot, &boot])?;
    run("cp", &["-a", "/boot/.", &boot])?;
    make(&esp)?;
    run("mount", &[&disks.esp, &esp])?;
    if let Some(swap) = &disks.swap
        && !Path::new(swap).exists()
    {
        return Err(format!("find {swap}: the kernel does not show it"));
    }
    Ok(())
}
