//! The client and the guarded server against the real `qemu-nbd`.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, ops::ControlFlow, path::Path, time::Duration};

use common::{MIB, qcow2, qemu_io, raw, run, wait_for};
use strongroom_disk::{BlockSource, Extent, ExtentMap, Kind, RangeSet};
use strongroom_nbd::{
    Backing, Cache, Client, Error, Format, Options, QemuNbd, ReadOptions, Serve, ServeError, Target,
    WriteOptions, Zeroing,
};

fn extent(offset: u64, length: u64) -> Extent {
    Extent::new(offset, length).unwrap()
}

fn connect(server: &QemuNbd) -> Client {
    Client::connect(&server.target(), &Options::default()).unwrap()
}

fn sample(dir: &Path) -> std::path::PathBuf {
    let image = dir.join("disk.qcow2");
    qcow2(
        &image,
        64 * MIB,
        &[
            "write -P 17 0 3M",
            "write -P 34 20M 64k",
            "write -z 21M 1M",
            "write -P 51 63M 1M",
        ],
    );
    image
}

#[test]
fn reads_a_qcow2_image_and_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample(dir.path());
    let server = QemuNbd::start(&image, &Serve::read_only(Format::Qcow2)).unwrap();
    let mut disk = connect(&server);
    assert_eq!(disk.size(), 64 * MIB);
    assert!(disk.read_only() && disk.can_multi_conn() && disk.has_allocation());
    assert_eq!(disk.block_sizes().maximum, 32 * MIB);

    let map = disk.allocation().unwrap();
    let data: RangeSet = [extent(0, 3 * MIB), extent(20 * MIB, 65536), extent(63 * MIB, MIB)]
        .into_iter()
        .collect();
    assert_eq!(map, ExtentMap::of_ranges(64 * MIB, &data, Kind::Data, Kind::Zero));
    let part = disk.allocation_of(extent(2 * MIB, 2 * MIB)).unwrap();
    assert_eq!(
        part,
        ExtentMap::of_ranges(2 * MIB, &RangeSet::all(MIB), Kind::Data, Kind::Zero)
    );

    let expected = raw(&image);
    for (depth, request_size) in [(1, 65536), (4, MIB), (16, 1 << 40)] {
        let mut copy = vec![0; expected.len()];
        let mut seen = RangeSet::new();
        let requests = map
            .ranges_of(Kind::Data)
            .iter()
            .flat_map(|e| e.pieces(3 * MIB / 2))
            .collect::<Vec<_>>();
        let options = ReadOptions {
            depth,
            request_size,
            ..ReadOptions::default()
        };
        let flow = disk.read_pipelined(requests, &options, |offset, bytes| {
            seen.insert(extent(offset, bytes.len() as u64));
            copy[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            ControlFlow::Continue(())
        });
        assert!(flow.unwrap().is_continue());
        assert_eq!(seen, data);
        assert!(copy == expected, "depth {depth}, requests of {request_size}");
    }
    let mut odd = vec![0; 12345];
    disk.read_at(3 * MIB - 777, &mut odd).unwrap();
    assert_eq!(odd, expected[3 * MIB as usize - 777..][..12345]);
    assert!(disk.read_at(64 * MIB - 1, &mut [0; 2]).is_err());
}

