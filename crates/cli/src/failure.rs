//! An error on its way to the terminal: what failed, what to do about it, and the exit code.

use std::fmt;

use strongroom_engine::backup::BackupError;
use strongroom_engine::backup::plan::PlanError as Unplanned;
use strongroom_engine::backup::ready::NotReady;
use strongroom_engine::config::ConfigError;
use strongroom_engine::provision::create::CreateError;
use strongroom_engine::provision::template::TemplateError;
use strongroom_engine::restore::RestoreError;
use strongroom_engine::restore::plan::PlanError;
use strongroom_engine::restore::write::WriteError;
use strongroom_hypervisor::HypervisorError;
use strongroom_points::archive::PointError;
use strongroom_points::store::{Kind, StoreError};
use strongroom_points::trust::SigningError;

use crate::exit::Exit;

/// Why a command ends early.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What failed, as a fragment that fits "failed to …".
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The exit code.
    pub exit: Exit,
}

impl Failure {
    /// Something went wrong.
    pub fn failed(error: impl fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            hint: None,
            exit: Exit::Failed,
        }
    }

    /// The user asked for something that makes no sense.
    pub fn usage(error: impl fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            hint: None,
            exit: Exit::Usage,
        }
    }

    /// Adds advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let hint = match error.kind() {
            Kind::Replayed => Some(
                "an old copy may have been put back; `strongroom verify VM` has details, and `strongroom verify VM \
                 --acknowledge` accepts it",
            ),
            _ => error.hint(),
        };
        let hint = hint.map(str::to_owned);
        Self {
            hint,
            ..Self::failed(format!("use the repository: {error}"))
        }
    }
}

impl From<PointError> for Failure {
    fn from(error: PointError) -> Self {
        match error {
            PointError::Repository(error) => error.into(),
            PointError::None(_) => Self::usage(error),
            other => Self::failed(other),
        }
    }
}

impl From<NotReady> for Failure {
    fn from(error: NotReady) -> Self {
        let hint = match &error {
            NotReady::State(_) => {
                "no VM was touched; `state` in the configuration says where records are kept"
            }
            NotReady::Signing(SigningError::Exec(_)) => {
                "no VM was touched; [signing] needs ssh-keygen, which is a part of OpenSSH's client"
            }
            NotReady::Signing(SigningError::Refused { .. }) => {
                "no VM was touched; `ssh-keygen -Y sign -f KEY -n test < /dev/null` tests the key of [signing]. One with a \
                 passphrase needs an agent: `ssh-add KEY`"
            }
            NotReady::Signing(SigningError::Useless { .. } | SigningError::Signers { .. }) => {
                "no VM was touched; `allowed_signers` of [signing] has to be readable and to name the key"
            }
            NotReady::Witness(_) => {
                "no VM was touched; [witness] in the configuration says who is told of restore points"
            }
        };
        Self::failed(&error).hint(hint)
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Signing(error) => Self::failed(error).hint(
                "nothing was committed; test the key of [signing] with `ssh-keygen -Y sign -f KEY -n test < /dev/null`",
            ),
            BackupError::Repository(error) => error.into(),
            BackupError::Point(error) => error.into(),
            BackupError::Config(error @ (ConfigError::UnknownVm(_) | ConfigError::Ambiguous(..))) => Self::usage(error),
            BackupError::Plan(error @ Unplanned::Busy { .. }) => {
                Self::failed(error).hint("run the backup again when that is over; `virsh domjobinfo` shows it")
            }
            BackupError::Plan(error @ Unplanned::Snapshot { .. }) => Self::failed(error).hint(
                "let the program that took it merge it, or use `virsh blockcommit VM DISK --active --pivot`; then run \
                 the backup again",
            ),
            BackupError::Plan(
                error @ (Unplanned::Away(_)
                | Unplanned::Shared { .. }
                | Unplanned::Roles(_)
                | Unplanned::PassedThrough { .. }),
            ) => Self::failed(error),
            BackupError::RolledBack { ref vm, .. } => {
                let hint = format!(
                    "`strongroom verify {vm}` says what is missing; if the old copy was meant to be put back: `strongroom verify \
                     {vm} --acknowledge`, then run the backup again"
                );
                Self::failed(error).hint(hint)
            }
            BackupError::OtherVm {
                ref vm, ref other, ..
            } => {
                let hint = if vm == other {
                    format!("if {vm} was made anew: `strongroom backup {vm} --made-anew` once, and its restore points go on from there")
                } else {
                    format!("give {vm} a repository of its own: `repository` of the configuration with `{{vm}}` in it")
                };
                Self::failed(error).hint(hint)
            }
            BackupError::Plaintext { ref vm, .. } => {
                let hint = format!("encrypt it; or write `plaintext = true` into [vm.{vm}] of the configuration");
                Self::failed(error).hint(hint)
            }
            BackupError::Plan(error) => Self::usage(error),
            other => Self::failed(other),
        }
    }
}

impl From<TemplateError> for Failure {
    fn from(error: TemplateError) -> Self {
        let hint = match &error {
            TemplateError::NoKey => Some(
                "`strongroom init --signing-key /etc/strongroom/signing --unprotected-signing-key` makes one and trusts it",
            ),
            TemplateError::Untrusted { .. } | TemplateError::Changed { .. } => {
                Some("it is not used; remove it with `strongroom template rm` and build it anew")
            }
            TemplateError::None { .. } => {
                Some("`strongroom template list` lists them, `strongroom template build debian-12` makes one")
            }
            _ => None,
        };
        let failure = match error {
            TemplateError::Name(_) | TemplateError::NoKey => Self::usage(error),
            other => Self::failed(other),
        };
        Self {
            hint: hint.map(str::to_owned),
            ..failure
        }
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Input(error) => Self::usage(error),
            CreateError::File { ref source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => {
                Self::failed(error)
                    .hint("nothing that exists is replaced: choose another name or another place")
            }
            CreateError::Hypervisor(HypervisorError::Exists(..)) => Self::failed(error)
                .hint("choose another name; `strongroom init` puts an existing domain under protection"),
            other => Self::failed(other),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let hint = match &error {
            RestoreError::Plan(PlanError::Hypervisor(HypervisorError::Exists(..))) => Some(
                "restore under another name with --as, or replace it with --overwrite once it is shut off",
            ),
            RestoreError::NotTheNewest { .. } => Some(
                "`strongroom verify` says more, `strongroom list` what there is; VM@ARCHIVE restores one by name, \
                 --allow-rollback the newest that is left",
            ),
            RestoreError::Untrusted { .. } | RestoreError::Misplaced { .. } => Some(
                "`strongroom verify` has details; --unsigned restores it all the same, and then you trust its unknown writer",
            ),
            RestoreError::Disk {
                source: WriteError::Damaged { .. },
                ..
            } => Some("--keep-going restores the other disks; `borg check` tells what else is damaged"),
            _ => None,
        };
        match error {
            RestoreError::Repository(error) => error.into(),
            RestoreError::Point(error) => error.into(),
            other => Self {
                hint: hint.map(str::to_owned),
                ..Self::failed(other)
            },
        }
    }
}
