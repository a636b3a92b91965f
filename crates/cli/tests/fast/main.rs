//! Tests of the program that need no virtual machine.

#[path = "../common/mod.rs"]
mod common;

mod attest;
mod book;
mod corpus;
mod early;
mod formats;
mod init;
mod interrupts;
mod media;
mod places;
mod promises;
mod reference;
mod unit;
mod voice;
