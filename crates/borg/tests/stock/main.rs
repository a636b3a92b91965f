//! Tests against stock Borg, local and over a real sshd. `STRONGROOM_TEST_BORG` names the Borg to test against.

#![allow(clippy::unwrap_used)]

mod common;
mod failures;
mod hangs;
mod known;
mod late;
mod locations;
mod nonces;
mod ours;
mod scripted;
mod sshd;
mod theirs;
