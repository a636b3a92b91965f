//! Machines that are made: encrypted ones, the templates that they are made from, and the proof that a host has not read along.

pub mod attest;
pub mod create;
pub mod template;
