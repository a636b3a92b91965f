//! What libvirt refuses an account with the rights of `strongroom hypervisor-rights`, and another account does for it.
//!
//! Whatever changes something is a sentence to a script on the hypervisor ([`crate::rights::words`]), said over ssh with the
//! same key to the account `NAME-jobs`. An account with all rights needs none of this: libvirt is asked first.

use std::ffi::OsString;
use std::time::Duration;

use strongroom_base::cancel::Cancel;
use strongroom_base::exec::{self, Call, Needs, Output};
use strongroom_hypervisor::{BackupJob, HotAddDisk, HypervisorError};
use virt::domain::Domain as Handle;
use virt::error::Error;

use crate::connection::{self, Libvirt};
use crate::hypervisor::{END_DEADLINE, is_busy_message};
use crate::rights::{jobs_account, old, words};
use crate::ssh;
use crate::uri::Uri;

/// How long ssh may take to say how it would reach a machine.
const ASK: Duration = Duration::from_secs(10);

impl Libvirt {
    /// Begins a backup job that libvirt has refused to begin for this account.
    pub(crate) fn begin_there(
        &self,
        handle: &Handle,
        job: &BackupJob,
        refusal: &Error,
    ) -> Result<(), HypervisorError> {
        let name = self.name_of(handle)?;
        let failed = |message: String| HypervisorError::Failed {
            what: format!("start a backup job on domain {name}"),
            message,
        };
        let sentence = words::begin(&name, job).map_err(failed)?;
        self.say(&sentence).map_err(|message| {
            if is_busy_message(&message) {
                HypervisorError::Busy {
                    domain: name.clone(),
                    message,
                }
            } else {
                failed(format!("{}; {message}", connection::words(refusal)))
            }
        })
    }

    /// Ends a backup job in the same way.
    pub(crate) fn end_there(&self, handle: &Handle, refusal: &Error) -> Result<(), HypervisorError> {
        let name = self.name_of(handle)?;
        self.say(&words::end(&name))
            .or_else(|message| self.said_of_old(&old::abort_command(&name), message))
            .map_err(|message| HypervisorError::Failed {
                what: format!("end the backup job of domain {name}"),
                message: format!("{}; {message}", connection::words(refusal)),
            })
    }

    /// Does something else in the same way.
    pub(crate) fn there(
        &self,
        handle: &Handle,
        what: String,
        refusal: &Error,
        sentence: impl FnOnce(&str) -> String,
    ) -> Result<(), HypervisorError> {
        let name = self.name_of(handle)?;
        self.say(&sentence(&name))
            .map_err(|message| HypervisorError::Failed {
                what,
                message: format!("{}; {message}", connection::words(refusal)),
            })
    }

    /// Attaches an export to another domain.
    pub(crate) fn attach_there(&self, to: &str, disk: &HotAddDisk<'_>, target: &str) -> Result<(), String> {
        let socket = disk.socket.to_str().ok_or("the socket's path is not in UTF-8")?;
        let digits = disk.serial.split('-').nth(1).unwrap_or_default();
        self.say(&words::attach(to, disk.vm, digits, disk.export, target))
            .or_else(|message| {
                let command = old::attach_command(to, disk.export, target, socket, disk.serial);
                self.said_of_old(&command, message)
            })
    }

    /// Detaches one.
    pub(crate) fn detach_there(&self, from: &str, target: &str) -> Result<(), String> {
        self.say(&words::detach(from, target))
            .or_else(|message| self.said_of_old(&old::detach_command(from, target), message))
    }

    /// Says a sentence to the account for jobs.
    fn say(&self, sentence: &str) -> Result<(), String> {
        let uri = Uri::parse(&self.reported).unwrap_or_default();
        let account = if let Some(user) = &uri.user {
            user.clone()
        } else {
            let said = run(&ssh::asking(&uri)?, ASK)?;
            let said = String::from_utf8_lossy(&said.out).into_owned();
            let account = ssh::account(&said);
            account
                .ok_or("ssh does not say which account it is let in as")?
                .to_owned()
        };
        let account = jobs_account(&account);
        done(&run(&ssh::as_account(&uri, &account, sentence)?, END_DEADLINE)?)
            .map_err(|message| format!("{account} on {}: {message}", uri.host))
    }

    /// Runs what an account with a shell may do itself, and one with the rights of version 0.1.0, where there is no
    /// account for jobs.
    fn said_of_old(&self, command: &str, message: String) -> Result<(), String> {
        let uri = Uri::parse(&self.reported).unwrap_or_default();
        match runs_itself(&uri, command)? {
            None => Err(message),
            Some(Rights::Shell) => Ok(()),
            Some(Rights::Old) => {
                self.has_old_rights();
                Ok(())
            }
        }
    }

    fn name_of(&self, handle: &Handle) -> Result<String, HypervisorError> {
        handle
            .name()
            .map_err(|error| self.failed("read a domain's name".into(), &error))
    }
}

/// What lets an account run a command of version 0.1.0 itself.
#[derive(Debug, PartialEq, Eq)]
enum Rights {
    /// A shell does as it is asked: an administrator's own account, which no other rights are waiting for.
    Shell,
    /// The forced command of version 0.1.0, which refuses all that it does not know.
    Old,
}

/// Runs a command in the account that the URI names, and finds out what has let it; nothing if it was refused.
fn runs_itself(uri: &Uri, command: &str) -> Result<Option<Rights>, String> {
    if !run(&ssh::on(uri, command)?, END_DEADLINE)?.status.success() {
        return Ok(None);
    }
    let anything = run(&ssh::on(uri, "true")?, ASK)?.status.success();
    Ok(Some(if anything { Rights::Shell } else { Rights::Old }))
}

fn run(command: &[OsString], time: Duration) -> Result<Output, String> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let call = Call {
        program,
        needs: Needs::Keys,
        arguments: arguments.iter().map(OsString::as_os_str).collect(),
        input: &[],
        time,
        limit: 64 << 10,
    };
    exec::run(&call, &Cancel::new()).map_err(|error| error.to_string())
}

fn done(output: &Output) -> Result<(), String> {
    if output.status.success() {
        Ok(())
    } else {
        Err(exec::words(output))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What an account answers that does this with the command it is given.
    fn answers(does: &str, command: &str) -> Option<Rights> {
        let directory = tempfile::tempdir().unwrap();
        let ssh = directory.path().join("ssh");
        let text = format!("#!/bin/sh\nfor last do :; done\n{does}\n");
        std::fs::write(&ssh, text).unwrap();
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
        let uri = Uri::parse(&format!("qemu+ssh://me@host/system?command={}", ssh.display())).unwrap();
        runs_itself(&uri, command).unwrap()
    }

    /// The forced command of 0.1.0 knows its own words alone. An account with a shell has no rights to be warned of.
    #[test]
    fn rights_of_0_1_0_are_told_from_a_shell() {
        let abort = old::abort_command("web");
        let forced = format!("[ \"$last\" = {} ]", exec::shell_word(&abort));
        assert_eq!(answers(&forced, &abort), Some(Rights::Old));
        assert_eq!(answers(&forced, &old::abort_command("other")), None);
        let shell = "virsh() { :; }; eval \"$last\"";
        assert_eq!(answers(shell, &abort), Some(Rights::Shell));
        assert_eq!(answers("exit 255", &abort), None, "ssh itself failed");
    }
}
