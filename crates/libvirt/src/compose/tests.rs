use proptest::prelude::*;
use strongroom_hypervisor::{
    Accelerator, Boot, Channel, Console, DiskSource, Extras, Firmware, ImageFormat, LaunchSecurity, Network,
    NewDisk, NewDomain,
};

use super::{domain, mark_of};
use crate::definition::read;
use crate::xml::{child, children, parse};

fn minimal() -> NewDomain {
    NewDomain::new("web", "run-1", Accelerator::Kvm)
}

fn disk(target: &str) -> NewDisk {
    NewDisk {
        target: target.into(),
        file: format!("/images/{target}.qcow2").into(),
        format: ImageFormat::Qcow2,
        serial: Some(format!("S-{target}")),
        discard: true,
        read_only: false,
    }
}

fn kernel() -> Boot {
    Boot::Kernel {
        kernel: "/boot/vmlinuz".into(),
        initrd: "/boot/initrd".into(),
        cmdline: "console=ttyS0 a=\"b & c\"".into(),
    }
}

fn encrypted(security: LaunchSecurity) -> NewDomain {
    NewDomain {
        firmware: Firmware::Uefi,
        launch_security: Some(security),
        disks: vec![disk("vda")],
        network: Network::Libvirt("default".into()),
        ..minimal()
    }
}

#[test]
fn what_was_not_asked_for_is_ruled_out() {
    let xml = domain(&minimal()).unwrap();
    for part in [
        "<controller type=\"usb\" model=\"none\"/>",
        "<memballoon model=\"none\"/>",
        "<model type=\"none\"/>",
        "dumpCore=\"off\"",
        "<nosharepages/>",
        "<suspend-to-disk enabled=\"no\"/>",
        "<vmport state=\"off\"/>",
        "<rng model=\"virtio\">",
    ] {
        assert!(xml.contains(part), "{part} in {xml}");
    }
    for part in [
        "graphics",
        "spice",
        "clipboard",
        "interface",
        "<channel",
        "<serial",
        "<tpm",
        "launchSecurity",
        "pcie",
    ] {
        assert!(!xml.contains(part), "{part} in {xml}");
    }
}

#[test]
fn what_was_asked_for_is_there() {
    let new = NewDomain {
        extras: Extras {
            graphics: true,
            clipboard: true,
            usb: true,
            balloon: true,
        },
        tpm: true,
        watchdog: true,
        no_reboot: true,
        spare_ports: 2,
        network: Network::Bridge("br0".into()),
        console: Console::File("/var/log/a & b".into()),
        firmware: Firmware::SecureBoot,
        boot: kernel(),
        ..minimal()
    };
    let xml = domain(&new).unwrap();
    assert_eq!(xml.matches("model=\"pcie-root-port\"").count(), 2, "{xml}");
    for part in [
        "<graphics type=\"vnc\"",
        "<clipboard copypaste=\"yes\"/>",
        "model=\"qemu-xhci\"",
        "<memballoon model=\"virtio\"/>",
        "<tpm model=\"tpm-crb\">",
        "<watchdog ",
        "<on_reboot>destroy</on_reboot>",
        "<source bridge=\"br0\"/>",
        "path=\"/var/log/a &amp; b\"",
        "<feature enabled=\"yes\" name=\"enrolled-keys\"/>",
        "<loader secure=\"yes\"/>",
        "<smm state=\"on\"/>",
        "<kernel>/boot/vmlinuz</kernel>",
    ] {
        assert!(xml.contains(part), "{part} in {xml}");
    }
}

#[test]
fn keys_of_ones_own_are_not_the_vendors() {
    let new = NewDomain {
        firmware: Firmware::SecureBoot,
        variables: Some("/var/lib/vars.fd".into()),
        ..minimal()
    };
    let xml = domain(&new).unwrap();
    assert!(!xml.contains("enrolled-keys"), "{xml}");
    assert_eq!(
        read(&xml).unwrap().nvram.as_deref(),
        Some(std::path::Path::new("/var/lib/vars.fd"))
    );
}

