//! What every backend of a port must do: one suite a port.

pub mod store;
