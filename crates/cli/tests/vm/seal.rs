//! Sealed images, and libvirt's hook that lets no tampered VM start: with the hook installed in a libvirtd of the test's own.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::common::Bench;
use crate::common::tiny::{Tiny, noise, trust, with_signing};
use strongroom_engine::config::Vm;
use strongroom_testkit::{Lab, OwnLibvirtd, output_of, run, ssh_keygen, virsh};

const HOOKS: &str = "/etc/libvirt/hooks";

/// Installs the hook as a user does, in the private copy of libvirt's directories.
fn install(daemon: &OwnLibvirtd, bench: &Bench, lab: &Lab) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/hooks/qemu");
    fs::create_dir_all(HOOKS).unwrap();
    let hook = Path::new(HOOKS).join("qemu");
    fs::copy(script, &hook).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let config = bench.config_file(lab);
    let settings = format!(
        "export STRONGROOM='{}' STRONGROOM_CONFIG='{}'\n",
        env!("CARGO_BIN_EXE_strongroom"),
        config.display()
    );
    fs::write(Path::new(HOOKS).join("strongroom.env"), settings).unwrap();
    daemon.end("TERM");
    daemon.start();
}

/// Changes a byte of a file back and forth.
fn flip(file: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

struct Sealed {
    lab: Lab,
    tiny: Tiny,
    bench: Bench,
}

impl Sealed {
    fn says(&self, arguments: &[&str]) -> crate::common::running::Said {
        self.bench.says(&self.lab, arguments)
    }

    fn seal(&self) {
        self.says(&["seal", &self.tiny.name]).expect(0, &[]);
    }

    fn starts(&self) -> Result<(), String> {
        output_of(&mut virsh(["start", &self.tiny.name])).map(drop)
    }

    /// Starts the VM, which has to work, and takes it down again.
    #[track_caller]
    fn runs(&self) {
        self.starts().unwrap();
        run(&mut virsh(["destroy", &self.tiny.name]));
    }

    /// The VM does not start, and libvirt hands on why.
    #[track_caller]
    fn is_refused(&self, word: &str) {
        let error = self.starts().unwrap_err();
        assert!(error.contains(word), "{error}");
        assert_eq!(run(&mut virsh(["domstate", &self.tiny.name])), "shut off");
    }
}

#[test]
fn a_tampered_vm_does_not_start() {
    let Some(daemon) = OwnLibvirtd::enter(module_path!(), "a_tampered_vm_does_not_start") else {
        return;
    };
    let lab = Lab::new();
    let tiny = Tiny::define(&lab, "sealed");
    let mut bench = Bench::new(&lab, &[&tiny.name]);
    with_signing(&lab, &mut bench);
    let settings = Vm {
        swap: vec!["vdb".into()],
        ..Vm::default()
    };
    bench.config.vm.insert(tiny.name.clone(), settings.clone());
    tiny.set("vda", &noise(1, 5 << 20));
    let mut sealed = Sealed { lab, tiny, bench };
    install(&daemon, &sealed.bench, &sealed.lab);
    let vm = sealed.tiny.name.clone();
    let image = sealed.tiny.disk("vda");

    // Without a seal nothing is asked, and a running VM cannot be sealed.
    sealed.starts().unwrap();
    sealed.says(&["seal", &vm]).expect(1, &["it runs"]);
    run(&mut virsh(["destroy", &vm]));
    sealed.says(&["verify-image", &vm]).expect(1, &["there is none"]);

    // A seal holds until the next start, which uses it up.
    sealed.seal();
    sealed
        .says(&["verify-image", &vm])
        .expect(0, &["as it was sealed"]);
    sealed.runs();
    sealed.says(&["verify-image", &vm]).expect(1, &["there is none"]);
    sealed.runs();

    // A byte altered; the file longer; shorter.
    sealed.seal();
    flip(&image, 3 << 20);
    sealed
        .says(&["verify-image", &vm])
        .expect(1, &["disks/vda", "was altered"]);
    sealed.is_refused("was altered");
    flip(&image, 3 << 20);
    let length = fs::metadata(&image).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(length + 512).unwrap();
    sealed.is_refused("it was sealed with");
    file.set_len(length).unwrap();
    // Swap is not sealed unless asked for.
    flip(&sealed.tiny.disk("vdb"), 70_000);
    sealed.says(&["verify-image", &vm]).expect(0, &[]);

    // Another image in its place, a disk more: the definition that the start uses counts.
    let definition = run(&mut virsh(["dumpxml", "--inactive", &vm]));
    let other = sealed.lab.path("other.img");
    fs::copy(&image, &other).unwrap();
    flip(&other, 3 << 20);
    let define = |xml: &str| {
        let file = sealed.lab.path("definition.xml");
        fs::write(&file, xml).unwrap();
        run(virsh(["define"]).arg(&file));
    };
    define(&definition.replace(&image.display().to_string(), &other.display().to_string()));
    sealed.is_refused("was altered");
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>
         <target dev='vdc' bus='virtio'/></disk></devices>",
        other.display()
    );
    define(&definition.replace("</devices>", &disk));
    sealed.is_refused("disks/vdc");
    define(&definition);

    // Signed by another key.
    let thief = ssh_keygen(&sealed.lab.path("thief"), "thief");
    let signers = sealed.lab.path("allowed_signers");
    let ours = fs::read(&signers).unwrap();
    trust(&signers, "lab@test", &thief);
    sealed.is_refused("trust the seal");
    fs::write(&signers, ours).unwrap();
    sealed.runs();

    // Where a seal is required, none is a refusal; and so is a configuration that cannot be read.
    let required = Vm {
        require_seal: true,
        ..settings
    };
    sealed.bench.config.vm.insert(vm.clone(), required);
    let config = sealed.bench.config_file(&sealed.lab);
    sealed.is_refused("there is none");
    sealed.seal();
    sealed.runs();
    sealed.is_refused("there is none");
    sealed.seal();
    let text = fs::read(&config).unwrap();
    fs::write(&config, "nonsense = 1\n").unwrap();
    sealed.is_refused("nonsense");
    fs::write(&config, text).unwrap();
    sealed.runs();
}
