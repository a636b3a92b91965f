//! What is looked at, and judged, and changed in nothing.

pub mod audit;
pub mod image_seal;
pub mod status;
pub mod storage;
