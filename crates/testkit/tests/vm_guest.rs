//! The test guest itself: it boots, writes what can be verified, and leaves nothing behind.

use std::process::Command;
use std::time::{Duration, Instant};

use strongroom_testkit::{Format, Lab, run};

fn virsh(args: &[&str]) -> String {
    run(Command::new("virsh")
        .args(["-q", "-c", "qemu:///system"])
        .args(args))
}

#[test]
fn a_guest_boots_writes_verifies_survives_a_power_cut_and_vanishes() {
    let lab = Lab::new();
    let dir = lab.dir().to_owned();
    let begin = Instant::now();
    let guest = lab.guest().disk(Format::Raw, 16).disk(Format::Qcow2V2, 16).boot();
    assert!(
        begin.elapsed() < Duration::from_mins(1),
        "booted only after {:?}",
        begin.elapsed()
    );
    assert_eq!(guest.state(), "running");
    assert!(guest.sh("cat /proc/swaps").contains("/dev/vdb"));
    assert_eq!(
        guest.sh("ls /sys/block | grep vd | tr '\\n' ' '"),
        "vda vdb vdc vdd "
    );
    virsh(&["qemu-agent-command", guest.name(), r#"{"execute":"guest-ping"}"#]);

    // Writing, measuring, and a load beside it.
    guest.probe("pattern start 1");
    guest.probe("load start 4");
    guest.probe("stats reset");
    std::thread::sleep(Duration::from_secs(2));
    let stats = guest.probe("stats");
    assert!(stats["writes"].as_u64().unwrap() > 10, "{stats}");
    assert_eq!(stats["errors"], 0, "{stats}");
    assert!(stats["max_us"].as_u64() >= stats["p99_us"].as_u64(), "{stats}");
    assert!(stats["p99_us"].as_u64() >= stats["p50_us"].as_u64(), "{stats}");
    assert!(stats["max_gap_us"].as_u64().unwrap() >= 2000, "{stats}");
    assert!(guest.probe("load stop")["mib"].as_u64().unwrap() > 0);

    let written = guest.probe("write 8");
    assert_eq!(written["bytes"], 8 << 20);
    let file = written["file"].as_str().unwrap();
    assert_eq!(
        guest.probe(&format!("hash {file}"))["sha256"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
    let found = guest.probe("verify");
    assert_eq!(
        (found["slots"].as_u64(), found["files"].as_u64()),
        (Some(4096), Some(1)),
        "{found}"
    );
    assert!(
        guest
            .try_probe("no such command")
            .unwrap_err()
            .contains("unknown command")
    );

    // The plug is pulled while it writes: what was acknowledged is there.
    let records = found["records"].as_u64().unwrap();
    guest.kill();
    assert_eq!(guest.state(), "shut off");
    guest.boot();
    let found = guest.probe("verify");
    assert!(found["records"].as_u64().unwrap() >= records, "{found}");
    guest.probe(&format!("delete {file}"));
    assert_eq!(guest.probe("verify")["files"], 0);
    guest.shutdown();

    let name = guest.name().to_owned();
    drop(lab);
    assert!(!virsh(&["list", "--all", "--name"]).contains(&name));
    assert!(!dir.exists());
}
