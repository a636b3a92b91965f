//! Servers with faults: errors at known places, delays, limits, TLS. All are `nbdkit`.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    num::NonZeroU64,
    ops::ControlFlow,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{MIB, Nbdkit, wait_for};
use strongroom_disk::{BlockSource, Extent, ExtentMap, Kind, ReadError};
use strongroom_nbd::{Client, Error, Options, ReadOptions, Target, TlsSettings, WriteOptions};
use strongroom_testkit::certificates;

fn connect(server: &Nbdkit) -> Client {
    Client::connect(&server.target(), &Options::default()).unwrap()
}

fn extent(offset: u64, length: u64) -> Extent {
    Extent::new(offset, length).unwrap()
}

/// The pattern plugin's disk: each eight bytes hold their own offset.
fn is_pattern(offset: u64, bytes: &[u8]) -> bool {
    (offset..)
        .step_by(8)
        .zip(bytes.chunks_exact(8))
        .all(|(at, word)| word == at.to_be_bytes())
}

#[test]
fn requests_are_split_and_put_together_again() {
    let args = ["--filter=blocksize-policy", "pattern", "size=64M"];
    let policy = [
        "blocksize-minimum=4096",
        "blocksize-preferred=65536",
        "blocksize-maximum=256k",
    ];
    let strict = ["blocksize-error-policy=error"];
    let server = Nbdkit::start(&[&args[..], &policy, &strict].concat());
    let mut disk = connect(&server);
    let blocks = disk.block_sizes();
    assert_eq!(
        (blocks.minimum, blocks.preferred, blocks.maximum),
        (4096, 65536, 256 << 10)
    );
    for depth in [1, 3, 32] {
        let options = ReadOptions {
            depth,
            request_size: 1 << 30,
            ..ReadOptions::default()
        };
        let mut total = 0;
        let requests = extent(0, 64 * MIB).pieces(5 * MIB);
        let flow = disk.read_pipelined(requests, &options, |offset, bytes| {
            assert!(is_pattern(offset, &bytes));
            total += bytes.len() as u64;
            ControlFlow::Continue(())
        });
        assert!(flow.unwrap().is_continue());
        assert_eq!(total, 64 * MIB);
    }
    let mut odd = vec![0; 1 << 20];
    disk.read_at(8 * 1001, &mut odd).unwrap();
    assert!(is_pattern(8 * 1001, &odd));
    disk.read_at(64 * MIB - 8, &mut odd[..8]).unwrap();
    assert!(is_pattern(64 * MIB - 8, &odd[..8]));
    let unaligned = disk.read_pipelined([extent(8, 8)], &ReadOptions::default(), |_, _| {
        ControlFlow::Continue(())
    });
    assert!(matches!(
        unaligned,
        Err(Error::Unaligned {
            offset: 8,
            length: 8,
            block: 4096,
            ..
        })
    ));
    assert!(disk.allocation_of(extent(1, 4096)).is_err());
}

#[test]
fn never_more_requests_in_flight_than_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let logfile = format!("logfile={}", log.display());
    let server = Nbdkit::start(&[
        "--filter=log",
        "--filter=delay",
        "pattern",
        "size=4M",
        "rdelay=5ms",
        &logfile,
    ]);
    for (depth, window, allowed) in [(0, 9, 1), (1, 9, 1), (3, 9, 3), (3, 2, 2), (3, 0, 1)] {
        fs::write(&log, "").unwrap();
        let window = AtomicUsize::new(window);
        let options = ReadOptions {
            depth,
            window: Some(&window),
            request_size: 65536,
            ..ReadOptions::default()
        };
        let go_on = |_, _: Vec<u8>| ControlFlow::Continue(());
        let flow = connect(&server).read_pipelined(extent(0, 4 * MIB).pieces(MIB), &options, go_on);
        assert!(flow.unwrap().is_continue());
        let (mut open, mut most, mut count) = (0, 0, 0);
        for line in fs::read_to_string(&log).unwrap().lines() {
            if line.contains("...Read ") {
                open -= 1;
            } else if line.contains(" Read ") {
                open += 1;
                count += 1;
            }
            most = most.max(open);
        }
        assert_eq!((most, count), (allowed, 64));
    }
}

