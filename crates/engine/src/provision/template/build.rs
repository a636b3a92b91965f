//! Making a template from Debian's packages, or from a Debian system of another origin: mmdebstrap, apt
//! and the tools of file systems do the work, step by step, in a directory of the store that is removed however it ends.
//!
//! What is imported is foreign: its file system is read by a process, never by this host's kernel, and what runs of it does
//! so in a sandbox (bubblewrap) without network, devices or a way out of its own tree.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use strongroom_base::cancel::Cancel;
use strongroom_base::exec::{self, Call, ExecError, Needs};
use strongroom_guest::protocol;

use super::{Description, FORMAT, Store, TemplateError, at};
use crate::config::Signing;
use crate::run::event::{Kind, Observer};

/// The steps, for `bash`.
const SCRIPT: &str = include_str!("build.sh");
/// How long a step may take: downloads are part of one.
const TIME: Duration = Duration::from_hours(1);
/// What a step may say, in bytes.
const WORDS: u64 = 4 << 20;

/// What every machine needs: to boot from an encrypted disk, to be made in a throwaway VM that is this very system, and to
/// be backed up at rest.
const PACKAGES: &str = "systemd-sysv,systemd-resolved,systemd-timesyncd,dbus,udev,kmod,login,passwd,e2fsprogs,fdisk,dosfstools,\
                        zstd,initramfs-tools,busybox,linux-image-cloud-amd64,cryptsetup,cryptsetup-initramfs,clevis,clevis-luks,\
                        clevis-initramfs,age,qemu-guest-agent,openssh-server,iproute2,ca-certificates,netbase,\
                        grub2-common,grub-pc-bin,grub-efi-amd64-signed,shim-signed";

/// A Debian release that templates can be built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Bookworm.
    Debian12,
    /// Trixie.
    Debian13,
}

impl Release {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "debian-12",
            Self::Debian13 => "debian-13",
        }
    }

    /// By the name that a system gives its release.
    fn of_suite(suite: &str) -> Option<Self> {
        [Self::Debian12, Self::Debian13]
            .into_iter()
            .find(|release| release.suite() == suite)
    }

    fn suite(self) -> &'static str {
        match self {
            Self::Debian12 => "bookworm",
            Self::Debian13 => "trixie",
        }
    }

    fn packages(self) -> String {
        match self {
            Self::Debian12 => PACKAGES.to_owned(),
            // What /etc/crypttab needs has a package of its own there.
            Self::Debian13 => format!("{PACKAGES},systemd-cryptsetup"),
        }
    }
}

/// What a template is made from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Debian's packages.
    Debian(Release),
    /// A Debian 12 or 13 of another origin.
    Import {
        /// The file that holds it.
        file: &'a Path,
        /// What that is.
        format: Import,
    },
}

/// What a system can be imported from. Never guessed from the file's content: others could have written that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Import {
    /// A tar file of the root directory, compressed or not.
    Tar,
    /// A disk, as vendors offer them for clouds: ext4 in a partition, or without one.
    Qcow2,
    /// The same without a format.
    Raw,
}

