//! Checks of the source text itself, without building it.
//!
//! [`source`] finds the paths that a file names, [`tree`] the files that they lead to, [`graph`] the circles among them, and
//! [`layers`] what ARCHITECTURE.md allows. The test `layers` puts them together: `make lint` runs it.

pub mod graph;
pub mod layers;
pub mod source;
pub mod tree;
