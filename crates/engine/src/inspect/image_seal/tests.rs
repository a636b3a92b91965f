use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use strongroom_hypervisor::{Bitmaps, Disk, DiskSource, Identity, MachineFiles};

use super::*;
use crate::testing::{run, ssh_key};

/// A key, a second one, and two files.
struct Lab {
    directory: tempfile::TempDir,
    signing: Signing,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["key", "thief"] {
            ssh_key(&directory.path().join(name));
        }
        let public = fs::read_to_string(directory.path().join("key.pub")).unwrap();
        let allowed = directory.path().join("allowed");
        fs::write(&allowed, format!("me@host namespaces=\"strongroom-*\" {public}")).unwrap();
        let lab = Self {
            signing: Signing {
                key: Some(directory.path().join("key")),
                allowed_signers: Some(allowed),
                ..Signing::default()
            },
            directory,
        };
        fs::write(lab.path("one"), vec![7; 9 << 20]).unwrap();
        fs::write(lab.path("two"), b"two").unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn files(&self) -> Vec<NamedFile> {
        let file = |name: &str| NamedFile {
            name: format!("files/{name}"),
            path: self.path(name),
        };
        vec![file("two"), file("one")]
    }

    fn make(&self) -> Signed {
        let made = make(&self.signing, subject("base"), &self.files(), &(), &Cancel::new());
        made.unwrap().1
    }

    /// What a check of these files says.
    fn check_with(&self, signed: &Signed, files: &[NamedFile]) -> Result<(), SealError> {
        let cancel = Cancel::new();
        let (seal, signer) = open(&self.signing, &subject("base"), signed, &cancel)?;
        assert_eq!(signer.identity, "me@host");
        check(&seal, files, &(), &cancel)
    }

    fn check(&self, signed: &Signed) -> Result<(), SealError> {
        self.check_with(signed, &self.files())
    }
}

fn subject(name: &str) -> Subject {
    Subject {
        name: name.into(),
        uuid: None,
    }
}

