//! Faults of the file system: power cuts, errors, flipped bits.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../stock/common.rs"]
mod common;
mod cut;
mod errors;
mod flips;
mod history;
mod memory;
#[allow(dead_code)]
#[path = "../stock/program.rs"]
mod program;
