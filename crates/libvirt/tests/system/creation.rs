//! New domains: their definitions as libvirt's schema and driver see them, and their life.

use std::path::Path;
use std::process::Command;

use strongroom_hypervisor::{
    Accelerator, Boot, Channel, Console, Creation, Extras, Firmware, Hypervisor, HypervisorError,
    ImageFormat, LaunchSecurity, Network, NewDisk, NewDomain, RunState, Support,
};
use strongroom_libvirt::Libvirt;
use uuid::Uuid;

use crate::fixture::{Guest, URI, expect, unique_name, virsh};

fn connect() -> Libvirt {
    Libvirt::connect(URI).expect("libvirtd must run: scripts/setup starts it")
}

/// A machine with everything that this machine's QEMU can give.
fn everything(name: &str, dir: &Path) -> NewDomain {
    let disk = |target: &str, format, discard, read_only| NewDisk {
        target: target.into(),
        file: dir.join(format!("{target} & more.img")),
        format,
        serial: Some(format!("S-{target}_1.+")),
        discard,
        read_only,
    };
    NewDomain {
        memory: 64 << 20,
        vcpus: 2,
        firmware: Firmware::SecureBoot,
        disks: vec![
            disk("vda", ImageFormat::Qcow2, true, false),
            disk("vdb", ImageFormat::Raw, false, true),
        ],
        tpm: true,
        network: Network::User,
        channels: vec![
            Channel::guest_agent(),
            Channel {
                name: "org.strongroom.test".into(),
                socket: Some("/run/strongroom test.sock".into()),
            },
        ],
        console: Console::Terminal,
        watchdog: true,
        spare_ports: 2,
        extras: Extras {
            graphics: true,
            usb: true,
            balloon: true,
            clipboard: false,
        },
        ..NewDomain::new(name, "test & <mark>", Accelerator::Tcg)
    }
}

/// Every shape that can be asked for.
fn shapes(name: &str, dir: &Path) -> Vec<NewDomain> {
    let all = everything(name, dir);
    let minimal = NewDomain::new(name, "test", Accelerator::Tcg);
    let kernel = Boot::Kernel {
        kernel: dir.join("vmlinuz"),
        initrd: dir.join("initrd"),
        cmdline: "console=ttyS0 a=\"<b> & c\"".into(),
    };
    vec![
        NewDomain {
            firmware: Firmware::Uefi,
            console: Console::File(dir.join("console.log")),
            network: Network::Bridge("br0".into()),
            ..all.clone()
        },
        NewDomain {
            firmware: Firmware::Bios,
            console: Console::Socket("/run/console.sock".into()),
            network: Network::Libvirt("default".into()),
            no_reboot: true,
            boot: kernel,
            ..all.clone()
        },
        NewDomain {
            variables: Some(dir.join("vars.fd")),
            ..all.clone()
        },
        NewDomain {
            accelerator: Accelerator::Kvm,
            ..minimal.clone()
        },
        all,
        minimal,
    ]
}

fn encrypted(name: &str, security: LaunchSecurity) -> NewDomain {
    NewDomain {
        accelerator: Accelerator::Kvm,
        firmware: Firmware::Uefi,
        launch_security: Some(security),
        boot: Boot::Kernel {
            kernel: "/boot/vmlinuz".into(),
            initrd: "/boot/initrd".into(),
            cmdline: "quiet".into(),
        },
        network: Network::User,
        ..NewDomain::new(name, "test", Accelerator::Kvm)
    }
}

#[test]
fn every_definition_keeps_to_the_schema() {
    let libvirt = connect();
    let dir = tempfile::tempdir().unwrap();
    let (name, _cleanup) = unique_name(" <i>&amp;'\"");
    let mut all = shapes(&name, dir.path());
    all.extend([LaunchSecurity::Sev, LaunchSecurity::SevSnp].map(|security| encrypted(&name, security)));
    all.push(NewDomain {
        extras: Extras {
            graphics: true,
            clipboard: true,
            ..Extras::default()
        },
        ..NewDomain::new(&name, "test", Accelerator::Kvm)
    });
    let file = dir.path().join("domain.xml");
    for new in &all {
        std::fs::write(&file, libvirt.compose(new).unwrap()).unwrap();
        expect(Command::new("virt-xml-validate").arg(&file).arg("domain"));
    }
    // The schema does refuse what is wrong.
    let wrong = libvirt
        .compose(&all[0])
        .unwrap()
        .replace("<vcpu>2<", "<vcpu>two<");
    std::fs::write(&file, wrong).unwrap();
    let refused = Command::new("virt-xml-validate")
        .arg(&file)
        .arg("domain")
        .output();
    assert!(!refused.unwrap().status.success());
}

