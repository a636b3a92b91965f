//! The layout of swap disks against the tools that make and read them: sfdisk, mkswap, swaplabel, blkid.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::FileExt, path::Path, process::Command};

use strongroom_disk::{BlockSource, Extent, RangeSet, ReadError, SwapArea, SwapLayout};
use uuid::Uuid;

const SIZE: u64 = 64 << 20;
const DISK_GUID: &str = "11111111-2222-4333-8444-555555555555";
const PART_GUID: &str = "AAAAAAAA-BBBB-4CCC-8DDD-EEEEEEEEEEEE";
const SWAP_UUID: &str = "01234567-89ab-4def-8123-456789abcdef";
const LINUX_SWAP: &str = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F";

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

fn run(program: &str, args: &[&str], stdin: &str) -> String {
    use std::{io::Write, process::Stdio};
    let mut child = Command::new(program)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A file that remembers what was read of it.
struct Disk {
    file: fs::File,
    seen: RangeSet,
}

impl Disk {
    fn open(path: &Path) -> Self {
        Self {
            file: fs::File::open(path).unwrap(),
            seen: RangeSet::new(),
        }
    }
}

impl BlockSource for Disk {
    fn size(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.seen
            .insert(ReadError::check_bounds(offset, buffer.len() as u64, self.size())?);
        self.file.read_exact_at(buffer, offset).unwrap();
        Ok(())
    }
}

fn blank(dir: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

fn recreate(layout: &SwapLayout, path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    for write in layout.write(SIZE).unwrap() {
        file.write_all_at(&write.bytes, write.offset).unwrap();
    }
}

#[test]
fn a_bare_swap_disk_goes_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let original = blank(&dir, "original");
    run(
        "mkswap",
        &["-U", SWAP_UUID, "-L", "my-swap", original.to_str().unwrap()],
        "",
    );
    let layout = SwapLayout::read(&mut Disk::open(&original)).unwrap();
    let area = SwapArea {
        uuid: uuid(SWAP_UUID),
        label: "my-swap".into(),
    };
    assert_eq!(layout, SwapLayout::Bare(area));

    let copy = blank(&dir, "copy");
    recreate(&layout, &copy);
    assert_eq!(
        fs::read(&original).unwrap(),
        fs::read(&copy).unwrap(),
        "mkswap writes the same bytes"
    );
    let label = run("swaplabel", &[copy.to_str().unwrap()], "");
    assert!(
        label.contains("LABEL: my-swap") && label.contains(SWAP_UUID),
        "{label}"
    );
    let probe = run("blkid", &["-p", "-o", "export", copy.to_str().unwrap()], "");
    assert!(
        probe.contains("TYPE=swap") && probe.contains(&format!("UUID={SWAP_UUID}")),
        "{probe}"
    );
}

/// A disk with a swap partition (sectors 2048 to 67583) and one that holds nothing known.
fn partitioned(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let disk = blank(dir, "original");
    let script = format!(
        "label: gpt\nlabel-id: {DISK_GUID}\n\
         size=32MiB, type={LINUX_SWAP}, uuid={PART_GUID}, name=\"auslagerungsfläche\", attrs=\"GUID:60\"\n\
         size=8MiB\n"
    );
    run("sfdisk", &["--quiet", disk.to_str().unwrap()], &script);
    let area = dir.path().join("area");
    fs::File::create(&area).unwrap().set_len(32 << 20).unwrap();
    run("mkswap", &["-U", SWAP_UUID, area.to_str().unwrap()], "");
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&fs::read(&area).unwrap(), 2048 * 512).unwrap();
    disk
}

fn sfdisk(disk: &Path) -> serde_json::Value {
    let dump: serde_json::Value =
        serde_json::from_str(&run("sfdisk", &["--json", disk.to_str().unwrap()], "")).unwrap();
    let mut table = dump["partitiontable"].clone();
    for partition in table["partitions"].as_array_mut().unwrap() {
        partition["node"] = serde_json::Value::Null; // The name of the file.
    }
    for changes in ["device", "firstlba"] {
        table[changes] = serde_json::Value::Null;
    }
    table
}

#[test]
fn a_partitioned_swap_disk_goes_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let original = partitioned(&dir);
    let layout = SwapLayout::read(&mut Disk::open(&original)).unwrap();
    let SwapLayout::Gpt {
        disk_guid,
        partitions,
    } = &layout
    else {
        panic!("{layout:?}")
    };
    assert_eq!(*disk_guid, uuid(DISK_GUID));
    assert_eq!(partitions.len(), 2);
    let swap = &partitions[0];
    assert_eq!((swap.number, swap.first_lba, swap.last_lba), (1, 2048, 67583));
    assert_eq!((swap.guid, swap.type_guid), (uuid(PART_GUID), uuid(LINUX_SWAP)));
    assert_eq!(
        (swap.name.as_str(), swap.attributes),
        ("auslagerungsfläche", 1 << 60)
    );
    assert_eq!(swap.swap.as_ref().unwrap().uuid, uuid(SWAP_UUID));
    assert_eq!(partitions[1].swap, None);

    let json = serde_json::to_string(&layout).unwrap();
    let layout: SwapLayout = serde_json::from_str(&json).unwrap();
    let copy = blank(&dir, "copy");
    recreate(&layout, &copy);
    assert_eq!(SwapLayout::read(&mut Disk::open(&copy)).unwrap(), layout);
    assert_eq!(sfdisk(&copy), sfdisk(&original));
    assert!(run("sfdisk", &["--verify", copy.to_str().unwrap()], "").contains("No errors detected"));
    let at = (2048 * 512).to_string();
    let probe = run(
        "blkid",
        &["-p", "-O", &at, "-o", "export", copy.to_str().unwrap()],
        "",
    );
    assert!(
        probe.contains("TYPE=swap") && probe.contains(&format!("UUID={SWAP_UUID}")),
        "{probe}"
    );

    // The tools agree about the copy at the end of the disk, too.
    fs::OpenOptions::new()
        .write(true)
        .open(&copy)
        .unwrap()
        .write_all_at(&[0; 4096], 512)
        .unwrap();
    assert_eq!(SwapLayout::read(&mut Disk::open(&copy)).unwrap(), layout);
    assert_eq!(sfdisk(&copy), sfdisk(&original));
}

#[test]
fn the_content_of_swap_is_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::open(&partitioned(&dir));
    SwapLayout::read(&mut disk).unwrap();
    let allowed = [
        (0, 34 * 512),
        (SIZE - 33 * 512, 33 * 512),
        (2048 * 512, 4096),
        (67584 * 512, 4096),
    ];
    let allowed: RangeSet = allowed
        .into_iter()
        .map(|(at, n)| Extent::new(at, n).unwrap())
        .collect();
    assert_eq!(disk.seen.subtract(&allowed), RangeSet::new());
}

#[test]
fn an_unknown_disk_is_blank() {
    let dir = tempfile::tempdir().unwrap();
    let path = blank(&dir, "blank");
    assert_eq!(
        SwapLayout::read(&mut Disk::open(&path)).unwrap(),
        SwapLayout::Blank
    );
    assert_eq!(SwapLayout::Blank.write(SIZE).unwrap(), []);
    assert_eq!(
        serde_json::to_string(&SwapLayout::Blank).unwrap(),
        r#"{"layout":"blank"}"#
    );
}
