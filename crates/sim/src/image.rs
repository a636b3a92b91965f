//! Images, by QEMU's own tools. Formats are always named, never probed.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use strongroom_nbd::{Format, ImageInfo, image_info};

/// Makes an image, of so many bytes, or on top of another one.
pub fn create(image: &Path, format: &str, size: u64) {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", format]).arg(image);
    run(command.arg(size.to_string())).expect("make an image");
}

/// Makes an overlay.
pub fn overlay(image: &Path, base: &Path, format: &str) -> Result<(), String> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]);
    run(command.arg(base).arg(image)).map(drop)
}

/// Copies an image with its bitmaps.
pub fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let mut command = Command::new("cp");
    command.args(["--reflink=auto", "--sparse=always"]);
    run(command.arg(from).arg(to)).map(drop)
}

/// What is in a chain of images, as one that stands alone.
pub fn flatten(from: &Path, format: &str, to: &Path, as_format: &str) -> Result<(), String> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", format, "-O", as_format]);
    run(command.arg(from).arg(to)).map(drop)
}

/// Does something to the bitmaps of an image: actions of `qemu-img bitmap`, then the bitmap that they are about.
pub fn bitmap(image: &Path, actions: &[&str], name: &str) -> Result<(), String> {
    let mut command = Command::new("qemu-img");
    command.args(["bitmap", "-f", "qcow2"]).args(actions);
    run(command.arg(image).arg(name)).map(drop)
}

/// Merges an overlay into the image below it, whose bitmaps learn of it. The overlay stays as it is.
pub fn commit(overlay: &Path) -> Result<(), String> {
    let mut command = Command::new("qemu-img");
    run(command.args(["commit", "-q", "-d", "-f", "qcow2"]).arg(overlay)).map(drop)
}

/// Writes bytes of one value, as a guest would.
pub fn write(image: &Path, format: &str, pattern: u8, offset: u64, length: u64) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format, "-c"]);
    command.arg(format!("write -P {pattern} {offset} {length}"));
    run(command.arg(image)).expect("write as the guest");
}

/// Leaves an image as a QEMU does that is killed: its bitmaps are marked as in use.
pub fn crash(image: &Path) {
    let mut child = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run qemu-io");
    let (mut asked, mut answers) = (
        child.stdin.take().expect("its input"),
        child.stdout.take().expect("its output"),
    );
    asked.write_all(b"length\n").expect("ask qemu-io");
    // What it answers shows that the image is open.
    let mut byte = [0];
    while std::io::Read::read(&mut answers, &mut byte).expect("hear qemu-io") == 1 && byte != [b'\n'] {}
    child.kill().expect("kill qemu-io");
    child.wait().expect("wait for qemu-io");
}

/// What an image says of itself.
pub fn info(image: &Path, format: &str) -> Result<ImageInfo, String> {
    let format = if format == "qcow2" {
        Format::Qcow2
    } else {
        Format::Raw
    };
    image_info(image, format, false).map_err(|error| error.to_string())
}

pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
