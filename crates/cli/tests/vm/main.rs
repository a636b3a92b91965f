//! Tests with virtual machines: without hardware virtualisation a guest that runs keeps a core busy, so few of them run
//! at the same time (`.config/nextest.toml`).

#[path = "../common/mod.rs"]
mod common;

mod audit;
mod backup_vm;
mod costs;
mod create;
mod damage;
mod disks;
mod files;
mod firmware;
mod hang;
mod headers;
mod identity;
mod interrupted;
mod kill;
mod oddities;
mod onto;
mod order;
mod outcomes;
mod own_daemon;
mod places;
mod quiesce;
mod refusals;
mod release;
mod remote;
mod restore;
mod rights;
mod rights_attacks;
mod seal;
mod snapshot;
mod spine;
mod storage;
mod tls;
mod together;
mod trust;
mod verify;