#[test]
fn breaking_off_leaves_the_connection_usable() {
    let dir = tempfile::tempdir().unwrap();
    let server = QemuNbd::start(&sample(dir.path()), &Serve::read_only(Format::Qcow2)).unwrap();
    let mut disk = connect(&server);
    let options = ReadOptions {
        depth: 16,
        request_size: 65536,
        ..ReadOptions::default()
    };
    for _ in 0..20 {
        let mut count = 0;
        let flow = disk.read_pipelined(extent(0, 3 * MIB).pieces(65536), &options, |_, _| {
            count += 1;
            if count == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(flow.unwrap().is_break());
        let mut byte = [0];
        disk.read_at(20 * MIB, &mut byte).unwrap();
        assert_eq!(byte, [34]);
    }
    let outside = disk.read_pipelined([extent(0, 512), extent(64 * MIB, 1)], &options, |_, _| {
        ControlFlow::Continue(())
    });
    assert!(matches!(outside, Err(Error::OutOfBounds { offset, .. }) if offset == 64 * MIB));
    assert!(
        disk.read_pipelined([extent(5, 0)], &options, |_, _| ControlFlow::Break(()))
            .unwrap()
            .is_continue()
    );
}

#[test]
fn dirty_bitmaps_are_read_or_refused_but_never_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample(dir.path());
    for bitmap in ["cp-1", "other"] {
        run(
            "qemu-img",
            [
                "bitmap",
                "-f",
                "qcow2",
                "--add",
                "-g",
                "64k",
                image.to_str().unwrap(),
                bitmap,
            ],
        );
    }
    run(
        "qemu-img",
        [
            "bitmap",
            "-f",
            "qcow2",
            "--disable",
            image.to_str().unwrap(),
            "other",
        ],
    );
    qemu_io(
        &image,
        &["write -P 1 10M 64k", "write -P 1 63M 128k", "discard 0 64k"],
    );
    let info = strongroom_nbd::image_info(&image, Format::Qcow2, false).unwrap();
    assert_eq!(info.virtual_size, 64 * MIB);
    let names: Vec<_> = info
        .bitmaps
        .iter()
        .map(|b| (b.name.as_str(), b.granularity, b.is_consistent()))
        .collect();
    assert_eq!(names, [("cp-1", 65536, true), ("other", 65536, true)]);

    let serve = Serve {
        bitmaps: vec!["cp-1".into(), "other".into()],
        ..Serve::read_only(Format::Qcow2)
    };
    let server = QemuNbd::start(&image, &serve).unwrap();
    let wanted = ["cp-1", "other", "missing"].map(String::from).to_vec();
    let options = Options {
        dirty_bitmaps: wanted,
        ..Options::default()
    };
    let mut disk = Client::connect(&server.target(), &options).unwrap();
    assert!(disk.has_bitmap("cp-1") && disk.has_bitmap("other") && !disk.has_bitmap("missing"));
    let expected: RangeSet = [
        extent(0, 65536),
        extent(10 * MIB, 65536),
        extent(63 * MIB, 131_072),
    ]
    .into_iter()
    .collect();
    assert_eq!(disk.dirty("cp-1").unwrap(), expected);
    assert_eq!(disk.dirty("other").unwrap(), RangeSet::new());
    let (map, dirty) = disk.block_status_all("cp-1").unwrap();
    assert_eq!(dirty, expected);
    assert_eq!(map, disk.allocation().unwrap());
    assert_eq!(
        map.at(0),
        Some(Kind::Zero),
        "a discarded cluster is dirty and zero"
    );
    for unknown in [
        disk.dirty("missing").err(),
        disk.block_status_all("missing").err(),
    ] {
        let unknown = unknown.unwrap();
        assert!(matches!(&unknown, Error::NoContext { context } if context == "qemu:dirty-bitmap:missing"));
    }
    assert!(
        matches!(connect(&server).dirty("cp-1"), Err(Error::NoContext { .. })),
        "not asked for"
    );
    let missing = Serve {
        bitmaps: vec!["missing".into()],
        ..Serve::read_only(Format::Qcow2)
    };
    assert!(
        QemuNbd::start(&image, &missing)
            .unwrap_err()
            .to_string()
            .contains("missing")
    );
}

#[test]
fn writes_a_new_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("new.qcow2");
    qcow2(&image, 16 * MIB, &["write -P 99 8M 2M"]);
    let server = QemuNbd::start(&image, &Serve::writable(Format::Qcow2)).unwrap();
    let mut disk = connect(&server);
    assert!(!disk.read_only());
    let mut expected = vec![0; 16 << 20];
    expected[8 << 20..10 << 20].fill(99);
    let mut writes = Vec::new();
    for (number, at) in (0u8..).zip((0..5 * MIB as usize).step_by(1_310_720)) {
        let block = vec![number + 1; 1_310_720];
        expected[at..at + block.len()].copy_from_slice(&block);
        writes.push((at as u64, block));
    }
    disk.write_pipelined(writes, &WriteOptions::default()).unwrap();
    disk.write_at(15 * MIB, b"last").unwrap();
    expected[15 << 20..][..4].copy_from_slice(b"last");
    disk.zero(extent(8 * MIB, MIB), Zeroing::MayTrim).unwrap();
    disk.zero(extent(9 * MIB, MIB), Zeroing::Allocate).unwrap();
    expected[8 << 20..10 << 20].fill(0);
    disk.flush().unwrap();
    assert!(disk.write_at(16 * MIB, b"x").is_err());
    drop(disk);
    server.stop().unwrap();
    assert!(raw(&image) == expected);
    run(
        "qemu-img",
        ["check", "-q", "-f", "qcow2", image.to_str().unwrap()],
    );

    let server = QemuNbd::start(&image, &Serve::read_only(Format::Qcow2)).unwrap();
    let mut disk = connect(&server);
    assert!(matches!(
        disk.write_at(0, b"x"),
        Err(Error::Command {
            what: "write",
            offset: 0,
            length: 1,
            ..
        })
    ));
    server.stop().unwrap();
}

