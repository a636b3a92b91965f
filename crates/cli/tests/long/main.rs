//! Tests that take as long as they are told: they run only by `make` targets of their own.

#[path = "../common/mod.rs"]
mod common;

mod hang;
mod kill;
mod stall;
