//! One module a command: takes settings and arguments, calls the engine, prints the result.

pub mod adopt;
pub mod attest;
pub mod audit;
pub mod backup;
pub mod backup_vm;
pub mod create;
pub mod hypervisor_rights;
pub mod init;
pub mod list;
pub mod recover;
pub mod reference;
pub mod release;
pub mod repo;
pub mod restore;
pub mod seal;
pub mod show;
mod signing_key;
pub mod status;
pub mod template;
pub mod thaw_watchdog;
pub mod verify;
