//! Servers that lie, talk nonsense or fall silent.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{Read, Write},
    ops::ControlFlow,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use common::{MIB, Peer, chunk, negotiate, read, request};
use strongroom_disk::{BlockSource, Extent, Kind};
use strongroom_nbd::{Client, Error, Options, ReadOptions};

fn options() -> Options {
    Options {
        timeout: Duration::from_secs(1),
        ..Options::default()
    }
}

/// The error of connecting to a server that follows a script.
fn refusal(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> String {
    let begun = Instant::now();
    let error = Client::connect(&Peer::start(script).target, &options()).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    error.to_string()
}

#[test]
fn broken_handshakes_are_refused() {
    refusal(|_| {});
    refusal(|stream| stream.write_all(b"NBDMAG").unwrap());
    refusal(|stream| {
        stream
            .write_all(b"SSH-2.0-OpenSSH_9.2\r\nand more of it")
            .unwrap();
    });
    refusal(|stream| stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap());
    refusal(|stream| stream.write_all(&[0xff; 4096]).unwrap());
    // An answer to an option with a wrong magic, and one of 4 GiB.
    for reply in [
        [0xff; 20],
        *b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08\0\0\0\x01\xff\xff\xff\xff",
    ] {
        refusal(move |stream| {
            stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
            read::<20>(stream);
            stream.write_all(&reply).unwrap();
        });
    }
    let silent = refusal(|stream| {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert!(silent.contains("no answer within 1s"), "{silent}");
    // A disk of more bytes than a file offset can count.
    refusal(|stream| negotiate(stream, 1 << 63));
}

/// Connects to a server that negotiates well and then follows a script; the disk has 1 MiB.
fn client(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> (Peer, Client) {
    let peer = Peer::start(|stream| {
        negotiate(stream, MIB);
        script(stream);
        // Stays until the client goes.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let client = Client::connect(&peer.target, &options()).unwrap();
    assert_eq!(client.size(), MIB);
    (peer, client)
}

fn read_all(disk: &mut Client) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    let options = ReadOptions {
        stall: Some(Duration::from_secs(1)),
        ..ReadOptions::default()
    };
    let whole = Extent::new(0, MIB).unwrap();
    let flow = disk.read_pipelined([whole], &options, |_, bytes| {
        all = bytes;
        ControlFlow::Continue(())
    })?;
    assert!(flow.is_continue());
    Ok(all)
}

/// The error of reading from a server that answers a read with a script.
fn read_error(script: impl FnOnce(&mut UnixStream, [u8; 8]) + Send + 'static) -> Error {
    let (peer, mut disk) = client(|stream| {
        let (cookie, ..) = request(stream);
        script(stream, cookie);
    });
    let begun = Instant::now();
    let error = read_all(&mut disk).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(3));
    drop(disk);
    drop(peer);
    error
}

const DATA: u16 = 1;
const HOLE: u16 = 2;
const STATUS: u16 = 5;

#[test]
fn a_good_answer_is_accepted() {
    let (_peer, mut disk) = client(|stream| {
        let (cookie, ..) = request(stream);
        chunk(
            stream,
            false,
            DATA,
            cookie,
            &[&0u64.to_be_bytes()[..], &[7; 4096]].concat(),
        );
        let rest = [&4096u64.to_be_bytes()[..], &(MIB as u32 - 4096).to_be_bytes()].concat();
        chunk(stream, true, HOLE, cookie, &rest);
    });
    let bytes = read_all(&mut disk).unwrap();
    assert!(bytes[..4096].iter().all(|b| *b == 7) && bytes[4096..].iter().all(|b| *b == 0));
}

#[test]
fn bad_answers_to_reads_are_refused() {
    let lost = |error: Error| assert!(matches!(error, Error::Lost { what: "read", .. }), "{error:?}");
    lost(read_error(|stream, _| stream.write_all(&[0xaa; 64]).unwrap()));
    lost(read_error(|stream, cookie| {
        chunk(stream, true, DATA, cookie, &[0; 3]);
    }));
    lost(read_error(|stream, cookie| {
        // More than was asked for.
        chunk(
            stream,
            true,
            DATA,
            cookie,
            &[&(MIB - 1).to_be_bytes()[..], &[1; 4096]].concat(),
        );
    }));
    lost(read_error(|stream, cookie| {
        let outside = [&(1u64 << 40).to_be_bytes()[..], &4096u32.to_be_bytes()].concat();
        chunk(stream, true, HOLE, cookie, &outside);
    }));
    lost(read_error(|stream, mut cookie| {
        cookie[0] ^= 0x55;
        chunk(
            stream,
            true,
            DATA,
            cookie,
            &[&0u64.to_be_bytes()[..], &[1; 16]].concat(),
        );
    }));
    lost(read_error(|stream, cookie| {
        // A length of 4 GiB, of which little comes.
        stream.write_all(&0x668e_33ef_u32.to_be_bytes()).unwrap();
        stream.write_all(&[0, 1, 0, 1]).unwrap();
        stream.write_all(&cookie).unwrap();
        stream.write_all(&[0xff; 4]).unwrap();
    }));
    lost(read_error(|stream, cookie| {
        // The connection ends within the data.
        stream.write_all(&0x668e_33ef_u32.to_be_bytes()).unwrap();
        stream.write_all(&[0, 1, 0, 1]).unwrap();
        stream.write_all(&cookie).unwrap();
        stream
            .write_all(&[&(MIB as u32 + 8).to_be_bytes()[..], &[0; 5000]].concat())
            .unwrap();
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }));
}

#[test]
fn an_answer_with_gaps_is_no_answer() {
    let error = read_error(|stream, cookie| {
        chunk(
            stream,
            true,
            DATA,
            cookie,
            &[&0u64.to_be_bytes()[..], &[1; 4096]].concat(),
        );
    });
    assert!(
        matches!(error, Error::Command { what: "read", .. } | Error::Lost { .. }),
        "{error:?}"
    );
}

#[test]
fn a_server_that_stops_in_the_middle_is_given_up() {
    let error = read_error(|stream, cookie| {
        chunk(
            stream,
            false,
            DATA,
            cookie,
            &[&0u64.to_be_bytes()[..], &[1; 4096]].concat(),
        );
    });
    assert!(matches!(error, Error::Timeout { what: "read", .. }), "{error:?}");
}

fn status(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let numbers = extents.iter().flat_map(|(length, flags)| [*length, *flags]);
    std::iter::once(context)
        .chain(numbers)
        .flat_map(u32::to_be_bytes)
        .collect()
}

/// The result of asking for the allocation of a server that answers with these chunks.
fn allocation(answers: Vec<Vec<u8>>) -> Result<strongroom_disk::ExtentMap, Error> {
    let (_peer, mut disk) = client(move |stream| {
        let (cookie, ..) = request(stream);
        for (index, answer) in answers.iter().enumerate() {
            chunk(stream, index + 1 == answers.len(), STATUS, cookie, answer);
        }
    });
    disk.allocation()
}

#[test]
fn bad_block_status_is_refused() {
    let size = MIB as u32;
    assert!(allocation(vec![status(1, &[(4096, 0), (size - 4096, 3)])]).is_ok());
    let hostile = [
        vec![status(1, &[(0, 0), (size, 0)])],
        vec![status(1, &[(size, 0), (1, 0)])],
        vec![status(1, &[(u32::MAX, 3), (u32::MAX, 3)])],
        vec![status(1, &[(size, 0)]), status(1, &[(size, 3)])],
        vec![status(1, &[])],
        vec![status(2, &[(size, 3)])],
        vec![vec![0; 7]],
    ];
    for answers in hostile {
        let shown = format!("{answers:?}");
        let error = allocation(answers).unwrap_err();
        let refused = matches!(
            error,
            Error::Hostile { .. } | Error::Lost { .. } | Error::Command { .. }
        );
        assert!(refused, "{shown}: {error:?}");
    }
}

#[test]
fn short_block_status_is_asked_again() {
    let (_peer, mut disk) = client(|stream| {
        let mut expected = 0;
        for (length, flags) in [(512, 0), (65536, 3), (MIB as u32 - 512 - 65536, 0)] {
            let (cookie, offset, asked) = request(stream);
            assert_eq!((offset, asked), (expected, (MIB - expected) as u32));
            chunk(stream, true, STATUS, cookie, &status(1, &[(length, flags)]));
            expected += u64::from(length);
        }
    });
    let map = disk.allocation().unwrap();
    let runs: Vec<_> = map.iter().map(|(run, _)| (run.offset(), run.length())).collect();
    assert_eq!(runs, [(0, 512), (512, 65536), (66048, MIB - 66048)]);
}

#[test]
fn contexts_may_be_answered_to_different_lengths() {
    const HALF: u32 = 1 << 19;
    let peer = Peer::start(|stream| {
        negotiate(stream, MIB);
        let (cookie, offset, _) = request(stream);
        assert_eq!(offset, 0);
        chunk(stream, false, STATUS, cookie, &status(1, &[(4096, 0), (HALF, 3)]));
        chunk(stream, true, STATUS, cookie, &status(2, &[(8192, 1), (4096, 0)]));
        // Both have told about 12288 bytes.
        let (cookie, offset, _) = request(stream);
        assert_eq!(offset, 12288);
        chunk(
            stream,
            false,
            STATUS,
            cookie,
            &status(2, &[(MIB as u32 - 12288, 4)]),
        );
        chunk(
            stream,
            true,
            STATUS,
            cookie,
            &status(1, &[(HALF, 3), (HALF - 12288, 1)]),
        );
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let wanted = Options {
        dirty_bitmaps: vec!["b".into()],
        ..options()
    };
    let mut disk = Client::connect(&peer.target, &wanted).unwrap();
    let (map, dirty) = disk.block_status_all("b").unwrap();
    let runs: Vec<_> = map.iter().map(|(run, kind)| (run.offset(), kind)).collect();
    let half = u64::from(HALF);
    assert_eq!(
        runs,
        [(0, Kind::Data), (4096, Kind::Zero), (12288 + half, Kind::Data)],
        "a hole alone is data"
    );
    let dirty: Vec<_> = dirty.iter().map(|range| (range.offset(), range.end())).collect();
    assert_eq!(dirty, [(0, 8192), (12288, MIB)], "an unknown flag is dirty");
    drop(disk);
}

#[test]
fn endless_answers_are_given_up() {
    let (_peer, mut disk) = client(|stream| {
        let (cookie, ..) = request(stream);
        let answer = status(1, &[(4096, 0)]);
        let mut endless = Vec::new();
        endless.extend(0x668e_33ef_u32.to_be_bytes());
        endless.extend([0, 0, 0, STATUS as u8]);
        endless.extend(cookie);
        endless.extend((answer.len() as u32).to_be_bytes());
        endless.extend(answer);
        while stream.write_all(&endless).is_ok() {}
    });
    let begun = Instant::now();
    assert!(disk.allocation().is_err());
    assert!(disk.read_at(0, &mut [0]).is_err());
    assert!(begun.elapsed() < Duration::from_secs(4));
}
