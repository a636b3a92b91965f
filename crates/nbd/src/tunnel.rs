//! A server behind a command: what the command reads and writes is the connection.
//!
//! It is how a socket on another machine is reached: `ssh HOST nc -U SOCKET` connects its own input and output to the
//! server there. The command is a child that does not outlive its user; what it complains about becomes the error.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Stdio},
    time::Duration,
};

use strongroom_child::Needs;

/// What is shown of its complaints, in bytes: the end.
const SHOWN: u64 = 600;
/// How long a command that has closed the connection may take to end, and so to say why.
const END: Duration = Duration::from_secs(2);

/// The running command. Ended on drop.
#[derive(Debug)]
pub(crate) struct Tunnel {
    child: Child,
    complaints: fs::File,
}

impl Tunnel {
    /// Starts it. Returns the near end of the connection as well.
    pub(crate) fn start(command: &[OsString]) -> io::Result<(Self, OwnedFd)> {
        let [program, arguments @ ..] = command else {
            return Err(io::Error::other("the command is empty"));
        };
        let (near, far) = UnixStream::pair()?;
        let complaints = tempfile::tempfile()?;
        let child = strongroom_child::command(program, Needs::Keys)
            .args(arguments)
            .stdin(OwnedFd::from(far.try_clone()?))
            .stdout(OwnedFd::from(far))
            .stderr(Stdio::from(complaints.try_clone()?))
            // A ctrl-C on the terminal is for us: what is under way is undone first.
            .process_group(0)
            .spawn()?;
        Ok((Self { child, complaints }, near.into()))
    }

    /// The command's own words about why it ended, on one line; nothing if it runs on and said nothing.
    pub(crate) fn words(&mut self) -> Option<String> {
        let status = strongroom_child::wait(&mut self.child, END).ok().flatten();
        let said = self.said().unwrap_or_default();
        let lines: Vec<&str> = said
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let said = lines.join("; ").replace(char::is_control, " ");
        match status {
            _ if !said.is_empty() => Some(said),
            Some(status) if !status.success() => Some(status.to_string()),
            _ => None,
        }
    }

    fn said(&mut self) -> io::Result<String> {
        let length = self.complaints.seek(SeekFrom::End(0))?;
        self.complaints
            .seek(SeekFrom::Start(length.saturating_sub(SHOWN)))?;
        let mut said = Vec::new();
        (&mut self.complaints).take(SHOWN).read_to_end(&mut said)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = strongroom_child::kill(&mut self.child, "the command to the disk's server");
    }
}