#[test]
fn an_error_names_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let bad = r#"if [ "$4" -le 3000000 ] && [ $(($4 + $3)) -gt 3000000 ]; then echo EIO bad sector >&2; exit 1; fi
                 head -c "$3" /dev/zero"#;
    let script = format!("pread={bad}");
    let server = Nbdkit::start(&[
        "eval",
        "get_size=echo 8388608",
        "thread_model=echo parallel",
        &script,
    ]);
    let mut disk = connect(&server);
    let options = ReadOptions {
        depth: 4,
        request_size: 262_144,
        ..ReadOptions::default()
    };
    let mut seen = Vec::new();
    let result = disk.read_pipelined(extent(0, 8 * MIB).pieces(MIB), &options, |offset, _| {
        seen.push(offset);
        ControlFlow::Continue(())
    });
    // 3000000 lies in the request of 256 KiB at 2883584.
    let error = result.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Command {
                what: "read",
                offset: 2_883_584,
                length: 262_144,
                errno: 5,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().starts_with("read 262144 bytes at 2883584: "),
        "{error}"
    );
    assert!(
        !seen.contains(&(2 * MIB)),
        "a range with a bad sector is not handed over"
    );
    let mut byte = [0];
    let error = disk.read_at(3_000_000, &mut byte).unwrap_err();
    assert!(
        matches!(
            error,
            ReadError::Failed {
                offset: 3_000_000,
                length: 1,
                ..
            }
        ),
        "{error:?}"
    );
    disk.read_at(4_000_000, &mut byte).unwrap();

    let trigger = dir.path().join("fail");
    let error_file = format!("error-file={}", trigger.display());
    let server = Nbdkit::start(&[
        "--filter=error",
        "memory",
        "16M",
        "error=ENOSPC",
        "error-rate=1",
        &error_file,
    ]);
    let mut disk = connect(&server);
    disk.write_at(4096, &[1; 4096]).unwrap();
    fs::write(&trigger, "").unwrap();
    let writes = (0..16).map(|number| (number * MIB, vec![7; MIB as usize]));
    let error = disk
        .write_pipelined(writes, &WriteOptions::default())
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Command {
                what: "write",
                errno: 28,
                length: MIB,
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        disk.flush(),
        Err(Error::Command { what: "flush", .. }) | Ok(())
    ));
}