#[test]
fn every_definition_is_taken() {
    let libvirt = connect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("domain.xml");
    for (at, new) in shapes("x", dir.path()).into_iter().enumerate() {
        let (name, _cleanup) = unique_name(&format!("-shape{at}"));
        let new = NewDomain { name, ..new };
        std::fs::write(&file, libvirt.compose(&new).unwrap()).unwrap();
        expect(virsh().args(["define", "--validate"]).arg(&file));
        let defined = libvirt.domain(&new.name).unwrap();
        assert_eq!(defined.uuid, new.uuid);
        let targets: Vec<&str> = defined.disks.iter().map(|disk| disk.target.as_str()).collect();
        let asked: Vec<&str> = new.disks.iter().map(|disk| disk.target.as_str()).collect();
        assert_eq!(targets, asked);
        // What was ruled out stays out: libvirt adds no device of its own accord.
        if !new.extras.usb {
            for device in [
                "<graphics",
                "<memballoon model='virtio'",
                "qemu-xhci",
                "<sound",
                "<input type='tablet'",
            ] {
                assert!(!defined.xml.contains(device), "{device} in {}", defined.xml);
            }
        }
        libvirt.undefine(new.uuid, &new.mark).unwrap();
        assert!(matches!(
            libvirt.domain(&new.name),
            Err(HypervisorError::NoSuchDomain(..))
        ));
    }
}

#[test]
fn encrypted_memory_is_refused_with_the_hosts_reason() {
    let libvirt = connect();
    let host = libvirt.host().unwrap();
    assert_eq!(
        (&host.uefi, &host.secure_boot, &host.tpm),
        (&Support::Yes, &Support::Yes, &Support::Yes),
        "ovmf and swtpm are installed by scripts/setup"
    );
    for security in [LaunchSecurity::Sev, LaunchSecurity::SevSnp] {
        let (name, _cleanup) = unique_name("-sev");
        let new = encrypted(&name, security);
        let missing = new.missing(&host);
        let support = match security {
            LaunchSecurity::Sev => &host.sev,
            LaunchSecurity::SevSnp => &host.sev_snp,
        };
        // A machine that has the processor for it takes the definition; any other says why not.
        if let Support::No(why) = support {
            assert!(missing.iter().any(|line| line.contains(why)), "{missing:?}");
            assert!(
                why.contains("launch security") && why.contains("SEV"),
                "{why}: libvirt's own words are there"
            );
            assert!(libvirt.define(&libvirt.compose(&new).unwrap(), false).is_err());
        }
        // libvirt's driver for tests believes that its host has everything.
        let fake = Libvirt::connect("test:///default").unwrap();
        let uuid = fake.define(&fake.compose(&new).unwrap(), false).unwrap();
        assert_eq!(uuid, new.uuid);
    }
}

#[test]
fn only_what_bears_the_mark_is_touched() {
    let libvirt = connect();
    let (name, _cleanup) = unique_name("-life");
    let new = NewDomain {
        memory: 64 << 20,
        ..NewDomain::new(&name, "mine", Accelerator::Tcg)
    };
    libvirt.define(&libvirt.compose(&new).unwrap(), false).unwrap();
    let foreign = Guest::define("-foreign");
    for (uuid, mark) in [(new.uuid, "other"), (foreign.uuid, "mine")] {
        for result in [
            libvirt.start(uuid, mark),
            libvirt.destroy(uuid, mark),
            libvirt.undefine(uuid, mark),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("mark"), "{error}");
        }
    }
    libvirt.start(new.uuid, "mine").unwrap();
    libvirt.start(new.uuid, "mine").unwrap();
    assert_eq!(libvirt.domain(&name).unwrap().state, RunState::Running);
    let error = libvirt.undefine(new.uuid, "mine").unwrap_err().to_string();
    assert!(error.contains("it runs"), "{error}");
    libvirt.destroy(new.uuid, "mine").unwrap();
    libvirt.destroy(new.uuid, "mine").unwrap();
    assert_eq!(libvirt.domain(&name).unwrap().state, RunState::ShutOff);
    libvirt.undefine(new.uuid, "mine").unwrap();
    libvirt.undefine(new.uuid, "mine").unwrap();
    libvirt.destroy(new.uuid, "mine").unwrap();
    assert!(libvirt.start(new.uuid, "mine").is_err());
    assert!(libvirt.undefine(Uuid::new_v4(), "mine").is_ok());
}

#[test]
fn a_throwaway_machine_ends_with_its_connection() {
    let (name, _cleanup) = unique_name("-throwaway");
    let new = NewDomain {
        memory: 64 << 20,
        ..NewDomain::new(&name, "mine", Accelerator::Tcg)
    };
    let others = connect();
    let own = connect();
    let uuid = own.run_throwaway(&own.compose(&new).unwrap()).unwrap();
    assert_eq!(uuid, new.uuid);
    assert_eq!(others.domain(&name).unwrap().state, RunState::Running);
    assert!(
        own.run_throwaway(&own.compose(&new).unwrap()).is_err(),
        "the name is taken"
    );
    drop(own);
    let limit = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while others.domain_names().unwrap().contains(&name) {
        assert!(std::time::Instant::now() < limit, "it still runs");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // And it can be ended before.
    let own = connect();
    let new = NewDomain {
        uuid: Uuid::new_v4(),
        ..new
    };
    let uuid = own.run_throwaway(&own.compose(&new).unwrap()).unwrap();
    others.destroy(uuid, "mine").unwrap();
    assert!(!others.domain_names().unwrap().contains(&name));
}
