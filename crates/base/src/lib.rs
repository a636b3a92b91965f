//! What every part of Strongroom works with and none of its subjects: a flag that says "stop" ([`cancel`]), calls of other
//! programs ([`exec`]) and of a system that may hang ([`bounded`]), files that are replaced as a whole ([`record`]), threads
//! that share work ([`workers`]). No VM, no disk and no repository is known here.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod bounded;
pub mod cancel;
pub mod exec;
pub mod record;
pub mod workers;