#[test]
fn a_cancel_ends_a_read_from_a_server_that_hangs() {
    let server = Nbdkit::start(&["--filter=delay", "pattern", "size=1G", "rdelay=60"]);
    let cancel = AtomicBool::new(false);
    let options = ReadOptions {
        depth: 4,
        cancel: Some(&cancel),
        ..ReadOptions::default()
    };
    let mut disk = connect(&server);
    let begun = Instant::now();
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            cancel.store(true, Ordering::Relaxed);
        });
        disk.read_pipelined(extent(0, 64 * MIB).pieces(4 * MIB), &options, |_, _| {
            ControlFlow::Continue(())
        })
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    // Also closing does not wait for the answers.
    drop(disk);
    assert!(
        begun.elapsed() < Duration::from_millis(700),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_silent_server_is_given_up() {
    let server = Nbdkit::start(&[
        "--filter=delay",
        "memory",
        "1G",
        "rdelay=60",
        "wdelay=60",
        "delay-extents=60",
    ]);
    let stall = Some(Duration::from_millis(300));
    let mut disk = connect(&server);
    let options = ReadOptions {
        stall,
        ..ReadOptions::default()
    };
    let begun = Instant::now();
    let result = disk.read_pipelined([extent(MIB, MIB)], &options, |_, _| ControlFlow::Continue(()));
    assert!(
        matches!(
            result,
            Err(Error::Timeout {
                what: "read",
                offset: MIB,
                ..
            })
        ),
        "{result:?}"
    );
    let result = disk.write_pipelined(
        [(0, vec![1; 512])],
        &WriteOptions {
            stall,
            ..WriteOptions::default()
        },
    );
    assert!(
        matches!(result, Err(Error::Timeout { what: "write", .. })),
        "{result:?}"
    );
    let options = Options {
        timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let mut disk = Client::connect(&server.target(), &options).unwrap();
    assert!(matches!(disk.allocation(), Err(Error::Timeout { .. })));
    assert!(disk.read_at(0, &mut [0]).is_err());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn slow_callbacks_are_not_the_servers_fault() {
    let server = Nbdkit::start(&["pattern", "size=8M"]);
    let stall = Some(Duration::from_millis(100));
    let options = ReadOptions {
        depth: 2,
        stall,
        ..ReadOptions::default()
    };
    let slow = |_, _: Vec<u8>| {
        thread::sleep(Duration::from_millis(150));
        ControlFlow::Continue(())
    };
    assert!(
        connect(&server)
            .read_pipelined(extent(0, 8 * MIB).pieces(MIB), &options, slow)
            .is_ok()
    );
}

#[test]
fn the_speed_is_limited() {
    let server = Nbdkit::start(&["pattern", "size=1G"]);
    let options = ReadOptions {
        depth: 4,
        request_size: 65536,
        bytes_per_second: NonZeroU64::new(20 * MIB),
        ..ReadOptions::default()
    };
    let begun = Instant::now();
    let go_on = |_, _: Vec<u8>| ControlFlow::Continue(());
    let flow = connect(&server).read_pipelined(extent(0, 20 * MIB).pieces(MIB), &options, go_on);
    assert!(flow.unwrap().is_continue());
    let seconds = begun.elapsed().as_secs_f64();
    assert!(
        (0.9..2.0).contains(&seconds),
        "20 MiB at 20 MiB/s took {seconds} s"
    );
}

#[test]
fn allocation_is_put_together_from_many_answers() {
    // A sparse disk larger than one query reaches, with data around the place where queries meet.
    let data = "data=@1073737728 1*8192 @3221225472 2*4096 @3221233664 3";
    let server = Nbdkit::start(&["data", data, "size=5G"]);
    let mut disk = connect(&server);
    let map = disk.allocation().unwrap();
    assert_eq!(map.size(), 5 << 30);
    assert!(map.is_all(extent(1_073_737_728, 8192), Kind::Data));
    assert_eq!(map.at(0), Some(Kind::Zero));
    assert!(map.total_of(Kind::Data) < MIB, "{map:?}");

    let plain = Nbdkit::start(&["--filter=noextents", "memory", "3G"]);
    assert_eq!(
        connect(&plain).allocation().unwrap(),
        ExtentMap::uniform(3 << 30, Kind::Data)
    );
    let options = Options {
        allocation: false,
        ..Options::default()
    };
    let mut blind = Client::connect(&plain.target(), &options).unwrap();
    assert!(!blind.has_allocation());
    assert!(matches!(blind.allocation(), Err(Error::NoContext { .. })));
}

#[test]
fn a_server_killed_while_reading_is_an_error() {
    let mut server = Nbdkit::start(&["--filter=delay", "pattern", "size=1G", "rdelay=2"]);
    let mut disk = connect(&server);
    let reader = thread::spawn(move || {
        let options = ReadOptions {
            depth: 4,
            ..ReadOptions::default()
        };
        disk.read_pipelined(extent(0, 64 * MIB).pieces(MIB), &options, |_, _| {
            ControlFlow::Continue(())
        })
    });
    thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    server.kill();
    let result = reader.join().unwrap();
    assert!(
        matches!(result, Err(Error::Lost { what: "read", .. })),
        "{result:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(1));
    let error = Client::connect(&server.target(), &Options::default()).unwrap_err();
    assert!(
        matches!(&error, Error::Connect { .. }) && error.to_string().contains("connect to export"),
        "{error}"
    );
}

#[test]
fn connects_by_uri() {
    let server = Nbdkit::start(&["memory", "1M"]);
    let Target::Unix { path, .. } = server.target() else {
        unreachable!()
    };
    let uri = Target::Uri(format!("nbd+unix:///?socket={}", path.display()));
    assert_eq!(Client::connect(&uri, &Options::default()).unwrap().size(), MIB);
    assert!(Client::connect(&Target::Uri("http://x/".into()), &Options::default()).is_err());
    let unusable = Target::Unix {
        path,
        export: "a\0b".into(),
    };
    assert!(matches!(
        Client::connect(&unusable, &Options::default()),
        Err(Error::Unusable { .. })
    ));
    let long = Target::Unix {
        path: "/x".repeat(54).into(),
        export: String::new(),
    };
    assert!(matches!(
        Client::connect(&long, &Options::default()),
        Err(Error::Unusable { .. })
    ));
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn tls_is_demanded_and_verified() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(dir.path());
    certificates(other.path());
    let port = free_port();
    let certs = format!("--tls-certificates={}", dir.path().display());
    let mut child = Command::new("nbdkit")
        .args([
            "-f",
            "-i",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "--tls=require",
            "--tls-verify-peer",
            &certs,
        ])
        .args(["memory", "2M"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("nbdkit", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let connect = |tls: Option<TlsSettings>| {
        let target = Target::Tcp {
            host: "localhost".into(),
            port,
            export: String::new(),
            tls,
        };
        Client::connect(&target, &Options::default()).map(|client| client.size())
    };
    let with = |dir: &Path| {
        Some(TlsSettings {
            certificates: dir.to_owned(),
            verify: true,
        })
    };
    let results = [
        connect(with(dir.path())),
        connect(with(other.path())),
        connect(None),
    ];
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(results[0], Ok(size) if size == 2 * MIB), "{results:?}");
    assert!(
        results[1..]
            .iter()
            .all(|result| matches!(result, Err(Error::Connect { .. }))),
        "{results:?}"
    );
    // And a server without TLS is not talked to when TLS is demanded.
    let port = free_port();
    let args = ["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "memory", "2M"];
    let mut child = Command::new("nbdkit").args(args).spawn().unwrap();
    wait_for("nbdkit", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let target = |tls| Target::Tcp {
        host: "127.0.0.1".into(),
        port,
        export: String::new(),
        tls,
    };
    let plain = Client::connect(&target(None), &Options::default());
    let demanded = Client::connect(&target(with(dir.path())), &Options::default());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        plain.is_ok() && matches!(demanded, Err(Error::Connect { .. })),
        "{demanded:?}"
    );
}
