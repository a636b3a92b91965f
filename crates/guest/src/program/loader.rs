//! Boot loaders for BIOS and for UEFI, with and without Secure Boot: the same disk starts under each.

use std::fs;
use std::path::Path;

use super::tool::run;
use super::{Disks, Failed};

/// The kernel's command line. `/etc/default/grub` says the same to a later `update-grub`.
const COMMAND_LINE: &str = "quiet console=tty0 console=ttyS0,115200";

/// Shim and GRUB as Debian has them signed, and where firmware looks for them (`grubx64.efi`: where shim does).
const SIGNED: [(&str, &str); 3] = [
    ("/usr/lib/shim/shimx64.efi.signed", "BOOTX64.EFI"),
    ("/usr/lib/shim/mmx64.efi.signed", "mmx64.efi"),
    (
        "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        "grubx64.efi",
    ),
];

/// Installs both.
pub fn install(disks: &Disks, root: &Path) -> Result<(), Failed> {
    let boot = root.join("boot");
    let kernel = newest(&boot, "vmlinuz-")?;
    let initrd = format!("initrd.img-{}", kernel.trim_start_matches("vmlinuz-"));
    if !boot.join(&initrd).is_file() {
        return Err(format!("find {initrd} in the template: there is none"));
    }
    let uuid = run("blkid", &["-p", "-s", "UUID", "-o", "value", &disks.boot])?;
    let uuid = uuid.trim();
    let directory = format!("--boot-directory={}", boot.display());
    run(
        "grub-install",
        &["--target=i386-pc", "--no-floppy", &directory, &disks.system],
    )?;
    put(&boot.join("grub/grub.cfg"), &menu(uuid, &kernel, &initrd))?;
    put(
        &root.join("etc/default/grub"),
        &format!(
            "GRUB_DEFAULT=0\nGRUB_TIMEOUT=1\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=\"\"\n\
             GRUB_CMDLINE_LINUX=\"{COMMAND_LINE}\"\nGRUB_TERMINAL=\"console serial\"\n\
             GRUB_SERIAL_COMMAND=\"serial --speed=115200\"\nGRUB_DISABLE_OS_PROBER=true\n"
        ),
    )?;
    uefi(&boot.join("efi/EFI"), uuid)
}

/// Where firmware looks on a disk that it does not know, and where Debian's signed GRUB looks for its first words.
fn uefi(esp: &Path, uuid: &str) -> Result<(), Failed> {
    let (fallback, debian) = (esp.join("BOOT"), esp.join("debian"));
    for directory in [&fallback, &debian] {
        fs::create_dir_all(directory).map_err(|error| format!("make {}: {error}", directory.display()))?;
    }
    for (from, name) in SIGNED {
        fs::copy(from, fallback.join(name)).map_err(|error| format!("copy {from}: {error}"))?;
    }
    let stub =
        format!("search.fs_uuid {uuid} root\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\n");
    put(&debian.join("grub.cfg"), &stub)?;
    put(&fallback.join("grub.cfg"), &stub)
}

fn menu(uuid: &str, kernel: &str, initrd: &str) -> String {
    format!(
        "# Written when this machine was made; update-grub replaces it.\n\
         set timeout=1\n\
         if [ \"$grub_platform\" = pc ]; then\n\
         \x20 serial --speed=115200\n\
         \x20 terminal_input console serial\n\
         \x20 terminal_output console serial\n\
         fi\n\
         menuentry 'Debian GNU/Linux' {{\n\
         \x20 search --no-floppy --fs-uuid --set=root {uuid}\n\
         \x20 linux /{kernel} root=/dev/mapper/croot ro {COMMAND_LINE}\n\
         \x20 initrd /{initrd}\n\
         }}\n"
    )
}

/// The last file of these, in the order of their names.
fn newest(directory: &Path, prefix: &str) -> Result<String, Failed> {
    let entries =
        fs::read_dir(directory).map_err(|error| format!("read {}: {error}", directory.display()))?;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .max()
        .ok_or_else(|| format!("find a kernel in the template: there is no {prefix}*"))
}

fn put(file: &Path, text: &str) -> Result<(), Failed> {
    fs::write(file, text).map_err(|error| format!("write {}: {error}", file.display()))
}
