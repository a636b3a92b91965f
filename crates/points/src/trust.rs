//! What makes a restore point believable to an auditor who trusts neither the repository's host nor the holder of the
//! repository's key: a signature over its manifest ([`signature`]), its position in the chain ([`chain`]), and a record of
//! the newest one that the repository cannot reach ([`ledger`], [`witness`]).
//!
//! Whatever is missing, unknown, expired or revoked is a failure here, never a warning.

pub mod chain;
pub mod grounds;
pub mod ledger;
pub mod order;
pub mod part;
mod position;
pub mod record;
pub mod settings;
pub mod signature;
pub mod standing;
pub mod witness;

pub use grounds::{Doubt, Grounds, Log};
pub use position::{Successor, remember, successor};
pub use signature::{NAMESPACE, Signer, SigningError, Untrusted};
pub use standing::{Standing, recall, witnessed};
