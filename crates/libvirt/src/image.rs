//! Whether an image can keep a dirty bitmap.
//!
//! QEMU keeps persistent bitmaps in qcow2 only, and there only in version 3 (`compat=1.1`): version 2 has no
//! feature bits to mark them with (QEMU's `docs/interop/qcow2.txt`).

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use strongroom_hypervisor::{Bitmaps, DiskSource};

/// Tells it from the format as defined and, for a qcow2 on this machine, from the version in its header.
pub fn bitmaps(format: &str, source: &DiskSource, local: bool) -> Bitmaps {
    if format != "qcow2" {
        return Bitmaps::Unsupported(format!("{format} has no place for a dirty bitmap"));
    }
    match source.path().filter(|_| local).and_then(header::<8>) {
        None => Bitmaps::Unknown,
        Some([b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2]) => Bitmaps::Unsupported(
            "qcow2 version 2 (compat=0.10) has no place for a dirty bitmap; `qemu-img amend -o compat=1.1` upgrades it"
                .into(),
        ),
        Some([b'Q', b'F', b'I', 0xfb, 0, 0, 0, 3]) => Bitmaps::Supported,
        Some(_) => Bitmaps::Unsupported("it does not begin like a qcow2 image of version 2 or 3".into()),
    }
}

/// Whether a qcow2 image holds snapshots, by their number in its header (`docs/interop/qcow2.txt`). One that cannot be read
/// holds none.
pub fn holds_snapshots(path: &Path) -> bool {
    let header = header::<64>(path);
    header.is_some_and(|bytes| bytes.starts_with(b"QFI\xfb") && !bytes.ends_with(&[0; 4]))
}

/// The first bytes. `None` when they cannot be read.
fn header<const LENGTH: usize>(path: &Path) -> Option<[u8; LENGTH]> {
    // Opening anything else (a pipe) might block.
    let kind = std::fs::metadata(path).ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let mut bytes = [0; LENGTH];
    File::open(path).ok()?.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{bitmaps, holds_snapshots};
    use strongroom_hypervisor::{Bitmaps, DiskSource};

    #[test]
    fn the_header_tells() {
        let dir = tempfile::tempdir().unwrap();
        let source = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            DiskSource::File(dir.path().join(name))
        };
        let told = |source: &DiskSource| bitmaps("qcow2", source, true);
        let v2 = source("v2", b"QFI\xfb\0\0\0\x02more");
        assert!(matches!(told(&v2), Bitmaps::Unsupported(why) if why.contains("version 2")));
        assert_eq!(
            bitmaps("qcow2", &v2, false),
            Bitmaps::Unknown,
            "another machine's file is not looked at"
        );
        assert_eq!(told(&source("v3", b"QFI\xfb\0\0\0\x03more")), Bitmaps::Supported);
        assert!(matches!(
            told(&source("v9", b"QFI\xfb\0\0\0\x09more")),
            Bitmaps::Unsupported(_)
        ));
        assert!(matches!(told(&source("raw", &[0; 512])), Bitmaps::Unsupported(_)));
        assert_eq!(told(&source("short", b"QFI")), Bitmaps::Unknown);
        // The number of snapshots stands in bytes 60 to 63.
        for (count, held) in [(0, false), (2, true)] {
            let mut bytes = [0; 104];
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            bytes[63] = count;
            let image = source("snapshots", &bytes);
            assert_eq!(holds_snapshots(image.path().unwrap()), held);
        }
        assert_eq!(
            told(&DiskSource::File(dir.path().join("absent"))),
            Bitmaps::Unknown
        );
        assert_eq!(told(&DiskSource::File(dir.path().into())), Bitmaps::Unknown);
        assert_eq!(told(&DiskSource::Other("network".into())), Bitmaps::Unknown);
        assert!(
            matches!(bitmaps("raw", &v2, true), Bitmaps::Unsupported(why) if why.starts_with("raw has no place"))
        );
    }
}