#[test]
fn encrypted_memory_is_measured_and_shields_its_devices() {
    for (security, policy) in [
        (LaunchSecurity::Sev, "0x0007"),
        (LaunchSecurity::SevSnp, "0x30000"),
    ] {
        let new = NewDomain {
            boot: kernel(),
            ..encrypted(security)
        };
        let xml = domain(&new).unwrap();
        let document = parse(&xml, "domain").unwrap();
        let launch = child(document.root_element(), "launchSecurity").unwrap();
        assert_eq!(launch.attribute("type"), Some(security.name()));
        assert_eq!(launch.attribute("kernelHashes"), Some("yes"));
        assert_eq!(child(launch, "policy").unwrap().text(), Some(policy));
        let devices = child(document.root_element(), "devices").unwrap();
        for device in ["disk", "interface", "rng"] {
            let driver = child(child(devices, device).unwrap(), "driver").unwrap();
            assert_eq!(driver.attribute("iommu"), Some("on"), "{device}");
        }
        assert!(xml.contains("<loader stateless=\"yes\"/>") && xml.contains("<smm state=\"off\"/>"));
        let from_disk = domain(&encrypted(security)).unwrap();
        assert!(!from_disk.contains("kernelHashes"));
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let refused = |new: NewDomain, why: &str| {
        let error = domain(&new).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    let named = |name: &str| NewDomain {
        name: name.into(),
        ..minimal()
    };
    for name in ["", " ", "a/b", "a\nb", "a\0b", "\u{7f}"] {
        refused(named(name), "name");
    }
    let with = |disks: Vec<NewDisk>| NewDomain { disks, ..minimal() };
    refused(with(vec![disk("vda"), disk("vda")]), "twice");
    refused(with(vec![disk("sda")]), "not the target");
    refused(with(vec![disk("vdaa")]), "not the target");
    for serial in ["", "a b", "123456789012345678901", "a,b"] {
        let serial = Some(serial.to_owned());
        refused(
            with(vec![NewDisk {
                serial,
                ..disk("vda")
            }]),
            "serial number",
        );
    }
    let same = NewDisk {
        serial: Some("S-vda".into()),
        ..disk("vdb")
    };
    refused(with(vec![disk("vda"), same]), "serial number of another");
    let relative = NewDisk {
        file: "vda.qcow2".into(),
        ..disk("vda")
    };
    refused(with(vec![relative]), "not absolute");
    refused(
        NewDomain {
            mark: String::new(),
            ..minimal()
        },
        "mark",
    );
    refused(
        NewDomain {
            memory: 4096,
            ..minimal()
        },
        "memory",
    );
    refused(
        NewDomain {
            vcpus: 0,
            ..minimal()
        },
        "processors",
    );
    refused(
        NewDomain {
            machine: "q35 ".into(),
            ..minimal()
        },
        "machine type",
    );
    let channels = vec![Channel::guest_agent(), Channel::guest_agent()];
    refused(
        NewDomain {
            channels,
            ..minimal()
        },
        "twice",
    );
    let long = format!("/{}", "a".repeat(107));
    refused(
        NewDomain {
            console: Console::Socket(long.into()),
            ..minimal()
        },
        "more than 107",
    );
    let extras = Extras {
        clipboard: true,
        ..Extras::default()
    };
    refused(NewDomain { extras, ..minimal() }, "needs graphics");
    let variables = Some("/vars.fd".into());
    refused(
        NewDomain {
            variables: variables.clone(),
            ..minimal()
        },
        "BIOS",
    );
    let sev = || encrypted(LaunchSecurity::SevSnp);
    refused(
        NewDomain {
            accelerator: Accelerator::Tcg,
            ..sev()
        },
        "KVM",
    );
    refused(
        NewDomain {
            firmware: Firmware::Bios,
            ..sev()
        },
        "UEFI",
    );
    refused(
        NewDomain {
            firmware: Firmware::SecureBoot,
            ..sev()
        },
        "Secure Boot",
    );
    refused(NewDomain { variables, ..sev() }, "no variables");
}

#[test]
fn a_mark_is_found_where_it_was_put() {
    let new = NewDomain {
        mark: "run <1> & \"2\"".into(),
        ..minimal()
    };
    let xml = domain(&new).unwrap();
    assert_eq!(mark_of(&xml).unwrap(), Some(new.mark));
    let foreign = xml.replace("urn:strongroom:domain:1", "urn:other");
    assert_eq!(mark_of(&foreign).unwrap(), None);
    assert_eq!(mark_of("<domain><name>a</name></domain>").unwrap(), None);
    // Elsewhere it is no mark.
    let elsewhere = xml
        .replace("<metadata>", "<other>")
        .replace("</metadata>", "</other>");
    assert_eq!(mark_of(&elsewhere).unwrap(), None);
}

proptest! {
    /// Whatever can be written is read back as it was asked, and nothing beside it.
    #[test]
    fn texts_stay_in_their_places(
        name in "[^/\\pC\\s]\\PC{0,40}", mark in "\\PC{1,40}", path in "/\\PC{1,40}", cmdline in "\\PC{1,40}",
        network in "\\PC{1,40}", memory in 1_u64 << 20..1 << 46, vcpus in 1_u32..=1024,
    ) {
        let new = NewDomain {
            name: name.replace('/', "-"),
            mark,
            memory,
            vcpus,
            network: Network::Libvirt(network),
            disks: vec![NewDisk { file: path.into(), ..disk("vda") }],
            boot: Boot::Kernel { kernel: "/k".into(), initrd: "/i".into(), cmdline },
            ..minimal()
        };
        let xml = domain(&new).unwrap();
        let document = parse(&xml, "domain").unwrap();
        let root = document.root_element();
        let definition = read(&xml).unwrap();
        prop_assert_eq!(&definition.name, &new.name);
        prop_assert_eq!(definition.uuid, Some(new.uuid));
        prop_assert_eq!(definition.disks.len(), 1);
        prop_assert_eq!(&definition.disks[0].source, &DiskSource::File(new.disks[0].file.clone()));
        prop_assert_eq!(mark_of(&xml).unwrap(), Some(new.mark));
        let Boot::Kernel { cmdline, .. } = &new.boot else { unreachable!() };
        let os = child(root, "os").unwrap();
        prop_assert_eq!(child(os, "cmdline").unwrap().text(), Some(cmdline.as_str()));
        let devices = child(root, "devices").unwrap();
        let Network::Libvirt(network) = &new.network else { unreachable!() };
        let source = children(devices, "interface").next().and_then(|interface| child(interface, "source"));
        prop_assert_eq!(source.unwrap().attribute("network"), Some(network.as_str()));
        prop_assert_eq!(root.children().filter(roxmltree::Node::is_element).count(), 15);
        prop_assert_eq!(devices.children().filter(roxmltree::Node::is_element).count(), 6);
    }
}
