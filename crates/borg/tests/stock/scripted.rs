//! Peers that are no servers, or bad ones.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::common::{World, passphrase};
use strongroom_borg::{Access, Error, Repository, Transport, Value};

/// Opens a repository over a connection on which a thread plays the server.
fn open_with(script: impl FnOnce(UnixStream) + Send + 'static) -> Error {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || script(theirs));
    let world = World::new();
    let transport = Transport::from_streams(ours.try_clone().unwrap(), ours);
    let result = Repository::open_over(
        transport,
        &world.location,
        Access::Read,
        &world.settings,
        &passphrase(),
    );
    server.join().unwrap();
    result.expect_err("no such server is good enough")
}

/// Waits for a request, so that the reply does not come before it.
fn request(stream: &mut UnixStream) {
    let mut buffer = [0; 4096];
    assert!(stream.read(&mut buffer).unwrap() > 0);
}

fn reply(id: u64, result: Value) -> Vec<u8> {
    Value::map([("i", id.into()), ("r", result)]).pack()
}

fn version(numbers: [i64; 4]) -> Value {
    Value::map([("server_version", Value::Array(numbers.map(Value::from).to_vec()))])
}

#[test]
fn a_login_banner_is_no_reply() {
    let error = open_with(|mut stream| {
        request(&mut stream);
        stream.write_all(b"Welcome to this host\n").unwrap();
    });
    assert!(
        matches!(&error, Error::Protocol(text) if text.contains("Welcome")),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("login script"));
}

#[test]
fn a_server_that_leaves() {
    let error = open_with(|mut stream| request(&mut stream));
    assert!(matches!(error, Error::ServerGone { .. }), "{error}");
    let error = open_with(|mut stream| {
        request(&mut stream);
        let whole = reply(1, version([1, 2, 4, -1]));
        stream.write_all(&whole[..whole.len() - 3]).unwrap();
    });
    assert!(matches!(error, Error::ServerGone { .. }), "{error}");
}

#[test]
fn a_reply_to_something_else() {
    let error = open_with(|mut stream| {
        request(&mut stream);
        stream.write_all(&reply(7, Value::Nil)).unwrap();
    });
    assert!(matches!(error, Error::Protocol(_)), "{error}");
}

#[test]
fn an_endless_message() {
    let error = open_with(|mut stream| {
        request(&mut stream);
        // A map whose only value announces four gigabytes.
        stream.write_all(b"\x81\xa1r\xdb\xff\xff\xff\xff").unwrap();
    });
    assert!(
        matches!(&error, Error::Protocol(text) if text.contains("more than")),
        "{error}"
    );
}

#[test]
fn other_versions() {
    for numbers in [[2, 0, 0, -1], [1, 0, 13, -1]] {
        let error = open_with(move |mut stream| {
            request(&mut stream);
            stream.write_all(&reply(1, version(numbers))).unwrap();
        });
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }
}

#[test]
fn exceptions_become_typed_errors() {
    let open_error = |class: &'static str, args: Vec<Value>| {
        open_with(move |mut stream| {
            request(&mut stream);
            stream.write_all(&reply(1, version([1, 4, 0, -1]))).unwrap();
            request(&mut stream);
            let exception = [
                ("i", 2u64.into()),
                ("exception_class", class.into()),
                ("exception_args", Value::Array(args)),
            ];
            stream.write_all(&Value::map(exception).pack()).unwrap();
        })
    };
    assert!(matches!(
        open_error("LockTimeout", vec!["/r".into()]),
        Error::LockTimeout { .. }
    ));
    assert!(matches!(
        open_error("DoesNotExist", vec![]),
        Error::NotFound { .. }
    ));
    assert!(matches!(
        open_error("InvalidRepository", vec![]),
        Error::NotARepository { .. }
    ));
    assert!(matches!(
        open_error("AtticRepository", vec![]),
        Error::NotARepository { .. }
    ));
    assert!(matches!(
        open_error("PathNotAllowed", vec![]),
        Error::PathNotAllowed { .. }
    ));
    assert!(matches!(
        open_error("StorageQuotaExceeded", vec![]),
        Error::QuotaExceeded { .. }
    ));
    assert!(matches!(
        open_error("InsufficientFreeSpaceError", vec![]),
        Error::NoSpace { .. }
    ));
    assert!(matches!(
        open_error("OSError", vec![28u64.into(), "no space".into()]),
        Error::NoSpace { .. }
    ));
    assert!(matches!(
        open_error("OSError", vec![30u64.into()]),
        Error::PermissionDenied { .. }
    ));
    assert!(matches!(
        open_error("IntegrityError", vec!["x".into()]),
        Error::RepositoryDamaged { .. }
    ));
    let other = open_error("ZeroDivisionError", vec!["bad\x1bthing".into()]);
    assert!(
        matches!(&other, Error::Remote { class, message, .. } if class == "ZeroDivisionError" && message == "bad\\u{1b}thing")
    );
}
