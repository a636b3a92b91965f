//! What every verb works with while it runs.

pub mod plan;
pub mod reading;
