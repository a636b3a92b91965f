//! What trust rests on.

use std::path::Path;

use strongroom_base::cancel::Cancel;

use super::settings::{Signing, Witness};

/// Whose signatures are believed, who remembers, and where it is said what fails.
#[derive(Clone, Copy)]
pub struct Grounds<'a> {
    /// Who signs, and who is trusted.
    pub signing: Option<&'a Signing>,
    /// Who remembers, out of the repository's reach and out of ours.
    pub witness: Option<&'a Witness>,
    /// Our own records: the state directory.
    pub records: &'a Path,
    /// Hears of what fails.
    pub log: &'a dyn Log,
    /// Asks long work to stop.
    pub cancel: &'a Cancel,
}

impl<'a> Grounds<'a> {
    /// Who is trusted, if that is said.
    pub fn believed(&self) -> Option<&'a Signing> {
        self.signing.filter(|signing| signing.allowed_signers.is_some())
    }
}

/// What a warning about trust is about. The text may change, this does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// A restore point is missing, or the newest is not the one on record.
    RestorePointMissing,
    /// The restore points and the records tell different histories.
    HistoryForked,
    /// Our own records could not be read or written.
    Records,
    /// The witness could not be asked.
    WitnessNotAsked,
    /// The witness could not be told of a restore point.
    WitnessNotTold,
    /// Damaged chunks cannot be stored anew: the VM no longer has their content.
    DamageStays,
}

/// Hears of what is worth knowing, and of what is not as it should be. Shared between threads.
pub trait Log: Sync {
    /// Something is not as it should be, but the work goes on.
    fn warn(&self, doubt: Doubt, text: String);
    /// Something worth knowing.
    fn note(&self, text: String);
}