impl Import {
    /// By the end of a file's name.
    pub fn of_name(file: &Path) -> Option<Self> {
        let name = file.file_name()?.to_str()?;
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        if ends(&[".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst"]) {
            Some(Self::Tar)
        } else if ends(&[".qcow2"]) {
            Some(Self::Qcow2)
        } else if ends(&[".raw"]) {
            Some(Self::Raw)
        } else {
            None
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// What is to be built.
#[derive(Debug)]
pub struct Build<'a> {
    /// The template's name.
    pub name: &'a str,
    /// From what.
    pub source: Source<'a>,
    /// More packages.
    pub packages: &'a [String],
    /// A program or a shell command that changes the new system, with its directory as argument: mmdebstrap's
    /// `--customize-hook`.
    pub hook: Option<&'a str>,
    /// The program of the throwaway VM, linked statically.
    pub program: &'a Path,
}

/// A directory that goes when it is dropped.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Builds and signs a template.
pub fn build(
    store: &Store,
    build: &Build<'_>,
    signing: &Signing,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Description, TemplateError> {
    if signing.key.is_none() || signing.allowed_signers.is_none() {
        return Err(TemplateError::NoKey);
    }
    let place = store.place(build.name)?;
    if place.exists() {
        return Err(TemplateError::Exists(build.name.to_owned()));
    }
    let plain = |package: &String| {
        !package.is_empty()
            && package
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".+-:".contains(&byte))
    };
    if let Some(odd) = build.packages.iter().find(|package| !plain(package)) {
        return Err(TemplateError::Build {
            what: "choose the packages",
            reason: format!("{odd:?} is not a package's name"),
        });
    }
    fs::create_dir_all(&store.directory).map_err(at(&store.directory))?;
    let work = Work(
        store
            .directory
            .join(format!(".building-{}.{}", build.name, std::process::id())),
    );
    let directory = &work.0;
    fs::create_dir(directory).map_err(at(directory))?;
    // No other user comes near what an imported system holds: programs that run as root, for example.
    if let Source::Import { .. } = build.source {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(at(directory))?;
    }
    // mmdebstrap and the sandbox call it back.
    let script = directory.join("build.sh");
    fs::write(&script, SCRIPT).map_err(at(&script))?;
    let step = |what: &'static str, arguments: &[&OsStr]| {
        observer.report(Kind::stage(format!("{}: {what}", build.name)));
        run(&script, what, arguments, cancel)
    };
    let work_path = directory.as_os_str();
    let hook = OsStr::new(build.hook.unwrap_or(""));
    let packages = |release: Release| {
        let own = [release.packages()];
        own.iter()
            .chain(build.packages)
            .cloned()
            .collect::<Vec<_>>()
            .join(",")
    };
    let install = |what, word: &str, release: Release| {
        let (suite, packages) = (release.suite(), packages(release));
        step(
            what,
            &[word.as_ref(), work_path, suite.as_ref(), packages.as_ref(), hook],
        )
    };
    let source = match build.source {
        Source::Debian(release) => {
            install("install Debian's packages", "bootstrap", release)?;
            release.name().to_owned()
        }
        Source::Import { file, format } => {
            let file = file.canonicalize().map_err(at(file))?;
            let said = step(
                "unpack the system",
                &[
                    "import".as_ref(),
                    work_path,
                    format.name().as_ref(),
                    file.as_os_str(),
                ],
            )?;
            let release = Release::of_suite(said.trim()).ok_or_else(|| TemplateError::Build {
                what: "unpack the system",
                reason: format!("{} holds neither a Debian 12 nor a Debian 13", file.display()),
            })?;
            install("install what it lacks", "complete", release)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            protocol::printable(&name)
        }
    };
    step(
        "make the throwaway VM",
        &["appliance".as_ref(), work_path, build.program.as_os_str()],
    )?;
    let size = step("make the image", &["image".as_ref(), work_path])?;
    let facts = step("list what is in it", &["facts".as_ref(), work_path])?;
    let mut facts = facts.lines().map(str::to_owned);
    let description = Description {
        format: FORMAT,
        name: build.name.to_owned(),
        created: now(),
        source,
        protocol: protocol::VERSION,
        kernel: facts.next().unwrap_or_default(),
        root_size: size.trim().parse().map_err(|_| TemplateError::Build {
            what: "make the image",
            reason: "its size is not known".to_owned(),
        })?,
        packages: facts.collect(),
        files: BTreeMap::new(),
    };
    let draft = Work(directory.join("out"));
    fs::create_dir(&draft.0).map_err(at(&draft.0))?;
    for file in super::FILES {
        fs::rename(directory.join(file), draft.0.join(file)).map_err(at(&draft.0))?;
    }
    store.publish(&draft.0, description, signing, cancel)
}

/// Whole seconds are enough.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

fn run(
    script: &Path,
    what: &'static str,
    arguments: &[&OsStr],
    cancel: &Cancel,
) -> Result<String, TemplateError> {
    let mut all = vec![script.as_os_str()];
    all.extend(arguments);
    let output = exec::run(
        &Call {
            program: OsStr::new("bash"),
            needs: Needs::Network,
            arguments: all,
            input: b"",
            time: TIME,
            limit: WORDS,
        },
        cancel,
    );
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.out).into_owned()),
        Ok(output) => Err(TemplateError::Build {
            what,
            reason: exec::words(&output),
        }),
        Err(ExecError::Cancelled(cancelled)) => Err(cancelled.into()),
        Err(error) => Err(TemplateError::Build {
            what,
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_imported_is_told_by_its_name() {
        let told = |name: &str| Import::of_name(Path::new(name));
        assert_eq!(told("/x/debian-12-genericcloud-amd64.qcow2"), Some(Import::Qcow2));
        assert_eq!(told("root.tar.zst"), Some(Import::Tar));
        assert_eq!(told("disk.raw"), Some(Import::Raw));
        assert_eq!(told("noble-server-cloudimg-amd64.img"), None);
        assert_eq!(told("/"), None);
        assert_eq!(Release::of_suite("trixie"), Some(Release::Debian13));
        assert_eq!(Release::of_suite("noble"), None);
    }

    #[test]
    fn a_link_in_a_foreign_system_gives_nothing_of_this_host() {
        let work = tempfile::tempdir().unwrap();
        let boot = work.path().join("root/boot");
        fs::create_dir_all(&boot).unwrap();
        let script = work.path().join("build.sh");
        fs::write(&script, SCRIPT).unwrap();
        let appliance = |target: &str| {
            let kernel = boot.join("vmlinuz-6.1");
            let _ = fs::remove_file(&kernel);
            std::os::unix::fs::symlink(target, kernel).unwrap();
            let arguments = [
                "appliance".as_ref(),
                work.path().as_os_str(),
                "/bin/busybox".as_ref(),
            ];
            run(&script, "make the throwaway VM", &arguments, &Cancel::new())
        };
        for target in ["/etc/passwd", "../../build.sh", "nowhere"] {
            let error = appliance(target).unwrap_err().to_string();
            assert!(
                error.contains("/boot/vmlinuz-6.1 leads out of the system, or nowhere"),
                "{error}"
            );
            assert!(!work.path().join("vmlinuz").exists());
        }
        fs::write(boot.join("the-kernel"), "kernel").unwrap();
        let _ = appliance("the-kernel");
        assert_eq!(fs::read(work.path().join("vmlinuz")).unwrap(), b"kernel");
    }
}
