//! polkit, and accounts, for a test with a libvirtd of its own.
//!
//! Both need files that a test must not change for everybody: accounts, rules, the system bus. So the test's mount
//! namespace gets a private copy of `/etc`, an empty `/home`, and a system bus of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::daemon::{OwnLibvirtd, inside, wait};
use crate::run::{output_of, run};

/// Makes `/etc` and `/home` private, and starts a system bus and polkit. What libvirtd is to know of it, it learns when it
/// is started again.
pub fn start(_inside: &OwnLibvirtd, directory: &Path) {
    assert!(inside().is_some(), "only inside a namespace of the test's own");
    let etc = directory.join("etc");
    run(Command::new("cp").args(["-a", "/etc"]).arg(&etc));
    run(Command::new("mount").arg("--bind").arg(&etc).arg("/etc"));
    for (place, mode) in [("/home", "0755"), ("/run/dbus", "0755")] {
        fs::create_dir_all(place).expect("make a mount point");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("mode={mode}"), "tmpfs", place]));
    }
    run(Command::new("dbus-daemon").args(["--system", "--fork", "--nopidfile"]));
    // It ends with the namespace.
    run(Command::new("sh").args([
        "-c",
        "exec setsid /usr/lib/polkit-1/polkitd --no-debug </dev/null >/dev/null 2>&1 &",
    ]));
    wait("polkitd is not on the bus", || {
        let ask = output_of(Command::new("dbus-send").args([
            "--system",
            "--print-reply",
            "--dest=org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus.NameHasOwner",
            "string:org.freedesktop.PolicyKit1",
        ]));
        ask.is_ok_and(|answer| answer.contains("boolean true"))
    });
}
