//! The port against the system's libvirtd and real QEMU processes.

#![allow(clippy::unwrap_used)]

mod backup;
mod chains;
mod checkpoints;
mod conformance;
mod connections;
mod creation;
mod definitions;
mod fixture;
