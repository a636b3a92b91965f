//! File names that look like something else. A process of its own, for it changes its directory.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{MIB, qcow2, qemu_io};
use strongroom_disk::BlockSource;
use strongroom_nbd::{Client, Format, Options, QemuNbd, Serve};

#[test]
fn odd_file_names_are_only_file_names() {
    let dir = tempfile::tempdir().unwrap();
    std::env::set_current_dir(dir.path()).unwrap();
    for name in [
        "-v",
        "--help",
        "a,b=c,,d.qcow2",
        "nbd:unix:x",
        "json:{}",
        "ünï \"q\" $HOME 'x'\n",
        "%s\\",
    ] {
        let path = Path::new(name);
        qcow2(path, MIB, &[]);
        qemu_io(&dir.path().join(name), &["write -P 7 0 64k"]);
        let server = QemuNbd::start(path, &Serve::read_only(Format::Qcow2)).unwrap();
        let mut byte = [0];
        let mut disk = Client::connect(&server.target(), &Options::default()).unwrap();
        disk.read_at(65535, &mut byte).unwrap();
        assert_eq!(byte, [7], "{name}");
        assert_eq!(
            strongroom_nbd::image_info(path, Format::Qcow2, false)
                .unwrap()
                .virtual_size,
            MIB
        );
    }
}
