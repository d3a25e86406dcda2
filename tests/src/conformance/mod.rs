//! One suite a port: what every backend of it must do.

pub mod checks;
pub mod expiry;
pub mod inspect;
pub mod learning;
pub mod queue;
pub mod replay;
pub mod store;
pub mod sweeps;
pub mod watches;
