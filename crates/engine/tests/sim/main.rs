//! Whole operations over a simulated host and stock Borg: no libvirt, no root, no machine that is emulated.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod bench;
mod course;
mod deaths;
mod faults;
mod parents;
