//! The template's file system, block by block, into the encrypted volume. Past the page cache: nothing of it is read
//! twice.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::mpsc;
use std::thread;

use super::channel::Channel;
use super::tool::run;
use super::{Failed, boot, luks};
use crate::protocol::{Message, TEMPLATE_DISK};

/// Bytes in one request.
const BLOCK: usize = 4 << 20;
/// What direct I/O wants buffers aligned to.
const ALIGN: usize = 4096;

/// A buffer for direct I/O.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; BLOCK + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, start, len: 0 }
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BLOCK]
    }

    fn full(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// Copies, and gives the copy an identity of its own.
pub fn template(channel: &Channel) -> Result<(), Failed> {
    let direct = |path: &str, write: bool| {
        OpenOptions::new()
            .read(!write)
            .write(write)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
            .open(path)
            .map_err(|error| format!("open {path}: {error}"))
    };
    let mut source = direct(&boot::disk(TEMPLATE_DISK)?, false)?;
    let mut target = direct(luks::DEVICE, true)?;
    let size = |file: &mut File| {
        let size = file.seek(SeekFrom::End(0));
        size.and_then(|size| file.rewind().map(|()| size))
            .map_err(|error| format!("look at the disks: {error}"))
    };
    let total = size(&mut source)?;
    if size(&mut target)? < total {
        return Err("copy the template: the disk is smaller than that".into());
    }
    // One reads while the other writes.
    let (filled, full) = mpsc::sync_channel::<Aligned>(2);
    let (emptied, empty) = mpsc::channel();
    for _ in 0..3 {
        let _ = emptied.send(Aligned::new());
    }
    thread::scope(|scope| {
        // Both ends go when this is left early: then the other thread ends, too.
        let (emptied, full) = (emptied, full);
        let reading = scope.spawn(move || -> std::io::Result<()> {
            while let Ok(mut buffer) = empty.recv() {
                buffer.len = source.read(buffer.room())?;
                if buffer.len == 0 || filled.send(buffer).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let mut done = 0;
        for buffer in full {
            target
                .write_all(buffer.full())
                .map_err(|error| format!("write to the new disk: {error}"))?;
            done += buffer.len as u64;
            channel.say(&Message::Progress { done, total });
            let _ = emptied.send(buffer);
        }
        match reading.join() {
            Ok(Ok(())) if done == total => Ok(()),
            Ok(Ok(())) => Err("read the template: it ends early".to_owned()),
            Ok(Err(error)) => Err(format!("read the template: {error}")),
            Err(_) => Err("read the template".to_owned()),
        }
    })?;
    drop(target);
    run("tune2fs", &["-U", "random", luks::DEVICE])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned() {
        let mut buffer = Aligned::new();
        assert_eq!(buffer.room().as_ptr() as usize % ALIGN, 0);
        assert_eq!(buffer.room().len(), BLOCK);
    }
}
