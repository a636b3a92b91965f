//! The driver for repositories of Borg 1.x. No other file knows them.

mod convert;
mod opened;
mod repositories;
mod settings;

pub use self::repositories::{Question, Repositories};
pub use self::settings::{Compression, Encryption, HEADROOM, Location, Passphrase};
