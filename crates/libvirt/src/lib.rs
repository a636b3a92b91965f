//! Strongroom's hypervisor port ([`strongroom_hypervisor::Hypervisor`]) over libvirt.
//!
//! One [`Libvirt`] is one connection; it is shared between threads and reconnects by itself when libvirtd was
//! restarted. Everything goes through libvirt's public API: nothing of its state files is read or written, but for the one
//! repair that has to be asked for by name (`repair`).
//!
//! * `connection` opens a connection, keeps it alive and says where it leads; `uri` takes such an address apart, `ssh`
//!   reaches other sockets there, `storage` small files;
//! * `sys` wraps the calls that the `virt` crate lacks, the only unsafe code here; `events` counts what it hears;
//! * `definition` reads domain XML, `retarget` rewrites it, `job` speaks backup and checkpoint XML, all over the
//!   guards of `xml` and the tree of `tree`;
//! * `serving` says where a backup job's exports are served, and how they are reached: at a socket, or over TLS;
//! * `jobs` has another account do what libvirt refuses one with few rights;
//! * [`rights`] is what an account on a hypervisor needs, as text;
//! * `image` and `sockets` know the two facts that libvirt does not tell: an image's version, a domain's directory;
//! * `agent` talks to the guest agent, and believes nothing;
//! * `chains` says who names which image of a disk (definitions, and QEMU itself through `qemu`), and takes, commits
//!   and repairs external snapshots; `repair` mends libvirt's own memory of one;
//! * `capabilities` says whether backup jobs can run;
//! * `uses` says which files the domains use, `volumes` where a pool's volume lies; `running` puts the disks that a domain runs
//!   with into its definition;
//! * `compose` writes the definition of a new domain, `host` reads what its host can give it, `creation` makes it;
//! * [`machine`] reads from a definition which files a VM consists of, without a connection: for libvirt's hook;
//! * `hypervisor` puts the rest together behind the port.
//!
//! The `virt` crate is LGPL-2.1 and binds the system's libvirt dynamically.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod agent;
mod busy;
mod capabilities;
mod chains;
mod compose;
mod connection;
mod creation;
mod definition;
mod events;
mod host;
mod hotadd;
mod hypervisor;
mod identity;
mod image;
mod job;
mod jobs;
mod machine;
mod qemu;
mod reach;
mod repair;
mod retarget;
pub mod rights;
mod running;
mod serving;
mod sockets;
mod ssh;
mod storage;
mod sys;
mod tracking;
mod tree;
mod uri;
mod uses;
mod volumes;
mod xml;

#[doc(hidden)]
pub mod fuzzing;

pub use connection::Libvirt;
pub use machine::machine;