#[track_caller]
fn differs(found: Result<(), SealError>, word: &str) {
    let error = found.unwrap_err();
    assert!(matches!(error, SealError::Altered { .. }), "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

#[test]
fn whatever_is_not_as_it_was_sealed_is_noticed() {
    let lab = Lab::new();
    let signed = lab.make();
    lab.check(&signed).unwrap();

    let file = fs::OpenOptions::new().write(true).open(lab.path("one")).unwrap();
    for at in [0, 5 << 20, (9 << 20) - 1] {
        file.write_all_at(&[8], at).unwrap();
        differs(lab.check(&signed), "files/one");
        file.write_all_at(&[7], at).unwrap();
    }
    lab.check(&signed).unwrap();
    for (size, word) in [
        (9 << 20 | 1, "9437185 bytes"),
        (5 << 20, "5242880 bytes"),
        (0, "0 bytes"),
    ] {
        file.set_len(size).unwrap();
        differs(lab.check(&signed), word);
    }
    // All that differs is named.
    fs::remove_file(lab.path("two")).unwrap();
    let error = lab.check(&signed).unwrap_err().to_string();
    assert!(
        error.contains("files/one") && error.contains("files/two"),
        "{error}"
    );
}

#[test]
fn a_file_more_or_less_is_noticed() {
    let lab = Lab::new();
    let signed = lab.make();
    let mut files = lab.files();
    files.push(NamedFile {
        name: "files/three".into(),
        path: lab.path("two"),
    });
    differs(lab.check_with(&signed, &files), "files/three");
    differs(lab.check_with(&signed, &lab.files()[..1]), "files/one was sealed");
    // The names count, not where they lie.
    fs::rename(lab.path("one"), lab.path("elsewhere")).unwrap();
    let mut files = lab.files();
    files[1].path = lab.path("elsewhere");
    lab.check_with(&signed, &files).unwrap();
    files.reverse();
    lab.check_with(&signed, &files).unwrap();
}

#[test]
fn a_seal_counts_only_if_somebody_trusted_made_it_for_this() {
    let mut lab = Lab::new();
    let signed = lab.make();
    let with = |bytes: &[u8], signature: &[u8]| Signed {
        bytes: bytes.to_vec(),
        signature: signature.to_vec(),
    };
    let mut altered = signed.bytes.clone();
    let digest = altered
        .windows(9)
        .position(|part| part == b"\"digest\":")
        .unwrap()
        + 10;
    altered[digest] = if altered[digest] == b'0' { b'1' } else { b'0' };
    for (what, bad) in [
        ("altered", with(&altered, &signed.signature)),
        ("unsigned", with(&signed.bytes, b"")),
    ] {
        assert!(
            matches!(lab.check(&bad), Err(SealError::Untrusted { .. })),
            "{what}"
        );
    }
    assert!(matches!(
        lab.check(&with(b"{}", &signed.signature)),
        Err(SealError::Invalid(_))
    ));
    // Of something else.
    let other = open(&lab.signing, &subject("other"), &signed, &Cancel::new());
    assert!(matches!(other, Err(SealError::Altered { .. })));
    // By another key, or for something else.
    let thief = Signing {
        key: Some(lab.path("thief")),
        ..Signing::default()
    };
    let (_, forged) = make(&thief, subject("base"), &lab.files(), &(), &Cancel::new()).unwrap();
    assert!(matches!(lab.check(&forged), Err(SealError::Untrusted { .. })));
    let key = lab.path("key");
    let at = Timestamp::now();
    let manifest = signature::sign(
        &Signing::default(),
        &key,
        signature::NAMESPACE,
        &signed.bytes,
        at,
        &Cancel::new(),
    );
    let manifest = with(&signed.bytes, &manifest.unwrap());
    assert!(matches!(lab.check(&manifest), Err(SealError::Untrusted { .. })));
    lab.signing.key = None;
    let keyless = make(&lab.signing, subject("base"), &lab.files(), &(), &Cancel::new());
    assert!(matches!(keyless, Err(SealError::NoKey)));
}

#[test]
fn a_seal_is_verified_by_hand_with_ssh_keygen() {
    let lab = Lab::new();
    let signed = lab.make();
    let path = SealPath::new(lab.directory.path(), "seal");
    path.write(&signed).unwrap();
    let line = format!(
        "ssh-keygen -Y verify -f {0}/allowed -I me@host -n {NAMESPACE} -s {0}/seal.json.sig < {0}/seal.json",
        lab.directory.path().display()
    );
    run(Command::new("sh").arg("-c").arg(line));
}

#[test]
fn a_seal_is_kept_until_it_is_used_up() {
    let lab = Lab::new();
    let path = SealPath::new(&lab.path("seals"), "a/../b");
    assert_eq!(path.read().unwrap(), None);
    assert!(!path.use_up().unwrap());
    let signed = lab.make();
    path.write(&signed).unwrap();
    path.write(&signed).unwrap();
    assert_eq!(path.read().unwrap(), Some(signed.clone()));
    assert_eq!(path.statement().parent(), Some(lab.path("seals").as_path()));
    assert!(path.use_up().unwrap());
    assert_eq!(path.read().unwrap(), None);
    assert!(!path.use_up().unwrap());
    // Half of one trusts no key.
    path.write(&signed).unwrap();
    fs::remove_file(lab.path("seals/a_.._b.json.sig")).unwrap();
    lab.check(&path.read().unwrap().unwrap()).unwrap_err();
}

#[test]
fn a_statement_that_makes_no_sense_is_refused() {
    let lab = Lab::new();
    let seal = Seal::parse(&lab.make().bytes).unwrap();
    let refused = |change: fn(&mut Seal)| {
        let mut seal = seal.clone();
        change(&mut seal);
        seal.to_bytes().unwrap_err();
    };
    refused(|seal| seal.format = 2);
    refused(|seal| seal.files.clear());
    refused(|seal| seal.files.reverse());
    refused(|seal| seal.files[1].name = seal.files[0].name.clone());
    refused(|seal| seal.files[0].name = String::new());
    refused(|seal| seal.files[0].name = "a b".into());
    Seal::parse(&vec![b' '; MAX_BYTES as usize + 1]).unwrap_err();
}

fn disk(target: &str, path: &Path, format: &str) -> Disk {
    Disk {
        target: target.into(),
        device: "disk".into(),
        source: DiskSource::File(path.to_owned()),
        format: format.into(),
        serial: None,
        read_only: false,
        size: None,
        discard: false,
        bitmaps: Bitmaps::Unknown,
        encrypted: false,
        transient: false,
        shared: false,
        identity: Identity::default(),
    }
}

fn qemu_img(directory: &Path, arguments: &str) {
    run(Command::new("qemu-img")
        .args(arguments.split(' '))
        .current_dir(directory));
}

#[test]
fn a_vm_is_sealed_with_the_images_below_its_own() {
    let lab = Lab::new();
    let directory = lab.directory.path();
    qemu_img(directory, "create -q -f qcow2 base.qcow2 1M");
    qemu_img(
        directory,
        "create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2",
    );
    qemu_img(directory, "create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2");
    let machine = MachineFiles {
        name: "web".into(),
        uuid: None,
        disks: vec![
            disk("vda", &lab.path("top.qcow2"), "qcow2"),
            disk("vdb", &lab.path("one"), "raw"),
        ],
        files: vec![("nvram", lab.path("two")), ("kernel", lab.path("absent"))],
    };
    let names = |files: Vec<NamedFile>| files.into_iter().map(|file| file.name).collect::<Vec<_>>();
    let files = names(vm::files(&machine, |_| true).unwrap());
    assert_eq!(
        files,
        [
            "disks/vda",
            "disks/vda.below1",
            "disks/vda.below2",
            "disks/vdb",
            "nvram"
        ]
    );
    assert_eq!(
        names(vm::files(&machine, |disk| disk.target == "vdb").unwrap()),
        ["disks/vdb", "nvram"]
    );

    // What cannot be told is refused: a format that is not written down, a place that is no file.
    qemu_img(
        directory,
        "rebase -u -f qcow2 -b nbd:unix:/run/x -F raw middle.qcow2",
    );
    let error = vm::files(&machine, |_| true).unwrap_err().to_string();
    assert!(error.contains("no file"), "{error}");
    let mut machine = machine;
    machine.disks = vec![disk("vda", &lab.path("one"), "vmdk")];
    assert!(matches!(
        vm::files(&machine, |_| true),
        Err(SealError::Refused { .. })
    ));
}