#[test]
fn raw_images_are_never_probed() {
    let dir = tempfile::tempdir().unwrap();
    // A guest has written a qcow2 header into its raw disk.
    let image = dir.path().join("disk.raw");
    qcow2(&image, 64 * MIB, &[]);
    let sectors = fs::metadata(&image).unwrap().len().next_multiple_of(512);
    let server = QemuNbd::start(
        &image,
        &Serve {
            cache: Cache::None,
            ..Serve::read_only(Format::Raw)
        },
    )
    .unwrap();
    let mut disk = connect(&server);
    assert_eq!(disk.size(), sectors);
    let mut start = [0; 4];
    disk.read_at(0, &mut start).unwrap();
    assert_eq!(&start, b"QFI\xfb");
    let wrong = dir.path().join("plain.raw");
    fs::write(&wrong, vec![0; 4096]).unwrap();
    let error = QemuNbd::start(&wrong, &Serve::read_only(Format::Qcow2)).unwrap_err();
    assert!(error.to_string().contains("not in qcow2 format"), "{error}");
}

#[test]
fn backing_files_are_followed_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base.qcow2"), dir.path().join("top.qcow2"));
    qcow2(&base, MIB, &["write -P 5 0 1M"]);
    let args = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        base.to_str().unwrap(),
        top.to_str().unwrap(),
    ];
    run("qemu-img", args);
    let serve = |backing| Serve {
        backing,
        ..Serve::read_only(Format::Qcow2)
    };
    let first = |backing| {
        let server = QemuNbd::start(&top, &serve(backing)).unwrap();
        let mut byte = [0];
        connect(&server).read_at(0, &mut byte).unwrap();
        byte[0]
    };
    assert_eq!(first(Backing::Follow), 5);
    assert_eq!(first(Backing::Ignore), 0);
    let refused = QemuNbd::start(&top, &serve(Backing::Refuse));
    assert!(matches!(refused, Err(ServeError::Backing { other, .. }) if Path::new(&other) == base));

    let (split, data) = (dir.path().join("split.qcow2"), dir.path().join("data.raw"));
    let option = format!("data_file={},data_file_raw=on", data.display());
    run(
        "qemu-img",
        [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &option,
            split.to_str().unwrap(),
            "1M",
        ],
    );
    for backing in [Backing::Refuse, Backing::Ignore] {
        let refused = QemuNbd::start(&split, &serve(backing));
        assert!(matches!(refused, Err(ServeError::Backing { other, .. }) if Path::new(&other) == data));
    }
}

