//! Restore points: what an archive holds, and whether it is to be believed.
//!
//! A restore point is an archive with a [`manifest`], read as a [`restore_point::RestorePoint`]; its LUKS headers may be in a second one
//! ([`headers`]). [`catalog`] lists those of a repository in their order, [`selector`] finds one by name, and [`trust`] tells
//! whether they are what was made. Nothing here knows a hypervisor's calls, a journal or a configuration file.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod archive;
pub mod catalog;
pub mod digest;
pub mod firmware;
pub mod headers;
pub mod manifest;
pub mod names;
pub mod restore_point;
pub mod selector;
pub mod store;
#[cfg(test)]
mod testing;
pub mod trust;
