use super::{claims, powers};

const SERVER: &str = include_str!("../../tests/fixtures/server.xml");
const PLACED: [&str; 5] = ["vda", "sdb", "vdc", "nvme0n1", "hda"];

fn domain(head: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>{head}<devices>
         <emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>"
    )
}

/// What an ordinary guest has needs no signature.
#[test]
fn an_ordinary_definition_has_no_powers() {
    let os = "<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>
              <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
              <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/a.fd</nvram></os>
              <seclabel type='dynamic' model='apparmor' relabel='yes'/>";
    let devices = "<disk type='file' device='cdrom'><source file='/iso/debian.ISO'/><target dev='sda'/><readonly/></disk>
        <disk type='file' device='cdrom'><target dev='sdb'/><readonly/></disk>
        <disk type='file'><source file='/images/a.qcow2'/><target dev='vda'/></disk>
        <interface type='network'><source network='default'/></interface><serial type='pty'/>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
        <tpm><backend type='emulator'/></tpm><graphics type='vnc' port='-1' autoport='yes'/>";
    assert_eq!(
        powers(&domain(os, devices), &["vda"]).unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn what_acts_on_the_host_is_named() {
    assert_eq!(
        powers(SERVER, &PLACED).unwrap(),
        ["arguments of QEMU: commandline"]
    );
    for (head, devices, wanted) in [
        ("", "<emulator>/tmp/x</emulator>", "emulator /tmp/x"),
        (
            "",
            "<emulator>/usr/bin/qemu/../../../tmp/x</emulator>",
            "emulator /usr",
        ),
        ("<os><kernel>/boot/k</kernel></os>", "", "kernel /boot/k"),
        (
            "<os><cmdline>init=/bin/sh</cmdline></os>",
            "",
            "cmdline init=/bin/sh",
        ),
        ("<os><loader>/tmp/fw</loader></os>", "", "firmware /tmp/fw"),
        (
            "<os><nvram template='/etc/shadow'/></os>",
            "",
            "firmware /etc/shadow",
        ),
        ("<launchSecurity type='sev'/>", "", "launchSecurity sev"),
        ("<seclabel type='none'/>", "", "security label none"),
        ("<qemu:override/>", "", "arguments of QEMU: override"),
        (
            "<sysinfo type='fwcfg'><entry name='a' file='/etc/shadow'/></sysinfo>",
            "",
            "/etc/shadow",
        ),
        ("", "<hostdev type='pci'/>", "a device of the host: pci"),
        (
            "",
            "<filesystem><source dir='/root'/></filesystem>",
            "a directory of the host: /root",
        ),
        (
            "",
            "<serial type='file'><source path='/etc/cron.d/x'/></serial>",
            "leads to /etc/cron.d/x",
        ),
        (
            "",
            "<serial type='pty'><log file='/etc/cron.d/x'/></serial>",
            "a log in /etc/cron.d/x",
        ),
        (
            "",
            "<disk type='block' device='cdrom'><source dev='/dev/sda'/><target dev='sdz'/><readonly/></disk>",
            "disk sdz: /dev/sda",
        ),
        (
            "",
            "<disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='sdz'/><readonly/></disk>",
            "disk sdz: /etc/shadow",
        ),
        (
            "",
            "<interface type='ethernet'><script path='/tmp/x'/></interface>",
            "network interface: /tmp/x",
        ),
        (
            "",
            "<rng><backend model='random'>/etc/shadow</backend></rng>",
            "random numbers from /etc/shadow",
        ),
    ] {
        let found = powers(&domain(head, devices), &PLACED).unwrap();
        assert!(
            found.len() == 1 && found[0].contains(wanted),
            "{head}{devices}: {found:?}"
        );
    }
}

#[test]
fn what_only_one_can_have_is_known() {
    let xml = domain(
        "<os><nvram> /nvram/a.fd </nvram></os>",
        "<interface type='bridge'><mac address='52:54:00:AA:bb:cc'/><target dev='lan0'/></interface>
         <interface type='bridge'><target dev='vnet7'/></interface>
         <graphics type='vnc' port='5901' autoport='no'/><graphics type='spice' port='5902' autoport='yes'/>
         <vsock><cid auto='no' address='7'/></vsock>
         <hostdev type='pci'><source><address domain='0x0000' bus='0x65'/></source></hostdev>
         <serial type='unix'><source mode='bind' path='/run/a'/></serial>
         <serial type='tcp'><source mode='bind' service='4555'/></serial>",
    );
    let found: Vec<String> = claims(&xml).unwrap().into_values().collect();
    assert_eq!(
        found,
        [
            "the MAC address 52:54:00:aa:bb:cc",
            "the UEFI variable store /nvram/a.fd",
            "the host's device bus=0x65 domain=0x0000",
            "the network device lan0",
            "the port at /run/a",
            "the port number 4555",
            "the screen's port 5901",
            "the vsock number 7",
        ]
    );
}
