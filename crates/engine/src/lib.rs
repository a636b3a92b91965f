//! Strongroom's decisions: what is backed up, how, and how it comes back. No terminal, no libvirt headers.
//!
//! The story of a backup is [`backup::run`], that of a restore [`restore::run`]. Everything outside is reached
//! through the port [`strongroom_hypervisor::Hypervisor`], the Borg client and NBD; what an archive holds is in
//! [`strongroom_points`]; everything that happens is reported to an [`run::event::Observer`].

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod backup;
pub mod capture;
pub mod config;
pub mod files;
pub mod fleet;
pub mod inspect;
pub mod provision;
pub mod restore;
pub mod run;
#[cfg(test)]
mod testing;
pub mod verify;