#[test]
fn an_image_in_use_is_only_peeked_at() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample(dir.path());
    let writer = QemuNbd::start(&image, &Serve::writable(Format::Qcow2)).unwrap();
    let refused = QemuNbd::start(&image, &Serve::read_only(Format::Qcow2)).unwrap_err();
    assert!(refused.to_string().contains("lock"), "{refused}");
    let server = QemuNbd::start(&image, &Serve::peek(Format::Qcow2)).unwrap();
    let mut byte = [0];
    connect(&server).read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [17]);
    writer.stop().unwrap();
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn the_server_ends_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample(dir.path());
    let server = QemuNbd::start(&image, &Serve::read_only(Format::Qcow2)).unwrap();
    let (pid, Target::Unix { path, .. }) = (server.pid(), server.target()) else {
        unreachable!()
    };
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path.parent().unwrap()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    let mut reader = connect(&server);
    assert!(alive(pid));
    drop(server);
    assert!(!alive(pid) && !path.exists() && !path.parent().unwrap().exists());
    assert!(
        reader.read_at(0, &mut [0]).is_err(),
        "the connection is cut, not left hanging"
    );

    let missing = QemuNbd::start(&dir.path().join("none"), &Serve::read_only(Format::Raw)).unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
    let long = dir.path().join("x".repeat(100));
    fs::create_dir(&long).unwrap();
    let error = QemuNbd::start_in(&long, &image, &Serve::read_only(Format::Qcow2)).unwrap_err();
    assert!(matches!(error, ServeError::SocketPath(_)), "{error}");
}

#[test]
fn a_server_killed_in_the_middle_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let server = QemuNbd::start(&sample(dir.path()), &Serve::read_only(Format::Qcow2)).unwrap();
    let mut disk = connect(&server);
    let mut count = 0;
    let options = ReadOptions {
        depth: 4,
        request_size: 65536,
        ..ReadOptions::default()
    };
    let result = disk.read_pipelined(extent(0, 3 * MIB).pieces(65536), &options, |_, _| {
        count += 1;
        if count == 2 {
            run("kill", ["-KILL", &server.pid().to_string()]);
            wait_for("the server's death", || !alive(server.pid()));
        }
        ControlFlow::Continue(())
    });
    assert!(
        matches!(result, Err(Error::Lost { what: "read", .. })),
        "{result:?}"
    );
    assert!(disk.flush().is_err() && disk.allocation().is_err());
    assert!(matches!(server.stop(), Err(ServeError::End { .. })));
}

#[test]
fn the_server_does_not_outlive_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample(dir.path());
    // This very test binary, as the process that is killed.
    let exe = std::env::current_exe().unwrap();
    let pid_file = dir.path().join("pid");
    let mut owner = std::process::Command::new(exe)
        .args(["--exact", "owner_to_be_killed", "--ignored", "--nocapture"])
        .env("TMPDIR", dir.path())
        .env("STRONGROOM_TEST_IMAGE", &image)
        .env("STRONGROOM_TEST_PID_FILE", &pid_file)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut pid = 0;
    wait_for("the owner's server", || {
        pid = fs::read_to_string(&pid_file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        pid != 0
    });
    assert!(alive(pid));
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for("the server's end", || !alive(pid));
}

/// Not a test of its own: what `the_server_does_not_outlive_a_killed_process` kills.
#[test]
#[ignore = "started by another test"]
fn owner_to_be_killed() {
    let (Ok(image), Ok(file)) = (
        std::env::var("STRONGROOM_TEST_IMAGE"),
        std::env::var("STRONGROOM_TEST_PID_FILE"),
    ) else {
        return;
    };
    let server = QemuNbd::start(Path::new(&image), &Serve::read_only(Format::Qcow2)).unwrap();
    let _client = connect(&server);
    fs::write(file, format!("{}\n", server.pid())).unwrap();
    std::thread::sleep(Duration::from_mins(1));
}
