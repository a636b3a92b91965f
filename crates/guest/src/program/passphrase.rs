//! You type a passphrase. The port's other end is the operator's terminal, in raw mode, or a file descriptor that
//! you handed to QEMU; the program that started QEMU reads neither.

use std::fs::File;
use std::io::Write as _;

use zeroize::Zeroizing;

use super::Failed;
use super::channel::port;
use super::luks::Secret;
use crate::protocol::PASSPHRASE_PORT;

/// The longest passphrase, in bytes: as long as cryptsetup reads one from a terminal.
const MAX: usize = 512;
/// How often you may mistype.
const ATTEMPTS: usize = 3;

/// Asks for a new passphrase, or reads one line.
pub fn read(asked: bool, hostname: &str) -> Result<Secret, Failed> {
    let mut port = port(PASSPHRASE_PORT)?;
    if !asked {
        let secret = line(&mut port)?;
        return if secret.is_empty() {
            Err("read the passphrase: it is empty".into())
        } else {
            Ok(secret)
        };
    }
    for _ in 0..ATTEMPTS {
        let first = ask(&mut port, &format!("New passphrase for the disk of {hostname}: "))?;
        if first.is_empty() {
            say(&mut port, "An empty passphrase protects nothing.\r\n");
            continue;
        }
        if ask(&mut port, "The same again: ")? == first {
            return Ok(first);
        }
        say(&mut port, "They differ.\r\n");
    }
    Err("read the passphrase: none was typed twice".into())
}

fn say(port: &mut File, text: &str) {
    let _ = port.write_all(text.as_bytes());
}

fn ask(port: &mut File, question: &str) -> Result<Secret, Failed> {
    say(port, question);
    let answer = line(port);
    say(port, "\r\n");
    answer
}

/// One line without echo, as far as it is edited; the end of the file ends it, too.
fn line(port: &mut impl std::io::Read) -> Result<Secret, Failed> {
    let mut typed = Zeroizing::new(Vec::with_capacity(MAX));
    let mut byte = Zeroizing::new([0]);
    loop {
        match port.read(&mut byte[..]) {
            Ok(0) => return Ok(typed),
            Ok(_) => {}
            Err(error) => return Err(format!("read the passphrase: {error}")),
        }
        match byte[0] {
            b'\r' | b'\n' => return Ok(typed),
            // ctrl-C, ctrl-D: the terminal is raw, so that they arrive here.
            3 | 4 => return Err("read the passphrase: interrupted".into()),
            // Backspace, ctrl-U.
            8 | 127 => drop(typed.pop()),
            21 => typed.clear(),
            _ if typed.len() == MAX => {
                return Err(format!("read the passphrase: it has more than {MAX} bytes"));
            }
            other => typed.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_edited_and_ends() {
        let read = |bytes: &[u8]| line(&mut &*bytes).map(|line| line.to_vec());
        assert_eq!(read(b"secret\nrest").unwrap(), b"secret");
        assert_eq!(read(b"secret\r").unwrap(), b"secret");
        assert_eq!(read(b"secret").unwrap(), b"secret");
        assert_eq!(read(b"wrong\x15secx\x7fret\n").unwrap(), b"secret");
        assert!(read(b"sec\x03ret\n").unwrap_err().contains("interrupted"));
        assert!(read(&[b'x'; MAX + 1]).is_err());
    }
}
