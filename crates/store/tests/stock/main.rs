//! Beside stock Borg: what it writes is read, what is written it accepts and goes on with.
//!
//! Its own repository class is driven call by call, and its command line for whole archives.
//! `STRONGROOM_TEST_BORG` names the program, if it is not to be the packaged one.

#![allow(clippy::unwrap_used)]

mod archives;
mod common;
mod interchange;
mod killed;
mod locks;
mod program;
mod reading;
mod writing;
