//! What all backups need, looked at before the first VM is touched: records that can be written, a key that signs, a witness
//! that can be told.
//!
//! Each of them would else fail when the disks have been read, or when the restore point is there. What a single VM needs, its
//! repository above all, is looked at by its own run ([`super::run`]), so that one does not keep the others from their turn.

use std::time::Duration;

use strongroom_base::bounded;
use strongroom_base::cancel::Cancel;
use strongroom_base::record::RecordError;
use strongroom_points::trust::SigningError;
use strongroom_points::trust::signature;
use strongroom_points::trust::witness::{self, WitnessError};

use crate::run::settings::Settings;
use crate::run::state::{StateDirectory, StateError};

/// Why no backup can be made. No VM has been touched.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// Our records cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Nothing can be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The witness cannot be told.
    #[error(transparent)]
    Witness(#[from] WitnessError),
}

/// Looks at all of it.
pub fn check(settings: &Settings, cancel: &Cancel) -> Result<(), NotReady> {
    let path = settings.state_directory.clone();
    let limit = settings.limits().answer.unwrap_or(Duration::MAX);
    let records = path.clone();
    bounded::within(limit, cancel, move || StateDirectory::open(records)?.check())
        .map_err(|source| StateError::from(RecordError::Io { path, source }))??;
    if let Some(signing) = &settings.signing {
        signature::check_key(signing, cancel)?;
    }
    if let Some(witness) = &settings.witness {
        witness::check(witness, cancel)?;
    }
    Ok(())
}
