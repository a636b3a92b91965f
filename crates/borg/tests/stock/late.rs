//! A server whose bad news come late: no reply may be missing when the next step refers to what it is about.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::common::{World, options, passphrase};
use strongroom_borg::msgpack::Reader;
use strongroom_borg::{Access, ChunkId, Compression, Error, Item, Repository, Transport, Value};

/// Nothing more is asked for: the client waits.
const QUIET: Duration = Duration::from_millis(300);

/// Which object's write fails.
#[derive(Clone, Copy, PartialEq)]
enum Fails {
    /// All but the manifest's.
    Content,
    /// The manifest's.
    Manifest,
}

/// What was asked for, in order: methods, and for a write whether it is the manifest's.
fn serve(mut stream: UnixStream, fails: Fails) -> Vec<String> {
    stream.set_read_timeout(Some(QUIET)).unwrap();
    let (mut buffer, mut held, mut asked, mut quiet) = (Vec::new(), Vec::new(), Vec::new(), 0);
    loop {
        let mut bytes = [0; 1 << 13];
        match stream.read(&mut bytes) {
            Ok(0) => return asked,
            Ok(count) => {
                buffer.extend_from_slice(&bytes[..count]);
                quiet = 0;
            }
            // It waits for us: the news that were held back.
            Err(_) if !held.is_empty() => stream.write_all(&std::mem::take(&mut held)).unwrap(),
            Err(_) => quiet += 1,
        }
        if quiet > 10 {
            return asked;
        }
        loop {
            let mut reader = Reader::new(&buffer);
            let Ok(request) = reader.value() else { break };
            buffer = reader.remaining().to_vec();
            let method = request.get("m").and_then(Value::as_str).unwrap().to_owned();
            let id = request.get("i").and_then(Value::as_u64).unwrap();
            let object = request.get("a").and_then(|arguments| arguments.get("id"));
            let is_manifest = object.and_then(Value::as_raw) == Some(&ChunkId::MANIFEST.0);
            let is_put = method == "put";
            let reply = match method.as_str() {
                "negotiate" => ok(id, version()),
                "open" => ok(id, Value::from(&[7; 32][..])),
                "get" => ok(id, Value::from(manifest().as_slice())),
                "put" if is_manifest == (fails == Fails::Manifest) => full(id),
                _ => ok(id, Value::Nil),
            };
            asked.push(if is_put && is_manifest {
                "put manifest".to_owned()
            } else {
                method
            });
            held.extend(reply);
            if !is_put || is_manifest {
                stream.write_all(&std::mem::take(&mut held)).unwrap();
            }
        }
    }
}

fn ok(id: u64, result: Value) -> Vec<u8> {
    Value::map([("i", id.into()), ("r", result)]).pack()
}

fn full(id: u64) -> Vec<u8> {
    let arguments = Value::Array(vec![28u64.into(), "no space".into()]);
    let exception = [
        ("i", id.into()),
        ("exception_class", "OSError".into()),
        ("exception_args", arguments),
    ];
    Value::map(exception).pack()
}

fn version() -> Value {
    let numbers = [1i64, 4, 0, -1].map(Value::from);
    Value::map([("server_version", Value::Array(numbers.to_vec()))])
}

/// An empty manifest of a repository without encryption.
fn manifest() -> Vec<u8> {
    let fields = Value::map([
        ("version", 1u64.into()),
        ("archives", Value::Map(Vec::new())),
        ("timestamp", "2026-11-30T00:00:00.000000".into()),
        ("config", Value::Map(Vec::new())),
    ]);
    [vec![2, 0, 0], fields.pack()].concat()
}

/// Commits an archive to such a server; gives the error and what was asked for.
fn commit(fails: Fails) -> (Error, Vec<String>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || serve(theirs, fails));
    let mut world = World::new();
    world.settings.accept_unencrypted = true;
    let transport = Transport::from_streams(ours.try_clone().unwrap(), ours);
    let (location, settings) = (&world.location, &world.settings);
    let repository =
        Repository::open_over(transport, location, Access::Write, settings, &passphrase()).unwrap();
    let mut writer = repository.begin(options("late", Compression::None)).unwrap();
    let write = || {
        let chunk = writer.put_data(b"content")?;
        writer.add_item(&Item::regular("disk", vec![chunk]))?;
        writer.commit().map(drop)
    };
    let error = { write }().expect_err("a write has failed");
    (error, server.join().unwrap())
}

/// A write fails, and the server says so only when it is waited for, or after the manifest's write.
#[test]
fn every_reply_is_read_before_the_manifest() {
    let (error, asked) = commit(Fails::Content);
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(asked.contains(&"put".to_owned()), "{asked:?}");
    assert!(!asked.contains(&"put manifest".to_owned()), "{asked:?}");
    assert!(!asked.contains(&"commit".to_owned()), "{asked:?}");
}

#[test]
fn a_manifest_that_was_not_written_is_not_committed() {
    let (error, asked) = commit(Fails::Manifest);
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert_eq!(
        asked.last().map(String::as_str),
        Some("put manifest"),
        "{asked:?}"
    );
}
