//! What every verb works with while it runs.

pub mod context;
pub mod event;
pub mod plan;
pub mod reading;
pub mod settings;
pub mod state;
